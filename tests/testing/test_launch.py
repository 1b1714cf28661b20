"""Gangs that start as a tree of simulated functions live and die as real ones do."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from fsdray.collective import AsyncCommunicator
from fsdray.errors import (
    CollectiveTimeout,
    FunctionCrashed,
    FunctionTimeout,
    RankFailed,
    SettingsError,
)
from fsdray.testing import Death, Faults, Latency, Network, compute, simulate
from tests.collective import CHANNELS
from tests.testing.test_simulation import everything, plain


async def total(comm: AsyncCommunicator) -> int:
    await compute(0.1)
    summed: int = await comm.allreduce(comm.rank)
    return summed


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_tree_comes_to_what_ranks_that_start_at_once_come_to(channel: str) -> None:
    for size, branching in [(1, 4), (2, 1), (5, 2), (13, 3)]:
        at_once = simulate(everything, size, channel=channel)
        tree = simulate(everything, size, channel=channel, branching=branching)
        assert plain(tree.values) == plain(at_once.values)
        assert tree.left == {}
        assert tree.counts["invoke"] == size
        for asked in ("publish", "send", "put"):
            assert tree.counts.get(asked) == at_once.counts.get(asked)


def test_ranks_start_in_logarithmic_time_and_are_billed_until_their_children_are_done() -> None:
    async def when(comm: AsyncCommunicator) -> float:
        started = asyncio.get_running_loop().time()
        await compute(1.0)
        return started

    steady = Network(invoke=Latency(0.01, 0.01), cold=Latency(0.09, 0.09))
    simulation = simulate(when, 14, branching=2, network=steady, memory=1024)
    levels = [round(10 * started) for started in simulation.values]
    assert levels == [1] * 2 + [2] * 4 + [3] * 8
    billed = 2 * 1.2 + 4 * 1.1 + 8 * 1.0
    assert simulation.counts["gb_seconds"] == pytest.approx(billed, rel=0.02)


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("victim", [0, 4, 11])
def test_a_death_anywhere_in_the_tree_is_told_to_all(
    channel: str, victim: int, caplog: pytest.LogCaptureFixture
) -> None:
    faults = Faults(deaths=(Death(victim, at=0.3),))

    def run(raises: bool) -> Any:
        return simulate(total, 12, channel=channel, branching=3, faults=faults, raises=raises)

    with pytest.raises(RankFailed) as caught:
        run(raises=True)
    assert caught.value.ranks == [victim]
    assert isinstance(caught.value.cause, FunctionCrashed)
    simulation = run(raises=False)
    assert isinstance(simulation.errors.pop(victim), FunctionCrashed)
    assert len(simulation.errors) == 11
    assert all(error.ranks == [victim] for error in simulation.errors.values())
    assert not any("/" in name for name in simulation.left)
    assert simulation.seconds < 3
    assert simulation.trace.digest() == run(raises=False).trace.digest()
    gc.collect()
    assert caplog.records == []  # such as of exceptions that were never retrieved


@pytest.mark.parametrize("channel", CHANNELS)
def test_an_exception_is_the_rank_s_own_and_the_cause_of_the_others(channel: str) -> None:
    async def fails(comm: AsyncCommunicator) -> None:
        if comm.rank == 3:
            raise KeyError("mine")
        await comm.barrier()

    with pytest.raises(KeyError, match="mine"):
        simulate(fails, 6, channel=channel, branching=2)
    simulation = simulate(fails, 6, channel=channel, branching=2, raises=False)
    assert type(simulation.errors.pop(3)) is KeyError
    assert [type(error) for error in simulation.errors.values()] == [RankFailed] * 5
    assert not any("/" in name for name in simulation.left)


def test_a_rank_that_never_starts_is_missed_before_the_time_is_over() -> None:
    faults = Faults(absent=frozenset({2}))
    simulation = simulate(total, 4, branching=4, deadline=60, faults=faults, raises=False)
    assert isinstance(simulation.errors.pop(2), FunctionTimeout)
    timeouts = [e for e in simulation.errors.values() if isinstance(e, CollectiveTimeout)]
    # Who waits for rank 0's answer misses that; rank 0 says whom it waited for.
    assert any("rank 2 in time" in str(error) for error in timeouts)
    assert simulation.seconds < 60


def test_a_tree_needs_a_branching_of_at_least_one() -> None:
    with pytest.raises(SettingsError, match="branching"):
        simulate(total, 2, branching=0)
