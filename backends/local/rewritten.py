"""Files that are written again when no key names them any more, through memory that stays mapped.

New pages cost several times what copying into old ones does, and the system copies into a file and
out of it in three times what it takes where the file is mapped. So what is attached to a message
lies in such a file: its writer keeps a second name of it, and both sides keep it mapped a while.

It is longer than what lies in it. At its end stands how long that is, and its number among all that
this writer wrote: a reader who finds another number than before it copied has copied what was
written over. Its size never changes, so no mapping ever ends before its file does.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from fsdray import buffers
from fsdray.services import MIB, Buffer

MODE = 0o700
"""Of such files: by it a reader knows them."""

_MOST = 16 * MIB  # bytes that a process keeps to write again, and mapped to read: 15 of 1 MB
_ROOM = 256 * MIB  # bytes that must be free, or nothing is kept
_LOOKS = 4  # files that are looked at for one that may be written
_END = struct.Struct("<QQ")  # bytes, number
_VECTOR = 1024  # buffers of one write, as POSIX has it


class File:
    """One that this process writes."""

    def __init__(self, path: str, inode: int, capacity: int) -> None:
        self.path = path
        self.capacity = capacity
        self._inode = inode
        self._map: mmap.mmap | None = None

    @classmethod
    def create(cls, path: str, data: Sequence[Buffer], size: int, number: int) -> File:
        """A new one, whose pages are all there.

        Raises
        ------
        OSError
            where there is no room; then there is no file.
        """
        step = max(mmap.PAGESIZE, 1 << max(0, size.bit_length() - 4))
        capacity = -(-size // step) * step
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, MODE)
        try:
            end = _END.pack(size, number)
            write(fd, [*data, bytes(capacity - size), end])
            inode = os.fstat(fd).st_ino
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(path)
            raise
        finally:
            os.close(fd)
        return cls(path, inode, capacity)

    def rewrite(self, data: Sequence[Buffer], size: int, number: int) -> None:
        """Have this lie in it; nobody may read it meanwhile."""
        if self._map is None:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            try:
                self._map = mmap.mmap(fd, self.capacity + _END.size)
            finally:
                os.close(fd)
        mapped = self._map
        _END.pack_into(mapped, self.capacity, 0, 0)
        at = 0
        for part in data:
            view = memoryview(part).cast("B")
            mapped[at : at + view.nbytes] = view
            at += view.nbytes
        _END.pack_into(mapped, self.capacity, size, number)

    def is_free(self) -> bool:
        """Whether no key names it."""
        try:
            return os.stat(self.path).st_nlink == 1
        except FileNotFoundError:
            return False

    def etag(self, size: int, number: int) -> str:
        return _etag(self._inode, size, number)

    def remove(self) -> None:
        """Have it be nobody's but of who reads it by its key."""
        if self._map is not None:
            self._map.close()
        with suppress(FileNotFoundError):
            os.unlink(self.path)


class Rewritten:
    """Those of one process, the oldest first, and those of others that it has mapped to read.

    Parameters
    ----------
    name : gives a new path for a file.
    """

    def __init__(self, name: Callable[[], str]) -> None:
        self._name = name
        self._kept: deque[File] = deque()
        self._bytes = 0
        self._number = 0
        self._mapped: dict[int, mmap.mmap] = {}  # by inode, the first mapped first
        self._mapped_bytes = 0

    def written(self, data: Sequence[Buffer]) -> tuple[File, str]:
        """A file in which this lies, and its etag; it is the caller's until it is kept."""
        size = buffers.size(data)
        self._number += 1
        file = self._taken(size)
        if file is None:
            file = File.create(self._name(), data, size, self._number)
        else:
            file.rewrite(data, size, self._number)
        return file, file.etag(size, self._number)

    def keep(self, file: File) -> None:
        """Write it again some time, if there is room for so many."""
        room = os.statvfs(file.path)
        if room.f_bavail * room.f_frsize < _ROOM:
            file.remove()
            return
        self._kept.append(file)
        self._bytes += file.capacity
        while self._bytes > _MOST:
            self._next(0).remove()

    def read(
        self, path: str, status: os.stat_result, span: tuple[int, int] | None
    ) -> tuple[memoryview, int, str] | None:
        """What lies in such a file, or a span of it, as a copy; its size, and its etag.

        None where it was written over meanwhile, so its key is gone.

        Raises
        ------
        FileNotFoundError
            where the key is gone meanwhile: what was found may be of another.
        """
        mapped = self._mapped.get(status.st_ino) or self._map(path, status.st_ino)
        if mapped is None:
            return None
        at = len(mapped) - _END.size
        end = size, number = _END.unpack_from(mapped, at)
        start, stop = (0, size) if span is None else (min(span[0], size), min(span[1], size))
        with memoryview(mapped) as whole, whole[start : max(start, stop)] as part:
            data = bytearray(part)
        if not number or _END.unpack_from(mapped, at) != end:
            return None
        if os.stat(path).st_ino != status.st_ino:
            return None
        return memoryview(data), size, _etag(status.st_ino, size, number)

    # Inside

    def _taken(self, size: int) -> File | None:
        """One that has room for so much, and not much more, and that no key names."""
        looks = 0
        for i, file in enumerate(self._kept):
            if size <= file.capacity <= 2 * size + mmap.PAGESIZE:
                if file.is_free():
                    return self._next(i)
                looks += 1
                if looks == _LOOKS:
                    break
        return None

    def _next(self, i: int) -> File:
        file = self._kept[i]
        del self._kept[i]
        self._bytes -= file.capacity
        return file

    def _map(self, path: str, inode: int) -> mmap.mmap | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(fd)
            if status.st_ino != inode:
                return None  # of another object of this key
            mapped = mmap.mmap(fd, status.st_size, access=mmap.ACCESS_READ)
        finally:
            os.close(fd)
        self._mapped[inode] = mapped
        self._mapped_bytes += len(mapped)
        while self._mapped_bytes > _MOST and len(self._mapped) > 1:
            oldest = self._mapped.pop(next(iter(self._mapped)))
            self._mapped_bytes -= len(oldest)
            oldest.close()
        return mapped


def etag_of(path: str, status: os.stat_result) -> str:
    """The etag of what lies in such a file now."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        end = os.pread(fd, _END.size, status.st_size - _END.size)
    finally:
        os.close(fd)
    return _etag(status.st_ino, *_END.unpack(end))


def write(fd: int, data: Sequence[Buffer]) -> int:
    """Write all of it to a file; how many bytes that is."""
    views = [view for part in data if (view := memoryview(part).cast("B"))]
    total = at = 0
    while at < len(views):
        written = os.writev(fd, views[at : at + _VECTOR])
        total += written
        while at < len(views) and written >= len(views[at]):
            written -= len(views[at])
            at += 1
        if written:
            views[at] = views[at][written:]
    return total


def _etag(inode: int, size: int, number: int) -> str:
    return f"{inode:x}-{number:x}-{size:x}"
