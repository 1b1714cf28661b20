"""Objects as files in the session's directory, in shared memory where there is enough of it.

A put writes beside and renames, so a reader never sees half an object; a reader maps the file and
copies nothing. Waiting for a key is answered by the driver (`Watch`), not by looking again.

The file of an object that is attached to a message is written again when its key is gone
(`rewritten`); its mode says that it is such a one.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote

from fsdray import buffers
from fsdray.backends.local.rewritten import MODE, Rewritten, etag_of, write
from fsdray.errors import ServiceError
from fsdray.services import MIB, Blob, Buffer, Count, ObjectLimits, Pace, gets, puts

_SMALL = 64 * 1024  # below this a read is cheaper than a mapping
_PIECE = 200  # characters of one path component; file systems end at 255
_BLOCKING = 4 * MIB  # above this a write goes to a thread: the loop must stay awake
_ONCE = 0o600  # the mode of what is written once, which may be mapped for ever


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
        self._rewritten = Rewritten(self._beside)

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
        if os.path.dirname(path) != str(self._root):
            os.makedirs(os.path.dirname(path), exist_ok=True)
        if is_attached and if_absent:
            return self._attach(path, data)
        beside = self._beside()
        try:
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, _ONCE)
            try:
                write(fd, data)
                status = os.fstat(fd)
            finally:
                os.close(fd)
            return _etag(beside, status) if self._place(beside, path, if_absent, if_match) else None
        finally:
            _remove(beside)

    def _attach(self, path: str, data: Sequence[Buffer]) -> str | None:
        """Write what its readers will soon have read, if there is nothing of this key."""
        file, etag = self._rewritten.written(data)
        try:
            os.link(file.path, path)
        except FileExistsError:
            return None
        finally:
            self._rewritten.keep(file)
        return etag

    def ended(self, pid: int) -> None:
        """A process is gone, who would have written its files again."""
        with suppress(FileNotFoundError):  # so is the session's directory
            for name in os.listdir(self._root):
                if name.startswith(f".{pid}-"):
                    _remove(self._root / name)

    def read(self, key: str, span: tuple[int, int] | None) -> Blob | None:
        path = self._path(key)
        try:
            status = os.stat(path)
            if stat.S_IMODE(status.st_mode) == MODE:
                found = self._rewritten.read(path, status, span)
                return None if found is None else Blob(*found)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(fd)
            size = status.st_size
            start, end = (0, size) if span is None else (min(span[0], size), min(span[1], size))
            data = _contents(fd, start, max(0, end - start))
        finally:
            os.close(fd)
        return Blob(data, size, _etag(path, status))

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
                    if _etag(path, os.stat(path)) != if_match:
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
        size = buffers.size(parts)
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


def _remove(file: str | Path) -> None:
    with suppress(FileNotFoundError):
        os.unlink(file)


def _contents(fd: int, start: int, length: int) -> memoryview:
    if length < _SMALL:
        data = memoryview(bytearray(length))
        at = 0
        while at < length and (count := os.preadv(fd, [data[at:]], start + at)):
            at += count
        return data[:at]
    aligned = start - start % mmap.ALLOCATIONGRANULARITY
    mapped = mmap.mmap(fd, start - aligned + length, access=mmap.ACCESS_COPY, offset=aligned)
    return memoryview(mapped)[start - aligned :]


def _etag(path: str, status: os.stat_result) -> str:
    if stat.S_IMODE(status.st_mode) == MODE:
        return etag_of(path, status)
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _translated(error: OSError, key: str, size: int) -> ServiceError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ServiceError(
            f"no space left to keep {size:,} bytes (object {key!r}): free some, or give another "
            "place with fsdray.init(directory=...) or FSDRAY_DIRECTORY"
        )
    return ServiceError(f"cannot keep object {key!r}: {error}")
