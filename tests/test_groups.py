"""Tasks that were not started together meet under a name, talk, and leave nothing behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from typing import Any, cast

import pytest

import fsdray as fsd
from fsdray import groups, loop, session
from fsdray.collective import AsyncCommunicator
from fsdray.errors import CollectiveError, CollectiveTimeout, RankFailed, SettingsError
from fsdray.groups import Keys, NamedGroup, Terms
from fsdray.services import Backend
from tests import on_aws
from tests.collective import CHANNELS, Services, noise, services

on_both_channels = pytest.mark.parametrize("channel", CHANNELS)


def member(
    here: Services, rank: int, size: int, channel: str, *, name: str = "g", patience: float = 30
) -> NamedGroup:
    """One rank, in this process."""
    deadline = asyncio.get_running_loop().time() + patience
    terms = Terms(size, channel)
    return NamedGroup(cast(Backend, here), name, rank, terms, deadline, f"task {rank}")


def run(program: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(program)


def is_clean(here: Services) -> bool:
    """Whether nothing is left."""
    return here.files.list("") == [] and here.inboxes.counts() == {}


async def talk(comm: AsyncCommunicator) -> Any:
    await comm.send(noise(50_000, comm.rank), (comm.rank + 1) % comm.size)
    await comm.recv()
    part = await comm.split(comm.rank % 2, -comm.rank)
    assert part is not None
    return await comm.allgather(comm.rank), await part.allgather(comm.rank)


# Meeting and leaving, in one process


@on_both_channels
@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_ranks_meet_talk_and_leave_nothing(channel: str, size: int) -> None:
    async def rank(here: Services, rank: int) -> Any:
        group = member(here, rank, size, channel)
        comm = await group.join()
        found = await talk(comm)
        await comm.free()
        with pytest.raises(CollectiveError, match="was freed"):
            comm.barrier()
        return found

    async def everybody(here: Services) -> Any:
        return await asyncio.gather(*(rank(here, each) for each in range(size)))

    with services() as here:
        for _ in range(2):  # the name may be used again
            for number, (all_of_us, part) in enumerate(run(everybody(here))):
                assert all_of_us == list(range(size))
                assert part == [r for r in reversed(range(size)) if r % 2 == number % 2]
            assert is_clean(here)
        assert here.count("list") == 0


@on_both_channels
def test_a_rank_that_is_early_for_the_next_group_of_the_name_does_not_mix(channel: str) -> None:
    async def rank(here: Services, rank: int) -> Any:
        found = []
        for i in range(6):
            comm = await member(here, rank, 3, channel).join()
            found.append(await comm.allreduce(10 * i + rank))
            await comm.free()
        return found

    async def everybody(here: Services) -> Any:
        return await asyncio.gather(*(rank(here, each) for each in range(3)))

    with services() as here:
        assert run(everybody(here)) == [[30 * i + 3 for i in range(6)]] * 3
        assert is_clean(here)


@on_both_channels
def test_groups_of_several_names_at_once_do_not_mix(channel: str) -> None:
    async def rank(here: Services, name: str, rank: int) -> Any:
        comm = await member(here, rank, 3, channel, name=name).join()
        found = [await comm.allgather((name, rank, i)) for i in range(3)]
        await comm.free()
        return found

    async def everybody(here: Services) -> Any:
        names = ["a", "a/b", "ü b", "a%2Fb"]
        return await asyncio.gather(
            *(rank(here, name, each) for name in names for each in range(3))
        )

    with services() as here:
        found = run(everybody(here))
        for i, name in enumerate(["a", "a/b", "ü b", "a%2Fb"]):
            for each in found[3 * i : 3 * i + 3]:
                assert each == [[(name, r, j) for r in range(3)] for j in range(3)]
        assert is_clean(here)


# What does not fit


@on_both_channels
@pytest.mark.parametrize("present", [[0, 1, 4], [1, 4]])
def test_ranks_that_do_not_come_are_named_at_all_that_do(channel: str, present: list[int]) -> None:
    async def everybody(here: Services) -> list[BaseException]:
        groups = [member(here, rank, 5, channel, patience=0.3) for rank in present]
        found = await asyncio.gather(*(group.join() for group in groups), return_exceptions=True)
        return cast(list[BaseException], found)

    missing = "ranks 2, 3" if 0 in present else "ranks 0, 2, 3"
    with services() as here:
        for error in run(everybody(here)):
            assert type(error) is CollectiveTimeout
            assert str(error) == f"group 'g' of 5: {missing} did not come in time"
        assert here.inboxes.counts() == {}
        # The places are gone; that it failed, and that the name is free, stays said.
        assert sorted(key.rsplit("/")[-1] for key in here.files.list("")) == ["charter", "verdict"]
        # The name is free.

        async def again() -> Any:
            comms = await asyncio.gather(*(member(here, r, 2, channel).join() for r in range(2)))
            return await asyncio.gather(*(comm.allreduce(1) for comm in comms))

        assert run(again()) == [2, 2]


def misfits() -> dict[str, tuple[int, int, str, str]]:
    return {
        "another size": (2, 5, "queue", "rank 2 (task 2) has world_size=5, channel='queue'"),
        "another channel": (2, 3, "object", "rank 2 (task 2) has world_size=3, channel='object'"),
        "a rank twice": (1, 3, "queue", "rank 1 (task 1) is there already: task 1"),
        "rank 0 twice": (0, 3, "queue", "rank 0 (task 0) is there already: task 0"),
    }


@pytest.mark.parametrize("what", misfits())
def test_what_does_not_fit_is_said_at_once_to_all_who_wait(what: str) -> None:
    rank, size, channel, text = misfits()[what]

    async def everybody(here: Services) -> list[Any]:
        waiting = [asyncio.create_task(member(here, r, 3, "queue").join()) for r in range(2)]
        charter = await here.objects.get(Keys("g").charter, wait=20)
        assert charter is not None
        keys = Keys("g", json.loads(bytes(charter.data))["id"])
        for r in range(2):
            assert await here.objects.get(keys.place(r), wait=20) is not None
        misfit = member(here, rank, size, channel).join()
        return await asyncio.gather(misfit, *waiting, return_exceptions=True)

    with services() as here:
        for error in run(everybody(here)):
            assert type(error) is CollectiveError
            assert text in str(error)
        assert here.inboxes.counts() == {}


def test_a_latecomer_who_does_not_fit_hurts_nobody_but_itself() -> None:
    async def everybody(here: Services) -> Any:
        comms = await asyncio.gather(*(member(here, r, 2, "queue").join() for r in range(2)))
        with pytest.raises(CollectiveError, match=r"rank 1 .* is there already"):
            await member(here, 1, 2, "queue").join()
        with pytest.raises(CollectiveError, match="has world_size=9"):
            await member(here, 8, 9, "queue").join()
        sums = await asyncio.gather(*(comm.allreduce(1) for comm in comms))
        await asyncio.gather(*(comm.free() for comm in comms))
        return sums

    with services() as here:
        assert run(everybody(here)) == [2, 2]
        assert is_clean(here)


@pytest.mark.parametrize(
    ("name", "rank", "size", "channel", "text"),
    [
        ("", 0, 1, "queue", "1 to 200 letters"),
        ("x" * 201, 0, 1, "queue", "1 to 200 letters"),
        ("g", 3, 3, "queue", "rank=3: ranks go from 0 to 2"),
        ("g", -1, 3, "queue", "rank=-1"),
        ("g", 0, 0, "queue", "at least one rank"),
        ("g", 0, 2, "pigeon", "channel='pigeon'"),
    ],
)
def test_what_no_group_can_have_is_refused(
    name: str, rank: int, size: int, channel: str, text: str
) -> None:
    async def make(here: Services) -> None:
        with pytest.raises(SettingsError, match=text):
            member(here, rank, size, channel, name=name)

    with services() as here:
        run(make(here))
        assert here.count("get") + here.count("put") == 0


@on_both_channels
def test_a_rank_that_fails_ends_the_waits_of_the_others_and_frees_the_name(channel: str) -> None:
    async def rank(here: Services, rank: int, size: int) -> Any:
        group = member(here, rank, size, channel)
        comm = await group.join()
        await comm.allreduce(1)
        try:
            if rank == 1:
                raise KeyError("lost")
            return await comm.barrier()  # type: ignore[func-returns-value]
        except Exception as error:
            await group.fail(error)
            raise

    async def everybody(here: Services) -> Any:
        ranks = [rank(here, each, 3) for each in range(3)]
        return await asyncio.gather(*ranks, return_exceptions=True)

    async def later(here: Services) -> Any:
        comms = await asyncio.gather(*(member(here, r, 2, channel).join() for r in range(2)))
        return await asyncio.gather(*(comm.allreduce(1) for comm in comms))

    with services() as here:
        first, second, third = run(everybody(here))
        assert isinstance(second, KeyError)
        for error in (first, third):
            assert isinstance(error, RankFailed)
            assert error.ranks == [1]
            assert isinstance(error.cause, KeyError)
        assert here.inboxes.counts() == {}
        left = {key.rsplit("/")[-1] for key in here.files.list("")}
        assert left <= {"charter", "verdict", "abort"}
        assert run(later(here)) == [2, 2]


# Through tasks


@pytest.fixture(scope="module", autouse=True)
def _session() -> Iterator[None]:
    fsd.init(concurrency=20)
    yield
    fsd.shutdown()


@fsd.remote
def meets(name: str, rank: int, size: int, channel: str) -> Any:
    comm = fsd.collective.init_group(name, rank, world_size=size, channel=channel)
    found = comm.allgather((rank, noise(100_000, rank).sum()))
    fsd.collective.destroy_group(name)
    return found


@on_both_channels
def test_plain_tasks_meet_and_the_name_may_be_used_again(channel: str) -> None:
    for size in (3, 1, 4):
        found = fsd.get([meets.remote(f"tasks {channel}", r, size, channel) for r in range(size)])
        assert found == [[(r, noise(100_000, r).sum()) for r in range(size)]] * size


def test_a_task_may_be_in_several_groups_and_leaves_them_when_it_returns() -> None:
    @fsd.remote
    def grid(row: int, column: int) -> Any:
        rows = fsd.collective.init_group(f"row {row}", column, 2, channel="object")
        columns = fsd.collective.init_group(f"column {column}", row, 2)
        if row == column == 0:  # the order in which they are left is no matter
            groups._joined = dict(reversed(groups._joined.items()))
        return rows.allgather((row, column)), columns.allgather((row, column))

    for _ in range(2):
        found = fsd.get([grid.remote(row, column) for row in range(2) for column in range(2)])
        for i, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            assert found[i] == ([(row, 0), (row, 1)], [(0, column), (1, column)])
    keys = loop.run(session.current().backend.objects.list("groups/"))
    assert not [key for key in keys if "row" in key or "column" in key]


def test_the_driver_may_be_a_rank_and_coroutines_run_over_a_group() -> None:
    async def program(comm: AsyncCommunicator, start: int) -> Any:
        return await comm.scan(start)

    @fsd.remote
    def other() -> Any:
        return fsd.collective.init_group("with driver", 1, 2).run(program, 20)

    ref = other.remote()
    comm = fsd.collective.init_group("with driver", 0, 2)
    with pytest.raises(SettingsError, match="in group 'with driver' already"):
        fsd.collective.init_group("with driver", 0, 2)
    assert comm.run(program, 10) == 10
    comm.free()
    assert fsd.get(ref) == 30
    with pytest.raises(SettingsError, match="in no group 'with driver'"):
        fsd.collective.destroy_group("with driver")


def test_a_task_that_raises_fails_those_who_wait_for_it() -> None:
    @fsd.remote
    def task(rank: int) -> Any:
        comm = fsd.collective.init_group("broken", rank, 3)
        if rank == 2:
            raise KeyError("two")
        return comm.barrier()  # type: ignore[func-returns-value]

    refs = [task.remote(rank) for rank in range(3)]
    for ref in refs[:2]:
        with pytest.raises(RankFailed, match="rank 2 failed") as caught:
            fsd.get(ref)
        assert isinstance(caught.value.cause, KeyError)
    with pytest.raises(KeyError, match="two"):
        fsd.get(refs[2])


def test_a_task_whose_fellow_never_comes_fails_before_its_own_time_is_over() -> None:
    @fsd.remote(timeout=on_aws.amount(2, 6))
    def task(rank: int) -> Any:
        fsd.collective.init_group("lonely", rank, 2)

    with pytest.raises(CollectiveTimeout, match="group 'lonely' of 2: rank 1 did not come"):
        fsd.get(task.remote(0))
    with pytest.raises(CollectiveTimeout, match="rank 0 did not come"):
        fsd.collective.init_group("lonely", 1, 2, timeout=0.1)


@pytest.mark.local_only("on Lambda a call that waits keeps its place")
def test_a_group_may_be_larger_than_the_concurrency() -> None:
    @fsd.remote
    def task(rank: int) -> Any:
        comm = fsd.collective.init_group("large", rank, 5)
        return [comm.allreduce(rank) for _ in range(3)]

    fsd.shutdown()
    fsd.init(concurrency=2)
    try:
        assert fsd.get([task.remote(rank) for rank in range(5)]) == [[10, 10, 10]] * 5
    finally:
        fsd.shutdown()
        fsd.init(concurrency=20)


def test_abort_ends_a_group() -> None:
    @fsd.remote
    def task(rank: int) -> Any:
        comm = fsd.collective.init_group("aborted", rank, 2)
        if rank == 1:
            comm.abort(7)
        return comm.recv(source=1)

    refs = [task.remote(rank) for rank in range(2)]
    for ref in refs:
        with pytest.raises(RankFailed, match=r"rank 1 called abort\(7\)"):
            fsd.get(ref)
