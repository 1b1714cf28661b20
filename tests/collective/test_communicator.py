"""Every operation means what it means in mpi4py, on any number of ranks and both channels."""

from __future__ import annotations

import asyncio
import functools
import operator
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdray import collective, loop, wire
from fsdray.collective import ANY_SOURCE, ANY_TAG, AsyncCommunicator, Communicator, codec
from fsdray.collective.frames import Operation
from fsdray.collective.parcels import Outgoing, Parcel, frames
from fsdray.costs.medium import Medium
from fsdray.errors import CollectiveTimeout, MismatchedCollective, SettingsError
from fsdray.testing.inprocess import GANG, run_ranks
from tests.collective import CHANNELS, noise, run, services

SIZES = (1, 2, 3, 5, 8, 9, 12)

on_both_channels = pytest.mark.parametrize("channel", CHANNELS)
on_every_size = pytest.mark.parametrize("size", SIZES)


def given_by(rank: int) -> dict[str, Any]:
    """What rank `rank` contributes: nested, with a small and a larger array."""
    return {"rank": rank, "a": np.arange(rank + 3.0), "nested": [(rank, noise(2000, rank))]}


def same(left: Any, right: Any) -> bool:
    """Equal in values, types, dtypes and shapes, as deep as it goes; NaN equals NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray):
        if left.dtype != right.dtype or left.shape != right.shape:
            return False
        if left.dtype.hasobject:
            return bool(same(left.tolist(), right.tolist()))
        return bool(left.tobytes() == right.tobytes())
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


# The values of all operations


@on_both_channels
@on_every_size
def test_root_gives_and_is_given_by_every_root(channel: str, size: int) -> None:
    async def program(comm: AsyncCommunicator) -> list[Any]:
        results = []
        for root in range(comm.size):
            is_root = comm.rank == root
            results.append(await comm.bcast(given_by(root) if is_root else "ignored", root))
            values = [given_by(rank) for rank in range(comm.size)] if is_root else None
            results.append(await comm.scatter(values, root))
            results.append(await comm.gather(given_by(comm.rank), root=root))
            results.append(await comm.reduce([comm.rank], root=root))
        return results

    everything = [given_by(rank) for rank in range(size)]
    for rank, results in enumerate(run(channel, size, program)):
        expected: list[Any] = []
        for root in range(size):
            expected += (given_by(root), given_by(rank))
            expected += (everything, list(range(size))) if rank == root else (None, None)
        assert same(results, expected)


@on_both_channels
@on_every_size
def test_everybody_gives_and_is_given(channel: str, size: int) -> None:
    async def program(comm: AsyncCommunicator) -> list[Any]:
        return [
            await comm.allgather(given_by(comm.rank)),
            await comm.allreduce(comm.rank + 1),
            await comm.barrier(),  # type: ignore[func-returns-value]
            await comm.allreduce(np.full(3, 1 << comm.rank), op=operator.or_),
        ]

    expected = [
        [given_by(rank) for rank in range(size)],
        size * (size + 1) // 2,
        None,
        np.full(3, (1 << size) - 1),
    ]
    assert all(same(results, expected) for results in run(channel, size, program))


def matrix(rank: int) -> Any:
    return np.random.default_rng(rank).standard_normal((2, 2))


def digits(rank: int) -> float:
    """Numbers whose floating-point sum depends on the order."""
    return float([1e16, 1.0, -1e16, 3.14, 1e-3, 7e15, -0.1, 2.0, 1e16, -1e16, 0.5, 9.0][rank])


REDUCTIONS: list[tuple[str, Callable[[Any, Any], Any], Callable[[int], Any]]] = [
    ("SUM", collective.SUM, digits),
    ("SUM of lists", collective.SUM, lambda rank: [rank]),
    ("SUM of tuples", collective.SUM, lambda rank: (rank, "x")),
    ("SUM of strings", collective.SUM, lambda rank: chr(97 + rank)),
    ("SUM of arrays", collective.SUM, lambda rank: np.arange(4) * digits(rank)),
    ("PROD", collective.PROD, lambda rank: rank + 1),
    ("PROD of arrays", collective.PROD, lambda rank: np.array([rank + 1, 2.5])),
    ("MAX", collective.MAX, lambda rank: (rank * 7) % 5),
    ("MAX of tuples", collective.MAX, lambda rank: ((rank * 7) % 5, rank)),
    ("MAX of arrays", collective.MAX, lambda rank: noise(9, rank)),
    ("MIN", collective.MIN, lambda rank: (rank * 7) % 5),
    ("MIN of arrays", collective.MIN, lambda rank: noise(9, rank)),
    ("LAND", collective.LAND, lambda rank: rank % 3),
    ("LAND of arrays", collective.LAND, lambda rank: noise(9, rank) > 20),
    ("LOR", collective.LOR, lambda rank: rank % 3),
    ("LOR of arrays", collective.LOR, lambda rank: noise(9, rank) > 200),
    ("LXOR", collective.LXOR, lambda rank: rank % 2),
    ("LXOR of arrays", collective.LXOR, lambda rank: noise(9, rank) > 99),
    ("BAND", collective.BAND, lambda rank: 0xFFF ^ (1 << rank)),
    ("BOR", collective.BOR, lambda rank: 1 << rank),
    ("BXOR", collective.BXOR, lambda rank: rank * 3),
    ("BXOR of arrays", collective.BXOR, lambda rank: noise(9, rank)),
    ("MAXLOC", collective.MAXLOC, lambda rank: ((rank * 7) % 5, rank)),
    ("MINLOC", collective.MINLOC, lambda rank: ((rank * 7) % 5, rank)),
    ("a matrix product", operator.matmul, matrix),
    ("a difference", lambda left, right: left - right, digits),
    ("a callable that names its order", lambda left, right: f"({left}{right})", str),
    ("an in-place callable", lambda left, right: np.add(left, right, out=left), matrix),
]


@on_both_channels
@pytest.mark.parametrize("size", [1, 2, 5, 9, 12])
def test_reductions_go_in_rank_order(channel: str, size: int) -> None:
    async def program(comm: AsyncCommunicator) -> list[Any]:
        root = comm.size - 1
        return [
            (
                await comm.allreduce(value(comm.rank), op),
                await comm.reduce(value(comm.rank), op, root),
            )
            for _, op, value in REDUCTIONS
        ]

    every = run(channel, size, program)
    for i, (name, op, value) in enumerate(REDUCTIONS):
        expected = functools.reduce(op, [value(rank) for rank in range(size)])
        for rank in range(size):
            at_root = expected if rank == size - 1 else None
            assert same(every[rank][i], (expected, at_root)), name


def test_maxloc_of_equal_values_is_the_lower_location_whichever_comes_first() -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        pair = (5.0, 10 - comm.rank)
        return await comm.allreduce(pair, collective.MAXLOC), await comm.allreduce(
            pair, collective.MINLOC
        )

    assert run("queue", 3, program) == [((5.0, 8), (5.0, 8))] * 3


# Arrays

ARRAYS: dict[str, Any] = {
    "empty": np.empty((0, 3)),
    "0-d": np.array(3.5),
    "float16": np.arange(5, dtype=np.float16),
    "big endian": np.arange(5, dtype=">i4"),
    "complex": np.arange(6).reshape(2, 3) * 1j,
    "bool": np.array([True, False]),
    "strings": np.array(["a", "bcd"]),
    "bytes": np.array([b"a", b"bcd"]),
    "times": np.array(["2026-11-22"], dtype="datetime64[s]"),
    "objects": np.array([None, {"a": 1}, [2]], dtype=object),
    "structured": np.array([(1, 2.5)], dtype=[("i", "i2"), ("x", "f8")]),
    "padded": np.zeros(3, dtype=np.dtype({"names": ["a"], "formats": ["i4"], "itemsize": 16})),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "every other": np.arange(20)[::2],
    "backwards": np.arange(10)[::-1],
    "a column": np.arange(40_000.0).reshape(200, 200)[:, 3],
    "broadcast": np.broadcast_to(np.float32(2), (4, 5)),
    "large": noise(400_000).view(np.int32),
    "large fortran": np.asfortranarray(noise(90_000).reshape(300, 300)),
    "large zeros": np.zeros(100_000),
}


@on_both_channels
def test_arrays_of_any_kind_come_whole_and_may_be_written(channel: str) -> None:
    async def program(comm: AsyncCommunicator) -> list[Any]:
        results = []
        for array in ARRAYS.values():
            results.append(await comm.bcast(array if comm.rank == 0 else None))
            results.append(await comm.scatter([array] * comm.size if comm.rank == 0 else None))
            results += await comm.allgather(array)
            results.append((await comm.neighbor_alltoall({0: array, 1: array}, [0, 1]))[1])
            await comm.send(array, (comm.rank + 1) % comm.size)
            results.append(await comm.recv())
        return results

    for results in run(channel, 2, program):
        for i, (name, array) in enumerate(ARRAYS.items()):
            for result in results[6 * i : 6 * i + 6]:
                assert same(result, np.asarray(array)), name
                assert result.flags.writeable, name
                assert result.flags.f_contiguous or "fortran" not in name, name


@on_both_channels
def test_arrays_that_their_sender_may_not_write_may_be_written_by_who_receives_them(
    channel: str,
) -> None:
    async def program(comm: AsyncCommunicator) -> list[Any]:
        array = np.arange(10.0)
        array.flags.writeable = False  # as a task's large arguments are
        got = [await comm.bcast(array), *await comm.allgather(array), await comm.allreduce(array)]
        return [each.flags.writeable for each in got]

    assert all(all(flags) for flags in run(channel, 2, program))


@on_both_channels
@on_every_size
def test_what_one_rank_writes_into_a_result_nobody_else_sees(channel: str, size: int) -> None:
    async def program(comm: AsyncCommunicator) -> list[float]:
        def scribble(value: Any) -> float:
            assert value.flags.writeable
            before = float(value[0]), float(value[-1])
            value[:] = -1 - comm.rank
            assert before[0] == before[1]
            return before[0]

        mine = np.full(20_000, float(comm.rank))
        everyone = range(comm.size)
        found: list[Any] = []
        found += map(scribble, await comm.allgather(mine))
        found.append(scribble(await comm.bcast(mine)))
        found.append(scribble(await comm.allreduce(mine)))
        found.append(scribble(await comm.scatter([mine] * comm.size)))
        found += map(scribble, await comm.gather(mine) or ())
        reduced = await comm.reduce(mine)
        found += () if reduced is None else (scribble(reduced),)
        exchanged = await comm.neighbor_alltoall(dict.fromkeys(everyone, mine), everyone)
        found += map(scribble, exchanged.values())
        await comm.send(mine, comm.rank)
        found.append(scribble(await comm.recv(source=comm.rank)))
        assert (mine == comm.rank).all()
        await comm.barrier()
        return found

    everyone = [float(rank) for rank in range(size)]
    for rank, found in enumerate(run(channel, size, program)):
        at_root = [*everyone, sum(everyone)] if rank == 0 else []
        expected = [*everyone, 0.0, sum(everyone), 0.0, *at_root, *everyone, float(rank)]
        assert found == expected


@on_both_channels
def test_a_buffer_may_be_used_again_at_once(channel: str) -> None:
    async def program(comm: AsyncCommunicator) -> list[Any]:
        buffer = np.zeros(5_000)
        results: list[Any] = []
        for step in range(4):
            buffer[:] = noise(5_000, 10 * step + comm.rank)
            await comm.send(buffer, (comm.rank + 1) % comm.size)
            buffer[:] = -1
            results.append(await comm.recv())
            buffer[:] = noise(5_000, 10 * step + comm.rank)
            results.append(await comm.reduce(buffer, root=step % comm.size))
            buffer[:] = -1
        await comm.barrier()
        return results

    for rank, results in enumerate(run(channel, 3, program)):
        for step in range(4):
            given = [noise(5_000, 10 * step + r).astype(float) for r in range(3)]
            assert (results[2 * step] == given[(rank - 1) % 3]).all()
            if rank == step % 3:
                assert (results[2 * step + 1] == sum(given)).all()


@dataclass
class Point:
    x: float
    label: str


@on_both_channels
def test_any_object_that_can_be_pickled_travels(channel: str) -> None:
    values = [None, Point(1.5, "p"), {1, 2}, b"", "ü", 10**50, lambda x: x + 1, range(3), ...]

    async def program(comm: AsyncCommunicator) -> list[Any]:
        return [await comm.bcast(value if comm.rank == 1 else None, root=1) for value in values]

    for results in run(channel, 3, program):
        assert results.pop(6)(1) == 2
        assert results == values[:6] + values[7:]


# Point to point


@on_both_channels
def test_messages_between_two_ranks_do_not_overtake(channel: str) -> None:
    async def program(comm: AsyncCommunicator) -> list[Any]:
        if comm.rank == 0:
            sends = [comm.send((i, noise(i * 9_000)), 1) for i in range(30)]
            random.Random(7).shuffle(sends)
            await asyncio.gather(*sends)
            return []
        return [(await comm.recv(source=0))[0] for _ in range(30)]

    assert run(channel, 2, program)[1] == list(range(30))


@on_both_channels
def test_tags_choose_among_what_has_come(channel: str) -> None:
    async def program(comm: AsyncCommunicator) -> list[Any]:
        if comm.rank == 0:
            for i, tag in enumerate([5, 3, 5, 9, 3]):
                await comm.send(i, dest=1, tag=tag)
            return []
        return [
            await comm.recv(source=0, tag=9),
            await comm.recv(source=0, tag=3),
            await comm.recv(tag=3),
            await comm.recv(source=0, tag=ANY_TAG),
            await comm.recv(source=ANY_SOURCE, tag=5),
        ]

    assert run(channel, 2, program)[1] == [3, 1, 4, 0, 2]


@on_both_channels
@pytest.mark.parametrize("size", [2, 5, 9])
def test_any_source_takes_each_message_of_everybody_once_and_in_its_order(
    channel: str, size: int
) -> None:
    async def program(comm: AsyncCommunicator) -> list[Any]:
        if comm.rank != 0:
            for i in range(5):
                await comm.send((comm.rank, i), 0, tag=i)
            return []
        return [await comm.recv() for _ in range(5 * (comm.size - 1))]

    got = run(channel, size, program)[0]
    assert sorted(got) == [(rank, i) for rank in range(1, size) for i in range(5)]
    for rank in range(1, size):
        assert [i for source, i in got if source == rank] == list(range(5))


@on_both_channels
@on_every_size
def test_a_rank_may_send_to_itself_also_while_it_waits(channel: str, size: int) -> None:
    async def program(comm: AsyncCommunicator) -> list[Any]:
        waiting = asyncio.ensure_future(comm.recv(source=comm.rank, tag=2))
        anything = asyncio.ensure_future(comm.recv(source=ANY_SOURCE, tag=1))
        await asyncio.sleep(0)
        await comm.send("one", comm.rank, tag=1)
        await comm.send("two", comm.rank, tag=2)
        return [await waiting, await anything]

    assert run(channel, size, program) == [["two", "one"]] * size


@on_both_channels
def test_numbers_of_numpy_are_ranks_roots_and_tags(channel: str) -> None:
    async def program(comm: AsyncCommunicator) -> list[Any]:
        ranks = np.arange(comm.size)
        await comm.send("hello", ranks[(comm.rank + 1) % comm.size], tag=ranks[1])
        return [
            await comm.recv(source=ranks[(comm.rank - 1) % comm.size], tag=ranks[1]),
            await comm.bcast(comm.rank, root=ranks[-1]),
            await comm.neighbor_alltoall(dict.fromkeys(ranks, 1), ranks),
        ]

    expected = ["hello", 2, {0: 1, 1: 1, 2: 1}]
    assert run(channel, 3, program) == [expected] * 3


# Several operations in flight


@on_both_channels
@on_every_size
def test_operations_may_be_started_together_and_awaited_in_any_order(
    channel: str, size: int
) -> None:
    async def program(comm: AsyncCommunicator) -> list[Any]:
        started: list[Awaitable[Any]] = [
            comm.allreduce(comm.rank),
            comm.bcast("from the last" if comm.rank == comm.size - 1 else None, comm.size - 1),
            comm.barrier(),
            comm.allgather(noise(3000, comm.rank)[0]),
            comm.send("around", (comm.rank + 1) % comm.size),
            comm.recv(),
            comm.neighbor_alltoall({(comm.rank + 1) % comm.size: 7}, [(comm.rank - 1) % comm.size]),
        ]
        futures = [asyncio.ensure_future(each) for each in started]
        order = list(range(len(futures)))
        random.Random(comm.rank).shuffle(order)  # another at each rank
        results = {i: await futures[i] for i in order}
        return [results[i] for i in range(len(futures))]

    for rank, results in enumerate(run(channel, size, program)):
        assert results == [
            size * (size - 1) // 2,
            "from the last",
            None,
            [noise(3000, other)[0] for other in range(size)],
            None,
            "around",
            {(rank - 1) % size: 7},
        ]


@on_both_channels
def test_a_message_that_another_operations_reading_brings_is_not_missed(channel: str) -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        receiving = asyncio.ensure_future(comm.recv(source=1))
        await asyncio.sleep(0)  # it has looked and found nothing, but does not wait yet
        parcel = Parcel.of((0,), *codec.encode(wire.encode("between")))
        sent = Outgoing(Operation.SEND, 0, 0, 0, [parcel])
        for frame in frames(bytes.fromhex(GANG), 1, sent, parcel, 1000):
            comm._end.mailbox.deposit(frame)
        return await receiving

    async def first(comm: AsyncCommunicator) -> Any:
        return await program(comm) if comm.rank == 0 else None

    assert run(channel, 2, first, deadline=5) == ["between", None]


@on_both_channels
def test_receives_and_collectives_in_flight_together_do_not_hold_up_each_other(
    channel: str,
) -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        other = 1 - comm.rank
        for i in range(30):
            sums = asyncio.ensure_future(comm.allreduce(i))
            send = asyncio.ensure_future(comm.send(i, other))
            assert await comm.recv(source=other) == i
            assert await sums == 2 * i
            await send

    run(channel, 2, program, deadline=20)


@on_both_channels
def test_a_receive_that_is_given_up_loses_no_message(channel: str) -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        if comm.rank == 1:
            await comm.barrier()
            await comm.send("kept", 0)
            return None
        given_up = asyncio.ensure_future(comm.recv(source=1))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        await comm.barrier()
        return await comm.recv(source=1)

    assert run(channel, 2, program)[0] == "kept"


# The sparse exchange


@st.composite
def topologies(draw: st.DrawFn) -> list[dict[int, list[int]]]:
    """Some steps; in each, to whom each rank sends."""
    size = draw(st.sampled_from(SIZES))
    ranks = st.lists(st.integers(0, size - 1), unique=True)
    step = st.fixed_dictionaries(dict.fromkeys(range(size), ranks))
    return draw(st.lists(step, min_size=1, max_size=3))


@given(topologies(), st.sampled_from(CHANNELS))
@settings(max_examples=25, print_blob=True)
def test_neighbors_exchange_by_any_topology(
    steps: list[dict[int, list[int]]], channel: str
) -> None:
    async def program(comm: AsyncCommunicator) -> list[dict[int, Any]]:
        results = []
        for i, sends in enumerate(steps):
            given = {dest: (i, comm.rank, dest, noise(dest * 700)) for dest in sends[comm.rank]}
            sources = [rank for rank, dests in sends.items() if comm.rank in dests]
            results.append(await comm.neighbor_alltoall(given, iter(sources)))
        return results

    for rank, results in enumerate(run(channel, len(steps[0]), program)):
        for i, (sends, result) in enumerate(zip(steps, results, strict=True)):
            expected = {
                source: (i, source, rank, noise(rank * 700))
                for source in sorted(sends)
                if rank in sends[source]
            }
            assert same(result, expected)


def test_a_rank_that_sends_to_itself_must_expect_it_and_the_other_way_round() -> None:
    async def program(comm: AsyncCommunicator) -> None:
        for sends, sources in (({comm.rank: 1}, []), ({}, [comm.rank])):
            with pytest.raises(SettingsError, match="its own sources"):
                comm.neighbor_alltoall(sends, sources)

    run("queue", 2, program)


# Misuse


@on_both_channels
@pytest.mark.parametrize("size", [2, 3, 5])
def test_different_operations_are_an_error_that_says_who_called_what(
    channel: str, size: int
) -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        if comm.rank == 0:
            return await comm.bcast("for you")
        return await comm.allgather(comm.rank)

    with pytest.raises(MismatchedCollective) as caught:
        run(channel, size, program)
    assert "called allgather where rank 0 called bcast" in str(caught.value)


def test_a_mismatch_is_said_before_all_others_have_answered() -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        if comm.rank == 0:
            return await comm.gather(0)  # waits for 1, who is wrong, and 2, who is late
        if comm.rank == 1:
            return await comm.allgather(1)
        return await comm.recv(tag=99)

    with pytest.raises(MismatchedCollective, match="rank 0 called gather where rank 1 called allg"):
        run("queue", 3, program, deadline=30)


def test_a_neighbor_who_sends_nothing_is_named_on_the_object_channel() -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        sends = {0: {1: "to one"}, 1: {}, 2: {}}[comm.rank]
        return await comm.neighbor_alltoall(sends, [] if comm.rank == 0 else [0])

    with pytest.raises(MismatchedCollective) as caught:
        run("object", 3, program)
    assert str(caught.value) == (
        "rank 2 called neighbor_alltoall where rank 0 called neighbor_alltoall, "
        "which sends nothing to rank 2"
    )


@on_both_channels
@pytest.mark.parametrize("operation", ["gather", "bcast", "barrier", "recv", "neighbor"])
def test_a_deadline_names_the_operation_and_the_ranks_that_were_missing(
    channel: str, operation: str
) -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "gather": lambda: comm.gather("here", root=1),
            "bcast": lambda: comm.bcast(None, root=2),
            "barrier": comm.barrier,
            "recv": lambda: comm.recv(source=2),
            "neighbor": lambda: comm.neighbor_alltoall({}, [3, 2]),
        }
        if comm.rank == 1 and operation != "barrier":
            return await calls[operation]()
        if comm.rank == 0 and operation in ("gather", "barrier"):
            return await calls[operation]()
        return await asyncio.get_running_loop().create_future()

    missing = {"gather": "ranks 2, 3", "barrier": "ranks 1, 2, 3", "neighbor": "ranks 2, 3"}
    with pytest.raises(CollectiveTimeout) as caught:
        run(channel, 4, program, deadline=0.3)
    text = str(caught.value)
    assert text.startswith(operation)
    assert f"no message came from {missing.get(operation, 'rank 2')} in time" in text
    assert "of 4" in text


BAD_CALLS: dict[str, Callable[[AsyncCommunicator], Any]] = {
    "root=3": lambda comm: comm.bcast(1, root=3),
    "root=-1": lambda comm: comm.gather(1, root=-1),
    "root='0'": lambda comm: comm.scatter([1, 2, 3], root="0"),  # type: ignore[arg-type]
    "root=1.0": lambda comm: comm.reduce(1, root=1.0),  # type: ignore[arg-type]
    "dest=3": lambda comm: comm.send(1, 3),
    "dest=-1": lambda comm: comm.send(1, -1),
    "dest=None": lambda comm: comm.send(1, None),  # type: ignore[arg-type]
    "source=3": lambda comm: comm.recv(source=3),
    "source=-2": lambda comm: comm.recv(source=-2),
    "tag=-1": lambda comm: comm.send(1, 0, tag=-1),
    "tag=-2": lambda comm: comm.recv(source=0, tag=-2),
    "tag='a'": lambda comm: comm.send(1, 0, tag="a"),  # type: ignore[arg-type]
    "tag=1.5": lambda comm: comm.recv(source=0, tag=1.5),  # type: ignore[arg-type]
    f"tag={2**70}": lambda comm: comm.send(1, 0, tag=2**70),
    "a neighbor=7": lambda comm: comm.neighbor_alltoall({7: 1}, []),
    "a neighbor=-3": lambda comm: comm.neighbor_alltoall({}, [-3]),
    "3, not 2": lambda comm: comm.scatter([1, 2], root=comm.rank),
    "3, not 0": lambda comm: comm.scatter(None, root=comm.rank),
    "cannot be pickled": lambda comm: comm.bcast((i for i in range(0)), root=comm.rank),
    "a value of type Lock cannot be": lambda comm: comm.allgather(NotToBeSent()),
}


class NotToBeSent:
    def __reduce__(self) -> Any:
        raise TypeError("not this one")


NotToBeSent.__name__ = "Lock"


@on_both_channels
def test_bad_arguments_are_refused_before_anything_is_sent_and_may_be_mended(channel: str) -> None:
    refused = asyncio.Event()

    async def program(comm: AsyncCommunicator) -> Any:
        if comm.rank != 1:
            await refused.wait()
        for text, call in BAD_CALLS.items():
            if comm.rank == 1:
                with pytest.raises(SettingsError) as caught:
                    call(comm)
                assert text in str(caught.value)
                assert here.count("publish") + here.count("send") + here.count("put") == 0
        refused.set()
        # Nobody has moved on: what is called now is the first operation of all.
        with pytest.raises(SettingsError, match="cannot be pickled"):
            comm.send(NotToBeSent(), (comm.rank + 1) % comm.size)
        await comm.send("mended", (comm.rank + 1) % comm.size)
        return await comm.recv(), await comm.allreduce(1)

    with services() as here:
        assert here.run(channel, 3, program, deadline=20) == [("mended", 3)] * 3


def plain(program: Callable[[Communicator], Any]) -> Any:
    """Run a function over the plain communicator of a gang of one."""

    async def alone(comm: AsyncCommunicator) -> Any:
        return await asyncio.to_thread(program, Communicator(comm))

    with services() as here:
        return loop.run(run_ranks(here, "queue", 1, alone))[0]


def test_the_plain_communicator_does_all_operations() -> None:
    def program(comm: Communicator) -> list[Any]:
        comm.send("me", dest=0, tag=3)
        return [
            (comm.rank, comm.size, comm.Get_rank(), comm.Get_size(), repr(comm)),
            comm.recv(source=0, tag=3),
            comm.bcast("b", root=0),
            comm.scatter(["s"], root=0),
            comm.gather("g", root=0),
            comm.allgather("a"),
            comm.reduce(2, op=collective.PROD, root=0),
            comm.allreduce(3, op=collective.MAX),
            comm.barrier(),  # type: ignore[func-returns-value]
            comm.neighbor_alltoall({0: "n"}, sources=[0]),
        ]

    assert plain(program) == [
        (0, 1, 0, 1, "<Communicator rank 0 of 1>"),
        *("me", "b", "s", ["g"], ["a"], 2, 3, None, {0: "n"}),
    ]


@pytest.mark.parametrize(
    "name",
    [
        *("Send", "Recv", "Bcast", "Scatter", "Gather", "Allgather", "Reduce", "Allreduce"),
        *("Barrier", "Neighbor_alltoall"),
    ],
)
def test_upper_case_names_are_refused_with_the_lower_case_one(name: str) -> None:
    def program(comm: Communicator) -> None:
        getattr(comm, name)

    with pytest.raises(AttributeError, match=f"here use {name.lower()}\\(\\)"):
        plain(program)


def test_unknown_names_are_plain_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no 'no_such_thing'"):
        plain(lambda comm: comm.no_such_thing)


def test_user_operators_run_beside_the_loop() -> None:
    def program(comm: Communicator) -> Any:
        return comm.allreduce(1, op=in_which_thread)

    async def both(comm: AsyncCommunicator) -> Any:
        return await comm.allreduce(1, op=in_which_thread)

    assert plain(program) == 1
    assert run("queue", 2, both) == ["no loop here"] * 2


def in_which_thread(left: Any, right: Any) -> str:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return "no loop here"
    return "on the loop"


def test_what_a_rank_sent_is_counted_in_bytes_as_packed() -> None:
    async def program(comm: AsyncCommunicator) -> int:
        await comm.barrier()
        before = comm.sent_bytes
        await comm.send(noise(10_000), 1 - comm.rank)
        await comm.send(noise(10_000), comm.rank)
        await comm.bcast(noise(20_000))
        return comm.sent_bytes - before

    first, second = run("queue", 2, program)
    assert 30_000 < first < 30_600
    assert 10_000 < second < 10_300


@pytest.mark.parametrize("channel", ["queue", "auto"])
def test_who_waits_for_root_to_answer_sees_that_root_called_something_else(channel: str) -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        if comm.rank == 0:
            return await comm.bcast("for you")
        return await comm.allgather(comm.rank)

    with services() as here, pytest.raises(MismatchedCollective) as caught:
        here.run(channel, 3, program, medium=Medium())  # where waiting is free: through root
    assert "called allgather where rank 0 called bcast" in str(caught.value)


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [3, 200_000])
def test_a_reduction_leaves_what_was_given_and_gives_what_nobody_shares(
    channel: str, size: int, count: int
) -> None:
    async def program(comm: AsyncCommunicator) -> None:
        mine = np.arange(count) * 1.5 + comm.rank
        before = mine.copy()
        total = sum(np.arange(count) * 1.5 + rank for rank in range(size))
        parts = [mine] * size
        results = [
            await comm.allreduce(mine),
            await comm.reduce(mine, root=size - 1),
            await comm.reduce_scatter(parts),
            await comm.iallreduce(mine).wait(),
        ]
        for result in results:
            if result is None:
                assert comm.rank != size - 1
                continue
            assert np.array_equal(result, total)
            assert not np.shares_memory(result, mine)
            result[:] = 0
        assert np.array_equal(mine, before)

    run(channel, size, program)
