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
    "destroy_group",
    "init_group",
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


def init_group(
    name: str,
    rank: int,
    world_size: int,
    channel: str | None = None,
    timeout: float | None = None,
) -> Communicator:
    """Join a group by its name, as rank `rank` of `world_size`; return when all are there.

    It is for tasks that were not started as a gang (and for the driver): nobody watches over them,
    so a rank whose process dies is missed only when the others' time is over. A task may be in
    several groups. They end with the task at the latest: one that returns waits for the others to
    leave too, one that raises makes them fail with `RankFailed`.

    Parameters
    ----------
    name : what the ranks have in common, in one session. Once all have left it can be used again.
    channel : ``"queue"``, ``"object"`` or ``"auto"``; the session's own where not said.
    timeout : seconds for all that the group does; a task's own time limit where not said.

    Raises
    ------
    CollectiveTimeout
        naming the ranks that did not come.
    CollectiveError
        where the others have another `world_size` or `channel`, or `rank` is there already.
    SettingsError
        for arguments that no group can have.
    """
    from fsdray import groups

    return groups.init_group(name, rank, world_size, channel, timeout)


def destroy_group(name: str) -> None:
    """Leave a group; all of its ranks call this, or `free` of its communicator.

    When it returns all of them have, and nothing of the group is left.
    """
    from fsdray import groups

    groups.destroy_group(name)


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


def by_chance(what: str) -> None:
    """This rank, if any, does what would not be the same if it ran again; called on the loop."""
    if _world is not None:
        _world.by_chance(what)


def _inside() -> AsyncCommunicator:
    if _world is None:
        raise CollectiveError(
            "there is no gang here: call this in a task of @fsdray.remote(world_size=P), "
            "or have tasks meet with fsdray.collective.init_group"
        )
    return _world
