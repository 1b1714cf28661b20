"""Threads on which values are decoded that nobody waits for in plain code.

Unpickling runs user code, which may block or wait for other values: it never runs on the event
loop. Where plain code waits for a value, its own thread decodes it, and nothing here is used.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_MOST = 4  # threads, beside those for work that comes from one of them

_Work = Callable[[], object]

_here = threading.local()


class _Threads:
    """A few daemon threads, started when there is work for them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[_Work] = deque()
        self._count = 0
        self._idle = 0

    def submit(self, work: _Work) -> None:
        with self._changed:
            self._waiting.append(work)
            if len(self._waiting) > self._idle and self._count < _MOST:
                self._count += 1
                _start(self._run)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                self._changed.wait_for(lambda: self._waiting)
                self._idle -= 1
                work = self._waiting.popleft()
            work()
            del work  # nor what it holds, until there is more to do


_threads = _Threads()


def submit(work: _Work, *, is_nested: bool) -> None:
    """Run `work`, which must not raise, soon on one of the threads.

    Parameters
    ----------
    is_nested : whether it was asked for on one of the threads (`is_here`), which may wait for it:
        it then has a thread of its own.
    """
    if is_nested:
        _start(work)
    else:
        _threads.submit(work)


def is_here() -> bool:
    """Whether this is one of the threads."""
    return getattr(_here, "is_one", False)


async def run(function: Callable[..., T], *args: Any) -> T:
    """`function` of `args`, run on one of the threads while the loop goes on."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def settle(value: Any, error: BaseException | None) -> None:
        if outcome.done():  # cancelled meanwhile
            return
        if error is None:
            outcome.set_result(value)
        else:
            outcome.set_exception(error)

    def work() -> None:
        value, error = None, None
        try:
            value = context.run(function, *args)
        except BaseException as raised:
            # Whatever it is, it is for who waits.
            error = raised
        loop.call_soon_threadsafe(settle, value, error)

    submit(work, is_nested=False)
    return await outcome


def _start(run: Callable[[], object]) -> None:
    def marked() -> None:
        _here.is_one = True
        run()

    threading.Thread(target=marked, name="fsdray-decoding", daemon=True).start()


def _after_fork() -> None:
    global _threads
    _threads = _Threads()


os.register_at_fork(after_in_child=_after_fork)
