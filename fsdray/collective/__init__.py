"""Collectives: how the ranks of a gang talk to one another.

Inside a task of a gang, `world` is its communicator and `run` runs a coroutine over it; other
tasks meet with `init_group`. `plain` has what tasks use, `communicator` and `p2p` the operations,
`algorithms` says who sends to whom, `channels` move the bytes, `mailbox` makes exactly-once of
at-least-once, `frames` is the format.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fsdray import loop
from fsdray.collective.communicator import AsyncCommunicator
from fsdray.collective.envelope import ANY_SOURCE, ANY_TAG, PROC_NULL, UNDEFINED, Status
from fsdray.collective.ops import (
    BAND,
    BOR,
    BXOR,
    LAND,
    LOR,
    LXOR,
    MAX,
    MAXLOC,
    MIN,
    MINLOC,
    PROD,
    SUM,
)
from fsdray.collective.plain import Communicator
from fsdray.collective.requests import AsyncRequest, Request
from fsdray.errors import CollectiveError

__all__ = [
    "ANY_SOURCE",
    "ANY_TAG",
    "BAND",
    "BOR",
    "BXOR",
    "LAND",
    "LOR",
    "LXOR",
    "MAX",
    "MAXLOC",
    "MIN",
    "MINLOC",
    "PROC_NULL",
    "PROD",
    "SUM",
    "UNDEFINED",
    "AsyncCommunicator",
    "AsyncRequest",
    "Communicator",
    "Request",
    "Status",
    "run",
    "world",
]

T = TypeVar("T")

_world: AsyncCommunicator | None = None


def world() -> Communicator:
    """The communicator of all ranks of the gang that this task is a rank of.

    Raises
    ------
    CollectiveError
        outside a gang.
    """
    return Communicator(_inside())


def run(program: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> T:
    """Run ``await program(comm, *args, **kwargs)`` with this gang's `AsyncCommunicator`.

    The program shares fsdray's own event loop: what takes its time belongs in
    ``await comm.compute(function, *args)``.
    """
    return loop.run(program(_inside(), *args, **kwargs))


def enter(communicator: AsyncCommunicator | None) -> None:
    """Set what `world` returns; the worker does this around each call."""
    global _world
    _world = communicator


def _inside() -> AsyncCommunicator:
    if _world is None:
        raise CollectiveError(
            "there is no gang here: call this in a task of @fsdray.remote(world_size=P)"
        )
    return _world
