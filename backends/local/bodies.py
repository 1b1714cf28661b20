"""Large bodies of messages, in shared memory: only their names go through the driver.

A body is a file that its publisher writes and all of its receivers map; the driver removes it when
the last of them has acknowledged it. It is billed like one that travels.
"""

from __future__ import annotations

import itertools
import mmap
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from fsdray.services import KIB, Buffer

LARGE = 32 * KIB
"""Bytes from which a file is faster: through the driver's sockets a body is copied some ten times,
and a file costs as much as copying 100 KB once."""


class Shared(NamedTuple):
    """A body that lies in a file."""

    name: str
    size: int


class Bodies:
    """Files below a directory that all processes of a session share."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._unique = itertools.count()

    def put(self, body: Buffer) -> bytes | Shared:
        """What goes to the driver for a body."""
        view = memoryview(body).cast("B")
        if view.nbytes < LARGE:
            return bytes(body)
        shared = Shared(f"body-{os.getpid()}-{next(self._unique)}", view.nbytes)
        path = self._directory / shared.name
        try:
            with path.open("xb", buffering=0) as file:
                while view:
                    view = view[file.write(view) :]
        except OSError:  # there is no room: it goes the other way
            path.unlink(missing_ok=True)
            return bytes(body)
        return shared

    def get(self, kept: bytes | Shared) -> Buffer:
        """The body; not to be written."""
        if not isinstance(kept, Shared):
            return kept
        with (self._directory / kept.name).open("rb", buffering=0) as file:
            return memoryview(mmap.mmap(file.fileno(), kept.size, access=mmap.ACCESS_READ))

    def drop(self, kept: bytes | Shared) -> None:
        """Nobody will ask for it again; who has it keeps it."""
        if isinstance(kept, Shared):
            with suppress(FileNotFoundError):
                (self._directory / kept.name).unlink()
