"""A gang in one process: coroutine rank programs on one event loop, over any services.

The ranks talk through the same channels, mailboxes and communicators as in a worker; there are
no functions, no processes and no supervision. It is for fast tests of what runs on a gang.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar, cast

from fsdray.collective import channels
from fsdray.collective.channels import Channel, Rendezvous
from fsdray.collective.communicator import AsyncCommunicator
from fsdray.collective.mailbox import Mailbox
from fsdray.costs.medium import USUAL, Medium
from fsdray.errors import CollectiveError
from fsdray.services import Backend, Messages, Objects

T = TypeVar("T")

GANG = "0" * 32  # the same each time, so that faults by seed are the same too
DEADLINE = 60.0  # seconds


class Services(Protocol):
    """The part of a `fsdray.services.Backend` that ranks talk through."""

    @property
    def messages(self) -> Messages: ...
    @property
    def objects(self) -> Objects: ...


async def run_ranks(
    services: Services,
    channel: str,
    size: int,
    program: Callable[[AsyncCommunicator], Coroutine[Any, Any, T]],
    *,
    deadline: float = DEADLINE,
    gang: str = GANG,
    medium: Medium = USUAL,
) -> list[T]:
    """Run ``await program(comm)`` as every rank of a gang at once; what each returned, in order.

    Parameters
    ----------
    services : what has `messages` and `objects`, such as a backend.
    channel : ``"queue"``, ``"object"`` or ``"auto"``.
    size : how many ranks.
    deadline : seconds until every wait ends with `CollectiveTimeout`.
    medium : what collectives are chosen by.
    gang : 32 hex digits; two gangs that share services at the same time need two.

    Raises
    ------
    BaseException
        the first that a rank raised; the other ranks are cancelled, nothing is left behind.
    """
    backend = cast(Backend, services)
    meeting = await channels.prepare(backend, channel, size, medium)
    meeting = dataclasses.replace(meeting, gang=gang)
    opened = [_open(backend, meeting, rank, size, deadline) for rank in range(size)]
    tasks = [asyncio.create_task(program(comm)) for comm, _ in opened]
    ended: list[asyncio.Task[T]] = []  # in the order in which they did
    for task in tasks:
        task.add_done_callback(ended.append)
    is_whole = False
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        errors = [error for task in ended if (error := task.exception()) is not None]
        is_whole = not errors
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for comm, _ in opened:
            await comm.close()
        written = [key for _, each in opened for key in each.written]
        await channels.clear(backend, meeting, written, is_broken=not is_whole)
    if errors:
        raise errors[0]
    return [task.result() for task in tasks]


def _open(
    backend: Backend, meeting: Rendezvous, rank: int, size: int, deadline: float
) -> tuple[AsyncCommunicator, Channel]:
    def aborted(why: bytes) -> None:
        mailbox.fail(lambda: CollectiveError(f"the gang was aborted: {why.decode()}"))

    mailbox = Mailbox(meeting.epoch, rank, aborted)
    channel = channels.open_channel(backend, meeting, rank, size, mailbox)
    ends = asyncio.get_running_loop().time() + deadline

    async def abort(why: CollectiveError) -> None:
        await channels.announce(backend, meeting, rank, size, str(why).encode())

    return AsyncCommunicator(rank, size, channel, mailbox, ends, abort), channel
