"""Who sends to whom fits together, formulas are made of the right parts, choices follow the prices.

What runs bill for all numbers of ranks and sizes is in `test_bills`.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdray.collective import SUM, AsyncCommunicator, algorithms, forms
from fsdray.collective.algorithms import Exchange, Setting
from fsdray.collective.algorithms.ways import PIECES
from fsdray.collective.combined import layout
from fsdray.collective.frames import Operation, overhead
from fsdray.costs.medium import Medium
from fsdray.costs.prices import load_prices
from fsdray.services import ADDRESS, ENVELOPE, KIB, LARGE_OBJECT, MIB, MessageLimits
from fsdray.testing import simulate
from tests.collective import CHANNELS
from tests.collective.even import CALLS, EVEN, SQUARE, setting

SIZES = range(1, 13)

# Who sends to whom


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
    for pattern in (algorithms.all_to_all, algorithms.each_to_each, algorithms.to_higher):
        check_fit([pattern(rank, size) for rank in range(size)])


@pytest.mark.parametrize("size", range(1, 66))
def test_in_a_grid_every_message_has_its_way_and_every_bundle_a_message(size: int) -> None:
    for width in {algorithms.grid(size).width, 1, 2, size}:
        if width > size:
            continue
        by = algorithms.Grid(size, width)
        first = [by.first(rank) for rank in range(size)]
        then = [by.second(rank) for rank in range(size)]
        check_fit(first)
        check_fit(then)
        held: dict[tuple[bool, int, int], int] = {}
        for source, dest in itertools.permutations(range(size), 2):
            via = by.via(source, dest)
            if via != source:
                held[True, source, via] = held.get((True, source, via), 0) + 1
            if via != dest:
                held[False, via, dest] = held.get((False, via, dest), 0) + 1
        for is_first, level in ((True, first), (False, then)):
            found = {
                (is_first, rank, to): len(by.held(rank, to, is_first))
                for rank in range(size)
                for (to,) in level[rank].destinations
            }
            # A bundle for oneself is none; a rank counts as its own row and column.
            assert set(found) == {key for key in held if key[0] == is_first}
        assert sum(count for _, count in by.kinds()) == size
    assert size > 4 or algorithms.grid(size).width <= size


# Formulas


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


def billed_frames(payload: int, destinations: int, limits: MessageLimits) -> list[int]:
    """Billed sizes of the frames of one payload, cut off piece by piece."""
    head = ENVELOPE + ADDRESS * destinations + overhead(destinations)
    found = []
    while True:
        piece = min(payload, limits.message - head)
        found.append(piece + head)
        payload -= piece
        if payload == 0:
            return found


@given(
    parcels=st.lists(st.tuples(st.sets(st.integers(0, 40), min_size=1), st.integers(0, 5000))),
    limits=st.builds(
        MessageLimits,
        message=st.integers(1200, 2000),
        batch=st.integers(2000, 4000),
        batch_messages=st.integers(1, 10),
        fanout=st.integers(1, 50),
    ),
)
@settings(max_examples=100)
def test_what_is_published_agrees_with_cutting_and_batching_one_by_one(
    parcels: list[tuple[set[int], int]], limits: MessageLimits
) -> None:
    specs = [(tuple(sorted(ranks)), size) for ranks, size in parcels]
    sent = forms.mixed(specs, frozenset(), limits).counts
    by_group: dict[int, list[int]] = {}
    for ranks, size in specs:
        for group in sorted({rank // limits.fanout for rank in ranks}):
            there = sum(rank // limits.fanout == group for rank in ranks)
            by_group.setdefault(group, []).extend(billed_frames(size, there, limits))
    calls = sum(fewest(frames, limits) for frames in by_group.values())
    assert sent.get("publish", 0) + sent.get("send", 0) == calls
    total = sum(map(sum, by_group.values()))
    assert sent.get("publish_bytes", 0) + sent.get("send_bytes", 0) == total


@given(sizes=st.lists(st.tuples(st.integers(1, 300), st.integers(0, 200_000)), min_size=1))
@settings(max_examples=50)
def test_frames_of_an_object_do_not_overlap_and_their_payloads_are_aligned(
    sizes: list[tuple[int, int]],
) -> None:
    placed = layout(sizes)
    at = placed.index
    for (ranks, size), (start, end) in zip(sizes, placed.spans, strict=True):
        assert start >= at
        assert end - start == size + overhead(ranks)
        at = end


# The choice


def test_a_small_exchange_is_one_round_where_waiting_costs_and_through_root_where_not() -> None:
    for size in (4, 8):
        assert algorithms.choose(setting("queue", size, 1769), Operation.ALLREDUCE) == "one round"
    for size in (9, 64):
        assert algorithms.choose(setting("queue", size), Operation.ALLREDUCE) == "through root"
    fastest = setting("queue", 64, prefer="fastest")
    assert algorithms.choose(fastest, Operation.BARRIER) == "one round"
    assert algorithms.choose(setting("queue", 64), Operation.ALLTOALL) == "grid"
    assert algorithms.choose(setting("queue", 4), Operation.ALLTOALL) == "one round"


def crossover(readers: int, size: int, by: Medium, fellows: int = 1) -> int:
    """From how many bytes a message to so many lies in an object."""
    ranks = tuple(range(1, readers + 1))
    low, high = 0, 64 * MIB
    while high - low > KIB:
        half = (low + high) // 2
        large = forms.stored(((ranks, half),), fellows, size, by, MessageLimits())
        low, high = (low, half) if large else (half, high)
    return high


def test_the_crossover_moves_with_the_number_of_ranks_and_with_the_prices() -> None:
    usual = Medium()
    one, few, many = (crossover(n, n + 1, usual) for n in (1, 3, 63))
    assert one > few > many
    assert 64 * KIB < many < 193 * KIB
    express = Medium.of(load_prices(storage="express"))
    assert crossover(3, 4, express) < few
    dear = dataclasses.replace(
        usual, prices=tuple((n, 10 * p if n == "put" else p) for n, p in usual.prices)
    )
    assert crossover(3, 4, dear) > few
    waiting = dataclasses.replace(usual, memory=1769)
    assert crossover(63, 64, waiting) > many
    fastest = dataclasses.replace(usual, prefer="fastest")
    assert crossover(63, 64, fastest) > many
    scatter = tuple(((rank,), 100 * KIB) for rank in range(1, 64))
    assert forms.stored(scatter, 1, 64, usual, MessageLimits()) == frozenset(range(63))
    assert forms.stored(scatter[:2], 1, 3, usual, MessageLimits()) == frozenset()


def test_of_messages_of_many_sizes_only_the_large_ones_lie_in_an_object() -> None:
    parcels = tuple(((rank,), 10 if rank % 2 else 2 * MIB) for rank in range(20))
    large = forms.stored(parcels, 10, 21, Medium(), MessageLimits())
    assert large == frozenset(range(0, 20, 2))


@pytest.mark.parametrize("size", [2, 8, 64])
def test_auto_is_never_dearer_than_the_better_of_both(size: int) -> None:
    for operation, length in itertools.product(CALLS, (0, KIB, 30 * KIB, 200 * KIB, 10 * MIB)):
        if operation in SQUARE and size * length > LARGE_OBJECT:
            continue  # what a rank sends is several puts then, and two objects may be fewer
        dollars = {}
        for channel in CHANNELS:
            here = Setting(channel, size, Medium(), MessageLimits())
            bills, chosen = algorithms.all_ways(operation, here, length)
            dollars[channel] = bills[chosen].dollars(here.medium, size)
        least = min(dollars["queue"], dollars["object"])
        assert dollars["auto"] <= 1.02 * least, (operation.name, length, dollars)


# What is large goes straight


@pytest.mark.parametrize("memory", [0, 1769])
@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("size", [9, 14])
def test_large_values_move_once_and_come_to_whom_they_are_for(
    channel: str, size: int, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def array(source: int, dest: int) -> Any:
        # Some of each rank's are large; some ranks have none that are.
        length = 40_000 if source % 4 and (source + dest) % 3 else 10
        return np.random.default_rng(source * size + dest).integers(0, 256, length, np.uint8)

    async def program(comm: AsyncCommunicator) -> Any:
        mine = [array(comm.rank, dest) for dest in range(size)]
        swapped = await comm.alltoall(mine)
        gathered = await comm.allgather(mine[0])
        return bits(swapped), bits(gathered)

    for decide in ("passes_grid", "passes_root"):
        monkeypatch.setattr(f"fsdray.collective.relay.{decide}", lambda here, size: size > 20_000)
    forced = {Operation.ALLTOALL: "grid", Operation.ALLGATHER: "combined by root"}
    monkeypatch.setattr("fsdray.collective.relay.choose", lambda here, operation: forced[operation])
    run = simulate(program, size, channel=channel, memory=memory or None, trace=False)
    for rank, (swapped, gathered) in enumerate(run.values):
        assert swapped == bits([array(source, rank) for source in range(size)])
        assert gathered == bits([array(source, 0) for source in range(size)])
    assert run.left == {}
    if channel == "queue":
        each = [array(a, b).nbytes for a, b in itertools.permutations(range(size), 2)]
        # Of an allgather each message to all is billed once; root passes its own on alone.
        once = sum(each) + sum(array(source, 0).nbytes for source in range(size))
        sent = run.counts["publish_bytes"] + run.counts.get("send_bytes", 0)
        assert once <= sent <= 1.2 * once


def test_a_message_goes_straight_where_that_is_cheaper_than_by_another_rank() -> None:
    for channel in CHANNELS:
        here = Setting(channel, 64, Medium(memory=1769), MessageLimits())
        assert algorithms.passes_grid(here, 2 * MIB)
        assert not algorithms.passes_grid(here, KIB)
        assert algorithms.passes_root(here, 2 * MIB)
        assert not algorithms.passes_root(here, KIB)
    requests = Setting("queue", 64, Medium(), MessageLimits())
    assert algorithms.passes_grid(requests, 16 * KIB)
    assert not algorithms.passes_root(dataclasses.replace(requests, size=2), 2 * MIB)
    # Where waiting is free, more gets are not worth the time that they save.
    assert not algorithms.passes_root(dataclasses.replace(requests, channel="auto"), 2 * MIB)


# Large arrays in pieces


def bits(values: list[Any]) -> list[tuple[str, tuple[int, ...], bytes]]:
    return [(value.dtype.str, value.shape, value.tobytes()) for value in values]


@pytest.mark.parametrize("memory", [0, 1769])
@pytest.mark.parametrize("channel", CHANNELS)
def test_pieces_have_the_bits_of_whole_arrays_and_the_formulas_bill(
    channel: str, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 5
    mine = [np.random.default_rng(rank).standard_normal((300, 101)) for rank in range(size)]

    async def program(comm: AsyncCommunicator) -> Any:
        return await comm.allreduce(mine[comm.rank], SUM)

    run = lambda: simulate(program, size, channel=channel, network=EVEN, memory=memory or None)  # noqa: E731
    whole = run()
    monkeypatch.setattr("fsdray.collective.relay.cuts", lambda here, size: True)
    cut = run()
    assert bits(cut.values) == bits(whole.values)
    here = setting(channel, size, memory)
    bill = algorithms.all_ways(Operation.ALLREDUCE, here, mine[0].nbytes)[0][PIECES]
    found = {name: cut.counts.get(name, 0) for name in ("publish", "send", "put")}
    assert found == {name: bill.count(name) for name in found}


@pytest.mark.parametrize("memory", [0, 1769])
@pytest.mark.parametrize("channel", CHANNELS)
def test_arrays_that_are_not_alike_are_reduced_whole(
    channel: str, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: list[list[Any]] = [
        [np.ones((3, 4)), 2.0, np.full(4, 0.5)],
        [1, np.arange(6.0), 3],
        [np.ones(4), np.ones(4, np.float32), np.ones(4)],
        [np.asfortranarray(np.ones((2, 3))), np.ones((2, 3)), np.ones((2, 3))],
    ]

    async def program(comm: AsyncCommunicator) -> Any:
        return [await comm.allreduce(each[comm.rank], SUM) for each in values]

    monkeypatch.setattr("fsdray.collective.relay.cuts", lambda here, size: True)
    run = simulate(program, 3, channel=channel, memory=memory or None)
    for got in run.values:
        for each, found in zip(values, got, strict=True):
            meant = each[0] + each[1] + each[2]
            assert np.asarray(found).dtype == np.asarray(meant).dtype
            assert np.array_equal(found, meant)
    assert run.left == {}


def test_large_arrays_are_reduced_in_pieces_where_root_would_be_long() -> None:
    here = Setting("auto", 64, Medium(memory=1769), MessageLimits())
    assert algorithms.cuts(here, 100 * MIB)
    assert not algorithms.cuts(here, KIB)
    only_requests = Setting("auto", 64, Medium(), MessageLimits())
    assert not algorithms.cuts(only_requests, MIB)
    assert algorithms.cuts(Setting("auto", 64, Medium(prefer="fastest"), MessageLimits()), 10 * MIB)
