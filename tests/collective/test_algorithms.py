"""Who sends to whom fits together, and the meter of real runs is what the formulas say."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Coroutine, Iterable
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


Sent = tuple[int, tuple[int, ...]]  # bytes of a message, and to whom


def batched(messages: list[Sent], limits: MessageLimits) -> tuple[int, int]:
    """Publishes and sends that first-fit-decreasing takes, written down the slow way."""
    batches: list[list[Sent]] = []
    for message in sorted(messages, key=lambda each: -each[0]):
        for batch in batches:
            size = sum(each for each, _ in batch)
            if len(batch) < limits.batch_messages and size + message[0] <= limits.batch:
                batch.append(message)
                break
        else:
            batches.append([message])
    targets = [{ranks for _, ranks in batch} for batch in batches]
    sends = sum(len(each) == 1 and len(next(iter(each))) == 1 for each in targets)
    return len(batches) - sends, sends


def cut(payload: int, ranks: list[int], limits: MessageLimits) -> list[Sent]:
    """The messages of one payload to ranks of one group, cut off piece by piece."""
    head = 25 + 13 * len(ranks) + overhead(len(ranks))
    messages = []
    while True:
        piece = min(payload, limits.message - head)
        messages.append((piece + head, tuple(ranks)))
        payload -= piece
        if payload == 0:
            return messages


def grouped(ranks: list[int], limits: MessageLimits) -> list[list[int]]:
    """The ranks that one publish reaches together."""
    return [list(some) for _, some in itertools.groupby(ranks, lambda rank: rank // limits.fanout)]


def total(counts: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Publishes and sends in all."""
    found = list(counts)
    return sum(publishes for publishes, _ in found), sum(sends for _, sends in found)


@given(
    size=st.integers(1, 40),
    payload=st.integers(0, 5000),
    limits=st.builds(
        MessageLimits,
        message=st.integers(1200, 2000),
        batch=st.integers(2000, 5000),
        batch_messages=st.integers(1, 10),
        fanout=st.integers(1, 50),
    ),
)
@settings(deadline=None, max_examples=100)
def test_publish_formulas_agree_with_cutting_and_batching_one_by_one(
    size: int, payload: int, limits: MessageLimits
) -> None:
    everyone = list(range(size))

    def to_all(rank: int, ranks: list[int]) -> tuple[int, int]:
        others = [each for each in ranks if each != rank]
        return total(
            batched(cut(payload, some, limits), limits) for some in grouped(others, limits)
        )

    def to_each(rank: int) -> tuple[int, int]:
        others = [each for each in everyone if each != rank]
        return total(
            batched([sent for each in some for sent in cut(payload, [each], limits)], limits)
            for some in grouped(others, limits)
        )

    to_root = total(batched(cut(payload, [0], limits), limits) for _ in everyone[1:])
    expected = {
        Operation.BCAST: to_all(0, everyone),
        Operation.SCATTER: to_each(0),
        Operation.GATHER: to_root,
        Operation.REDUCE: to_root,
        Operation.ALLGATHER: total(to_all(rank, everyone) for rank in everyone),
        Operation.ALLTOALL: total(to_each(rank) for rank in everyone),
    }
    both = total([to_root, to_all(0, everyone)])
    is_one_round = algorithms.is_one_round(size)
    expected[Operation.ALLREDUCE] = expected[Operation.ALLGATHER] if is_one_round else both
    expected[Operation.BARRIER] = expected[Operation.ALLREDUCE]
    expected[Operation.SPLIT] = expected[Operation.ALLGATHER]
    expected[Operation.REDUCE_SCATTER] = expected[Operation.ALLTOALL]
    expected[Operation.NEIGHBOR_ALLTOALL] = expected[Operation.ALLTOALL]
    upwards = total(to_all(rank, everyone[rank:]) for rank in everyone)
    expected[Operation.SCAN] = upwards if is_one_round else total([to_root, to_each(0)])
    expected[Operation.EXSCAN] = expected[Operation.SCAN]
    found = {each: algorithms.published(each, size, payload, limits) for each in expected}
    assert {each: (it.publish, it.send) for each, it in found.items()} == expected


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
def test_the_meter_counts_the_publishes_and_sends_of_the_formula(length: int) -> None:
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
            found = algorithms.Published(
                round(here.count("publish") - before.get("publish", 0)),
                round(here.count("send") - before.get("send", 0)),
            )
            assert found == algorithms.published(operation, size, payload), (operation, size)
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
        assert here.count("publish") == here.count("send") == 0


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
        asked = size * -(-(size - 1) // 10)
        # Of two ranks each sends to one alone, of twelve each does so with its eleventh message.
        sends = size if size in (2, 12) else 0
        assert (here.count("publish"), here.count("send")) == (asked - sends, sends)
