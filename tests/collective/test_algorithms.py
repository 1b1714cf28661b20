"""Who sends to whom fits together, and the meter of real runs is what the formulas say."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdray import wire
from fsdray.collective import AsyncCommunicator, algorithms, codec
from fsdray.collective.algorithms import Call, Exchange
from fsdray.collective.frames import Operation, overhead
from fsdray.services import KIB, MessageLimits
from tests.collective import noise, services

SIZES = range(1, 13)


def second(left: Any, right: Any) -> Any:
    return right


CALLS: dict[Operation, Callable[[AsyncCommunicator, Any], Awaitable[Any]]] = {
    Operation.BCAST: lambda comm, value: comm.bcast(value, comm.size - 1),
    Operation.SCATTER: lambda comm, value: comm.scatter([value] * comm.size, comm.size // 2),
    Operation.GATHER: lambda comm, value: comm.gather(value, comm.size // 2),
    Operation.REDUCE: lambda comm, value: comm.reduce(value, second, comm.size - 1),
    Operation.ALLGATHER: lambda comm, value: comm.allgather(value),
    Operation.ALLREDUCE: lambda comm, value: comm.allreduce(value, second),
    Operation.BARRIER: lambda comm, value: comm.barrier(),
    Operation.ALLTOALL: lambda comm, value: comm.alltoall([value] * comm.size),
    Operation.REDUCE_SCATTER: lambda comm, value: comm.reduce_scatter([value] * comm.size, second),
    Operation.SCAN: lambda comm, value: comm.scan(value, second),
    Operation.EXSCAN: lambda comm, value: comm.exscan(value, second),
    Operation.SPLIT: lambda comm, value: comm.split(0, 0),
}


FIXED: dict[Operation, Any] = {Operation.BARRIER: None, Operation.SPLIT: (0, 0)}
"""What those operations send that are given nothing to send."""


HEAVY = (Operation.ALLTOALL, Operation.REDUCE_SCATTER)
"""What would send hundreds of megabytes in all: the largest are left out."""


def check_fit(exchanges: list[Exchange]) -> None:
    """Whoever sends is waited for, by all to whom he sends and by nobody else."""
    sent = sorted(
        (source, rank)
        for source, exchange in enumerate(exchanges)
        for ranks in exchange.destinations
        for rank in ranks
    )
    waited = sorted(
        (source, rank) for rank, exchange in enumerate(exchanges) for source in exchange.sources
    )
    assert sent == waited
    assert len(set(sent)) == len(sent)
    assert all(source != rank for source, rank in sent)


@pytest.mark.parametrize("size", SIZES)
def test_what_one_rank_sends_another_waits_for(size: int) -> None:
    for root in range(size):
        for is_multicast in (True, False):
            exchanges = [
                algorithms.from_root(rank, size, root, is_multicast=is_multicast)
                for rank in range(size)
            ]
            check_fit(exchanges)
            groups = exchanges[root].destinations
            assert len(groups) == (min(1, size - 1) if is_multicast else size - 1)
        check_fit([algorithms.to_root(rank, size, root) for rank in range(size)])
    check_fit([algorithms.all_to_all(rank, size) for rank in range(size)])


@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize("size", SIZES)
def test_each_round_of_each_operation_fits_together(operation: Operation, size: int) -> None:
    for root in range(size):
        every = [algorithms.rounds(Call(operation, rank, size, root)) for rank in range(size)]
        for exchanges in zip(*every, strict=True):
            check_fit(list(exchanges))


def test_what_has_no_rounds_of_its_own_is_said() -> None:
    for operation in (Operation.SEND, Operation.ABORT, Operation.NEIGHBOR_ALLTOALL):
        with pytest.raises(ValueError, match=operation.name.lower()):
            algorithms.rounds(Call(operation, 0, 4))


def fewest(frames: list[int], limits: MessageLimits) -> int:
    """Batches that first-fit-decreasing takes, written down the slow way."""
    batches: list[list[int]] = []
    for size in sorted(frames, reverse=True):
        for batch in batches:
            if len(batch) < limits.batch_messages and sum(batch) + size <= limits.batch:
                batch.append(size)
                break
        else:
            batches.append([size])
    return len(batches)


def cut(payload: int, destinations: int, limits: MessageLimits) -> list[int]:
    """Sizes of the frames of one payload, cut off piece by piece."""
    frames = []
    while True:
        piece = min(payload, limits.message - overhead(destinations))
        frames.append(piece + overhead(destinations))
        payload -= piece
        if payload == 0:
            return frames


@given(
    size=st.integers(1, 40),
    payload=st.integers(0, 5000),
    limits=st.builds(
        MessageLimits,
        message=st.integers(300, 1000),
        batch=st.integers(1000, 3000),
        batch_messages=st.integers(1, 10),
        fanout=st.integers(1, 50),
    ),
)
@settings(deadline=None, max_examples=100)
def test_publish_formulas_agree_with_cutting_and_batching_one_by_one(
    size: int, payload: int, limits: MessageLimits
) -> None:
    others = list(range(size - 1))
    groups = [others[at : at + limits.fanout] for at in range(0, len(others), limits.fanout)]
    to_all = fewest([n for g in groups for n in cut(payload, len(g), limits)], limits)
    to_each = fewest([n for _ in others for n in cut(payload, 1, limits)], limits)
    to_one = fewest(cut(payload, 1, limits), limits)
    expected = {
        Operation.BCAST: to_all,
        Operation.SCATTER: to_each,
        Operation.GATHER: len(others) * to_one,
        Operation.REDUCE: len(others) * to_one,
        Operation.ALLGATHER: size * to_all,
    }
    both = len(others) * to_one + to_all
    expected[Operation.ALLREDUCE] = size * to_all if algorithms.is_one_round(size) else both
    expected[Operation.BARRIER] = expected[Operation.ALLREDUCE]
    expected[Operation.SPLIT] = expected[Operation.ALLGATHER]
    expected[Operation.ALLTOALL] = expected[Operation.REDUCE_SCATTER] = size * to_each
    above = [list(range(rank + 1, size)) for rank in range(size)]
    upwards = sum(
        fewest(
            [
                n
                for at in range(0, len(ranks), limits.fanout)
                for n in cut(payload, len(ranks[at : at + limits.fanout]), limits)
            ],
            limits,
        )
        for ranks in above
        if ranks
    )
    by_root = len(others) * to_one + to_each
    expected[Operation.SCAN] = upwards if algorithms.is_one_round(size) else by_root
    expected[Operation.EXSCAN] = expected[Operation.SCAN]
    found = {each: algorithms.publishes(each, size, payload, limits) for each in expected}
    assert found == expected


def run_each(
    call: Callable[[AsyncCommunicator, Any], Awaitable[Any]], value: Any
) -> Callable[[AsyncCommunicator], Coroutine[Any, Any, Any]]:
    """A program of one call."""

    async def program(comm: AsyncCommunicator) -> Any:
        return await call(comm, value)

    return program


def packed(value: Any) -> int:
    """Bytes of a value's payload."""
    return wire.size(codec.encode(wire.encode(value))[1])


