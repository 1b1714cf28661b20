"""Which process a request comes from, as Linux knows it: a proxy on this machine can so end it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection
from pathlib import Path

_ESTABLISHED = "01"


def process_of(port: int, server: int, known: Collection[int] = ()) -> int | None:
    """The process that holds the connection from `port` of this machine to `server`'s; its id.

    `known` processes are looked at first, then the youngest.
    """
    inode = _inode(port, server)
    if inode is None:
        return None
    wanted = f"socket:[{inode}]"
    for process in known:
        if _has_open(process, wanted):
            return process
    others = {int(name) for name in os.listdir("/proc") if name.isdigit()} - set(known)
    return next((each for each in sorted(others, reverse=True) if _has_open(each, wanted)), None)


def _has_open(process: int, wanted: str) -> bool:
    # Others' processes cannot be looked into, and some end meanwhile.
    with contextlib.suppress(OSError):
        for file in os.listdir(f"/proc/{process}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{process}/fd/{file}") == wanted:
                    return True
    return False


def _inode(port: int, server: int) -> str | None:
    ends = f"0100007F:{port:04X}", f"0100007F:{server:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if tuple(fields[1:3]) == ends and fields[3] == _ESTABLISHED:
            return fields[9]
    return None


def kill(process: int) -> None:
    """End a process as an operating system does that wants its memory: at once."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
