"""Ranks that die where they are told to, for the tests of recovery.

A worker that takes the place of a dead one imports this anew, so it imports little.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Awaitable, Iterable, Mapping
from typing import Any

import fsdray as fsd
from fsdray.collective import ANY_SOURCE, AsyncCommunicator


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def works(rounds: int, deaths: Mapping[tuple[int, int], int]) -> tuple[list[Any], int]:
    """Talk in many ways; at operation n of attempt a of rank r, `deaths` says ``{(r, a): n}``."""
    comm = fsd.collective.world()
    attempt = fsd.get_runtime_context().attempt
    assert attempt is not None
    last = deaths.get((comm.rank, attempt), -1)
    rank, size = comm.rank, comm.size
    mine = [math.sin(rank + i) for i in range(40)]
    operations = [
        lambda at: comm.bcast(mine, at % size),
        lambda at: comm.allreduce(mine[at], op=lambda a, b: a + 0.5 * b),
        lambda at: comm.scatter([mine[i:] for i in range(size)], at % size),
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


def large(mine: Any) -> Any:
    import numpy as np

    comm = fsd.collective.world()
    got = comm.allgather(mine)
    if comm.rank == 2 and fsd.get_runtime_context().attempt == 1:
        die()
    return np.concatenate(got)


def greedy() -> int:
    comm = fsd.collective.world()
    if comm.rank == 1:
        hoard = [bytearray(b"x") * (1 << 25) for _ in range(40)]
        return len(hoard)
    return int(comm.allreduce(0))


def doomed() -> None:
    comm = fsd.collective.world()
    if comm.rank == 1:
        die()
    comm.barrier()


def inner(victim: int) -> int | None:
    comm = fsd.collective.world()
    if comm.rank == victim and fsd.get_runtime_context().attempt == 1:
        die()
    comm.allreduce(1)
    return fsd.get_runtime_context().attempt


def outer() -> list[int | None]:
    gang = fsd.remote(world_size=3, max_retries=1)(inner)
    values: list[int | None] = fsd.get(gang.remote(1))
    if fsd.get_runtime_context().attempt == 1:
        gang.remote(-1)
        die()
    return values


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
    comm: AsyncCommunicator, shard: Any, samples: Any, record: bool, layer: int
) -> Any:
    from fsdray.inference import engine

    doomed: Any = Mortal(comm, layer)
    return await engine.forward(doomed, shard, samples, record)


def mortal_rank(victim: int, layer: int, shard: Any, samples: Any, record: bool) -> Any:
    """The engine's rank program, of which one rank dies in one layer, once."""
    now = fsd.get_runtime_context()
    at = layer if now.rank == victim and now.attempt == 1 else -1
    return fsd.collective.run(mortal_forward, shard, samples, record, at)
