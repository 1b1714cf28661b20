"""Random programs under faults by seed give the same bits as their meaning written down."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from fsdray.collective import ANY_SOURCE, AsyncCommunicator
from fsdray.collective.frames import Corrupted, unpack
from fsdray.errors import SettingsError
from fsdray.services import Delivery, Message, MessageLimits
from fsdray.testing.faults import FaultyMessages, FaultyObjects
from fsdray.testing.inprocess import run_ranks
from tests.collective import CHANNELS, Services, noise, services

CHANCES = ("duplicate", "delay", "reorder", "corrupt", "forget")


@dataclass(frozen=True)
class Step:
    """One operation of all ranks; `neighbors` says to whom each sends."""

    operation: str
    root: int
    length: int
    neighbors: tuple[tuple[int, ...], ...]


def value(rank: int, step: int, length: int) -> Any:
    """Floats whose sum depends on its order."""
    bits = np.random.default_rng([rank, step])
    return bits.standard_normal(length) * 10.0 ** bits.integers(-8, 8)


def add(left: Any, right: Any) -> Any:
    """Not commutative, and its floating-point result depends on its grouping."""
    return left + 0.5 * right


async def perform(comm: AsyncCommunicator, at: int, step: Step) -> Any:
    """One step as a rank does it."""
    mine = value(comm.rank, at, step.length)
    match step.operation:
        case "bcast":
            return await comm.bcast(mine, step.root)
        case "scatter":
            values = [value(rank, at, step.length) for rank in range(comm.size)]
            return await comm.scatter(values, step.root)
        case "gather":
            return await comm.gather(mine, step.root)
        case "allgather":
            return await comm.allgather(mine)
        case "reduce":
            return await comm.reduce(mine, add, step.root)
        case "allreduce":
            return await comm.allreduce(mine, add)
        case "barrier":
            return await comm.barrier()
        case "ring":
            # Two messages by tag, the later one first.
            for tag in (1, 2):
                await comm.send((tag, mine), (comm.rank + 1) % comm.size, tag=tag)
            source = (comm.rank - 1) % comm.size
            return [await comm.recv(source=source, tag=2), await comm.recv(source=source, tag=1)]
        case "collect":
            tag = 3 + at  # a fast rank's next one is not to be taken for this one
            await comm.send(mine, step.root, tag=tag)
            count = comm.size if comm.rank == step.root else 0
            got = [await comm.recv(source=ANY_SOURCE, tag=tag) for _ in range(count)]
            return sorted(array.tobytes() for array in got)
        case _:
            sends = {dest: (mine, dest) for dest in step.neighbors[comm.rank]}
            sources = [rank for rank in range(comm.size) if comm.rank in step.neighbors[rank]]
            return await comm.neighbor_alltoall(sends, sources)


def meaning(size: int, rank: int, at: int, step: Step) -> Any:
    """What `perform` must return, without any communication."""
    values = [value(each, at, step.length) for each in range(size)]
    is_root = rank == step.root
    match step.operation:
        case "bcast":
            return values[step.root]
        case "scatter":
            return values[rank]
        case "gather":
            return values if is_root else None
        case "allgather":
            return values
        case "reduce":
            return functools.reduce(add, values) if is_root else None
        case "allreduce":
            return functools.reduce(add, values)
        case "barrier":
            return None
        case "ring":
            return [(tag, values[(rank - 1) % size]) for tag in (2, 1)]
        case "collect":
            return sorted(array.tobytes() for array in values) if is_root else []
        case _:
            return {
                source: (values[source], rank)
                for source in range(size)
                if rank in step.neighbors[source]
            }


def bits(result: Any) -> Any:
    """A result with its arrays as bytes, so that equal means bit for bit."""
    if isinstance(result, np.ndarray):
        return result.tobytes()
    if isinstance(result, dict):
        return {key: bits(each) for key, each in result.items()}
    if isinstance(result, list | tuple):
        return [bits(each) for each in result]
    return result


OPERATIONS = (
    *("bcast", "scatter", "gather", "allgather", "reduce", "allreduce", "barrier"),
    *("ring", "collect", "neighbor_alltoall"),
)


@st.composite
def programs(draw: st.DrawFn) -> list[Step]:
    size = draw(st.sampled_from([1, 2, 3, 4, 5, 9]))
    rank = st.integers(0, size - 1)
    ranks = st.lists(rank, unique=True).map(tuple)
    step = st.builds(
        Step,
        operation=st.sampled_from(OPERATIONS),
        root=rank,
        length=st.sampled_from([0, 1, 100, 1000, 3000]),
        neighbors=st.tuples(*[ranks] * size),
    )
    return draw(st.lists(step, min_size=1, max_size=8))


async def perform_all(comm: AsyncCommunicator, steps: Sequence[Step]) -> list[Any]:
    return [await perform(comm, at, step) for at, step in enumerate(steps)]


async def perform_at_once(comm: AsyncCommunicator, steps: Sequence[Step]) -> list[Any]:
    """All collectives in flight together; sends, whose order matters, after them."""
    results: dict[int, Any] = {}
    together = [i for i, step in enumerate(steps) if step.operation not in ("ring", "collect")]
    tasks = {i: asyncio.create_task(perform(comm, i, steps[i])) for i in together}
    for i in range(len(steps)):
        results[i] = await (tasks[i] if i in tasks else perform(comm, i, steps[i]))
    return [results[i] for i in range(len(steps))]


class Audited(FaultyMessages):
    """Keeps what nobody had acknowledged when the inboxes were given back."""

    left: list[Delivery]

    async def release(self, inboxes: Sequence[str], *, is_broken: bool = False) -> None:
        self.left = [each for inbox in inboxes for each in self.unacknowledged(inbox)]
        await super().release(inboxes, is_broken=is_broken)


def is_damaged(delivery: Delivery) -> bool:
    try:
        unpack(delivery.body)
    except Corrupted:
        return True
    return False


# Small limits, so that small payloads travel in parts and multicasts are split.
SMALL = MessageLimits(message=4_000, batch=9_000, fanout=3, receive=20_000, receive_messages=4)


@given(
    steps=programs(),
    seed=st.integers(0, 2**32),
    channel=st.sampled_from(CHANNELS),
    chances=st.fixed_dictionaries({name: st.sampled_from([0.0, 0.2, 0.9]) for name in CHANCES}),
    limits=st.sampled_from([MessageLimits(), SMALL]),
    is_at_once=st.booleans(),
)
@settings(max_examples=40, print_blob=True)
def test_programs_under_faults_give_the_bits_of_their_meaning(
    steps: list[Step],
    seed: int,
    channel: str,
    chances: dict[str, float],
    limits: MessageLimits,
    is_at_once: bool,
) -> None:
    size = len(steps[0].neighbors)
    program = perform_at_once if is_at_once else perform_all
    with services(limits) as here:
        messages = Audited(here.messages, seed, **chances)
        objects = FaultyObjects(here.objects, seed, pause=0.002)
        note(f"{channel}, {messages!r}, {objects!r}")
        faulty = Services(messages, objects, here.inboxes, here.files)
        results = faulty.run(channel, size, lambda comm: program(comm, steps), deadline=30)
        for rank, found in enumerate(results):
            expected = [meaning(size, rank, at, step) for at, step in enumerate(steps)]
            assert bits(found) == bits(expected)
        if channel == "queue":
            # What is refused is never acknowledged: it comes again once its visibility is over.
            assert all(map(is_damaged, messages.left))
        assert here.files.list("") == []


@pytest.mark.parametrize("seed", range(5))
def test_duplicates_that_come_in_the_next_operations_are_not_counted_again(seed: int) -> None:
    steps = [Step("allreduce", 0, 10, ()), Step("reduce", 1, 10, ()), Step("ring", 0, 1, ())] * 6
    with services() as here:
        messages = Audited(here.messages, seed, duplicate=1, forget=0.5, corrupt=0.5)
        print(messages)
        faulty = Services(messages, here.objects, here.inboxes, here.files)

        async def program(comm: AsyncCommunicator) -> tuple[list[Any], int]:
            return await perform_all(comm, steps), comm._end.mailbox.dropped

        for rank, (found, dropped) in enumerate(faulty.run("queue", 4, program)):
            assert bits(found) == bits(
                [meaning(4, rank, at, each) for at, each in enumerate(steps)]
            )
            assert dropped > len(steps)


def test_the_same_seed_does_the_same_to_the_same_messages() -> None:
    async def deliveries(seed: int) -> list[list[bytes]]:
        with services() as here:
            faulty = FaultyMessages(here.messages, seed, duplicate=0.5, corrupt=0.5, delay=0.5)
            (inbox,) = await faulty.lease(1)
            for i in range(12):
                await faulty.publish([Message(b"message %d" % i, (inbox,))])
            return [
                [bytes(each.body) for each in await faulty.receive(inbox, wait=0)]
                for _ in range(12)
            ]

    found = [asyncio.run(deliveries(seed)) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("seed", range(20))
def test_faulty_messages_lose_nothing_and_keep_the_limits(seed: int) -> None:
    limits = MessageLimits(receive_messages=3, receive=60)
    bodies = [b"%d" % i * 10 for i in range(25)]

    def in_flight() -> int:
        return sum(away for _, away in here.inboxes.counts().values())

    async def receive() -> Counter[bytes]:
        faulty = FaultyMessages(
            here.messages, seed, duplicate=0.6, delay=0.6, corrupt=0.4, forget=0.3
        )
        print(faulty)
        assert faulty.limits == limits
        (inbox,) = await faulty.lease(1)
        for body in bodies:
            await faulty.publish([Message(body, (inbox,))])
        seen: Counter[bytes] = Counter()
        while not set(bodies) <= set(seen) or in_flight():
            got = await faulty.receive(inbox, wait=1)
            assert len(got) <= 3
            assert len(got) == 1 or sum(len(each.body) for each in got) <= 60
            assert len({each.receipt for each in got}) == len(got)
            seen.update(bytes(each.body) for each in got)
            if got:
                await faulty.acknowledge(got)
        assert faulty.unacknowledged(inbox) == []
        await faulty.release([inbox])
        return seen

    with services(limits) as here:
        seen = asyncio.run(receive())
        assert max(seen.values()) > 1, "nothing was duplicated"
        assert set(seen) - set(bodies), "nothing was damaged"


def test_without_chances_nothing_is_changed() -> None:
    async def receive() -> list[bytes]:
        never = dict.fromkeys(CHANCES, 0.0)
        faulty = FaultyMessages(here.messages, 3, **never)
        (inbox,) = await faulty.lease(1)
        await faulty.publish([Message(b"%d" % i, (inbox,)) for i in range(5)])
        return [bytes(each.body) for each in await faulty.receive(inbox, wait=1)]

    with services() as here:
        assert asyncio.run(receive()) == [b"%d" % i for i in range(5)]


def test_objects_with_twins_are_read_as_written() -> None:
    async def use() -> None:
        faulty = FaultyObjects(here.objects, 5, twin=1, slow=1, pause=0.001)
        assert await faulty.get("k") is None
        assert await faulty.put("k", [b"on", b"e"], if_absent=True) is None  # its twin was first
        assert bytes((await faulty.get("k", range=(1, 9), wait=1)).data) == b"ne"  # type: ignore[union-attr]
        etag = await faulty.put("k", b"two")
        assert await faulty.put("k", b"three", if_match=etag) is not None
        assert bytes((await faulty.get("k")).data) == b"three"  # type: ignore[union-attr]
        assert await faulty.list("") == ["k"]
        await faulty.delete(["k"])
        assert await faulty.get("k") is None
        assert faulty.limits == here.objects.limits

    with services() as here:
        asyncio.run(use())


def test_seeds_and_chances_are_shown_and_checked() -> None:
    with services() as here:
        text = repr(FaultyMessages(here.messages, 77, delay=0.25))
        assert text.startswith("FaultyMessages(seed=77, duplicate=0.2, delay=0.25,")
        assert "seed=78" in repr(FaultyObjects(here.objects, 78))
        with pytest.raises(SettingsError, match=r"corrupt=1\.5"):
            FaultyMessages(here.messages, 0, corrupt=1.5)


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_gang_in_process_raises_the_first_error_and_leaves_nothing(channel: str) -> None:
    async def program(comm: AsyncCommunicator) -> None:
        await comm.bcast(noise(100_000) if comm.rank == 0 else None)
        if comm.rank == 1:
            raise KeyError("first")
        await comm.barrier()

    with services() as here:
        with pytest.raises(KeyError, match="first"):
            here.run(channel, 3, program)
        assert here.files.list("") == []
        assert here.inboxes.counts() == {}


def test_two_gangs_on_the_same_services_do_not_mix() -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        return [await comm.allreduce(comm.rank + i) for i in range(5)]

    async def both(channel: str) -> Any:
        return await asyncio.gather(
            run_ranks(here, channel, 3, program, gang="1" * 32),
            run_ranks(here, channel, 2, program, gang="2" * 32),
        )

    with services() as here:
        for channel in CHANNELS:
            three, two = asyncio.run(both(channel))
            assert three == [[3, 6, 9, 12, 15]] * 3
            assert two == [[1, 3, 5, 7, 9]] * 2
