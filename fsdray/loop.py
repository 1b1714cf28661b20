"""The one event loop of this process, in a background thread, and how plain code waits for it.

Everything in fsdray that waits is a coroutine on this loop; user code, kernels and reduction
operators never run on it.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from fsdray.errors import FsdrayError

T = TypeVar("T")

_loop: asyncio.AbstractEventLoop | None = None
_lock = threading.Lock()


def get() -> asyncio.AbstractEventLoop:
    """The loop, started when first asked for."""
    global _loop
    with _lock:
        if _loop is None:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="fsdray-loop", daemon=True).start()
            _loop = loop
        return _loop


def submit(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Start a coroutine on the loop, with the context variables of the caller."""
    return asyncio.run_coroutine_threadsafe(coroutine, get())


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the loop and wait; an interrupt of the wait cancels it.

    Raises
    ------
    FsdrayError
        on the loop itself, which would wait for itself for ever.
    """
    if _is_here():
        coroutine.close()
        raise FsdrayError(
            "this would wait on fsdray's own event loop for itself: in a coroutine that "
            "fsdray runs, await instead (a ref, or a method of AsyncCommunicator)"
        )
    future = submit(coroutine)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """`run` for what must not be left half done: it ends before an interrupt is raised.

    The coroutine bounds its own time, since no Ctrl-C does.
    """
    future = submit(coroutine)
    interrupt: KeyboardInterrupt | None = None
    while not future.done():
        try:
            wait([future])
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt
    return future.result()


def _is_here() -> bool:
    try:
        return asyncio.get_running_loop() is _loop
    except RuntimeError:
        return False


def _after_fork() -> None:
    global _loop, _lock
    _loop, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
