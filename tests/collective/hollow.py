"""Arrays whose length is true and whose memory is not there, for what no memory would hold.

All that is copied of them lies in one region of untouched pages, which the system maps to one page
of zeros: of a copy only those bytes are written that are no zeros of an array, such as headers.
Everything above runs as it is, and finds in each message what was sent.
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from fsdray.collective.frames import Codec
from fsdray.services import KIB, Buffer

_ROOM = 1 << 40  # bytes of addresses: none of them costs anything until it is written
_SMALL = 8 * KIB  # bytes up to which a copy is an ordinary one
_ALIGN = 64
_NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE, which Python 3.11 does not name


class Hollow:
    """A region of zeros, and what was written into it."""

    def __init__(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
        self._memory = mmap.mmap(-1, _ROOM, flags=flags)
        self._view = memoryview(self._memory)
        self._base = np.frombuffer(self._memory, np.uint8).__array_interface__["data"][0]
        self._used = 0
        # Where the bytes are that are no zeros: from, and up to without, in order.
        self._starts: list[int] = []
        self._ends: list[int] = []

    def array(self, size: int) -> Any:
        """So many zeros, which may be read and be sent."""
        return np.frombuffer(self._new(size), np.uint8)

    def joined(self, parts: Sequence[Buffer]) -> Buffer:
        """What `fsdray.buffers` does, without what is zeros here anyway."""
        views = [memoryview(part).cast("B") for part in parts]
        size = sum(view.nbytes for view in views)
        if size <= _SMALL:
            return bytearray().join(views)
        if len(views) == 1 and self._place(views[0]) is not None:
            return views[0]  # nobody changes what is sent here
        start = self._used
        made = self._new(size)
        at = 0
        for view in views:
            for begin, end in self._written(view):
                made[at + begin : at + end] = view[begin:end]
                self._starts.append(start + at + begin)
                self._ends.append(start + at + end)
            at += view.nbytes
        return made

    def forget(self) -> None:
        """Give back what was written."""
        self._memory.madvise(
            mmap.MADV_DONTNEED, 0, -(-self._used // mmap.PAGESIZE) * mmap.PAGESIZE or mmap.PAGESIZE
        )
        self._used = 0
        self._starts.clear()
        self._ends.clear()

    def _new(self, size: int) -> memoryview:
        start = self._used
        self._used += size + -size % _ALIGN
        return self._view[start : start + size]

    def _place(self, view: memoryview) -> int | None:
        """Where a view begins, if it is one of this region."""
        address = np.frombuffer(view, np.uint8).__array_interface__["data"][0] - self._base
        return address if 0 <= address < _ROOM else None

    def _written(self, view: memoryview) -> Iterator[tuple[int, int]]:
        """The parts of a view that have to be copied."""
        place = self._place(view) if view.nbytes > _ALIGN else None
        if place is None:
            if view.nbytes:
                yield 0, view.nbytes
            return
        i = max(0, bisect_right(self._starts, place) - 1)
        while i < len(self._starts) and self._starts[i] < place + view.nbytes:
            begin, end = max(self._starts[i], place), min(self._ends[i], place + view.nbytes)
            if begin < end:
                yield begin - place, end - place
            i += 1


@contextmanager
def hollow(patch: pytest.MonkeyPatch) -> Iterator[Hollow]:
    """Within it copies are hollow, nothing is compressed, and checksums are of nothing."""
    here = Hollow()
    patch.setattr("fsdray.buffers.joined", here.joined)
    patch.setattr("fsdray.buffers.own", here.joined)
    patch.setattr("fsdray.collective.codec.encode", lambda payload, ranks=1: (Codec.RAW, payload))
    patch.setattr("fsdray.collective.frames.checksum", lambda parts: 0)
    yield here
