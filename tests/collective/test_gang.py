"""Collectives through real gangs: processes, both channels, trees of any shape."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import fsdray as fsd
from fsdray.collective import AsyncCommunicator
from fsdray.collective.algorithms import Setting
from fsdray.collective.frames import Operation
from fsdray.costs.meter import metering
from fsdray.errors import (
    CollectiveError,
    CollectiveTimeout,
    MismatchedCollective,
    RankFailed,
    SettingsError,
)
from fsdray.services import MIB
from tests import on_aws
from tests.collective import CHANNELS, noise
from tests.collective.even import SENT, bill
from tests.conftest import clean_session

LARGE = 400_000  # bytes: above the inline limit


@pytest.fixture(scope="module", params=[1, 2, 4])
def branching(request: pytest.FixtureRequest) -> Iterator[int]:
    """A session whose ranks start so many others each; it leaves nothing."""
    with clean_session(branching=request.param):
        yield request.param


in_one_session = pytest.mark.parametrize("branching", [2], indirect=True)


@fsd.remote
def everything(value: int) -> dict[str, Any]:
    comm = fsd.collective.world()
    rank, size = comm.rank, comm.size
    array = noise(LARGE, rank)
    comm.send(array, (rank + 1) % size, tag=4)
    found = {
        "who": (rank, size, value),
        "recv": int(comm.recv(source=(rank - 1) % size, tag=4).sum()),
        "bcast": comm.bcast({"from": rank}, root=size - 1),
        "scatter": comm.scatter([i * i for i in range(size)] if rank == 0 else None),
        "gather": comm.gather(rank, root=size // 2),
        "allgather": [int(each.sum()) for each in comm.allgather(array)],
        "reduce": comm.reduce([rank]),
        "allreduce": comm.allreduce(np.arange(3.0) * rank).tolist(),
        "neighbors": comm.neighbor_alltoall({(rank + 1) % size: rank}, [(rank - 1) % size]),
        "objects": comm.allgather(np.array([None, {rank: "x"}], dtype=object))[-1].tolist(),
    }
    comm.barrier()
    return found


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_a_gang_of_any_shape_talks(branching: int, channel: str, size: int) -> None:
    sums = [int(noise(LARGE, rank).sum()) for rank in range(size)]
    gang = everything.options(world_size=size, channel=channel)
    for rank, found in enumerate(fsd.get(gang.remote(7))):
        assert found == {
            "who": (rank, size, 7),
            "recv": sums[(rank - 1) % size],
            "bcast": {"from": size - 1},
            "scatter": rank * rank,
            "gather": list(range(size)) if rank == size // 2 else None,
            "allgather": sums,
            "reduce": list(range(size)) if rank == 0 else None,
            "allreduce": [0, sum(range(size)), 2 * sum(range(size))],
            "neighbors": {(rank - 1) % size: (rank - 1) % size},
            "objects": [None, {size - 1: "x"}],
        }


@pytest.mark.usefixtures("branching")
def test_each_rank_is_given_its_own_value_whatever_it_is() -> None:
    @fsd.remote(world_size=3)
    def describe(mine: Any, shared: Any, *, named: Any) -> Any:
        rank = fsd.collective.world().rank
        return rank, type(mine).__name__, np.sum(mine) if rank else mine, np.sum(shared), named

    refs = [fsd.put("small"), fsd.put(noise(LARGE, 1)), np.full(LARGE, 2)]
    found = fsd.get(
        describe.remote(fsd.per_rank(refs), fsd.put(noise(LARGE)), named=fsd.per_rank("abc"))
    )
    assert found == [
        (0, "str", "small", noise(LARGE).sum(), "a"),
        (1, "ndarray", noise(LARGE, 1).sum(), noise(LARGE).sum(), "b"),
        (2, "ndarray", 2 * LARGE, noise(LARGE).sum(), "c"),
    ]


@pytest.mark.usefixtures("branching")
@pytest.mark.parametrize("channel", CHANNELS)
def test_a_coroutine_program_runs_on_the_async_communicator(channel: str) -> None:
    async def program(comm: AsyncCommunicator, start: int, *, step: int) -> Any:
        first, second = comm.allreduce(start), comm.allgather(step * comm.rank)
        total = await comm.compute(sum, await second)
        return await first, total

    @fsd.remote(world_size=4, channel=channel)
    def task(start: int) -> Any:
        return fsd.collective.run(program, start, step=10)

    assert fsd.get(task.remote(3)) == [(12, 60)] * 4


@pytest.mark.usefixtures("branching")
def test_there_is_no_world_outside_a_gang() -> None:
    @fsd.remote
    def alone() -> Any:
        return fsd.collective.world().rank

    with pytest.raises(CollectiveError, match="there is no gang here"):
        fsd.collective.world()
    with pytest.raises(CollectiveError, match="world_size=P"):
        fsd.get(alone.remote())
    # Nor in a worker that was a gang's before.
    assert fsd.get(everything.options(world_size=2).remote(1))
    with pytest.raises(CollectiveError, match="there is no gang here"):
        fsd.get(alone.remote())


@in_one_session
@pytest.mark.usefixtures("branching")
@pytest.mark.parametrize("channel", CHANNELS)
def test_results_of_a_gang_may_be_written_and_are_nobody_elses(channel: str) -> None:
    @fsd.remote(world_size=3, channel=channel)
    def scribble() -> Any:
        comm = fsd.collective.world()
        mine = np.full(LARGE, float(comm.rank))
        parts = comm.allgather(mine)
        parts += (comm.bcast(mine), comm.allreduce(mine))
        before = [float(part[-1]) for part in parts]
        for part in parts:
            part += 100
        comm.barrier()
        return before, bool((mine == comm.rank).all())

    assert fsd.get(scribble.remote()) == [([0.0, 1.0, 2.0, 0.0, 3.0], True)] * 3


@in_one_session
@pytest.mark.usefixtures("branching")
@pytest.mark.parametrize("channel", CHANNELS)
def test_ranks_that_call_different_operations_are_told(channel: str) -> None:
    @fsd.remote(world_size=3, channel=channel)
    def confused() -> Any:
        comm = fsd.collective.world()
        return comm.bcast("x") if comm.rank == 0 else comm.allgather(comm.rank)

    with pytest.raises(MismatchedCollective, match="allgather where rank 0 called bcast"):
        fsd.get(confused.remote())


@in_one_session
@pytest.mark.usefixtures("branching")
@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.on_aws("auto-2")
@pytest.mark.slow_on_aws
def test_a_wait_ends_before_the_functions_own_time_does(channel: str) -> None:
    @fsd.remote(world_size=2, channel=channel, timeout=on_aws.amount(1, 8))
    def forgetful() -> Any:
        comm = fsd.collective.world()
        return comm.recv(source=1, tag=5) if comm.rank == 0 else None

    with pytest.raises(CollectiveTimeout, match="recv at rank 0 of 2: no message came from rank 1"):
        fsd.get(forgetful.remote())


@in_one_session
@pytest.mark.usefixtures("branching")
def test_misuse_in_a_task_is_the_callers_error_too() -> None:
    @fsd.remote(world_size=2)
    def misuse(name: str) -> Any:
        comm = fsd.collective.world()
        return getattr(comm, name)(1, 9)

    with pytest.raises(SettingsError, match="root=9"):
        fsd.get(misuse.remote("gather"))
    with pytest.raises(AttributeError, match="here use gather"):
        fsd.get(misuse.remote("Gather"))


@in_one_session
@pytest.mark.usefixtures("branching")
@pytest.mark.slow_on_aws
def test_gangs_at_the_same_time_and_one_after_the_other_do_not_mix() -> None:
    @fsd.remote
    def sums(offset: int) -> list[int]:
        comm = fsd.collective.world()
        return [comm.allreduce(offset + i) for i in range(20)]

    running = [
        sums.options(world_size=3, channel=channel).remote(100 * i)
        for i, channel in enumerate(CHANNELS * 3)
    ]
    for i, refs in enumerate(running):
        assert fsd.get(refs) == [[3 * (100 * i + j) for j in range(20)]] * 3


@in_one_session
@pytest.mark.usefixtures("branching")
@pytest.mark.parametrize("channel", CHANNELS)
def test_abort_ends_the_whole_gang_also_ranks_that_compute(channel: str) -> None:
    @fsd.remote(world_size=4, channel=channel)
    def aborts() -> Any:
        comm = fsd.collective.world()
        comm.barrier()
        if comm.rank == 2:
            comm.abort(9)
        if comm.rank == 3:
            threading.Event().wait()  # it would never end
        return comm.recv()

    with pytest.raises(RankFailed, match=r"rank 2 failed: .*rank 2 called abort\(9\)") as caught:
        fsd.get(aborts.remote())
    assert caught.value.ranks == [2]


@in_one_session
@pytest.mark.usefixtures("branching")
@pytest.mark.parametrize("channel", CHANNELS)
def test_plain_code_splits_begins_and_waits_in_a_gang(channel: str) -> None:
    @fsd.remote(world_size=5, channel=channel)
    def works() -> Any:
        comm = fsd.collective.world()
        part = comm.split(comm.rank % 2, key=-comm.rank)
        requests = [comm.irecv(source=rank) for rank in range(comm.size)]
        sends = [comm.isend((comm.rank, noise(LARGE, comm.rank)), r) for r in range(comm.size)]
        summing = part.iallreduce(comm.rank)
        got = fsd.collective.Request.waitall(requests)
        fsd.collective.Request.waitall(sends)
        assert all((array == noise(LARGE, rank)).all() for rank, array in got)
        found = [rank for rank, _ in got], summing.wait(), part.rank
        part.free()
        return found

    expected = [([0, 1, 2, 3, 4], 4 if r % 2 else 6, (4 - r) // 2) for r in range(5)]
    assert fsd.get(works.remote()) == expected


@pytest.mark.local_only("S3 has room for all that a gang writes, which goes when it ends")
@pytest.mark.parametrize(("max_retries", "most"), [(0, 25), (1, 1000)])
@in_one_session
def test_what_was_read_makes_room_for_what_comes(
    branching: int, max_retries: int, most: int
) -> None:
    @fsd.remote
    def gradients(steps: int) -> tuple[int, bool]:
        comm = fsd.collective.world()
        every = [np.random.default_rng(rank).random(MIB // 8) for rank in range(comm.size)]
        total = sum(every[1:], every[0])
        are_right = True
        for _ in range(steps):
            are_right &= np.array_equal(comm.allreduce(every[comm.rank]), total)
        comm.barrier()
        objects = fsd.session.current().backend.objects
        return len(fsd.loop.run(objects.list(""))), are_right

    task = gradients.options(world_size=3, channel="auto", max_retries=max_retries)
    found = fsd.get(task.remote(40))
    assert all(are_right for _, are_right in found)
    left = max(count for count, _ in found)
    assert left <= most
    assert max_retries == 0 or left >= 80, "a rank that is started again reads them all"


# Where processes are on one machine, most of what a rank calls needs no task


@in_one_session
@pytest.mark.usefixtures("branching")
@pytest.mark.parametrize("channel", CHANNELS)
def test_what_was_begun_goes_on_while_its_rank_calls_others(channel: str) -> None:
    @fsd.remote(world_size=4, channel=channel)
    def works(rounds: int) -> bool:
        comm = fsd.collective.world()
        begun, other = comm.dup(), comm.dup()
        rank, size = comm.rank, comm.size
        are_right = True
        for i in range(rounds):
            sends = [begun.isend((i, rank), (rank + 1) % size)]
            every = begun.ialltoall([noise(LARGE, rank * size + dest) for dest in range(size)])
            total = begun.iallreduce(rank + i)
            receive = begun.irecv(source=(rank - 1) % size)
            are_right &= [other.allreduce(k) for k in range(5)] == [size * k for k in range(5)]
            # The others wait for what this one has begun and does not wait for.
            fsd.collective.Request.waitall(sends)
            are_right &= receive.wait() == (i, (rank - 1) % size)
            are_right &= total.wait() == sum(range(size)) + size * i
            for source, got in enumerate(every.wait()):
                are_right &= np.array_equal(got, noise(LARGE, source * size + rank))
            other.barrier()
        return bool(are_right)

    assert fsd.get(works.remote(3)) == [True] * 4


@in_one_session
@pytest.mark.usefixtures("branching")
def test_threads_of_a_rank_talk_at_the_same_time() -> None:
    @fsd.remote(world_size=3, channel="auto")
    def works(threads: int, rounds: int) -> list[list[int]]:
        comm = fsd.collective.world()
        parts = [comm.dup() for _ in range(threads)]

        def talk(number: int) -> list[int]:
            return [parts[number].allreduce(i + number) for i in range(rounds)]

        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(talk, range(threads)))

    expected = [[3 * (i + number) for i in range(20)] for number in range(4)]
    assert fsd.get(works.remote(4, 20)) == [expected] * 3


@in_one_session
@pytest.mark.usefixtures("branching")
@pytest.mark.parametrize("channel", CHANNELS)
def test_ranks_wait_for_those_that_come_late_and_for_those_that_do_not(channel: str) -> None:
    @fsd.remote(world_size=3, channel=channel)
    def works(pauses: list[float]) -> list[int]:
        comm = fsd.collective.world()
        found = []
        for i, pause in enumerate(pauses):
            if comm.rank == i % comm.size:
                time.sleep(pause)
            found.append(comm.allreduce(i))
            if comm.rank == 0:
                comm.send(i, 1)
            elif comm.rank == 1:
                assert comm.probe(source=0)
                found.append(comm.recv(source=0))
        return found

    pauses = [0.0, 0.001, 0.004, 0.005, 0.006, 0.03, 0.2, 0.0, 0.0]
    sums, received = [3 * i for i in range(9)], list(range(9))
    one = [each for pair in zip(sums, received, strict=True) for each in pair]
    assert fsd.get(works.remote(pauses)) == [sums, one, sums]


@pytest.mark.local_only("the meter of an emulator's requests is the emulator's")
@in_one_session
@pytest.mark.usefixtures("branching")
@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("size", [2, 4, 7])
def test_a_gang_bills_what_the_formulas_say_of_senders(channel: str, size: int) -> None:
    lengths = (1000, 70_000)

    @fsd.remote(world_size=size, channel=channel)
    def counted() -> tuple[Setting, list[dict[str, float]]]:
        comm = fsd.collective.world()
        found = []
        for operation in PLAIN:
            for length in lengths:
                with metering() as meter:
                    PLAIN[operation](comm, noise(length))
                found.append(meter.counts())
        return comm._inner.setting(), found

    every = fsd.get(counted.remote())
    for i, (operation, length) in enumerate(itertools.product(PLAIN, lengths)):
        meant = bill(operation, every[0][0], noise(length))
        found = {name: sum(counts[i].get(name, 0) for _, counts in every) for name in SENT}
        assert found == {name: meant.count(name) for name in SENT}, (operation.name, length)


PLAIN: dict[Operation, Callable[[Any, Any], Any]] = {
    Operation.BCAST: lambda comm, value: comm.bcast(value, comm.size - 1),
    Operation.SCATTER: lambda comm, value: comm.scatter([value] * comm.size, comm.size // 2),
    Operation.GATHER: lambda comm, value: comm.gather(value, comm.size // 2),
    Operation.REDUCE: lambda comm, value: comm.reduce(value, fsd.collective.MAX, comm.size - 1),
    Operation.ALLGATHER: lambda comm, value: comm.allgather(value),
    Operation.BARRIER: lambda comm, value: comm.barrier(),
    Operation.ALLTOALL: lambda comm, value: comm.alltoall([value] * comm.size),
}
