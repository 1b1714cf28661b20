"""Simulated runs give what real ones give, at what the formulas say, and again the same."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fsdray import wire
from fsdray.collective import AsyncCommunicator
from fsdray.errors import (
    CollectiveTimeout,
    FsdrayError,
    FunctionCrashed,
    MismatchedCollective,
    RankFailed,
    SettingsError,
    Throttled,
)
from fsdray.testing import Death, Faults, Latency, Network, compute, simulate
from fsdray.testing.simulation import Deadlock, Simulation
from tests.collective import CHANNELS, services

SIZES = (1, 2, 3, 5, 8, 16, 64)
BAD = Faults(
    duplicate=0.3,
    delay=0.2,
    reorder=0.5,
    corrupt=0.2,
    forget=0.2,
    partial=0.2,
    throttle=0.1,
    error=0.1,
    twin=0.3,
)


def add(left: Any, right: Any) -> Any:
    """Not commutative, and its floating-point result depends on its grouping."""
    return left + 0.5 * right


async def everything(comm: AsyncCommunicator) -> list[Any]:
    """Each collective, a ring of sends, and operations that are under way at the same time."""
    rank, size = comm.rank, comm.size
    mine = np.random.default_rng(rank).standard_normal(50)
    left, right = (rank - 1) % size, (rank + 1) % size
    got = [
        await comm.bcast(mine, size - 1),
        await comm.scatter([mine + i for i in range(size)], size // 2),
        await comm.gather(mine, size // 2),
        await comm.allgather(mine[:3]),
        await comm.reduce(mine, add, size - 1),
        await comm.allreduce(mine, add),
        await comm.neighbor_alltoall({right: mine}, [left]),
        await comm.barrier(),
    ]
    sending = asyncio.ensure_future(comm.send(mine, right, tag=3))
    await asyncio.sleep(0)  # or it might leave with what comes next, if that waits for nothing
    first, second = comm.allreduce(rank), comm.bcast("later", 0)
    got += [await second, await first, await comm.recv(source=left, tag=3)]
    await sending
    return got


def plain(value: Any) -> Any:
    """A value whose equality is one of bits."""
    return wire.encode(value) and b"".join(wire.encode(value))


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_collective_comes_to_what_it_comes_to_in_real_time(channel: str) -> None:
    for size in SIZES:
        with services() as here:
            real = here.run(channel, size, everything)
        simulated = simulate(everything, size, channel=channel, seed=size)
        assert plain(simulated.values) == plain(real), size
        assert simulated.left == {}
        assert simulated.errors == {}


@pytest.mark.parametrize("channel", CHANNELS)
def test_what_is_asked_for_is_billed_as_the_local_backend_bills_it(channel: str) -> None:
    exact = (
        *("publish", "publish_units", "publish_bytes", "send", "send_units", "send_bytes"),
        *("put", "put_bytes", "list", "delete"),
    )
    for size in (2, 9, 16):
        with services() as here:
            here.run(channel, size, everything)
            real = {name: here.count(name) for name in exact}
        counts = simulate(everything, size, channel=channel).counts
        assert {name: counts.get(name, 0) for name in exact} == real


@pytest.mark.parametrize("channel", CHANNELS)
def test_the_same_seed_gives_the_same_trace_and_another_gives_another(channel: str) -> None:
    def digest(seed: int) -> str:
        simulation = simulate(everything, 8, channel=channel, seed=seed, faults=BAD)
        return simulation.trace.digest()

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


TRACE = """
import sys
from fsdray.testing import Faults, simulate
from tests.testing.test_simulation import BAD, everything
from tests.collective import CHANNELS
for channel in CHANNELS:
    print(simulate(everything, 12, channel=channel, seed=7, faults=BAD).trace.digest())
