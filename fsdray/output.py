"""What tasks print, shown on the caller's stderr: whole lines, in the order in which they came.

A thread of its own writes them, so that a terminal that is stopped, a full pipe or a slow notebook
holds up neither the event loop nor a call. Which call a line is of, is said by who gives it here.
"""

from __future__ import annotations

import contextvars
import os
import sys
import threading
from collections.abc import Callable, Sequence

_MOST = 1 << 20  # characters that wait to be written, above which `Output.is_full`
_PATIENCE = 1.0  # seconds in which nothing was written, after which nobody waits for it


class Output:
    """Lines on their way to ``sys.stderr``, as that is when they are written."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._held = 0  # characters that were given and are not written
        self._given = 0  # lines
        self._written = 0
        self._stuck_at = -1  # `_written`, when somebody waited for more in vain
        self._tell: list[Callable[[], None]] = []
        self._is_started = False

    def show(self, lines: Sequence[str]) -> None:
        """Write lines, soon; from any thread, and without waiting."""
        with self._changed:
            self._lines += lines
            self._held += sum(map(len, lines))
            self._given += len(lines)
            if not self._is_started:
                # Without the context of who was first: in a notebook that holds the cell to write
                # to, which would stay the first one's.
                run = contextvars.Context().run
                threading.Thread(
                    target=run, args=(self._run,), name="fsdray-output", daemon=True
                ).start()
                self._is_started = True
            self._changed.notify_all()

    def is_full(self) -> bool:
        """Whether so much waits to be written that who can should give no more."""
        return self._held > _MOST

    def when_room(self, tell: Callable[[], None]) -> None:
        """Call `tell`, on any thread, once it `is_full` no more."""
        with self._changed:
            if self.is_full():
                self._tell.append(tell)
                return
        tell()

    def flush(self) -> None:
        """Wait until all that was given so far is written, unless nothing moves."""
        if self._written == self._given:
            return
        with self._changed:
            wanted = self._given
            while self._written < wanted and self._written != self._stuck_at:
                self._wait()

    def _wait(self) -> None:
        before = self._written
        if not self._changed.wait_for(lambda: self._written > before, _PATIENCE):
            self._stuck_at = before

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                lines, self._lines = self._lines, []
            _write("".join(f"{line}\n" for line in lines))
            with self._changed:
                self._held -= sum(map(len, lines))
                self._written += len(lines)
                tell, self._tell = self._tell, []
                self._changed.notify_all()
            for each in tell:
                each()


def _write(text: str) -> None:
    stream = sys.stderr
    if stream is None:  # a program without a console
        return
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):
        # Nobody reads it any more, or the program has closed it: what a task prints is then lost,
        # as what the program itself prints would be.
        return


_output = Output()


def show(lines: Sequence[str]) -> None:
    """Show lines of a task's output at the caller."""
    _output.show(lines)


def is_full() -> bool:
    """Whether the caller's stderr takes less than tasks write."""
    return _output.is_full()


def when_room(tell: Callable[[], None]) -> None:
    """Call `tell`, on any thread, once it `is_full` no more."""
    _output.when_room(tell)


def flush() -> None:
    """Wait until what was shown so far is written, unless nothing moves."""
    _output.flush()


def _after_fork() -> None:
    global _output
    _output = Output()


os.register_at_fork(after_in_child=_after_fork)
