"""What a program comes to, said without any communication; nothing of fsdray's is used here.

Where MPI leaves open which receive gets which message, the rules that it does give are checked.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.collective.schedules.programs import Line, Schedule, Step
from tests.collective.schedules.values import arrived, canon, folded, make

Part = tuple[int, ...]
"""Ranks of the world, in the order of their ranks in a communicator."""

_TAGS = 8  # that one step may use


@dataclass(frozen=True)
class Sent:
    """One message of a `traffic` step, between two places of a communicator."""

    index: int
    source: int
    dest: int
    tag: int
    line: Line

    def value(self) -> list[Any]:
        """What is sent."""
        return [self.index, make("bytearray", self.line.size, self.index, self.source)]


@dataclass(frozen=True)
class Receipt:
    """What a receive asked for (None: any), and what it was given; ranks are places."""

    source: int | None
    tag: int | None
    got: Any
    status: tuple[int, int]


@dataclass
class Meaning:
    """By rank of the world and step: what it returns; and the messages, by step and part."""

    results: list[dict[int, Any]]
    traffic: dict[tuple[int, int], tuple[int, list[Sent]]] = field(default_factory=dict)


def given(step: Step, part: Part, place: int) -> Any:
    """What the rank at a place of a communicator gives to a collective."""
    rank, size = part[place], len(part)
    match step.what:
        case "barrier":
            return None
        case "scatter" | "bcast" if place != step.root % size:
            return None
        case "scatter" | "alltoall" | "reduce_scatter":
            return [
                make(step.kind, step.size, (step.seed, dest), (rank, dest)) for dest in range(size)
            ]
        case "neighbor_alltoall":
            dests = [d for s, d in edges(step, size) if s == place]
            return {d: make(step.kind, step.size, step.seed, (rank, d)) for d in dests}
    return make(step.kind, step.size, step.seed, rank)


def edges(step: Step, size: int) -> list[tuple[int, int]]:
    """Who gives to whom in a neighbor_alltoall, by places."""
    draw = random.Random(step.seed)
    return [(s, d) for s in range(size) for d in range(size) if draw.random() < 0.4]


def returned(step: Step, values: list[Any], place: int) -> Any:
    """What a collective returns at a place, given what all ranks gave."""
    root, op = step.root % len(values), step.op
    match step.what:
        case "bcast":
            return arrived(values[root])
        case "scatter":
            return arrived(values[root][place])
        case "gather":
            return arrived(values) if place == root else None
        case "allgather":
            return arrived(values)
        case "alltoall":
            return [arrived(value[place]) for value in values]
        case "reduce":
            return folded(op, values) if place == root else None
        case "allreduce":
            return folded(op, values)
        case "reduce_scatter":
            return folded(op, [value[place] for value in values])
        case "scan":
            return folded(op, values[: place + 1])
        case "exscan":
            return folded(op, values[:place]) if place else None
        case "barrier":
            return None
        case "neighbor_alltoall":
            return {s: arrived(values[s][place]) for s in range(len(values)) if place in values[s]}
    raise ValueError(step.what)


def parts_of(step: Step, family: list[Part]) -> list[Part]:
    """The communicators that a split makes of others."""
    found = []
    for part in family:
        for color in sorted({step.colors[rank] for rank in part} - {None}):  # type: ignore[type-var]
            chosen = [rank for rank in part if step.colors[rank] == color]
            found.append(tuple(sorted(chosen, key=lambda r: (step.keys[r], part.index(r)))))
    return found


def messages(step: Step, at: int, size: int) -> list[Sent]:
    """The messages of a `traffic` step on a communicator of `size`."""
    return [
        Sent(index, line.source % size, line.dest % size, at * _TAGS + line.tag, line)
        for index, line in enumerate(step.lines)
    ]


def wanted(step: Step, sent: Sent) -> tuple[int | None, int | None]:
    """Source and tag that the receive asks for that is there for a message."""
    if sent.line.is_exact or step.wild == "none":
        return sent.source, sent.tag
    match step.wild:
        case "source":
            return None, sent.tag
        case "tag":
            return sent.source, None
    return None, None


def meaning(schedule: Schedule) -> Meaning:
    """What the whole program comes to, if nothing goes wrong."""
    size = schedule.size
    families: list[list[Part]] = [[tuple(range(size))]]
    found = Meaning([{} for _ in range(size)])
    for at, step in enumerate(schedule.steps):
        which = step.which % len(families)
        family = families[which]
        match step.what:
            case "wait":
                pass
            case "dup":
                families.append(family)
            case "free":
                if which:
                    del families[which]
            case "split":
                families.append(parts_of(step, family))
            case "traffic":
                for part in family:
                    sent = messages(step, at, len(part))
                    for rank in part:
                        found.traffic[rank, at] = part.index(rank), sent
            case _:
                for part in family:
                    for rank, result in zip(part, _results(step, part), strict=True):
                        found.results[rank][at] = result
    return found


def _results(step: Step, part: Part) -> Iterator[Any]:
    values = [given(step, part, place) for place in range(len(part))]
    if step.what in ("allgather", "allreduce"):
        same = canon(returned(step, values, 0))
        return iter([same] * len(part))
    return (canon(returned(step, values, place)) for place in range(len(part)))


def wrong_receipts(place: int, sent: list[Sent], got: Sequence[Receipt]) -> Iterator[str]:
    """What is wrong with what one rank received, in the order of its receives."""
    mine = {message.index: message for message in sent if message.dest == place}
    taken: dict[int, int] = {}
    for nth, receipt in enumerate(got):
        index = receipt.got[0] if isinstance(receipt.got, list) and receipt.got else None
        message = mine.get(index)  # type: ignore[arg-type]
        if message is None:
            yield f"receive {nth} was given {receipt.got!r}, which nobody sent to it"
            continue
        if index in taken:
            yield f"message {index} was received twice"
        taken[message.index] = nth
        if canon(receipt.got) != canon(message.value()):
            yield f"message {index} came with other bytes"
        if receipt.status != (message.source, message.tag):
            yield f"message {index} came with the status {receipt.status}"
        if receipt.source not in (None, message.source) or receipt.tag not in (None, message.tag):
            yield f"receive {nth} does not want message {index}"
    if len(taken) != len(mine):
        yield f"messages {sorted(set(mine) - set(taken))} were not received"
    # Of one source's messages that a receive wants, one that was sent before the one it was given
    # went to a receive before it.
    for index, nth in taken.items():
        for earlier in mine.values():
            if earlier.source == mine[index].source and earlier.index < index:
                wants = got[nth].tag in (None, earlier.tag)
                if wants and taken.get(earlier.index, len(got)) > nth:
                    yield f"message {index} overtook message {earlier.index}"
