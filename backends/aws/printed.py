"""What a call prints in a function: each line as JSON to the log, and the last ones to its caller.

A line of the log is ``{"run": SESSION, "call": ID, "task": LABEL, "rank": R, "text": LINE}``, the
rank only in a gang. What is written past Python, by a library in C or a program that a task
starts, goes to the log as it is, and not to the caller.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, TextIO

from fsdray.backends.aws import calls
from fsdray.backends.aws.calls import Event, Lines

MOST = 64 * 1024  # characters of its output that a call sends back, its children's included


class Printed:
    """The output of the call at hand.

    Parameters
    ----------
    fd : where lines of the log go.
    """

    def __init__(self, fd: int = 1) -> None:
        self._fd = fd
        self._event: Event | None = None
        self._rank: int | None = None
        self._kept: deque[tuple[str, str]] = deque()
        self._size = 0
        self._dropped = 0
        self._lock = threading.Lock()
        self._streams: tuple[_Stream, ...] = ()

    def redirect(self) -> None:
        """Take what this process's Python writes to stdout and stderr from now on."""
        self._streams = (_Stream(self, 1), _Stream(self, 2))
        sys.stdout, sys.stderr = (each.text() for each in self._streams)

    def begin(self, event: Event) -> None:
        """A call begins."""
        with self._lock:
            self._event, self._rank = event, calls.rank_of(event.label)
            self._kept.clear()
            self._size = self._dropped = 0

    def end(self) -> Lines:
        """The call is over: what is to be shown at its caller."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # the user's code may have put others in their place
        for each in self._streams:
            each.end_line()
        with self._lock:
            kept = list(self._kept)
            if self._dropped and self._event is not None:
                said = f"... {self._dropped} lines before: fsdray logs {self._event.session}"
                kept.insert(0, (self._event.label, said))
            self._event = None
            self._kept.clear()
        return kept

    def line(self, text: str) -> None:
        """A line of the call that runs."""
        with self._lock:
            event = self._event
            if event is not None:
                self._keep([(event.label, text)])
        if event is None:
            os.write(self._fd, text.encode(errors="replace") + b"\n")
            return
        _write(self._fd, calls.log_line(event.session, event.call, event.label, self._rank, text))

    def pass_on(self, lines: Sequence[tuple[str, str]]) -> None:
        """Lines of calls that this one started: they are in their own logs already."""
        with self._lock:
            self._keep(lines)

    def _keep(self, lines: Sequence[tuple[str, str]]) -> None:
        for who, text in lines:
            self._kept.append((who, text))
            self._size += len(who) + len(text)
        while self._size > MOST and len(self._kept) > 1:
            who, text = self._kept.popleft()
            self._size -= len(who) + len(text)
            self._dropped += 1


class _Stream(io.RawIOBase):
    """Standard output or error of this process, by lines."""

    def __init__(self, printed: Printed, fd: int) -> None:
        super().__init__()
        self._printed = printed
        self._fd = fd
        self._partial = b""

    def text(self) -> TextIO:
        return io.TextIOWrapper(
            io.BufferedWriter(self), "utf-8", "backslashreplace", line_buffering=True
        )

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def write(self, data: Any, /) -> int:
        *lines, self._partial = (self._partial + bytes(data)).split(b"\n")
        for line in lines:
            self._printed.line(_last_state(line))
        if len(self._partial) > MOST:
            self.end_line()
        return len(data)

    def end_line(self) -> None:
        """What has no end goes as far as it goes."""
        partial, self._partial = self._partial, b""
        if partial:
            self._printed.line(_last_state(partial))


def _last_state(line: bytes) -> str:
    """Of what was written over, as progress bars are, a terminal would show the last."""
    return line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
