"""An even network, on which what a run bills is what the formulas say: what their tests share.

Every request takes there what the formulas' `Medium` says, and bandwidth is boundless, so that all
counts are exact. What senders ask for (publishes, sends, puts) is exact everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fsdray import buffers, wire
from fsdray.collective import AsyncCommunicator, algorithms, codec
from fsdray.collective.algorithms import Setting
from fsdray.collective.frames import Operation
from fsdray.costs.medium import USUAL, Bill, Medium
from fsdray.services import MessageLimits
from fsdray.testing import Latency, Network, Simulation, simulate

_BOUNDLESS = 1e30  # bytes, or requests, a second
EVEN = Network(
    **{
        name: Latency(getattr(USUAL, name).median, getattr(USUAL, name).median)
        for name in ("deliver", "direct", "publish", "receive", "put", "get")
    },
    bandwidth=(_BOUNDLESS, _BOUNDLESS),
    connections=10**6,
    put_rate=_BOUNDLESS,
    get_rate=_BOUNDLESS,
    publish_rate=_BOUNDLESS,
)
SENT = ("publish", "publish_units", "send", "send_units", "put")
COUNTS = (*SENT, "receive", "receive_units", "acknowledge", "get", "miss")


def second(left: Any, right: Any) -> Any:
    return right


Program = Callable[[AsyncCommunicator, Any], Awaitable[Any]]
CALLS: dict[Operation, Program] = {
    Operation.BCAST: lambda comm, value: comm.bcast(value, comm.size - 1),
    Operation.SCATTER: lambda comm, value: comm.scatter([value] * comm.size, comm.size // 2),
    Operation.GATHER: lambda comm, value: comm.gather(value, comm.size // 2),
    Operation.REDUCE: lambda comm, value: comm.reduce(value, second, comm.size - 1),
    Operation.ALLGATHER: lambda comm, value: comm.allgather(value),
    Operation.ALLREDUCE: lambda comm, value: comm.allreduce(value, second),
    Operation.BARRIER: lambda comm, value: comm.barrier(),
    Operation.ALLTOALL: lambda comm, value: comm.alltoall([value] * comm.size),
    Operation.REDUCE_SCATTER: lambda comm, value: comm.reduce_scatter([value] * comm.size, second),
    Operation.SCAN: lambda comm, value: comm.scan(value, second),
    Operation.EXSCAN: lambda comm, value: comm.exscan(value, second),
    Operation.SPLIT: lambda comm, value: comm.split(0, 0),
    Operation.NEIGHBOR_ALLTOALL: lambda comm, value: comm.neighbor_alltoall(
        dict.fromkeys(range(comm.size), value), range(comm.size)
    ),
}
FIXED: dict[Operation, Any] = {Operation.BARRIER: None, Operation.SPLIT: (0, 0)}
"""What those operations send that are given nothing to send."""
SQUARE = (
    Operation.ALLTOALL,
    Operation.REDUCE_SCATTER,
    Operation.NEIGHBOR_ALLTOALL,
    Operation.ALLGATHER,
)
"""What moves P² values."""


def medium(memory: int = 0, **changes: Any) -> Medium:
    """What `EVEN` is."""
    times = {
        name: Latency(value.median, value.median)
        for name, value in vars(USUAL).items()
        if isinstance(value, Latency)
    }
    return dataclasses.replace(USUAL, bandwidth=_BOUNDLESS, memory=memory, **times, **changes)


def setting(channel: str, size: int, memory: int = 0, **changes: Any) -> Setting:
    return Setting(channel, size, medium(memory, **changes), MessageLimits())


def packed(value: Any, ranks: int) -> int:
    """Bytes of a value's payload, where so many ranks exchange theirs."""
    return buffers.size(codec.encode(wire.encode(value), ranks)[1])


def run_each(call: Program, value: Any) -> Callable[..., Coroutine[Any, Any, Any]]:
    """A program of one call."""

    async def program(comm: AsyncCommunicator) -> Any:
        return await call(comm, value)

    return program


def bill(operation: Operation, here: Setting, value: Any) -> Bill:
    """What the formula says of who is given this value."""
    bills = algorithms.ways(operation, here, packed(FIXED.get(operation, value), here.size))
    return (
        bills[algorithms.choose(here, operation)] if len(bills) > 1 else next(iter(bills.values()))
    )


def simulated(
    operation: Operation,
    size: int,
    value: Any,
    channel: str,
    memory: int = 0,
    network: Network = EVEN,
) -> Simulation[Any]:
    """A run of one operation, which must leave nothing behind."""
    run = simulate(
        run_each(CALLS[operation], value),
        size,
        channel=channel,
        network=network,
        trace=False,
        memory=memory or None,
    )
    assert run.left == {}
    return run
