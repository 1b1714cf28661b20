"""Objects as files in the session's directory, in shared memory where there is enough of it.

A put writes beside and renames, so a reader never sees half an object; a reader maps the file and
copies nothing. Waiting for a key is answered by the driver (`Watch`), not by looking again.

New pages cost several times what copying into old ones does (here 0.5 ms for 1 MB, and 0.14). So
the file of an object that is attached to a message is written again when its key is gone: its
writer keeps a second name of it, and readers copy such a file, which its mode tells.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import itertools
import mmap
import os
import secrets
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote

from fsdray.errors import ServiceError
from fsdray.services import MIB, Blob, Buffer, Count, ObjectLimits, Pace, gets, puts

_SMALL = 64 * 1024  # below this a read is cheaper than a mapping
_PIECE = 200  # characters of one path component; file systems end at 255
_BLOCKING = 4 * MIB  # above this a write goes to a thread: the loop must stay awake
_AGAIN = 16 * MIB  # bytes of a process's files that wait to be written again: of 15 objects of 1 MB
_ROOM = 256 * MIB  # bytes that must be free, or none waits
_ONCE, _REWRITTEN = 0o600, 0o700  # modes of files: what may be written again is never mapped
_VECTOR = 1024  # buffers of one write, as POSIX has it


class Watch(Protocol):
    """Tells readers when a key that they wait for is there."""

    async def appeared(self, key: str) -> None:
        """Return once the key exists."""
        ...

    def touched(self, key: str) -> None:
        """Say that the key was written."""
        ...


class Watchers:
    """The `Watch` of a session; it lives in the driver."""

    def __init__(self, exists: Callable[[str], bool]) -> None:
        self._exists = exists
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}

    async def appeared(self, key: str) -> None:
        # Registered first, looked second: a put between the two is seen by one of them.
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(key, set())
        waiting.add(woken)
        try:
            if not self._exists(key):
                await woken
        finally:
            waiting.discard(woken)
            if not waiting and self._waiting.get(key) is waiting:
                del self._waiting[key]

    def touched(self, key: str) -> None:
        for woken in self._waiting.get(key, ()):
            if not woken.done():
                woken.set_result(None)


class Files:
    """Blobs as files below a directory; synchronous, and safe between processes.

    A key is quoted as a whole, so that ``a`` and ``a/b``, ``..`` and ``a//b`` can all be keys. The
    file's name ends in ``@``; a key that is too long for one begins with directories that end in
    ``+``.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._unique = itertools.count()
        # Of this process alone: a number of a process that ended may be given to a new one.
        self._token = secrets.token_hex(4)
        self._again = _Again()

    def exists(self, key: str) -> bool:
        return os.path.exists(self._path(key))

    def write(
        self,
        key: str,
        data: Sequence[Buffer],
        if_absent: bool = False,
        if_match: str | None = None,
        is_attached: bool = False,
    ) -> str | None:
        path = self._path(key)
        beside = (is_attached and self._again.taken()) or self._beside()
        is_kept = False
        try:
            mode = _REWRITTEN if is_attached else _ONCE
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, mode)
            try:
                os.ftruncate(fd, _write(fd, data))
                status = os.fstat(fd)
            finally:
                os.close(fd)
            if os.path.dirname(path) != str(self._root):
                os.makedirs(os.path.dirname(path), exist_ok=True)
            if not self._place(beside, path, if_absent, if_match):
                return None
            is_kept = is_attached and if_absent and self._again.keep(beside, status.st_size)
            return _etag(status)
        finally:
            if not is_kept:
                _remove(beside)

    def ended(self, pid: int) -> None:
        """A process is gone, who would have written its files again."""
        with suppress(FileNotFoundError):  # so is the session's directory
            for name in os.listdir(self._root):
                if name.startswith(f".{pid}-"):
                    _remove(self._root / name)

    def read(self, key: str, span: tuple[int, int] | None) -> Blob | None:
        try:
            fd = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(fd)
            size = status.st_size
            start, end = (0, size) if span is None else (min(span[0], size), min(span[1], size))
            data = _contents(fd, start, max(0, end - start), status)
        finally:
            os.close(fd)
        return Blob(data, size, _etag(status))

    def list(self, prefix: str) -> list[str]:
        return sorted(key for key in self._keys() if key.startswith(prefix))

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            _remove(self._path(key))

    def _keys(self) -> Iterator[str]:
        for folder, _, names in os.walk(self._root):
            for name in names:
                if name.endswith("@"):
                    path = os.path.relpath(os.path.join(folder, name), self._root)
                    yield unquote(path[:-1].replace("+/", ""))

    def _beside(self) -> str:
        return f"{self._root}/.{os.getpid()}-{self._token}-{next(self._unique)}"

    def _path(self, key: str) -> str:
        quoted = quote(key, safe="").replace(".", "%2E")  # now without '+', '/', '@' and '.'
        pieces = (quoted[at : at + _PIECE] for at in range(0, len(quoted), _PIECE))
        return f"{self._root}/{'+/'.join(pieces)}@"

    def _place(self, beside: str, path: str, if_absent: bool, if_match: str | None) -> bool:
        if if_absent:
            try:
                os.link(beside, path)
            except FileExistsError:
                return False
            return True
        with self._exclusive(if_match is not None):
            if if_match is not None:
                try:
                    if _etag(os.stat(path)) != if_match:
                        return False
                except FileNotFoundError:
                    return False
            os.rename(beside, path)
        return True

    @contextmanager
    def _exclusive(self, wanted: bool) -> Iterator[None]:
        """One conditional replacement at a time, between processes."""
        if not wanted:
            yield
            return
        fd = os.open(self._root / ".replace", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


class _Again:
    """The files that a process may write again, once no key names them; the oldest first."""

    def __init__(self) -> None:
        self._files: deque[tuple[str, int]] = deque()
        self._bytes = 0

    def keep(self, file: str, size: int) -> bool:
        """Whether this one stays, for its second name."""
        room = os.statvfs(file)
        if room.f_bavail * room.f_frsize < _ROOM:
            return False
        self._files.append((file, size))
        self._bytes += size
        while self._bytes > _AGAIN:
            _remove(self._next())
        return True

    def taken(self) -> str | None:
        """A file that nobody can read, which is the caller's now."""
        if not self._files:
            return None
        try:
            is_read = os.stat(self._files[0][0]).st_nlink > 1
        except FileNotFoundError:
            is_read = False  # it is made anew
        return None if is_read else self._next()

    def _next(self) -> str:
        file, size = self._files.popleft()
        self._bytes -= size
        return file


class LocalObjects:
    """`fsdray.services.Objects` over `Files`, with S3's limits and what S3 would bill."""

    def __init__(
        self, files: Files, watch: Watch, count: Count, limits: ObjectLimits = ObjectLimits()
    ) -> None:
        self._files = files
        self._watch = watch
        self._count = count
        self.limits = limits

    async def put(
        self,
        key: str,
        data: Buffer | Sequence[Buffer],
        *,
        if_absent: bool = False,
        if_match: str | None = None,
        is_attached: bool = False,
    ) -> str | None:
        self.limits.check_put(key, if_absent, if_match)
        parts = [data] if isinstance(data, bytes | bytearray | memoryview) else list(data)
        size = sum(memoryview(part).nbytes for part in parts)
        self._count("put", puts(size))
        self._count("put_bytes", size)
        try:
            if size > _BLOCKING:  # and mapped, not written again
                etag = await asyncio.to_thread(self._files.write, key, parts, if_absent, if_match)
            else:
                etag = self._files.write(key, parts, if_absent, if_match, is_attached)
        except OSError as error:
            raise _translated(error, key, size) from error
        if not is_attached and (etag is not None or if_absent):
            # Who had put it before may have died before it could say so.
            self._watch.touched(key)
        return etag

    async def get(
        self,
        key: str,
        *,
        range: tuple[int, int] | None = None,  # noqa: A002 - S3's own word
        wait: float | None = None,
        pace: Pace = Pace(),
    ) -> Blob | None:
        self.limits.check_get(key, range)
        blob = self._files.read(key, range)
        if blob is None and wait is not None and wait > 0:
            blob = await self._wait(key, range, wait, pace)
        elif blob is None:
            self._count("miss", 1)
        if blob is not None:
            self._count("get", gets(len(blob.data)))
            self._count("get_bytes", len(blob.data))
        return blob

    async def list(self, prefix: str) -> list[str]:
        self._count("list", 1)
        return await asyncio.to_thread(self._files.list, prefix)

    async def delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), self.limits.delete_keys):
            self._count("delete", 1)
            self._files.delete(keys[start : start + self.limits.delete_keys])

    async def _wait(
        self, key: str, span: tuple[int, int] | None, wait: float, pace: Pace
    ) -> Blob | None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(wait):
                blob = None
                while blob is None:  # deleted again before it could be read
                    await self._watch.appeared(key)
                    blob = self._files.read(key, span)
        except TimeoutError:
            blob = None
        finally:
            # What S3 would have billed for looking, where nobody tells a reader to wake.
            self._count("miss", pace.misses(loop.time() - began))
        return blob


def _write(fd: int, data: Sequence[Buffer]) -> int:
    """Write all of it; how many bytes that is."""
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


def _remove(file: str | Path) -> None:
    with suppress(FileNotFoundError):
        os.unlink(file)


def _contents(fd: int, start: int, length: int, status: os.stat_result) -> memoryview:
    if length < _SMALL or stat.S_IMODE(status.st_mode) != _ONCE:
        data = memoryview(bytearray(length))
        at = 0
        while at < length and (count := os.preadv(fd, [data[at:]], start + at)):
            at += count
        return data[:at]
    aligned = start - start % mmap.ALLOCATIONGRANULARITY
    mapped = mmap.mmap(fd, start - aligned + length, access=mmap.ACCESS_COPY, offset=aligned)
    return memoryview(mapped)[start - aligned :]


def _etag(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _translated(error: OSError, key: str, size: int) -> ServiceError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ServiceError(
            f"no space left to keep {size:,} bytes (object {key!r}): free some, or give another "
            "place with fsdray.init(directory=...) or FSDRAY_DIRECTORY"
        )
    return ServiceError(f"cannot keep object {key!r}: {error}")
