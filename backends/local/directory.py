"""The session's private directory: where it lies, who may remove it, and who did not.

Its owner holds a lock on a file in it for as long as it lives, so a later session knows which
directories belong to nobody any more and sweeps them. What lies in it is for `objects`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from fsdray.errors import ServiceError, SettingsError

SHARED_MEMORY = Path("/dev/shm")
SMALL = (
    512 * 1024 * 1024
)  # bytes: with less than this free, objects go to disk (Docker gives 64 MB)
_LOCK = "lock"


class SessionDirectory:
    """A directory that is removed at `close`, or by the next session after a ``kill -9``.

    Parameters
    ----------
    base : where to make it; by default shared memory, or the temporary directory where there is
        no shared memory or little of it is free.
    """

    def __init__(self, base: str | os.PathLike[str] | None = None) -> None:
        parent = Path(base) if base is not None else _choose()
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise SettingsError(f"directory={str(parent)!r} is not a directory one can write to")
        prefix = f"fsdray-{os.getuid()}-"
        _sweep(parent, prefix)
        name = f"{prefix}{os.getpid()}-{secrets.token_hex(4)}"
        # Made under another name and renamed when locked, or a sweep could find it unowned.
        making = parent / f".{name}"
        try:
            for each in ("objects", "inboxes"):
                (making / each).mkdir(parents=True, mode=0o700)
            making.chmod(0o700)
            self._lock = os.open(making / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self.path = making.rename(parent / name)
        except OSError as error:
            raise ServiceError(f"cannot make a session directory in {parent}: {error}") from error

    @property
    def runs_code(self) -> bool:
        """Whether native modules can be loaded from it: Docker's shared memory forbids it."""
        return not os.statvfs(self.path).f_flag & os.ST_NOEXEC

    def close(self) -> None:
        """Remove the directory and all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _choose() -> Path:
    with contextlib.suppress(OSError):
        if shutil.disk_usage(SHARED_MEMORY).free >= SMALL and os.access(SHARED_MEMORY, os.W_OK):
            return SHARED_MEMORY
    return Path(tempfile.gettempdir())


def _sweep(parent: Path, prefix: str) -> None:
    """Remove directories whose owners are gone."""
    for left in parent.glob(f"{prefix}*"):
        try:
            lock = os.open(left / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # another sweep has it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its owner lives
        else:
            shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(lock)
