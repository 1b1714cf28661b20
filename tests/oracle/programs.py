"""The programs: each is given a communicator and the names of an MPI, and returns plain values.

What it returns must not depend on chance, so that it can be compared: where MPI leaves an order
open, it is sorted away. `split`, `dup`, `free` and `reduce_scatter` come as functions, since mpi4py
spells them with upper-case letters.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

Program = Callable[[Any, Any], Any]
PROGRAMS: dict[str, Program] = {}


def program(function: Program) -> Program:
    PROGRAMS[function.__name__] = function
    return function


def told(status: Any) -> tuple[int, int, int, int]:
    return status.source, status.tag, status.Get_source(), status.Get_tag()


def is_refused(call: Callable[[], Any]) -> bool:
    try:
        call()
    except Exception:
        return True
    return False


ARRAYS: dict[str, Any] = {
    "0-d": np.array(3.5),
    "empty": np.empty((0, 3)),
    "float16": np.arange(5, dtype=np.float16),
    "big endian": np.arange(5, dtype=">i4"),
    "complex": np.arange(6).reshape(2, 3) * 1j,
    "bool": np.array([True, False]),
    "strings": np.array(["a", "bcd"]),
    "bytes": np.array([b"a", b"bcd"]),
    "times": np.array(["2026-11-22"], dtype="datetime64[s]"),
    "objects": np.array([None, {"a": 1}, [2]], dtype=object),
    "structured": np.array([(1, 2.5)], dtype=[("i", "i2"), ("x", "f8")]),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "every other": np.arange(20)[::2],
    "backwards": np.arange(10)[::-1],
}


# Point to point


@program
def a_ring_with_tags_and_statuses(comm: Any, mpi: Any) -> Any:
    status = mpi.Status()
    request = comm.isend({"from": comm.rank}, dest=(comm.rank + 1) % comm.size, tag=7)
    got = comm.recv(source=(comm.rank - 1) % comm.size, tag=7, status=status)
    return got, told(status), request.wait()


@program
def positional_arguments(comm: Any, mpi: Any) -> Any:
    status = mpi.Status()
    request = comm.isend("a", (comm.rank + 1) % comm.size, 3)
    got = comm.recv(None, (comm.rank - 1) % comm.size, 3, status)
    request.wait()
    other = comm.sendrecv("b", comm.rank, 1, None, comm.rank, 1, status)
    return got, other, told(status)


@program
def messages_do_not_overtake(comm: Any, mpi: Any) -> Any:
    if comm.rank == 0:
        for dest in range(1, comm.size):
            for i in range(20):
                comm.send((i, "x" * (i % 5) * 5000), dest=dest, tag=i % 3)
        return None
    status = mpi.Status()
    found = []
    for i in range(20):
        source = 0 if i % 2 else mpi.ANY_SOURCE
        found.append((comm.recv(source=source, status=status)[0], told(status)))
    return found


@program
def tags_choose_among_what_has_come(comm: Any, mpi: Any) -> Any:
    if comm.size == 1:
        return None
    if comm.rank == 0:
        for i, tag in enumerate([5, 3, 5, 9, 3]):
            comm.send(i, 1, tag=tag)
        return None
    if comm.rank > 1:
        return None
    wanted = [(0, 9), (0, 3), (mpi.ANY_SOURCE, 3), (0, mpi.ANY_TAG), (mpi.ANY_SOURCE, 5)]
    return [comm.recv(source=source, tag=tag) for source, tag in wanted]


@program
def any_source_takes_everybody_once(comm: Any, mpi: Any) -> Any:
    if comm.rank:
        for i in range(4):
            comm.send((comm.rank, i), dest=0, tag=i)
        return None
    status = mpi.Status()
    found = []
    for _ in range(4 * (comm.size - 1)):
        got = comm.recv(source=mpi.ANY_SOURCE, tag=mpi.ANY_TAG, status=status)
        assert (status.source, status.tag) == got
        found.append(got)
    for rank in range(1, comm.size):
        assert [i for source, i in found if source == rank] == list(range(4))
    return sorted(found)


@program
def posted_receives_match_in_their_order(comm: Any, mpi: Any) -> Any:
    if comm.size == 1:
        return None
    if comm.rank == 0:
        comm.recv(source=1, tag=99)
        for i, tag in enumerate([4, 4, 8, 4]):
            comm.send(i, 1, tag=tag)
    if comm.rank != 1:
        return None
    posted = [
        comm.irecv(source=0, tag=8),
        comm.irecv(source=mpi.ANY_SOURCE, tag=4),
        comm.irecv(source=0, tag=mpi.ANY_TAG),
        comm.irecv(),
    ]
    comm.send("go", 0, tag=99)
    statuses = [mpi.Status() for _ in posted]
    found = [posted[i].wait(statuses[i]) for i in (3, 1, 0, 2)]
    return found, [told(status) for status in statuses]


@program
def sendrecv_shifts(comm: Any, mpi: Any) -> Any:
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    status = mpi.Status()
    first = comm.sendrecv(np.full(3, comm.rank), right, source=left)
    second = comm.sendrecv(comm.rank, dest=left, sendtag=5, source=right, recvtag=5, status=status)
    return first, second, told(status)


@program
def partners_that_are_not_there(comm: Any, mpi: Any) -> Any:
    right = comm.rank + 1 if comm.rank + 1 < comm.size else mpi.PROC_NULL
    left = comm.rank - 1 if comm.rank else mpi.PROC_NULL
    status = mpi.Status()
    got = comm.sendrecv(comm.rank, dest=right, source=left, status=status)
    is_null = status.source == mpi.PROC_NULL
    comm.send("nobody", dest=mpi.PROC_NULL)
    request = comm.irecv(source=mpi.PROC_NULL)
    return got, is_null, status.tag == mpi.ANY_TAG, request.wait(), comm.recv(source=mpi.PROC_NULL)


@program
def waitall_gives_what_was_received_and_statuses(comm: Any, mpi: Any) -> Any:
    others = range(comm.size)
    sends = [comm.isend((comm.rank, dest), dest=dest, tag=dest) for dest in others]
    receives = [comm.irecv(source=source, tag=comm.rank) for source in others]
    statuses: list[Any] = []
    found = mpi.Request.waitall(receives, statuses)
    return found, [told(each) for each in statuses], mpi.Request.waitall(sends)


@program
def waitany_takes_each_once(comm: Any, mpi: Any) -> Any:
    sends = [comm.isend(comm.rank, dest=dest) for dest in range(comm.size)]
    receives = [comm.irecv(source=source) for source in range(comm.size)]
    found = []
    for _ in receives:
        status = mpi.Status()
        place, value = mpi.Request.waitany(receives, status)
        assert status.source == place
        found.append((place, value))
    nothing = mpi.Request.waitany(receives)
    mpi.Request.waitall(sends)
    return sorted(found), nothing == (mpi.UNDEFINED, None)


@program
def waitsome_takes_each_once(comm: Any, mpi: Any) -> Any:
    sends = [comm.isend(comm.rank, dest=dest) for dest in range(comm.size)]
    receives = [comm.irecv(source=source) for source in range(comm.size)]
    found: list[Any] = []
    while True:
        places, values = mpi.Request.waitsome(receives)
        if places is None:
            break
        assert len(places) == len(values) > 0
        found += zip(places, values, strict=True)
    mpi.Request.waitall(sends)
    return sorted(found), mpi.Request.testsome(receives)


@program
def test_and_its_company(comm: Any, mpi: Any) -> Any:
    request = comm.irecv(source=comm.rank, tag=5)
    found = [request.test()]
    found.append(mpi.Request.testall([request]))
    place, flag, value = mpi.Request.testany([request])
    found.append((place == mpi.UNDEFINED, flag, value))
    sending = comm.isend("me", dest=comm.rank, tag=5)
    status = mpi.Status()
    is_done, value = request.test(status)
    while not is_done:
        is_done, value = request.test(status)
    found.append((value, told(status)))
    sending.wait()
    # A request whose result was taken counts as done.
    found += (request.test(), request.wait(), mpi.Request.testall([request, sending]))
    place, flag, value = mpi.Request.testany([request])
    return found, place == mpi.UNDEFINED, flag, value, bool(request)


@program
def no_requests_at_all(comm: Any, mpi: Any) -> Any:
    place, value = mpi.Request.waitany([])
    other, flag, nothing = mpi.Request.testany([])
    return (
        mpi.Request.waitall([]),
        mpi.Request.testall([]),
        (place == mpi.UNDEFINED, value),
        (other == mpi.UNDEFINED, flag, nothing),
        mpi.Request.waitsome([]),
        mpi.Request.testsome([]),
    )


@program
def a_receive_that_is_cancelled_takes_nothing(comm: Any, mpi: Any) -> Any:
    request = comm.irecv(source=comm.rank, tag=1)
    request.cancel()
    status = mpi.Status()
    nothing = request.wait(status)
    sending = comm.isend("later", dest=comm.rank, tag=1)
    got = comm.recv(source=comm.rank, tag=1)
    sending.wait()
    return nothing, status.Is_cancelled(), got


@program
def probe_says_what_recv_will_take(comm: Any, mpi: Any) -> Any:
    sending = comm.isend("x" * comm.rank, dest=(comm.rank + 1) % comm.size, tag=comm.rank)
    status = mpi.Status()
    there = comm.probe(status=status)
    first = told(status)
    got = comm.recv(source=status.source, tag=status.tag)
    sending.wait()
    comm.barrier()
    return there, first, got, comm.iprobe()


@program
def iprobe_in_a_loop_finds_it(comm: Any, mpi: Any) -> Any:
    status = mpi.Status()
    before = comm.iprobe(source=(comm.rank - 1) % comm.size, tag=77)
    sending = comm.isend(comm.rank, dest=(comm.rank + 1) % comm.size, tag=76)
    while not comm.iprobe(source=mpi.ANY_SOURCE, tag=76, status=status):
        pass
    found = told(status), comm.recv(source=status.source, tag=76)
    sending.wait()
    return before, found


@program
def large_messages_both_ways(comm: Any, mpi: Any) -> Any:
    mine = np.arange(200_000) * (comm.rank + 1)
    got = comm.sendrecv(mine, dest=(comm.rank + 1) % comm.size, source=(comm.rank - 1) % comm.size)
    return int(got.sum()), got.shape, got.flags.writeable


# Collectives


@program
def every_root_gives_and_is_given(comm: Any, mpi: Any) -> Any:
    found = []
    for root in range(comm.size):
        is_root = comm.rank == root
        found.append(comm.bcast({"root": root, "a": [1, (2,)]} if is_root else "ignored", root))
        found.append(comm.scatter([(root, r) for r in range(comm.size)] if is_root else None, root))
        found.append(comm.gather((comm.rank, root), root=root))
        found.append(comm.reduce([comm.rank], root=root))
    return found


@program
def everybody_gives_and_is_given(comm: Any, mpi: Any) -> Any:
    return (
        comm.allgather({"rank": comm.rank}),
        comm.alltoall([(comm.rank, dest) for dest in range(comm.size)]),
        comm.allreduce(comm.rank + 1),
        comm.barrier(),
    )


@program
def any_sequence_may_be_scattered(comm: Any, mpi: Any) -> Any:
    text = "abcdefgh"[: comm.size]
    return (
        comm.scatter(text),
        comm.alltoall(range(comm.size)),
        comm.alltoall(np.arange(comm.size) + comm.rank),
        comm.scatter(tuple(text), root=comm.size - 1),
    )


@program
def arrays_of_any_kind(comm: Any, mpi: Any) -> Any:
    found = []
    for name, array in ARRAYS.items():
        found.append((name, comm.bcast(array if comm.rank == 0 else None)))
        found.append(comm.allgather(array)[-1])
        found.append(comm.gather(array, root=comm.size - 1))
    return found


OPERATIONS = {
    "SUM": lambda rank: rank + 1,
    "PROD": lambda rank: rank + 1,
    "MAX": lambda rank: rank * 7 % 5,
    "MIN": lambda rank: rank * 7 % 5,
    "LAND": lambda rank: rank % 3,
    "LOR": lambda rank: rank % 3,
    "LXOR": lambda rank: rank % 2,
    "BAND": lambda rank: 0xFFF ^ (1 << rank),
    "BOR": lambda rank: 1 << rank,
    "BXOR": lambda rank: rank * 3,
    "MAXLOC": lambda rank: (rank * 7 % 3, 10 - rank),
    "MINLOC": lambda rank: (rank * 7 % 3, 10 - rank),
}


@program
def operations_reduce(comm: Any, mpi: Any) -> Any:
    found = []
    for name, value in OPERATIONS.items():
        op = getattr(mpi, name)
        mine = value(comm.rank)
        found.append((name, comm.allreduce(mine, op=op), comm.reduce(mine, op, comm.size - 1)))
    return found


@program
def operations_scan(comm: Any, mpi: Any) -> Any:
    found = []
    for name, value in OPERATIONS.items():
        op = getattr(mpi, name)
        found.append((name, comm.scan(value(comm.rank), op=op), comm.exscan(value(comm.rank), op)))
    return found


@program
def callables_reduce_in_rank_order(comm: Any, mpi: Any) -> Any:
    def joined(left: str, right: str) -> str:
        return left + right

    letter = chr(97 + comm.rank)
    matrix = np.array([[comm.rank, 1], [1, 0]])
    return (
        comm.allreduce(letter, joined),
        comm.reduce(letter, op=joined, root=comm.size // 2),
        comm.scan(letter, joined),
        comm.exscan(letter, joined),
        comm.allreduce(matrix, operator.matmul),
        comm.scan([comm.rank]),
        comm.exscan((comm.rank,)),
        comm.allreduce(np.arange(4) * comm.rank),
        comm.allreduce("x"),
    )


@program
def reduce_scatter_gives_each_its_own(comm: Any, mpi: Any) -> Any:
    found = []
    for op in (mpi.SUM, mpi.PROD, mpi.MAX, mpi.MIN, mpi.BXOR):
        mine = [np.arange(3) + comm.rank * 7 % 5 + dest for dest in range(comm.size)]
        found.append(mpi.reduce_scatter(comm, mine, op))
    return found


@program
def sums_of_floats_within_a_bound(comm: Any, mpi: Any) -> Any:
    mine = 0.1 * (comm.rank + 1)
    return comm.allreduce(mine), comm.reduce(mine), comm.scan(mine), comm.allreduce(mine, mpi.MAX)


# Other communicators


@program
def split_by_color_and_key(comm: Any, mpi: Any) -> Any:
    part = mpi.split(comm, comm.rank % 2, -comm.rank)
    other = mpi.split(comm, mpi.UNDEFINED if comm.rank == 0 else 3)
    found = [
        (part.rank, part.size, part.Get_rank(), part.Get_size()),
        part.allgather(comm.rank),
        part.scan([comm.rank]),
        part.bcast(comm.rank, root=part.size - 1),
        None if other is None else (other.rank, other.allgather(comm.rank)),
    ]
    same_key = mpi.split(comm, 0, 5)
    found.append(same_key.allgather(comm.rank))
    inner = mpi.split(part, part.rank // 2, 0)
    found.append(inner.allreduce([comm.rank]))
    for each in (inner, same_key, part):
        mpi.free(each)
    return found


@program
def ranks_in_a_part_are_the_parts(comm: Any, mpi: Any) -> Any:
    part = mpi.split(comm, comm.rank % 2, -comm.rank)
    status = mpi.Status()
    got = part.sendrecv(
        comm.rank,
        dest=(part.rank + 1) % part.size,
        source=(part.rank - 1) % part.size,
        status=status,
    )
    return got, told(status)


@program
def a_duplicates_messages_do_not_mix(comm: Any, mpi: Any) -> Any:
    twin = mpi.dup(comm)
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    sends = [comm.isend("first", right), twin.isend("twin", right), comm.isend("second", right)]
    found = [twin.recv(source=left), comm.recv(source=left), comm.recv(source=mpi.ANY_SOURCE)]
    mpi.Request.waitall(sends)
    found += (twin.allgather(comm.rank), comm.bcast("b"), twin.rank, twin.size)
    mpi.free(twin)
    return found


# Errors


@program
def what_is_refused_before_anything_is_sent(comm: Any, mpi: Any) -> Any:
    size = comm.size
    found = {
        "root too large": is_refused(lambda: comm.bcast(1, root=size)),
        "root negative": is_refused(lambda: comm.gather(1, root=-5)),
        "dest too large": is_refused(lambda: comm.send(1, dest=size)),
        "dest negative": is_refused(lambda: comm.send(1, dest=-77)),
        "source too large": is_refused(lambda: comm.recv(source=size)),
        "tag negative": is_refused(lambda: comm.send(1, dest=0, tag=-7)),
        "tag of a receive": is_refused(lambda: comm.recv(source=0, tag=-7)),
        "alltoall of too few": is_refused(lambda: comm.alltoall([1] * (size - 1))),
        "alltoall of too many": is_refused(lambda: comm.alltoall([1] * (size + 1))),
        "isend to nobody": is_refused(lambda: comm.isend(1, dest=size)),
        "not to be pickled": is_refused(lambda: comm.send((i for i in range(3)), dest=0)),
    }
    if comm.rank == 0:
        found["scatter of too few"] = is_refused(lambda: comm.scatter([1] * (size - 1), root=0))
        found["scatter of too many"] = is_refused(lambda: comm.scatter([1] * (size + 1), root=0))
    return found, comm.allgather(comm.rank)
