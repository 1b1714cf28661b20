"""An event loop in virtual time: where nothing is ready, the clock jumps to the next timer.

It has no selector and no threads, so all that runs on it is a function of the program alone: what
is ready runs in the order in which it became ready, timers of one time in the order in which they
were set, and sets of futures iterate alike in every process.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVarTuple

Ts = TypeVarTuple("Ts")

_FEW = 100  # cancelled timers that are not worth a clean-up


class Stalled(RuntimeError):
    """Nothing is ready and no timer is set: whoever waits waits for ever."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An asyncio event loop whose `time` starts at 0.0 and costs nothing.

    A timer is *idle* if its end alone brings nobody further (`call_idle_at`: the end of a long
    poll, after which there is another poll), and *endless* if it is set to infinity. Once
    `on_stall` is set, the loop calls it where only such timers are left; it must make something
    ready, or the loop raises `Stalled`. Without it, idle timers are like all others.

    What is left to threads is called on the loop; `takes` says what time that is to take.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._ready: deque[asyncio.Handle]
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._endless: dict[int, asyncio.TimerHandle] = {}  # by identity: their hash is their time
        self._order = itertools.count()
        self._live = 0  # timers that are set, and neither idle nor endless nor cancelled
        self._cancelled = 0  # timers that are still in the heap
        self.on_stall: Callable[[], None] | None = None
        self.takes: Callable[[Callable[..., Any], tuple[Any, ...]], float] | None = None
        self.set_task_factory(_task)

    def time(self) -> float:
        return self._now

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self._set(asyncio.TimerHandle(when, callback, args, self, context))

    def call_idle_at(
        self, when: float, callback: Callable[..., object], *args: Any
    ) -> asyncio.TimerHandle:
        """`call_at`, for a timer that only ends a wait which will be begun again."""
        return self._set(_Idle(when, callback, args, self, None))

    def expire(self) -> bool:
        """Let all endless timers end now; whether there was one."""
        handles, self._endless = list(self._endless.values()), {}
        for handle in handles:
            handle._scheduled = False  # type: ignore[attr-defined]
        self._ready.extend(handles)
        return bool(handles)

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(next(self._order), self)

    def run_in_executor(  # type: ignore[override]  # no other thread: the future is our own
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Call `func` here and now; its value is there when the time that it `takes` is over."""
        future = self.create_future()
        try:
            value = func(*args)
        except Exception as error:  # the executor's contract: what it raises is the future's
            future.set_exception(error)
            return future
        seconds = 0.0 if self.takes is None else self.takes(*_called(func, args))
        if seconds > 0:
            self.call_later(seconds, _settle, future, value)
        else:
            future.set_result(value)
        return future

    def call_soon(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        # asyncio's own looks each time whether the loop is closed, in debug mode, on its thread.
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def get_debug(self) -> bool:
        return False

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """`call_soon`: there is one thread."""
        return self.call_soon(callback, *args, context=context)

    def _process_events(self, event_list: Any) -> None:
        """There are no events: no real input or output."""

    def _set(self, handle: asyncio.TimerHandle) -> asyncio.TimerHandle:
        handle._scheduled = True  # type: ignore[attr-defined]  # so that it tells of its cancel
        if handle.when() == math.inf:
            self._endless[id(handle)] = handle
        else:
            heapq.heappush(self._timers, (handle.when(), next(self._order), handle))
            self._live += not isinstance(handle, _Idle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if not handle._scheduled:  # type: ignore[attr-defined]  # it has had its time
            return
        if handle.when() == math.inf:
            self._endless.pop(id(handle), None)
            return
        self._live -= not isinstance(handle, _Idle)
        self._cancelled += 1
        if self._cancelled > _FEW and self._cancelled > len(self._timers) / 2:
            self._timers = [timer for timer in self._timers if not timer[2].cancelled()]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def _run_once(self) -> None:
        ready = self._ready
        if not ready:
            self._advance()
        while ready:
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()
            if self._stopping:  # type: ignore[attr-defined]
                return

    def _advance(self) -> None:
        """Jump to the next timer, and make ready all that are set to this time."""
        if self._live == 0 and self.on_stall is not None:
            self.on_stall()
            if self._ready:
                return
            raise Stalled(f"at {self._now:.6f} s nothing can go on any more")
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
            self._cancelled -= 1
        if not timers:
            raise Stalled(f"at {self._now:.6f} s nothing is ready and no timer is set")
        self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            _, _, handle = heapq.heappop(timers)
            if handle.cancelled():
                self._cancelled -= 1
                continue
            handle._scheduled = False  # type: ignore[attr-defined]
            self._live -= not isinstance(handle, _Idle)
            self._ready.append(handle)


def _called(func: Any, args: tuple[Any, ...]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function and arguments that somebody gave to `asyncio.to_thread`, or to an executor."""
    if isinstance(func, functools.partial) and isinstance(
        getattr(func.func, "__self__", None), Context
    ):
        return func.args[0], func.args[1:]
    return func, args


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


class _Idle(asyncio.TimerHandle):
    __slots__ = ()


class _Future(asyncio.Future[Any]):
    """A future whose place in a set does not depend on its address."""

    def __init__(self, serial: int, loop: VirtualLoop) -> None:
        self._serial = serial
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._serial


class _Task(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address."""

    def __init__(self, serial: int, coro: Coroutine[Any, Any, Any], **more: Any) -> None:
        self._serial = serial  # first: asyncio hashes a task as soon as it is made
        super().__init__(coro, **more)

    def __hash__(self) -> int:
        return self._serial


def _task(loop: asyncio.AbstractEventLoop, coro: Any, **more: Any) -> _Task:
    assert isinstance(loop, VirtualLoop)
    return _Task(next(loop._order), coro, loop=loop, **more)
