"""What tests and their tasks tell one another, on any system whose tasks run on this machine.

Waiting is done by the kernel (locks of files, a named pipe): nothing polls and nothing sleeps.
"""

from __future__ import annotations

import fcntl
import os
import select
from pathlib import Path


class Gate:
    """Tasks wait at it until the test opens it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = os.open(path, os.O_CREAT | os.O_RDWR)
        fcntl.flock(self._held, fcntl.LOCK_EX)

    def open(self) -> None:
        """Let all through, those to come as well."""
        fcntl.flock(self._held, fcntl.LOCK_UN)

    def wait(self) -> None:
        """Wait until it is open."""
        with self.path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path}


class Bell:
    """A task rings it, and the test hears that."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._pipe = os.open(path, os.O_RDWR)

    def ring(self) -> None:
        """Tell the test."""
        with self.path.open("wb", buffering=0) as pipe:
            pipe.write(b".")

    def hear(self, times: int = 1) -> None:
        """Wait until it was rung so often."""
        for _ in range(times):
            os.read(self._pipe, 1)

    def is_silent(self) -> bool:
        """Whether it was not rung since it was heard."""
        ready, _, _ = select.select([self._pipe], [], [], 0)
        return not ready

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path}


class Tally:
    """Tasks add to it, also those that die thereafter."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def add(self) -> int:
        """Add one; how many there are now."""
        with self.path.open("ab", buffering=0) as file:
            file.write(b".")
            return file.tell()

    @property
    def count(self) -> int:
        """How often it was added to."""
        return self.path.stat().st_size
