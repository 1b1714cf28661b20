"""Large bodies of messages, in shared memory: only their names go through the driver.

A body is a file that its publisher writes and its receivers read; when the last of them has
acknowledged it, the publisher may write another into it, which takes a fraction of the time that
new pages take. The driver says which files those are, and removes those of processes that ended.
"""

from __future__ import annotations

import itertools
import os
import secrets
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from fsdray.services import KIB, Buffer

LARGE = 32 * KIB
"""Bytes from which a file is faster: through the driver's sockets a body is copied some ten times,
and a file costs as much as copying 100 KB once."""

KEPT = 16
"""Files that wait to be written again: of each process, and as many that it has not heard of."""

_SERIAL = struct.Struct("<Q")


class Shared(NamedTuple):
    """A body that lies in a file: whose, which of those that lay there, and its bytes."""

    owner: int
    name: str
    serial: int
    size: int


class Bodies:
    """Files below a directory that all processes of a session share; of one process."""

    def __init__(self, directory: Path) -> None:
        self._directory = str(directory)
        self._serials = itertools.count(1)
        self._owner = os.getpid()
        # Of this process alone: a number of a process that ended may be given to a new one.
        self._prefix = f"body-{self._owner}-{secrets.token_hex(4)}"
        self._spare: list[str] = []  # this process's files, to be written again
        # The driver's: by their owners, files that these may write again, and do not know it or
        # do; and processes that ended.
        self._returned: dict[int, list[str]] = {}
        self._lent: dict[int, set[str]] = {}
        self._ended: set[int] = set()

    def put(self, body: Buffer) -> bytes | Shared:
        """What goes to the driver for a body."""
        view = memoryview(body).cast("B")
        if view.nbytes < LARGE:
            return bytes(body)
        serial = next(self._serials)
        name = self._spare.pop() if self._spare else f"{self._prefix}-{serial}"
        try:
            self._write(name, serial, view)
        except OSError:  # there is no room: it goes the other way
            self._remove(name)
            return bytes(body)
        return Shared(self._owner, name, serial, view.nbytes)

    def get(self, kept: bytes | Shared) -> bytes | None:
        """The body; None where all others have acknowledged it meanwhile."""
        if not isinstance(kept, Shared):
            return kept
        try:
            fd = os.open(self._path(kept.name), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            body = os.pread(fd, kept.size, _SERIAL.size)
            # Looked at last: what is written later has its serial written first.
            is_it = os.pread(fd, _SERIAL.size, 0) == _SERIAL.pack(kept.serial)
        finally:
            os.close(fd)
        return body if is_it else None

    def spare(self, names: Sequence[str]) -> None:
        """Nobody wants what lies in these files of this process."""
        self._spare += names
        for name in self._spare[KEPT:]:
            self._remove(name)
        del self._spare[KEPT:]

    # In the driver

    def drop(self, kept: bytes | Shared) -> None:
        """Nobody will ask for it again."""
        if not isinstance(kept, Shared):
            return
        returned = self._returned.setdefault(kept.owner, [])
        if kept.owner in self._ended or len(returned) >= KEPT:
            self._remove(kept.name)
        else:
            returned.append(kept.name)

    def came(self, published: Sequence[bytes | Shared]) -> list[str]:
        """A process published these; it is told, once, which files it may write again."""
        returned: list[str] = []
        for kept in published:
            if isinstance(kept, Shared):
                lent = self._lent.setdefault(kept.owner, set())
                lent.discard(kept.name)
                returned += self._returned.pop(kept.owner, ())
                lent.update(returned)
        return returned

    def ended(self, owner: int) -> None:
        """A process is gone, who would have written its files again."""
        self._ended.add(owner)
        for name in (*self._returned.pop(owner, ()), *self._lent.pop(owner, ())):
            self._remove(name)

    # Inside

    def _write(self, name: str, serial: int, view: memoryview) -> None:
        fd = os.open(self._path(name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, _SERIAL.pack(serial))
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._directory}/{name}"
