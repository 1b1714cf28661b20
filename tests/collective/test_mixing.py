"""Random programs over random communicators, much of it in flight at once, answer as written."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import chain
from typing import Any

from hypothesis import given, note, settings
from hypothesis import strategies as st

from fsdray.collective import AsyncCommunicator, AsyncRequest
from fsdray.testing.faults import FaultyMessages, FaultyObjects
from tests.collective import CHANNELS, Services, noise, services

CALLS = ("allreduce", "allgather", "bcast", "alltoall", "scan", "barrier", "ring")
COLORS = st.sampled_from([None, 0, 1, 2])


@dataclass(frozen=True)
class Step:
    """What all ranks do next with one of their communicators; `which` is taken modulo their number.

    `colors` and `keys` are by rank of the world.
    """

    what: str
    which: int
    colors: tuple[int | None, ...] = ()
    keys: tuple[int, ...] = ()


@st.composite
def programs(draw: st.DrawFn) -> tuple[int, list[Step]]:
    size = draw(st.sampled_from([1, 2, 3, 5, 9]))
    which = st.integers(0, 5)
    split = st.builds(
        Step,
        what=st.just("split"),
        which=which,
        colors=st.tuples(*[COLORS] * size),
        keys=st.tuples(*[st.integers(-2, 2)] * size),
    )
    other = st.builds(Step, what=st.sampled_from([*CALLS * 2, "dup", "wait", "free"]), which=which)
    return size, draw(st.lists(st.one_of(other, other, other, split), min_size=3, max_size=14))


def value(step: int, rank: int) -> list[Any]:
    return [step, rank, bytes(noise(300 * (rank % 3), step))]


def begun(comm: AsyncCommunicator, what: str, mine: list[Any]) -> list[AsyncRequest]:
    """One operation of this rank, under way."""
    match what:
        case "allreduce":
            return [comm.iallreduce(mine)]
        case "allgather":
            return [comm.iallgather(mine)]
        case "bcast":
            return [comm.ibcast(mine, root=comm.size - 1)]
        case "alltoall":
            return [comm.ialltoall([(mine, dest) for dest in range(comm.size)])]
        case "scan":
            return [comm.iscan(mine)]
        case "barrier":
            return [comm.ibarrier()]
        case _:
            right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
            return [comm.isend(mine, right), comm.irecv(source=left)]


def meant(what: str, values: list[list[Any]], rank: int) -> list[Any]:
    """What `begun` comes to at `rank` of a communicator whose ranks gave these."""
    size = len(values)
    match what:
        case "allreduce":
            return [list(chain(*values))]
        case "allgather":
            return [values]
        case "bcast":
            return [values[-1]]
        case "alltoall":
            return [[(value, rank) for value in values]]
        case "scan":
            return [list(chain(*values[: rank + 1]))]
        case "barrier":
            return [None]
        case _:
            return [None, values[(rank - 1) % size]]


async def perform(world: AsyncCommunicator, steps: list[Step]) -> list[Any]:
    """The program as one rank runs it: what each of its operations came to, in their order."""
    order = random.Random(world.rank)  # another at each rank
    comms: list[AsyncCommunicator | None] = [world]
    under_way: list[tuple[int, AsyncRequest]] = []
    found: dict[int, Any] = {}

    async def wait() -> None:
        order.shuffle(under_way)
        for place, request in under_way:
            found[place] = await request
        under_way.clear()

    for at, step in enumerate(steps):
        which = step.which % len(comms)
        comm = comms[which]
        match step.what:
            case "wait":
                await wait()
            case "split":
                color, key = step.colors[world.rank], step.keys[world.rank]
                comms.append(None if comm is None else await comm.split(color, key))
            case "dup":
                comms.append(None if comm is None else await comm.dup())
            case "free":
                if which:
                    await wait()
                    if comm is not None:
                        await comm.free()
                    del comms[which]
            case what if comm is not None:
                for request in begun(comm, what, value(at, world.rank)):
                    under_way.append((len(found) + len(under_way), request))
    await wait()
    return [found[place] for place in sorted(found)]


def meaning(size: int, steps: list[Step]) -> list[list[Any]]:
    """What `perform` returns at each rank, without any communication."""
    # Each communicator as the parts that the world's ranks are in.
    families: list[list[list[int]]] = [[list(range(size))]]
    found: list[list[Any]] = [[] for _ in range(size)]
    for at, step in enumerate(steps):
        which = step.which % len(families)
        match step.what:
            case "wait":
                pass
            case "dup":
                families.append(families[which])
            case "free":
                if which:
                    del families[which]
            case "split":
                parts = []
                for part in families[which]:
                    for color in {step.colors[rank] for rank in part} - {None}:
                        chosen = [rank for rank in part if step.colors[rank] == color]
                        parts.append(sorted(chosen, key=lambda r: (step.keys[r], part.index(r))))
                families.append(parts)
            case what:
                for part in families[which]:
                    values = [value(at, rank) for rank in part]
                    for place, rank in enumerate(part):
                        found[rank] += meant(what, values, place)
    return found


@given(
    program=programs(),
    channel=st.sampled_from(CHANNELS),
    seed=st.integers(0, 2**32),
    is_faulty=st.booleans(),
)
@settings(max_examples=80, print_blob=True)
def test_communicators_and_operations_in_flight_at_once_do_not_mix(
    program: tuple[int, list[Step]], channel: str, seed: int, is_faulty: bool
) -> None:
    size, steps = program
    with services() as here:
        used = here
        if is_faulty:
            messages = FaultyMessages(here.messages, seed)
            objects = FaultyObjects(here.objects, seed, pause=0.002)
            note(f"{channel}, {messages!r}, {objects!r}")
            used = Services(messages, objects, here.inboxes, here.files)
        found = used.run(channel, size, lambda comm: perform(comm, steps), deadline=30)
        assert found == meaning(size, steps)
        assert here.files.list("") == []
