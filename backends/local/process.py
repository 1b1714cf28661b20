"""What a worker process does: one call after another, on its main thread.

The main thread runs user code; the process's loop talks to the driver meanwhile. What a call is,
is known by `fsdray.worker` alone.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from fsdray import environment, loop, worker
from fsdray.backends.local import cores
from fsdray.backends.local.backend import LocalBackend
from fsdray.backends.local.functions import LocalFunctions
from fsdray.backends.local.link import Link
from fsdray.backends.local.logs import mark
from fsdray.backends.local.messages import Inboxes, LocalMessages
from fsdray.backends.local.objects import Files, LocalObjects
from fsdray.backends.local.pipeline import CallsLost, Intake
from fsdray.backends.local.pool import Outcome
from fsdray.costs.meter import count
from fsdray.services import FunctionLimits, MessageLimits, ObjectLimits


def main(calls_socket: socket.socket, link_socket: socket.socket, log_fd: int, config: str) -> None:
    """Serve calls until the driver is gone."""
    for fd in (1, 2):
        os.dup2(log_fd, fd)
    os.close(log_fd)
    intake = Intake(calls_socket)
    sys.stdout, sys.stderr = _Marked.stream(1, intake), _Marked.stream(2, intake)

    async def give_back() -> list[int]:
        return intake.give_back()

    def lost() -> None:
        # Main may be deep in user code, which nobody waits for any more.
        os._exit(0)

    told = json.loads(config)
    environment.place(Path(told["modules"]) / "modules")
    link = loop.run(Link.over(link_socket, {"give_back": give_back}, lost))
    backend = _backend(link, intake, told)
    while True:
        try:
            number, timeout, payload = intake.next()
        except CallsLost:
            return
        began = time.perf_counter()

        def respond(
            reply: bytes, is_spent: bool, number: int = number, began: float = began
        ) -> None:
            sys.stdout.flush()
            sys.stderr.flush()
            _Marked.end_line()
            intake.reply(number, reply, time.perf_counter() - began, is_spent)

        worker.run(payload, backend, timeout, respond)
        cores.as_usual()


class _Marked(io.RawIOBase):
    """Standard output or error, which says before a call's first line whose it is."""

    # Of the two together:
    marked = 0  # the call that was named last
    is_mid_line = False

    def __init__(self, fd: int, intake: Intake) -> None:
        super().__init__()
        self._fd = fd
        self._intake = intake

    @classmethod
    def stream(cls, fd: int, intake: Intake) -> TextIO:
        buffered = io.BufferedWriter(cls(fd, intake))
        return io.TextIOWrapper(buffered, "utf-8", "backslashreplace", line_buffering=True)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def write(self, data: Any, /) -> int:
        running = self._intake.running
        if running != _Marked.marked:
            _Marked.marked = running
            os.write(self._fd, mark(running))
        written = os.write(self._fd, data)
        _Marked.is_mid_line = bytes(data[written - 1 : written]) != b"\n"
        return written

    @staticmethod
    def end_line() -> None:
        """A call is over: a line that it did not end goes no further."""
        if _Marked.is_mid_line:
            _Marked.is_mid_line = False
            os.write(1, mark(_Marked.marked))


def _backend(link: Link, intake: Intake, config: dict[str, Any]) -> LocalBackend:
    far = _Driver(link, intake)
    directory = Path(config["directory"])
    files = Files(directory / "objects")
    limits = MessageLimits(**config["messages"])
    # A process number may be given to another one while its names are still in use.
    mine = f"{os.getpid()}-{secrets.token_hex(3)}-"
    inboxes = Inboxes(directory / "inboxes", limits, lambda key: files.delete([key]), mine)
    return LocalBackend(
        functions=LocalFunctions(far, count, FunctionLimits(**config["functions"])),
        messages=LocalMessages(inboxes, count, limits),
        objects=LocalObjects(files, far, count, ObjectLimits(**config["objects"])),
    )


class _Driver:
    """The driver's pool and watchers, through the link."""

    def __init__(self, link: Link, intake: Intake) -> None:
        self._link = link
        self._intake = intake

    async def run(self, payload: bytes, memory: int, timeout: float, label: str) -> Outcome:
        outcome: Outcome = await self._link.request("run", payload, memory, timeout, label)
        return outcome

    async def admit(self, count: int) -> None:
        await self._link.request("admit", count)

    async def dismiss(self, count: int) -> None:
        await self._link.request("dismiss", count)

    def waiting(self, is_waiting: bool) -> None:
        running = self._intake.running
        loop.get().call_soon_threadsafe(self._link.tell, "waiting", running, is_waiting)

    def prepare(self, names: Sequence[str]) -> None:
        self._link.tell("prepare", list(names))

    async def appeared(self, key: str) -> None:
        await self._link.request("appeared", key)

    def touched(self, key: str) -> None:
        self._link.tell("touched", key)
