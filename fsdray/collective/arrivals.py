"""How messages are read that come to one inbox: which receives bring them, and when.

Pure functions, for a rank that reads as `fsdray.collective.channels.queue` does. The formulas of
`fsdray.collective.algorithms` are made of them; what is sent is in `forms`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias, TypeVar

from fsdray.costs.medium import Medium
from fsdray.services import MessageLimits, units

T = TypeVar("T")

Wave: TypeAlias = tuple[float, tuple[int, ...]]
"""Messages that come to an inbox together: after so many seconds, billed bytes of each."""

READERS = 16
"""Receives that a rank has under way where each one before came back full: one takes some 8 ms, and
brings 10 messages at most, so that the last of 4,095 ranks would be heard after 3 seconds."""


def received(frames: Sequence[int], limits: MessageLimits) -> list[tuple[int, int]]:
    """The receives of who finds these messages in its inbox, all at once, in this order.

    Each is given by how many messages it brings, and their billed bytes.
    """
    found, at = [], 0
    while at < len(frames):
        size, first = frames[at], at
        at += 1
        while (
            at < len(frames)
            and at - first < limits.receive_messages
            and size + frames[at] <= limits.receive
        ):
            size += frames[at]
            at += 1
        found.append((at - first, size))
    return found


def together_at(waves: Iterable[tuple[float, Sequence[T]]]) -> list[tuple[float, list[T]]]:
    """Waves by their time, those of one time as one."""
    at: dict[float, list[T]] = {}
    for seconds, some in waves:
        at.setdefault(round(seconds, 9), []).extend(some)
    return sorted(at.items(), key=lambda wave: wave[0])


def read(waves: Iterable[Wave], limits: MessageLimits) -> dict[str, float]:
    """What one reader asks for to whom these messages come, where it has read each wave in time.

    Full receives have it begin as many as what is still to come would fill; those that are not
    needed then are billed too.
    """
    receives, paid, full, waiting, total = 0, 0, 0, 0, 0
    for _, frames in together_at(waves):
        total += len(frames)
        if full:
            waiting = max(waiting, min(READERS, -(-len(frames) // full)))
        batches = received(frames, limits)
        receives += len(batches)
        paid += sum(units(size) for _, size in batches)
        waiting = max(0, waiting - len(batches))
        many, size = batches[-1]
        is_full = many >= limits.receive_messages or size > limits.receive - limits.message
        full = many if is_full else 0
    return {
        "receive": receives + waiting,
        "receive_units": paid + waiting,
        "acknowledge": -(-total // limits.acknowledge),
    }


def through(waves: Sequence[tuple[Wave, bool]], limits: MessageLimits, medium: Medium) -> float:
    """When a reader has read all those of these waves that it waits for, which are marked."""
    last = done = 0.0
    for at, marked in together_at(
        (at, [(n, is_wanted) for n in some]) for (at, some), is_wanted in waves
    ):
        wanted = max((i for i, (_, is_wanted) in enumerate(marked) if is_wanted), default=-1)
        last, count = max(last, at), 0
        for i, (many, _) in enumerate(received([size for size, _ in marked], limits)):
            read_at = last + medium.receive.median * -(-i // READERS)
            if count <= wanted:
                done = read_at
            count += many
        last = read_at
    return done
