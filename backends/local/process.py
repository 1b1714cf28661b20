"""What a worker process does: one call after another, on its main thread.

The main thread runs user code; the process's loop talks to the driver meanwhile. What a call is,
is known by `fsdray.worker` alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fsdray import environment, loop, worker
from fsdray.backends.local.backend import LocalBackend
from fsdray.backends.local.functions import LocalFunctions, Outcome
from fsdray.backends.local.link import Link
from fsdray.backends.local.messages import LocalMessages
from fsdray.backends.local.objects import Files, LocalObjects
from fsdray.costs.meter import count
from fsdray.services import FunctionLimits, MessageLimits, ObjectLimits

_Call = tuple[bytes, float, "asyncio.Future[tuple[bytes, bool]]"]


def main(link_socket: socket.socket, log_fd: int, config: str) -> None:
    """Serve calls until the driver closes the link."""
    for fd in (1, 2):
        os.dup2(log_fd, fd)
    os.close(log_fd)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()

    async def run(payload: bytes, timeout: float) -> tuple[bytes, bool]:
        reply: asyncio.Future[tuple[bytes, bool]] = asyncio.get_running_loop().create_future()
        calls.put((payload, timeout, reply))
        return await reply

    def settle(reply: asyncio.Future[tuple[bytes, bool]], value: tuple[bytes, bool]) -> None:
        if not reply.done():  # the call may have been cancelled meanwhile
            reply.set_result(value)

    def lost() -> None:
        # Main may be deep in user code, which nobody waits for any more.
        os._exit(0)

    told = json.loads(config)
    environment.place(Path(told["modules"]) / "modules")
    link = loop.run(Link.over(link_socket, {"run": run}, lost))
    backend = _backend(link, told)
    while (call := calls.get()) is not None:
        payload, timeout, reply = call

        def respond(
            answer: bytes, is_spent: bool, reply: asyncio.Future[tuple[bytes, bool]] = reply
        ) -> None:
            sys.stdout.flush()
            sys.stderr.flush()
            loop.get().call_soon_threadsafe(settle, reply, (answer, is_spent))

        worker.run(payload, backend, timeout, respond)


def _backend(link: Link, config: dict[str, Any]) -> LocalBackend:
    far = _Driver(link)
    functions = FunctionLimits(**config["functions"])
    return LocalBackend(
        functions=LocalFunctions(far, count, functions),
        messages=LocalMessages(far, count, MessageLimits(**config["messages"])),
        objects=LocalObjects(
            Files(Path(config["directory"]) / "objects"),
            far,
            count,
            ObjectLimits(**config["objects"]),
        ),
    )


class _Driver:
    """The driver's pool, inboxes and watchers, through the link."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def run(self, payload: bytes, memory: int, timeout: float, label: str) -> Outcome:
        outcome: Outcome = await self._link.request("run", payload, memory, timeout, label)
        return outcome

    async def admit(self, count: int) -> None:
        await self._link.request("admit", count)

    async def dismiss(self, count: int) -> None:
        await self._link.request("dismiss", count)

    def waiting(self, is_waiting: bool) -> None:
        loop.get().call_soon_threadsafe(self._link.tell, "waiting", is_waiting)

    def prepare(self, names: Sequence[str]) -> None:
        self._link.tell("prepare", list(names))

    async def lease(self, count: int) -> list[str]:
        inboxes: list[str] = await self._link.request("lease", count)
        return inboxes

    async def release(self, inboxes: Sequence[str]) -> None:
        await self._link.request("release", list(inboxes))

    async def publish(self, messages: Sequence[tuple[bytes, tuple[str, ...]]]) -> None:
        await self._link.request("publish", list(messages))

    async def receive(self, inbox: str, wait: float) -> list[tuple[str, bytes]]:
        taken: list[tuple[str, bytes]] = await self._link.request("receive", inbox, wait)
        return taken

    async def acknowledge(self, inbox: str, receipts: Sequence[str]) -> None:
        await self._link.request("acknowledge", inbox, list(receipts))

    async def appeared(self, key: str) -> None:
        await self._link.request("appeared", key)

    def touched(self, key: str) -> None:
        self._link.tell("touched", key)
