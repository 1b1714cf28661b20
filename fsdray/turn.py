"""Who runs the loop: a thread of its own, or, where it is lent, whoever waits for what it does.

To have another thread do something and to wait for it are two changes of threads, each of which
takes some 30 µs and what the processor's caches held. So in a worker who waits runs the loop, and
the thread of its own does while nobody waits. In the caller's process a Ctrl-C is raised in
whatever its main thread is doing, so there the loop is not lent.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sized
from contextlib import contextmanager
from contextvars import Context
from typing import Any, TypeVar

from fsdray import steps
from fsdray.steps import Waiting

LULL = 0.02
"""Seconds after which the thread of its own goes on, where nobody has come to wait again or called
it. To look each millisecond whether somebody has took a tenth of small collectives' time."""


OFTEN = 0.005
"""Seconds after which the loop runs, whatever is done meanwhile without it: it hears then of what
comes from outside. Each time took 0.12 ms under a profiler, and less without."""

T = TypeVar("T")


class Turn:
    """One loop, and whose turn it is to run it.

    Parameters
    ----------
    is_lent : whether who waits may run it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, is_lent: bool) -> None:
        self.is_lent = is_lent
        self._loop = loop
        self._running = threading.Lock()  # whose holder runs it
        self._about = threading.Lock()  # what follows
        self._is_taken = False  # by one who waits
        self._others = 0  # who wait meanwhile
        self._visits = 0  # how often it was taken
        self._is_asleep = False  # the thread of its own, until who has it leaves
        self._left = 0.0  # when the last one who waited left it
        self._ran = 0.0  # when the loop stopped last
        # What it is to do next. Not asyncio's to give away, but every loop of asyncio's own has it;
        # without it nobody could tell that nobody else needs the loop.
        self._ready: Sized | None = getattr(loop, "_ready", None)
        self._called = threading.Event()

    def keep(self) -> None:
        """Run it for ever, but while one who waits does: what its own thread does."""
        while True:
            with self._running:
                self._loop.run_forever()
                self._ran = time.monotonic()
            while not self._is_mine():
                pass

    @contextmanager
    def taken(self) -> Iterator[bool]:
        """Within this the caller runs it by `run`; or does not, where it is not for the caller."""
        if not self.is_lent or asyncio._get_running_loop() is not None:
            yield False
        else:
            is_mine = self.take()
            try:
                yield is_mine
            finally:
                self.leave(is_mine)

    def take(self) -> bool:
        """Whether the caller has it now, or waits beside who has; in the end it must `leave`."""
        with self._about:
            if self._is_taken:
                self._others += 1
                return False
            self._is_taken = True
            self._visits += 1
        try:
            if not self._running.acquire(blocking=False):
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._running.acquire()
        except BaseException:
            with self._about:
                self._is_taken = False
            raise
        return True

    def leave(self, is_mine: bool) -> None:
        """Have others take it; who has only waited waits no more."""
        with self._about:
            if not is_mine:
                self._others -= 1
                return
            self._is_taken = False
            self._left = time.monotonic()
            is_called = self._others > 0 or self._is_asleep
            self._is_asleep = False
        self._running.release()
        if is_called:
            self._called.set()

    def may_step(self) -> bool:
        """Whether nobody else needs the loop, as far as can be seen by who has the turn."""
        if self._ready is None or self._others:
            return False
        if self._ready:
            self._run_once()  # what the one before has left
        return not self._ready

    def step(self, coroutine: Coroutine[Any, Any, T], context: Context) -> T | Waiting[T]:
        """Do a coroutine's first step (`fsdray.steps`) by the one who has the turn.

        Who takes such steps one after the other has the loop run now and then.
        """
        stepped = steps.step(coroutine, context, self._loop)
        if not isinstance(stepped, Waiting) and time.monotonic() - self._ran >= OFTEN:
            self._run_once()
        return stepped

    def _run_once(self) -> None:
        self._loop.call_soon(self._loop.stop)
        self._loop.run_forever()
        self._ran = time.monotonic()

    def run(self, is_over: Callable[[], bool], seconds: float | None = None) -> bool:
        """Run it until that is over; whether it is, after so many seconds at most.

        What makes it over stops the loop.
        """
        timer = None if seconds is None else self._loop.call_later(seconds, self._loop.stop)
        end = None if seconds is None else time.monotonic() + seconds
        while not is_over() and (end is None or time.monotonic() < end):
            self._loop.run_forever()
        self._ran = time.monotonic()
        if timer is not None:
            timer.cancel()
        return is_over()

    def call(self) -> None:
        """Have its own thread run it, where nobody does."""
        if self.is_lent and not self._running.locked():
            self._called.set()

    def _is_mine(self) -> bool:
        """Wait for a lull, or to be called; whether nobody who waits runs it."""
        visits = self._visits
        is_called = self._called.wait(LULL)
        self._called.clear()
        with self._about:
            if not self._is_taken:
                return is_called or time.monotonic() - self._left >= LULL
            self._is_asleep = self._visits == visits
            is_long = self._is_asleep
        if is_long:  # nobody looks while nothing happens
            self._called.wait()
            self._called.clear()
        with self._about:
            return not self._is_taken and self._others > 0