"""


def test_the_trace_does_not_depend_on_hashes_or_addresses() -> None:
    def digests(hash_seed: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", TRACE],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = digests("0")
    assert len(set(first.split())) == len(CHANNELS) - 1  # what is small, auto sends as queue does
    assert digests("12345") == first


def test_a_trace_is_lines_of_json_in_order_of_time(tmp_path: Path) -> None:
    simulation = simulate(everything, 3)
    simulation.trace.write(tmp_path / "trace.jsonl")
    events = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    assert len(events) == len(simulation.trace)
    assert [event["at"] for event in events] == sorted(event["at"] for event in events)
    publishes = [event for event in events if event["what"] == "publish"]
    assert len(publishes) == simulation.counts["publish"]
    assert sum(event["bytes"] for event in publishes) == simulation.counts["publish_bytes"]
    assert len(simulate(everything, 3, trace=False).trace) == 0


@pytest.mark.parametrize("channel", CHANNELS)
def test_faults_change_no_bit_of_the_results(channel: str) -> None:
    for size in (2, 5, 16):
        expected = plain(simulate(everything, size, channel=channel).values)
        for seed in range(4):
            simulation = simulate(everything, size, channel=channel, seed=seed, faults=BAD)
            assert plain(simulation.values) == expected, (size, seed)
            assert not any("/" in name for name in simulation.left)  # objects


def test_each_fault_happens() -> None:
    def events(what: str, channel: str, **faults: Any) -> int:
        simulation = simulate(everything, 8, channel=channel, faults=Faults(**faults))
        return sum(event.what == what for event in simulation.trace.events)

    deliveries = events("deliver", "queue")
    assert events("deliver", "queue", duplicate=0.5, lateness=0.01) > deliveries
    assert events("deliver", "queue", corrupt=0.5) > deliveries
    assert events("forgotten", "queue", forget=0.5) > 0
    assert events("partial", "queue", partial=0.5) > 0
    assert events("throttled", "queue", throttle=0.3) > 0
    assert events("failed", "object", error=0.3) > 0
    assert events("twin", "object", twin=0.5) > 0
    calm, late = (simulate(everything, 8, faults=Faults(delay=p)).seconds for p in (0.0, 0.5))
    assert late > calm + 1


def test_a_service_that_always_refuses_is_an_error() -> None:
    with pytest.raises(Throttled, match=r"3 times"):
        simulate(everything, 2, faults=Faults(throttle=1, attempts=3))


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_deadlock_is_told_at_once_with_who_waits_for_whom(channel: str) -> None:
    async def ring(comm: AsyncCommunicator) -> Any:
        got = await comm.recv(source=(comm.rank + 1) % comm.size)
        await comm.send(got, (comm.rank - 1) % comm.size)

    with pytest.raises(Deadlock) as caught:
        simulate(ring, 3, channel=channel)
    assert "recv at rank 0 of 3: no message came from rank 1" in str(caught.value)
    assert "recv at rank 2 of 3: no message came from rank 0" in str(caught.value)


def test_a_wait_that_is_none_of_ours_is_a_deadlock_too() -> None:
    async def forever(comm: AsyncCommunicator) -> None:
        if comm.rank == 1:
            await asyncio.Event().wait()

    with pytest.raises(Deadlock, match="rank 1 waits"):
        simulate(forever, 2)


def test_what_only_takes_long_is_no_deadlock() -> None:
    async def slow(comm: AsyncCommunicator) -> Any:
        if comm.rank == 0:
            await compute(10_000)
        return await comm.bcast("late", 0)

    simulation = simulate(slow, 2)
    assert simulation.values == ["late", "late"]
    assert simulation.counts["receive"] > 400  # long polls of at most 20 s
    assert simulation.seconds > 10_000


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_rank_that_never_starts_is_named(channel: str) -> None:
    faults = Faults(absent=frozenset({2}))
    with pytest.raises(Deadlock, match=r"no message came from rank 2(.|\n)*never started: 2"):
        simulate(everything, 4, channel=channel, faults=faults)
    with pytest.raises(CollectiveTimeout, match="rank 2 in time"):
        simulate(everything, 4, channel=channel, faults=faults, deadline=30)
    simulation = simulate(everything, 4, channel=channel, faults=faults, deadline=30, raises=False)
    assert simulation.values[2] is None
    assert 30 <= simulation.seconds < 35


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("death", [Death(1, at=0.1), Death(1, request=5), Death(1, at=0.0)])
def test_a_death_fails_all_who_wait_and_leaves_nothing(
    channel: str, death: Death, caplog: pytest.LogCaptureFixture
) -> None:
    faults = Faults(deaths=(death,))
    with pytest.raises(RankFailed) as caught:
        simulate(everything, 4, channel=channel, faults=faults)
    assert caught.value.ranks == [1]
    assert isinstance(caught.value.cause, FunctionCrashed)
    simulation = simulate(everything, 4, channel=channel, faults=faults, raises=False)
    assert isinstance(simulation.errors.pop(1), FunctionCrashed)
    assert len(simulation.errors) == 3
    for error in simulation.errors.values():
        assert isinstance(error, RankFailed)
        assert error.ranks == [1]
        assert isinstance(error.cause, FunctionCrashed)
    assert not any("/" in name for name in simulation.left)
    assert simulation.seconds < 10  # nobody waited for a deadline
    gc.collect()
    assert caplog.records == []  # such as of exceptions that were never retrieved


@pytest.mark.parametrize("channel", CHANNELS)
def test_an_exception_of_a_rank_is_raised_and_ends_the_waits_of_others(channel: str) -> None:
    async def program(comm: AsyncCommunicator) -> None:
        if comm.rank == 2:
            raise KeyError("mine")
        await comm.barrier()

    with pytest.raises(KeyError, match="mine"):
        simulate(program, 4, channel=channel)
    simulation = simulate(program, 4, channel=channel, raises=False)
    assert not any("/" in name for name in simulation.left)  # objects
    errors = simulation.errors
    assert [type(errors[rank]) for rank in range(4)] == [
        RankFailed,
        RankFailed,
        KeyError,
        RankFailed,
    ]


def test_a_mismatch_is_told() -> None:
    async def program(comm: AsyncCommunicator) -> None:
        await (comm.barrier() if comm.rank else comm.allgather(1))

    with pytest.raises(MismatchedCollective):
        simulate(program, 3)


def test_computing_takes_modelled_time_and_slow_ranks_take_longer() -> None:
    async def program(comm: AsyncCommunicator) -> float:
        await compute(2.0)
        assert await comm.compute(pow, 2, 10) == 1024
        return asyncio.get_running_loop().time()

    assert simulate(program, 2).values == [2.0, 2.0]
    simulation = simulate(
        program,
        2,
        compute=lambda function, args: 0.5 if function is pow and args == (2, 10) else 0.0,
        faults=Faults(slow={1: 4.0}),
    )
    assert simulation.values == [2.5, 10.0]
    assert simulation.rank_seconds == [2.5, 10.0]


def test_time_of_computing_is_only_known_in_a_simulation() -> None:
    with pytest.raises(FsdrayError, match=r"simulate\(\)"):
        asyncio.run(compute(1))


def test_functions_are_billed_where_their_memory_is_given() -> None:
    async def program(comm: AsyncCommunicator) -> None:
        await compute(1.0001)

    simulation = simulate(program, 3, memory=2048)
    assert simulation.counts == {"invoke": 3, "gb_seconds": pytest.approx(3 * 2 * 1.001)}
    assert simulate(program, 3).counts == {}


def test_a_faster_network_and_other_prices_are_arguments() -> None:
    async def program(comm: AsyncCommunicator) -> None:
        await comm.barrier()

    fast = Network(deliver=Latency(0.001, 0.001), publish=Latency(0.001, 0.001))
    quick, usual = simulate(program, 8, network=fast), simulate(program, 8)
    assert quick.seconds < 0.05 < usual.seconds
    assert 0 < usual.receipt.cost_usd < 1e-4
    with pytest.raises(SettingsError, match="price table"):
        simulate(program, 2, prices="no/such/file.json")


@pytest.mark.parametrize("channel", CHANNELS)
def test_hundreds_of_ranks_meet(channel: str) -> None:
    async def program(comm: AsyncCommunicator) -> int:
        await comm.barrier()
        total: int = await comm.allreduce(comm.rank)
        return total

    simulation: Simulation[int] = simulate(program, 600, channel=channel, trace=False)
    assert set(simulation.values) == {sum(range(600))}
    assert simulation.left == {}


def test_what_cannot_be_simulated_is_refused() -> None:
    async def program(comm: AsyncCommunicator) -> None:
        await comm.barrier()

    async def inside() -> None:
        simulate(program, 2)

    with pytest.raises(SettingsError, match="at least one rank"):
        simulate(program, 0)
    with pytest.raises(SettingsError, match="channel"):
        simulate(program, 2, channel="pigeon")
    with pytest.raises(FsdrayError, match="to_thread"):
        asyncio.run(inside())
    for wrong in (
        {"duplicate": 1.5},
        {"lateness": 0},
        {"attempts": 0},
        {"slow": {1: 0}},
    ):
        with pytest.raises(SettingsError):
            Faults(**wrong)  # type: ignore[arg-type]  # wrong on purpose
    for when in ({}, {"at": 1.0, "request": 2}, {"at": -1.0}):
        with pytest.raises(SettingsError):
            Death(0, **when)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(SettingsError):
        Latency(2.0, 1.0)
    with pytest.raises(SettingsError):
        Network(bandwidth=(0.0, 1.0))
    with pytest.raises(SettingsError):
        Network(get_rate=math.nan)