@pytest.mark.parametrize("length", [0, 1_000, 70 * KIB, 300 * KIB, 1024 * KIB])
def test_the_meter_counts_the_publishes_of_the_formula(length: int) -> None:
    value = noise(length)
    with services() as here:
        for size, (operation, call) in itertools.product(SIZES, CALLS.items()):
            if operation in FIXED and length:
                continue
            if operation in HEAVY and size * length > 2048 * KIB:
                continue
            before = here.meter.counts()
            here.run("queue", size, run_each(call, value))
            payload = packed(FIXED.get(operation, value))
            found = here.count("publish") - before.get("publish", 0)
            assert found == algorithms.publishes(operation, size, payload), (operation, size)
        assert here.count("put") == 0


@pytest.mark.parametrize("length", [0, 70 * KIB, 1024 * KIB])
def test_the_meter_counts_the_puts_of_the_formula_and_no_lists(length: int) -> None:
    value = noise(length)
    with services() as here:
        for size, (operation, call) in itertools.product(SIZES, CALLS.items()):
            if operation in HEAVY and size * length > 2048 * KIB:
                continue
            before = here.count("put")
            here.run("object", size, run_each(call, value))
            found = here.count("put") - before
            assert found == algorithms.puts(operation, size), (operation, size)
        assert here.count("list") == 0
        assert here.count("publish") == 0


@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_a_full_neighbor_exchange_is_one_put_a_rank_or_one_mixed_batch_for_ten(size: int) -> None:
    async def everybody(comm: AsyncCommunicator) -> None:
        everyone = range(comm.size)
        await comm.neighbor_alltoall(dict.fromkeys(everyone, b"for you"), everyone)

    with services() as here:
        here.run("object", size, everybody)
        here.run("queue", size, everybody)
        expected = algorithms.puts(Operation.NEIGHBOR_ALLTOALL, size)
        assert here.count("put") == expected == (size if size > 1 else 0)
        assert here.count("publish") == size * -(-(size - 1) // 10)
