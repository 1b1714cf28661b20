"""A rank that dies or raises: everybody learns of it, soon, and nothing is left over."""

from __future__ import annotations

import math
import os
import random
import re
import signal
import threading
import time
from collections.abc import Awaitable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

import fsdray as fsd
from fsdray import inference, loop, session
from fsdray.collective import AsyncCommunicator
from fsdray.errors import (
    FunctionCrashed,
    FunctionTimeout,
    OutOfMemory,
    RankFailed,
    SettingsError,
    TaskError,
)
from fsdray.inference.engine import RankAnswer, forward
from fsdray.inference.shards import Shard, Sharding
from tests import on_aws

pytestmark = pytest.mark.usefixtures("session")

SOON = on_aws.amount(1, 20)  # seconds in which everybody must know
CHANNELS = ("queue", "object")


class Mortal:
    """A communicator whose rank dies when it begins a given exchange."""

    def __init__(self, inner: AsyncCommunicator, last: int, note: str) -> None:
        self._inner = inner
        self._left = last
        self._note = note

    def neighbor_alltoall(
        self, sends: Mapping[int, Any], sources: Iterable[int]
    ) -> Awaitable[dict[int, Any]]:
        if self._left == 0:
            print("these are my last words", flush=True)
            Path(self._note).write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1
        return self._inner.neighbor_alltoall(sends, sources)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def mortal_forward(
    comm: AsyncCommunicator, shard: Shard, samples: csr_array, layer: int, note: str
) -> RankAnswer:
    doomed: Any = Mortal(comm, layer, note)
    return await forward(doomed, shard, samples)


def run_mortal(
    shard: Shard, samples: csr_array, victim: int, layer: int, notes: str
) -> RankAnswer | None:
    rank = fsd.collective.world().rank
    note = f"{notes}/{rank}"
    fsd.collective.world().barrier()  # who has not begun yet is stopped without hearing why
    try:
        return fsd.collective.run(
            mortal_forward, shard, samples, layer if rank == victim else -1, note
        )
    except RankFailed as error:
        Path(note).write_text(str(time.time()))
        if error.ranks != [victim]:
            raise AssertionError(f"rank {rank} was told of {error.ranks}") from error
        raise


@pytest.fixture(scope="module")
def network() -> tuple[inference.Model, csr_array]:
    return inference.radixnet(1024, 24), inference.digits(60, 1024)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.on_aws("0")
def test_a_rank_killed_at_any_layer_is_named_to_all_within_a_second(
    seed: int, network: tuple[inference.Model, csr_array], tmp_path: Path
) -> None:
    rng = random.Random(seed)
    model, samples = network
    workers, channel = rng.choice([2, 4, 7]), CHANNELS[seed % 2]
    victim, layer = rng.randrange(workers), rng.randrange(model.depth)
    print(f"seed {seed}: rank {victim} of {workers} dies in layer {layer + 1} over {channel}")
    sharding = Sharding(model, inference.partition(model, workers, "block"))
    shards = [sharding.shard(rank) for rank in range(workers)]
    pixels = [samples.T.tocsr()[shard.pixels] for shard in shards]
    program = fsd.remote(world_size=workers, channel=channel)(run_mortal)

    def killed(notes: Path) -> float:
        """Lose the victim; seconds until the last of all knew it, infinite where one never did."""
        notes.mkdir()
        before = set(_objects())
        refs = program.remote(fsd.per_rank(shards), fsd.per_rank(pixels), victim, layer, str(notes))
        with pytest.raises(RankFailed) as raised:
            fsd.get(refs, timeout=60)
        told = [time.time()]
        for ref in refs:
            with pytest.raises(RankFailed) as each:
                fsd.get(ref)
            assert each.value.ranks == [victim]
            assert isinstance(each.value.cause, FunctionCrashed)
        cause = raised.value.cause
        assert isinstance(cause, FunctionCrashed)
        assert re.search("SIGKILL|signal: killed", cause.message)  # Lambda's words are the latter
        assert cause.log[-1] == "these are my last words"
        left = {key for key in _objects() if not key.startswith(("functions/", "modules/"))}
        assert not left - before, "the broken gang left objects behind"

        died = float((notes / str(victim)).read_text())
        for rank in set(range(workers)) - {victim}:
            heard_of = notes / str(rank)
            while not (when := _text(heard_of)) and time.time() - died < SOON:
                threading.Event().wait(0.01)
            told.append(float(when or math.inf))
        return max(told) - died

    # On a busy machine a rank may get no time at all before its grace is over, and is stopped.
    took = []
    while len(took) < 3 and min(took, default=math.inf) >= SOON:
        took.append(killed(tmp_path / str(len(took))))
    assert min(took) < SOON, f"somebody learned of it too late each time: after {took} seconds"


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _objects() -> list[str]:
    """Keys of the session's objects, once all that was under way is over."""
    here = fsd.session.current()
    fsd.loop.run(here.flush())
    keys = fsd.loop.run(here.backend.objects.list(""))
    # On AWS the marks of calls that died stay, for those that these had made.
    return [key for key in keys if not key.startswith("cancel/")]


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize(
    "branching", [1, pytest.param(2, marks=pytest.mark.thorough("of three trees")), 8]
)
@pytest.mark.slow_on_aws
@pytest.mark.on_aws("1-queue")
def test_the_workers_of_a_broken_gang_are_stopped_even_while_they_compute(
    channel: str, branching: int, tmp_path: Path
) -> None:
    fsd.shutdown()
    fsd.init(branching=branching, concurrency=40)

    @fsd.remote(world_size=5, channel=channel)
    def busy(victim: int) -> None:
        comm = fsd.collective.world()
        (tmp_path / f"{victim}-{comm.rank}").write_text(str(os.getpid()))
        comm.barrier()
        if comm.rank == victim:
            os._exit(7)
        while True:  # it never looks at the communicator again
            pass

    for victim in (0, 4):
        began = time.time()
        with pytest.raises(RankFailed) as raised:
            fsd.get(busy.remote(victim), timeout=on_aws.amount(30, 200))
        assert raised.value.ranks == [victim]
        assert "status 7" in str(raised.value)
        assert time.time() - began < on_aws.amount(10, 200)

    # The orphans of a dead rank are stopped a moment later.
    ranks = {int(path.read_text()) for path in tmp_path.iterdir()}
    deadline = time.time() + on_aws.amount(20, 120)
    while any(map(_is_running, ranks)) and time.time() < deadline:
        threading.Event().wait(0.1)
    assert not [pid for pid in ranks if _is_running(pid)], "a rank still computes"


