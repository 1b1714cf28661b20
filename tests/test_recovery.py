"""Ranks that are killed run again, alone or all of them, and the gang comes to the same bits."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Awaitable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

import fsdray as fsd
from fsdray import inference, loop, session, wire
from fsdray.collective import ANY_SOURCE, AsyncCommunicator
from fsdray.errors import OutOfMemory, RankFailed, SettingsError, TaskCancelled
from fsdray.inference import batch, engine
from fsdray.inference.engine import RankAnswer
from fsdray.inference.shards import Shard

pytestmark = pytest.mark.usefixtures("session")

SOME = ("queue", "object")


def invocations() -> int:
    return int(fsd.receipt().requests["invoke"])


def leftovers() -> list[str]:
    """Objects of gangs; values and arguments go by themselves."""
    keys = loop.run(session.current().backend.objects.list(""))
    return [key for key in keys if not key.startswith(("values/", "functions/", "modules/"))]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def works(rounds: int, deaths: Mapping[tuple[int, int], int]) -> tuple[list[Any], int]:
    """Talk in many ways; at operation n of attempt a of rank r, `deaths` says ``{(r, a): n}``."""
    comm = fsd.collective.world()
    attempt = fsd.get_runtime_context().attempt
    assert attempt is not None
    last = deaths.get((comm.rank, attempt), -1)
    rank, size = comm.rank, comm.size
    mine = np.random.default_rng(rank).standard_normal(40)
    operations = [
        lambda at: comm.bcast(mine, at % size),
        lambda at: comm.allreduce(mine * at, op=lambda a, b: a + 0.5 * b),
        lambda at: comm.scatter([mine + i for i in range(size)], at % size),
        lambda at: comm.sendrecv((rank, at), (rank + 1) % size, source=(rank - 1) % size),
        lambda at: comm.alltoall([(rank, i, at) for i in range(size)]),
        lambda at: comm.gather(mine, at % size),
    ]
    got = []
    for at in range(rounds):
        if at == last:
            die()
        got.append(operations[at % len(operations)](at))
    if last == rounds:
        die()
    return got, attempt


def plain(value: Any) -> Any:
    return b"".join(wire.encode(value))


@pytest.mark.parametrize("channel", SOME)
def test_ranks_killed_at_any_operation_run_again_alone(channel: str) -> None:
    program = fsd.remote(world_size=4, channel=channel, max_retries=2, timeout=60)(works)
    whole = [got for got, _ in fsd.get(program.remote(9, {}))]
    for seed in range(12):
        rng = random.Random(seed)
        deaths: dict[tuple[int, int], int] = {}
        for _ in range(rng.choice([1, 1, 2, 3])):
            rank = rng.randrange(4)
            attempt = 1 + sum(victim == rank for victim, _ in deaths)
            if attempt <= 2:
                deaths[rank, attempt] = rng.randrange(10)
        print(f"seed {seed}: {deaths}")
        before = invocations()
        found = fsd.get(program.remote(9, deaths), timeout=60)
        assert plain([got for got, _ in found]) == plain(whole)
        times = Counter(rank for rank, _ in deaths)
        assert [attempt for _, attempt in found] == [1 + times[rank] for rank in range(4)]
        assert invocations() - before == 4 + len(deaths)
        assert leftovers() == []


@pytest.mark.parametrize("channel", SOME)
def test_a_rank_that_dies_too_often_breaks_its_gang(channel: str) -> None:
    program = fsd.remote(world_size=3, channel=channel, max_retries=1)(works)
    with pytest.raises(RankFailed) as raised:
        fsd.get(program.remote(6, {(1, 1): 3, (1, 2): 5}), timeout=60)
    assert raised.value.ranks == [1]
    assert "SIGKILL" in str(raised.value.cause)
    assert leftovers() == []
    before = invocations()
    with pytest.raises(RankFailed):  # as ever, where nothing was said
        fsd.get(program.options(max_retries=0).remote(6, {(1, 1): 3}), timeout=60)
    assert invocations() - before == 3


@pytest.mark.parametrize("channel", SOME)
def test_a_rank_that_took_what_came_first_takes_its_gang_with_it(channel: str) -> None:
    @fsd.remote(world_size=3, channel=channel, max_retries=1)
    def first_come(victim: int) -> tuple[Any, int | None]:
        comm = fsd.collective.world()
        attempt = fsd.get_runtime_context().attempt
        got = None
        if comm.rank == 0:
            got = sorted(comm.recv(source=ANY_SOURCE) for _ in range(2))
        else:
            comm.send(comm.rank, 0)
        comm.barrier()
        if comm.rank == victim and attempt == 1:
            die()
        comm.barrier()
        return got, attempt

    before = invocations()
    values = fsd.get(first_come.remote(0), timeout=60)
    assert values == [([1, 2], 2), (None, 2), (None, 2)]
    assert invocations() - before == 3 + 1 + 3
    before = invocations()
    values = fsd.get(first_come.remote(1), timeout=60)  # it took nothing: it runs again alone
    assert values == [([1, 2], 1), (None, 2), (None, 1)]
    assert invocations() - before == 4
    assert leftovers() == []


def test_a_named_group_is_not_repeated_alone() -> None:
    @fsd.remote(world_size=2, max_retries=1)
    def meets() -> tuple[int, int | None]:
        attempt = fsd.get_runtime_context().attempt
        rank = fsd.collective.world().rank
        fsd.collective.world().barrier()
        group = fsd.collective.init_group(f"g{attempt}", rank, 2, timeout=20)
        total = group.allreduce(1)
        fsd.collective.destroy_group(f"g{attempt}")
        fsd.collective.world().barrier()
        if rank == 1 and attempt == 1:
            die()
        return total, attempt

    assert fsd.get(meets.remote(), timeout=60) == [(2, 2), (2, 2)]


def test_large_values_and_arguments_of_one_who_died_are_there_when_it_runs_again() -> None:
    @fsd.remote(world_size=3, max_retries=1)
    def large(mine: Any) -> Any:
        comm = fsd.collective.world()
        got = comm.allgather(mine)
        if comm.rank == 2 and fsd.get_runtime_context().attempt == 1:
            die()
        return np.concatenate(got)

    given = [np.random.default_rng(rank).standard_normal(60_000) for rank in range(3)]
    values = fsd.get(large.remote(fsd.per_rank(given)), timeout=60)
    for value in values:
        assert value.tobytes() == np.concatenate(given).tobytes()
    del value, values
    assert leftovers() == []


def test_what_used_up_its_memory_is_not_tried_again() -> None:
    @fsd.remote(world_size=2, memory=256, max_retries=3)
    def greedy() -> int:
        comm = fsd.collective.world()
        if comm.rank == 1:
            hoard = [np.ones(1 << 22) for _ in range(40)]
            return len(hoard)
        return int(comm.allreduce(0))

    before = invocations()
    with pytest.raises(RankFailed) as raised:
        fsd.get(greedy.remote(), timeout=60)
    assert isinstance(raised.value.cause, OutOfMemory)
    assert invocations() - before == 2


@pytest.mark.parametrize("channel", SOME)
def test_a_gang_whose_ranks_die_for_ever_can_be_cancelled(channel: str) -> None:
    @fsd.remote(world_size=3, channel=channel, max_retries=-1)
    def doomed() -> None:
        comm = fsd.collective.world()
        if comm.rank == 1:
            die()
        comm.barrier()

    refs = doomed.remote()
    before = invocations()
    seen = threading.Event()
    while invocations() < before + 8:  # it is being started again all the time
        seen.wait(0.01)
    fsd.cancel(refs[0])
    with pytest.raises(TaskCancelled):
        fsd.get(refs, timeout=60)
    loop.run(session.current().flush())
    assert leftovers() == []


def test_the_gang_of_a_task_that_is_killed_ends_with_it() -> None:
    @fsd.remote(world_size=3, max_retries=1)
    def inner(victim: int) -> int | None:
        comm = fsd.collective.world()
        if comm.rank == victim and fsd.get_runtime_context().attempt == 1:
            die()
        comm.allreduce(1)
        return fsd.get_runtime_context().attempt

    @fsd.remote(max_retries=1)
    def outer() -> list[int | None]:
        values: list[int | None] = fsd.get(inner.remote(1))
        if fsd.get_runtime_context().attempt == 1:
            inner.remote(-1)
            die()
        return values

    assert fsd.get(outer.remote(), timeout=60) == [1, 2, 1]


class Mortal:
    """A communicator whose rank dies when it begins a given exchange."""

    def __init__(self, inner: AsyncCommunicator, last: int) -> None:
        self._inner = inner
        self._left = last

    def neighbor_alltoall(
        self, sends: Mapping[int, Any], sources: Iterable[int]
    ) -> Awaitable[dict[int, Any]]:
        if self._left == 0:
            die()
        self._left -= 1
        return self._inner.neighbor_alltoall(sends, sources)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def mortal_forward(
    comm: AsyncCommunicator, shard: Shard, samples: csr_array, record: bool, layer: int
) -> RankAnswer:
    doomed: Any = Mortal(comm, layer)
    return await engine.forward(doomed, shard, samples, record)


@pytest.mark.parametrize("channel", SOME)
def test_a_worker_that_dies_in_mid_run_catches_up(
    channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, samples = inference.radixnet(1024, 12), inference.digits(40, 1024)

    def run(victim: int, layer: int) -> inference.Answer:
        def mortal(shard: Shard, samples: csr_array, record: bool) -> RankAnswer:
            now = fsd.get_runtime_context()
            at = layer if now.rank == victim and now.attempt == 1 else -1
            return fsd.collective.run(mortal_forward, shard, samples, record, at)

        monkeypatch.setattr(batch, "rank_program", mortal)
        return inference.run(
            *(model, samples),
            workers=4,
            channel=channel,
            partition="block",
            record=True,
            max_retries=1,
        )

    whole = run(-1, 0)
    assert whole.relaunched == 0
    for victim, layer in ((0, 0), (2, 5), (3, 11)):
        answer = run(victim, layer)
        assert answer.relaunched == 1
        assert answer.receipt.requests["invoke"] == 5
        for one, other in zip(answer.layers, whole.layers, strict=True):
            assert one.toarray().tobytes() == other.toarray().tobytes()
    with pytest.raises(SettingsError, match="max_retries"):
        inference.run(model, samples, workers=2, max_retries=-3)
