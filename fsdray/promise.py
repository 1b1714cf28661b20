"""`Promise`: an outcome that one thread will set and any may look at or wait for.

It is what `concurrent.futures.Future` is for, in a tenth of the time: there is one for each value.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from fsdray import loop

T = TypeVar("T")


class Promise(Generic[T]):
    """Set once, with a value or an error; what was asked to be called then is called once.

    It has no lock: each callback is taken off the list by whoever calls it, and taking off is
    atomic.
    """

    __slots__ = ("_callbacks", "_error", "_is_set", "_value")

    def __init__(self) -> None:
        self._is_set = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Promise[T]], object]] = []

    def done(self) -> bool:
        """Whether it is set."""
        return self._is_set

    def result(self) -> T:
        """The value of one that is set; its error is raised."""
        assert self._is_set
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # T may be optional itself

    def exception(self) -> BaseException | None:
        """The error of one that is set, if it has one."""
        assert self._is_set
        return self._error

    def set_result(self, value: T) -> None:
        """Set it, and call what was asked to be called."""
        assert not self._is_set
        self._value = value
        self._is_set = True
        self._tell()

    def set_exception(self, error: BaseException) -> None:
        """Set it to fail, and call what was asked to be called."""
        assert not self._is_set
        self._error = error
        self._is_set = True
        self._tell()

    def when_done(self, callback: Callable[[Promise[T]], object]) -> None:
        """Call `callback` with this on the thread that sets it, or now where it is set."""
        self._callbacks.append(callback)
        if self._is_set:
            self._tell()

    def forget(self, callback: Callable[[Promise[T]], object]) -> None:
        """Call `callback` no more."""
        with contextlib.suppress(ValueError):
            self._callbacks.remove(callback)

    async def settled(self) -> None:
        """Wait until it is set; for coroutines on the loop."""
        if not self._is_set:
            woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.when_done(lambda _: loop.post(_wake, woken))
            await woken

    async def there(self) -> T:
        """The value, or its error raised, once it is there; for coroutines on the loop."""
        await self.settled()
        return self.result()

    def _tell(self) -> None:
        while self._callbacks:
            try:
                callback = self._callbacks.pop(0)
            except IndexError:  # the other thread was faster
                return
            callback(self)


def wait(
    promises: Sequence[Promise[Any]],
    count: int,
    timeout: float | None,
    ends: Callable[[Promise[Any]], bool] = lambda _: False,
) -> bool:
    """Wait until so many of these are set, or one for which `ends` holds; whether it came to that.

    `timeout` is in seconds; with None it waits for ever.
    """
    loop.refuse()
    # No event: where a second Ctrl-C finds it at its end, it raises that its lock was not taken.
    over, lock = threading.Lock(), threading.Lock()
    over.acquire()
    left, is_over = count, False

    def done(promise: Promise[Any]) -> None:
        nonlocal left, is_over
        with lock:
            left -= 1
            if not is_over and (left == 0 or ends(promise)):
                is_over = True
                over.release()

    try:
        for promise in promises:
            promise.when_done(done)
        loop.go_on()
        return over.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
    finally:
        for promise in promises:
            promise.forget(done)


async def settled(promises: Sequence[Promise[Any]], ends: Callable[[Promise[Any]], bool]) -> None:
    """Wait until all are set, or one for which `ends` holds; for coroutines on the loop."""
    left = len(promises)
    woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def look(promise: Promise[Any]) -> None:
        nonlocal left
        left -= 1
        if left == 0 or ends(promise):
            _wake(woken)

    def done(promise: Promise[Any]) -> None:
        loop.post(look, promise)

    try:
        for promise in promises:
            promise.when_done(done)
        await woken
    finally:
        for promise in promises:
            promise.forget(done)


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