def _is_running(pid: int) -> bool:
    """Whether a process uses the CPU at this moment."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "R"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("channel", CHANNELS)
def test_an_exception_of_one_rank_is_the_callers_and_the_cause_of_the_others(
    channel: str,
) -> None:
    @fsd.remote(world_size=4, channel=channel)
    def fails() -> int:
        comm = fsd.collective.world()
        comm.barrier()
        if comm.rank == 2:
            raise KeyError("mine")
        return int(comm.allreduce(1))

    refs = fails.remote()
    with pytest.raises(KeyError, match="mine"):
        fsd.get(refs, timeout=30)
    for rank, ref in enumerate(refs):
        with pytest.raises(KeyError if rank == 2 else RankFailed) as raised:
            fsd.get(ref)
        if rank != 2:
            assert raised.value.ranks == [2]
            assert isinstance(raised.value.cause, KeyError)
            assert isinstance(raised.value.cause, TaskError)
    objects = loop.run(session.current().backend.objects.list(""))
    assert not any(key.endswith("/abort") for key in objects)


def test_a_rank_that_needed_nobody_keeps_its_value_when_another_raises() -> None:
    @fsd.remote(world_size=3)
    def alone() -> int:
        rank = int(fsd.collective.world().rank)
        if rank == 1:
            raise ValueError("only mine")
        return rank

    first, second, third = alone.remote()
    assert fsd.get([first, third]) == [0, 2]
    with pytest.raises(ValueError, match="only mine"):
        fsd.get(second)


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.on_aws("queue")
@pytest.mark.slow_on_aws
def test_memory_and_time_limits_of_a_rank_are_its_gangs_causes(channel: str) -> None:
    @fsd.remote(world_size=3, memory=256, timeout=on_aws.amount(5, 60), channel=channel)
    def greedy(what: str) -> float:
        comm = fsd.collective.world()
        if comm.rank == 1:
            if what == "memory":
                hoard = [np.ones(1 << 22) for _ in range(40)]
                return float(len(hoard))
            while True:
                pass
        return float(comm.allreduce(0.0))

    with pytest.raises(RankFailed) as raised:
        fsd.get(greedy.remote("memory"), timeout=120)
    assert raised.value.ranks == [1]
    assert isinstance(raised.value.cause, OutOfMemory)
    assert "memory=MB" in str(raised.value)
    with pytest.raises(RankFailed) as raised:
        fsd.get(greedy.options(timeout=on_aws.amount(1, 8)).remote("time"), timeout=120)
    assert raised.value.ranks == [1]
    assert isinstance(raised.value.cause, FunctionTimeout)
    assert "timeout=SECONDS" in str(raised.value)


def test_a_gang_that_cannot_be_whole_is_refused_before_anything_starts() -> None:
    @fsd.remote(world_size=1000)
    def many() -> None: ...

    def asked() -> list[float]:
        # What earlier tests had is cleared away, and told, at any time.
        requests = fsd.receipt().requests
        return [requests.get(name, 0) for name in ("invoke", "publish", "send", "put")]

    before = asked()
    with pytest.raises(SettingsError, match=r"fsdray\.init\(concurrency=1000\)"):
        many.remote()
    assert asked() == before


def test_gangs_that_do_not_fit_together_take_turns() -> None:
    fsd.shutdown()
    fsd.init(concurrency=3)

    @fsd.remote(world_size=3)
    def turn(number: int) -> int:
        return int(fsd.collective.world().allreduce(number))

    gangs = [turn.remote(number) for number in range(4)]
    assert [fsd.get(refs, timeout=30) for refs in gangs] == [[3 * n] * 3 for n in range(4)]


def test_a_gang_runs_after_one_that_broke() -> None:
    @fsd.remote(world_size=3)
    def may_die(victim: int) -> int:
        comm = fsd.collective.world()
        if comm.rank == victim:
            os._exit(1)
        return int(comm.allreduce(1))

    for _ in range(3):
        with pytest.raises(RankFailed):
            fsd.get(may_die.remote(1), timeout=30)
        assert fsd.get(may_die.remote(-1), timeout=30) == [3, 3, 3]
