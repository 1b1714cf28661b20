"""The host's side of the guardian: processes that are started, ended and waited for by message.

What a process exits with is put here into the words that Lambda uses; what the processes run is
for `environment`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Exit:
    """How a process ended: its exit code, or minus the signal that killed it."""

    status: int
    is_out_of_memory: bool = False
    peak: int = 0  # bytes, of what was seen

    def __str__(self) -> str:
        if self.status == 0:
            return "Runtime exited without providing a reason"
        if self.status > 0:
            return f"Runtime exited with error: exit status {self.status}"
        name = signal.strsignal(-self.status) or f"signal {-self.status}"
        return f"Runtime exited with error: signal: {name.lower()}"


class Process:
    """One process under the guardian; `on_exit` is called once."""

    def __init__(self, number: int, processes: Processes, on_exit: Callable[[Exit], None]) -> None:
        self._number = number
        self._processes = processes
        self._on_exit = on_exit
        self.pid: int | None = None  # as soon as the guardian has told it
        self.exit: Exit | None = None

    def freeze(self) -> None:
        """Stop the process and what it started, until `thaw`."""
        self._processes.send({"watch": self._number, "is_on": False})
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it run on."""
        self._processes.send({"watch": self._number, "is_on": True})
        self._signal(signal.SIGCONT)

    def kill_group(self) -> None:
        """Kill it and what it started without the guardian."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.exit is None and self.pid is not None:  # which it keeps until it is forgotten
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def end(self) -> None:
        """Kill it with all that it started."""
        if self.exit is None:
            self._processes.send({"end": self._number})

    def has_exited(self, how: Exit) -> None:
        self.exit = how
        self._on_exit(how)


class Processes:
    """All processes of a host, under one guardian.

    Parameters
    ----------
    directory : removed by the guardian at the end.
    on_lost : called if the guardian ends before `close`.
    """

    def __init__(self, directory: Path, on_lost: Callable[[], None]) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        script = str(Path(__file__).with_name("guardian.py"))
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", script, str(theirs.fileno()), str(directory)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        self._channel.setblocking(False)
        self._numbers = itertools.count(1)
        self._running: dict[int, Process] = {}
        self._unsent: list[tuple[bytes, list[int]]] = []
        self._on_lost = on_lost
        asyncio.get_running_loop().add_reader(self._channel, self._receive)

    def start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        output: int,
        memory: int,
        on_exit: Callable[[Exit], None],
    ) -> Process:
        """Start a process that may use `memory` bytes and writes to the descriptor `output`."""
        number = next(self._numbers)
        process = self._running[number] = Process(number, self, on_exit)
        message = {
            "start": number,
            "argv": list(argv),
            "env": dict(env),
            "cwd": str(cwd),
            "memory": memory,
        }
        self.send(message, [os.dup(output)])
        return process

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        self._unsent.append((json.dumps(message).encode(), list(fds)))
        if len(self._unsent) == 1:
            self._flush()

    async def close(self) -> None:
        """End every process, have the directory removed, and wait until that is so."""
        asyncio.get_running_loop().remove_reader(self._channel)
        asyncio.get_running_loop().remove_writer(self._channel)
        self._channel.close()
        await asyncio.to_thread(self._guardian.wait)

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._unsent:
            data, fds = self._unsent[0]
            try:
                socket.send_fds(self._channel, [data], fds)
            except BlockingIOError:
                loop.add_writer(self._channel, self._flush)
                return
            except ConnectionError:
                pass  # the guardian has gone: `_receive` tells
            del self._unsent[0]
            for fd in fds:
                os.close(fd)
        loop.remove_writer(self._channel)

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    data = self._channel.recv(1 << 16)
                except ConnectionError:
                    data = b""
                if not data:
                    self._lost()
                    return
                self._told(json.loads(data))

    def _lost(self) -> None:
        """The guardian was killed. Its own children died with it; end what they had started."""
        asyncio.get_running_loop().remove_reader(self._channel)
        for process in self._running.values():
            process.kill_group()
        self._on_lost()

    def _told(self, message: dict[str, Any]) -> None:
        if "started" in message:
            self._running[message["started"]].pid = message["pid"]
            return
        process = self._running.pop(message["exited"])
        process.has_exited(Exit(message["status"], message["oom"], message["peak"]))
        self.send({"forget": message["exited"]})
