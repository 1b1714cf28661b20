"""Requests, probes and statuses: what the oracle's programs do not ask, and what it costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fsdray.collective import (
    ANY_SOURCE,
    ANY_TAG,
    PROC_NULL,
    UNDEFINED,
    AsyncCommunicator,
    AsyncRequest,
    Request,
    Status,
)
from fsdray.errors import CollectiveError, CollectiveTimeout, MismatchedCollective, SettingsError
from tests.collective import CHANNELS, run, run_plain, services

on_both_channels = pytest.mark.parametrize("channel", CHANNELS)


# Requests


@on_both_channels
def test_what_was_begun_may_be_changed_at_once(channel: str) -> None:
    async def program(comm: AsyncCommunicator) -> list[Any]:
        buffer = np.full(30_000, float(comm.rank))
        right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        begun = [
            comm.isend(buffer, right),
            comm.irecv(source=left),
            comm.ibcast(buffer, root=1),
            comm.iallgather(buffer),
            comm.ialltoall([buffer] * comm.size),
            comm.iallreduce(buffer),
            comm.iscatter([buffer] * comm.size, root=2),
            comm.igather(buffer),
            comm.ireduce(buffer),
            comm.iscan(buffer),
            comm.iexscan(buffer),
            comm.ireduce_scatter([buffer] * comm.size),
            comm.ineighbor_alltoall({right: buffer}, [left]),
            comm.ibarrier(),
        ]
        buffer[:] = -1
        return await AsyncRequest.waitall(begun)

    def means(value: Any) -> Any:
        if isinstance(value, list):
            return [means(each) for each in value]
        if isinstance(value, dict):
            return {key: means(each) for key, each in value.items()}
        return value if value is None else float(value[0])

    for rank, found in enumerate(run(channel, 3, program)):
        left, at_root = float((rank - 1) % 3), rank == 0
        assert [means(each) for each in found] == [
            *(None, left, 1.0, [0.0, 1.0, 2.0], [0.0, 1.0, 2.0], 3.0, 2.0),
            *([0.0, 1.0, 2.0] if at_root else None, 3.0 if at_root else None),
            *([0.0, 1.0, 3.0][rank], [None, 0.0, 1.0][rank], 3.0, {int(left): left}, None),
        ]


@on_both_channels
def test_requests_of_plain_code_do_the_same(channel: str) -> None:
    def program(comm: Any) -> list[Any]:
        right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        mine = [comm.rank] * comm.size
        begun = [
            comm.isend(comm.rank, right),
            comm.irecv(source=left),
            comm.ibcast(comm.rank, root=1),
            comm.iallgather(comm.rank),
            comm.ialltoall(mine),
            comm.iallreduce(comm.rank),
            comm.iscatter(mine, root=2),
            comm.igather(comm.rank),
            comm.ireduce(comm.rank),
            comm.iscan(comm.rank),
            comm.iexscan(comm.rank),
            comm.ireduce_scatter(mine),
            comm.ineighbor_alltoall({right: comm.rank}, [left]),
            comm.ibarrier(),
        ]
        found = [
            *Request.waitall(begun[:4]),
            *(request.wait() for request in begun[4:]),
            comm.neighbor_alltoall({right: 1}, [left]),
            comm.reduce_scatter(mine),
        ]
        assert not any(begun)
        assert repr(begun[0]) == "<Request spent>"
        return found

    for rank, found in enumerate(run_plain(channel, 3, program)):
        left, at_root = (rank - 1) % 3, rank == 0
        assert found == [
            *(None, left, 1, [0, 1, 2], [0, 1, 2], 3, 2),
            *([0, 1, 2] if at_root else None, 3 if at_root else None),
            *([0, 1, 3][rank], [None, 0, 1][rank], 3, {left: left}, None, {left: 1}, 3),
        ]


@on_both_channels
def test_get_status_leaves_the_result_and_free_forgets_the_request(channel: str) -> None:
    def program(comm: Any) -> Any:
        request = comm.irecv(source=0)
        assert not request.get_status()
        assert repr(request) == "<Request under way>"
        forgotten = comm.isend("free", 0, tag=2)
        forgotten.free()
        comm.send("me", 0, tag=4)
        status = Status()
        while not request.get_status(status):
            pass
        assert repr(request) == "<Request done>"
        return request.wait(), (status.source, status.tag), comm.recv(source=0), forgotten.wait()

    # The receive was posted first: it takes what was sent first, whatever became of its request.
    assert run_plain(channel, 1, program) == [("free", (0, 2), "me", None)]


@on_both_channels
def test_a_receive_that_is_cancelled_at_once_takes_nothing(channel: str) -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        given_up = comm.irecv(source=comm.rank)
        given_up.cancel()
        await comm.send("kept", comm.rank)
        return await comm.recv(), await given_up.wait()

    assert run(channel, 2, program) == [("kept", None)] * 2


@on_both_channels
def test_a_cancelled_receive_leaves_its_message_to_the_next(channel: str) -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        if comm.rank == 1:
            await comm.barrier()
            return await comm.send("kept", 0)  # type: ignore[func-returns-value]
        given_up, status = comm.irecv(source=1), Status()
        await asyncio.sleep(0)  # it waits already
        given_up.cancel()
        assert await given_up.wait(status) is None
        assert status.Is_cancelled()
        assert "cancelled" in repr(status)
        await comm.barrier()
        taken = comm.irecv()
        while not await taken.get_status():
            pass
        taken.cancel()  # too late: it has its message
        return await taken, status.cancelled

    assert run(channel, 2, program)[0] == ("kept", True)


def test_sends_go_on_when_they_are_cancelled_and_collectives_cannot_be() -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        sending = comm.isend("sent", 1 - comm.rank)
        sending.cancel()
        summing = comm.iallreduce(1)
        with pytest.raises(SettingsError, match="a collective cannot be cancelled"):
            summing.cancel()
        status = Status()
        await sending.wait(status)
        return await comm.recv(), await summing, status.cancelled

    assert run("queue", 2, program) == [("sent", 2, False)] * 2


@on_both_channels
def test_the_error_of_a_request_is_raised_where_it_is_waited_for(channel: str) -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        never = comm.irecv(source=1, tag=5)
        done = comm.isend("x", 0)
        waits: list[Callable[[], Any]] = [
            lambda: AsyncRequest.waitall([done, never]),
            lambda: AsyncRequest.waitany([never]),
        ]
        for wait in waits:
            if not never:
                break
            with pytest.raises(CollectiveTimeout, match="no message came from rank 1"):
                await wait()
        return True

    assert run(channel, 2, program, deadline=0.3) == [True, True]


def test_waitany_of_what_is_spent_is_undefined() -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        request = comm.isend(1, 0)
        await request
        return await AsyncRequest.waitany([request]), await AsyncRequest.testany([request])

    assert run("queue", 1, program) == [((UNDEFINED, None), (UNDEFINED, True, None))]


# Probes


@on_both_channels
def test_probing_leaves_the_message_and_nothing_else_behind(channel: str) -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        if comm.rank == 1:
            await comm.send("here", 0, tag=6)
            return None
        assert not await comm.iprobe(tag=99)  # goes on looking, which must not be in the way
        status = Status()
        assert await comm.probe(source=1, tag=ANY_TAG, status=status)
        assert await comm.iprobe(source=ANY_SOURCE, tag=6)
        assert not await comm.iprobe(source=1, tag=7)
        got = await comm.recv(source=status.source, tag=status.tag)
        assert await comm.iprobe(source=PROC_NULL)
        return got, not await comm.iprobe(tag=6)

    assert run(channel, 2, program)[0] == ("here", True)


def test_a_loop_around_iprobe_bills_no_more_receives_than_a_probe() -> None:
    async def program(comm: AsyncCommunicator, looks: int) -> Any:
        if comm.rank == 1:
            await comm.recv(source=0)
            await comm.send("late", 0)
        else:
            for _ in range(looks):
                assert not await comm.iprobe(source=1)
            await comm.send("go", 1)
            await comm.recv(source=1)

    counts = []
    for looks in (1, 30):
        with services() as here:
            here.run("queue", 2, lambda comm, looks=looks: program(comm, looks))
            counts.append(here.count("receive"))
    assert counts[1] <= counts[0] + 1


@on_both_channels
def test_a_probe_that_finds_nothing_ends_with_the_deadline(channel: str) -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        with pytest.raises(CollectiveTimeout, match="probe at rank 0 of 1"):
            await comm.probe(tag=5)

    run(channel, 1, program, deadline=0.2)


# Billed requests


def test_sends_that_begin_in_one_turn_share_their_batches() -> None:
    async def at_once(comm: AsyncCommunicator) -> None:
        if comm.rank == 0:
            await AsyncRequest.waitall([comm.isend(i, 1 + i % 3) for i in range(25)])
            await asyncio.gather(*(comm.send(i, 1 + i % 3) for i in range(20)))
        else:
            for _ in range(len(range(comm.rank - 1, 25, 3)) + len(range(comm.rank - 1, 20, 3))):
                await comm.recv()

    with services() as here:
        here.run("queue", 4, at_once)
        assert here.count("publish") == 3 + 2


def test_sends_of_plain_code_that_begin_close_together_share_their_batches() -> None:
    def program(comm: Any) -> None:
        if comm.rank == 0:
            Request.waitall([comm.isend(i, 1) for i in range(10)])
        else:
            assert [comm.recv() for _ in range(10)] == list(range(10))

    with services() as here:
        run_plain("queue", 2, program, here)
        assert here.count("publish") < 10


def test_operations_that_begin_in_one_turn_share_their_batches() -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        return await asyncio.gather(*(comm.bcast(i) for i in range(10)))

    with services() as here:
        assert here.run("queue", 3, program) == [list(range(10))] * 3
        assert here.count("publish") == 1


def test_what_lingers_goes_before_its_rank_waits_or_ends() -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        comm.isend(comm.rank, 1 - comm.rank)
        got = await comm.recv()  # its partner's would not come if that one kept it
        comm.isend("last words", 1 - comm.rank, tag=9)
        await comm.barrier()
        return got, await comm.recv(tag=9)

    assert run("queue", 2, program) == [(1, "last words"), (0, "last words")]


@on_both_channels
def test_what_was_begun_is_sent_even_where_nobody_waited_for_it(channel: str) -> None:
    tasks: set[asyncio.Task[Any]] = set()

    async def program(comm: AsyncCommunicator) -> Any:
        part = await comm.split(0)
        assert part is not None
        if comm.rank == 0:
            for each in (comm, part):
                each.isend("last words", 1)
                each.iallgather("too")
                each.irecv(tag=99)
                assert not await each.iprobe(tag=99)
            tasks.update(asyncio.all_tasks())
            return None
        words = [await each.recv() if comm.rank == 1 else None for each in (part, comm)]
        return words, [await each.allgather(comm.rank) for each in (part, comm)]

    assert run(channel, 3, program, deadline=20) == [
        None,
        (["last words"] * 2, [["too", 1, 2]] * 2),
        ([None] * 2, [["too", 1, 2]] * 2),
    ]
    assert all(task.done() for task in tasks)


# Arguments


def test_a_number_for_a_buffer_is_caught_and_a_buffer_is_not_needed() -> None:
    def program(comm: Any) -> Any:
        for call in (lambda: comm.recv(0), lambda: comm.irecv(0)):
            with pytest.raises(SettingsError, match=r"buf=0: .* name the rank: source=0"):
                call()
        comm.send("a", 0)
        comm.send("b", 0)
        return comm.recv(bytearray(100), source=0), comm.irecv(bytearray(10)).wait()

    assert run_plain("queue", 1, program) == [("a", "b")]


NAMES = {
    "Send": "send",
    "Isend": "isend",
    "Sendrecv": "sendrecv",
    "Iprobe": "iprobe",
    "Alltoall": "alltoall",
    "Reduce_scatter": "reduce_scatter",
    "Ibcast": "ibcast",
    "Scan": "scan",
    "Split": "split",
    "Dup": "dup",
    "Free": "free",
    "Abort": "abort",
}


def test_names_of_mpi4py_that_are_not_here_say_what_to_use() -> None:
    def program(comm: Any) -> None:
        for name, ours in NAMES.items():
            with pytest.raises(AttributeError, match=rf"{name}\(\) .* here use {ours}\(\)"):
                getattr(comm, name)
        for name in ("ssend", "Ssend", "issend", "mprobe", "improbe", "bsend", "Ibsend", "Create"):
            with pytest.raises(AttributeError, match=rf"^{name}\(\) is not here: "):
                getattr(comm, name)
        request = comm.isend(1, 0)
        with pytest.raises(AttributeError, match=r"here use wait\(\)"):
            request.Wait()
        with pytest.raises(AttributeError, match="has no 'nothing'"):
            _ = request.nothing
        assert Request.waitall([request, comm.irecv()]) == [None, 1]

    run_plain("queue", 1, program)


# Other communicators


@on_both_channels
def test_a_freed_communicator_is_no_more_and_others_go_on(channel: str) -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        with pytest.raises(SettingsError, match="lasts as long as the gang"):
            await comm.free()
        part = await comm.split(0)
        assert part is not None
        await comm.send("for a receive", (comm.rank + 1) % comm.size)
        await part.send("never received", (comm.rank + 1) % comm.size)
        summing = part.iallreduce(1)
        with pytest.raises(CollectiveError, match="are under way"):
            await part.free()
        assert await summing == comm.size
        await comm.barrier()
        await part.free()
        for call in (part.barrier, part.dup, part.irecv, lambda: part.send(1, 0)):
            with pytest.raises(CollectiveError, match="was freed"):
                call()
        with pytest.raises(CollectiveError, match="was freed"):
            await part.free()
        twin = await comm.dup()
        return await twin.allreduce(1), await comm.recv()

    assert run(channel, 3, program) == [(3, "for a receive")] * 3


@on_both_channels
def test_a_duplicate_costs_nothing(channel: str) -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        return (await (await comm.dup()).dup()).size

    with services() as here:
        assert here.run(channel, 3, program) == [3] * 3
        assert here.count("publish") + here.count("put") + here.count("get") == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((-1,), "color=-1: a color is a whole number from 0"),
        ((2**31,), "color=2147483648"),
        ((1.5,), r"color=1\.5"),
        ((0, "a"), "key='a': a key is a whole number"),
    ],
)
def test_colors_and_keys_are_checked_before_anything_is_sent(arguments: Any, text: str) -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        with pytest.raises(SettingsError, match=text):
            comm.split(*arguments)
        assert here.count("publish") == 0
        # Nobody has moved on.
        part = await comm.split(np.int64(1), np.int64(-comm.rank))
        assert part is not None
        return await part.allgather(comm.rank)

    with services() as here:
        assert here.run("queue", 3, program) == [[2, 1, 0]] * 3


@on_both_channels
def test_errors_of_a_part_name_the_parts_own_ranks(channel: str) -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        part = await comm.split(comm.rank // 2)
        assert part is not None
        if comm.rank == 3:
            await seen.wait()  # never calls the part's barrier
        if comm.rank == 2:
            with pytest.raises(CollectiveTimeout, match=r"barrier at rank 0 of 2: .* from rank 1"):
                await part.barrier()
            seen.set()

    seen = asyncio.Event()
    run(channel, 4, program, deadline=0.5)


def test_ranks_that_name_different_roots_are_told() -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        if comm.rank == 2:
            for _ in range(2):
                await comm.recv(tag=1)  # what both have given it is here before it asks
            return await comm.bcast(None, root=1)
        await comm.bcast("mine", root=comm.rank)
        return await comm.send("sent", 2, tag=1)  # type: ignore[func-returns-value]

    with pytest.raises(MismatchedCollective) as caught:
        run("queue", 3, program, deadline=5)
    assert "called bcast with root=1 where rank 0 called bcast with root=0" in str(caught.value)


def test_a_message_of_another_root_is_a_mismatch() -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        if comm.rank == 2:
            return await comm.scatter(["x", "y", "z"], root=2)
        return await comm.bcast("b", root=2 if comm.rank == 0 else 1)

    with pytest.raises(MismatchedCollective, match="bcast where rank 2 called scatter"):
        run("queue", 3, program, deadline=5)


@on_both_channels
def test_abort_ends_all_who_wait(channel: str) -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        part = await comm.split(0, -comm.rank)
        assert part is not None
        if comm.rank == 1:
            await part.abort(3)
        with pytest.raises(CollectiveError, match=r"rank 1 called abort\(3\)"):
            await comm.recv()
        raise KeyError("seen")

    with pytest.raises(CollectiveError, match=r"rank 1 called abort\(3\)"):
        run(channel, 3, program, deadline=10)
