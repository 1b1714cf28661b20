"""The one event loop of this process, in a background thread, and how plain code waits for it.

Everything in fsdray that waits is a coroutine on this loop; user code, kernels and reduction
operators never run on it.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

from fsdray.errors import FsdrayError
from fsdray.steps import Waiting
from fsdray.turn import Turn

T = TypeVar("T")

_loop: asyncio.AbstractEventLoop | None = None
_lock = threading.Lock()
_posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
_MOMENT = 0.05  # seconds of a wait that change nothing for others
_meanwhile: Callable[[], AbstractContextManager[None]] | None = None
_is_lent = False
_turn: Turn | None = None
_is_called = False  # whether the loop knows that there is something in `_posted`


def lend() -> None:
    """Have whoever waits run the loop (`fsdray.turn`): for a process that no Ctrl-C reaches."""
    global _is_lent
    _is_lent = True


def get() -> asyncio.AbstractEventLoop:
    """The loop, started when first asked for."""
    global _loop, _turn
    with _lock:
        if _loop is None:
            loop = asyncio.new_event_loop()
            loop.set_default_executor(_Threads())
            _turn = Turn(loop, _is_lent)
            threading.Thread(target=_turn.keep, name="fsdray-loop", daemon=True).start()
            _loop = loop
        return _loop


class _Threads(ThreadPoolExecutor):
    """What blocks runs here: names are looked up, large files written.

    A session may end after the program's main thread has, and the standard pools refuse from then.
    """

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError:
            future: Future[T] = Future()
            threading.Thread(target=self._run, args=(future, fn, args, kwargs), daemon=True).start()
            return future

    @staticmethod
    def _run(future: Future[T], fn: Callable[..., T], args: Any, kwargs: Any) -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                # Whatever it is, it belongs to who waits.
                future.set_exception(error)


def post(callback: Callable[..., object], *args: Any) -> None:
    """Have the loop call this soon, after what was posted before; from any thread.

    Waking the loop costs more than most callbacks, so it is woken once for all that are there.
    """
    global _is_called
    _posted.append((callback, args))
    if not _is_called:
        _is_called = True
        try:
            get().call_soon_threadsafe(_run_posted)
            go_on()
        except BaseException:  # a Ctrl-C: whoever posts next calls again, as who was waiting does
            _is_called = False
            raise


def _run_posted() -> None:
    global _is_called
    _is_called = False  # first: what is posted from now on calls again
    for _ in range(len(_posted)):
        callback, args = _posted.popleft()
        callback(*args)
    if _posted:
        post(_nothing)


def _nothing() -> None:
    """What is posted to have the rest run."""


class Job:
    """A coroutine that was handed to the loop, with the context variables of who did so.

    Parameters
    ----------
    ended : called on the loop when it has ended, with what it raised; a job that was cancelled
        before it began has ended, too.
    """

    __slots__ = ("_context", "_coroutine", "_ended", "_task")

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, None],
        ended: Callable[[Job, BaseException | None], object],
        context: contextvars.Context | None = None,
    ) -> None:
        self._coroutine: Coroutine[Any, Any, None] | None = coroutine
        self._ended: Callable[[Job, BaseException | None], object] | None = ended
        self._context: contextvars.Context | None = context or contextvars.copy_context()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start it, once."""
        post(self.begin)

    def cancel(self) -> None:
        """Cancel it, from any thread; one that has ended stays as it is."""
        post(self._cancel)

    def begin(self) -> None:
        """Start it at once: on the loop, or where nobody else runs it."""
        if self._coroutine is None:
            return  # it was cancelled before
        self._task = get().create_task(self._coroutine, context=self._context)
        self._task.add_done_callback(self._over)
        # Who holds the job must not hold what it was about.
        self._coroutine = self._context = None

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        elif self._coroutine is not None:
            self._coroutine.close()
            self._coroutine = self._context = None
            self._end(asyncio.CancelledError())

    def _over(self, task: asyncio.Task[None]) -> None:
        self._end(asyncio.CancelledError() if task.cancelled() else task.exception())

    def _end(self, error: BaseException | None) -> None:
        ended, self._ended, self._task = self._ended, None, None
        assert ended is not None
        ended(self, error)


class Turnstile:
    """Lets so many jobs begin, and each of the others, in their order, when one has ended.

    A job that has not begun needs a third of the memory.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: deque[Job] = deque()
        self._lock = threading.Lock()

    def start(self, job: Job) -> None:
        """Start the job, now or later; when it has ended, `leave` must be called."""
        with self._lock:
            if not self._free:
                self._waiting.append(job)
                return
            self._free -= 1
        job.start()

    def leave(self) -> None:
        """A job has ended. One that was cancelled before its turn has its turn all the same."""
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            job = self._waiting.popleft()
        job.start()


def submit(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Start a coroutine on the loop, with the context variables of the caller."""
    future = asyncio.run_coroutine_threadsafe(coroutine, get())
    go_on()
    return future


def go_on() -> None:
    """Have what is under way go on though nobody waits for it, or who does waits elsewhere."""
    if _turn is not None:
        _turn.call()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the loop and wait; an interrupt of the wait cancels it.

    Raises
    ------
    FsdrayError
        on the loop itself, which would wait for itself for ever.
    """
    try:
        refuse()
    except FsdrayError:
        coroutine.close()
        raise
    get()
    assert _turn is not None
    with _turn.taken() as is_mine:
        return _waited(_Work(coroutine, _turn if is_mine else None))


def step(coroutine: Coroutine[Any, Any, T]) -> T:
    """`run`, for what may do its first step without a task (`fsdray.steps`), where it can."""
    if _turn is None or not _turn.is_lent or asyncio._get_running_loop() is not None:
        return run(coroutine)
    is_mine = _turn.take()
    try:
        if not is_mine:
            return _waited(_Work(coroutine, None))
        if not _turn.may_step():
            return _waited(_Work(coroutine, _turn))
        context = contextvars.copy_context()
        stepped = _turn.step(coroutine, context)
        if not isinstance(stepped, Waiting):
            return stepped
        work: _Work[T] = _Work(stepped.rest, _turn, context)
        return _waited(work)
    finally:
        _turn.leave(is_mine)


def _waited(work: _Work[T]) -> T:
    try:
        meanwhile = _meanwhile
        if meanwhile is None or work.wait(_MOMENT):
            return work.result()
        with meanwhile():
            return work.result()
    except BaseException:
        work.cancel()
        raise


class _Work(Generic[T]):
    """A coroutine on the loop that one thread waits for: a lock, and no future on either side.

    Parameters
    ----------
    turn : where who waits runs the loop.
    context : where it is not that of who calls this.
    """

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, T],
        turn: Turn | None,
        context: contextvars.Context | None = None,
    ) -> None:
        self._coroutine = coroutine
        self._turn = turn
        self._over = threading.Lock()
        self._over.acquire()
        self._value: T
        self._error: BaseException | None = None
        self._job = Job(self._do(), self._ended, context)
        if turn is None:
            self._job.start()
        else:
            self._job.begin()

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it is over, after so many seconds at most."""
        if self._turn is not None:
            return self._turn.run(lambda: not self._over.locked(), timeout)
        if self._over.acquire(timeout=-1 if timeout is None else timeout):
            self._over.release()
            return True
        return False

    def result(self) -> T:
        """Wait for what it returns, or raises."""
        self.wait()
        error, self._error = self._error, None
        if isinstance(error, asyncio.CancelledError):
            raise CancelledError  # the thread's own word for it
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame
        return self._value

    def cancel(self) -> None:
        """Nobody waits any more."""
        self._job.cancel()

    async def _do(self) -> None:
        try:
            self._value = await self._coroutine
        except BaseException as error:  # whatever it is, it is raised by who waits
            self._error = error
        finally:
            self._over.release()  # at once: no other turn of the loop is needed
            if self._turn is not None:
                get().stop()

    def _ended(self, job: Job, error: BaseException | None) -> None:
        self._coroutine.close()  # it may never have begun


def meanwhile() -> Callable[[], AbstractContextManager[None]] | None:
    """What `when_long` was given last."""
    return _meanwhile


def when_long(meanwhile: Callable[[], AbstractContextManager[None]] | None) -> None:
    """Have each `run` that takes more than a moment be within this from then on; None ends it."""
    global _meanwhile
    _meanwhile = meanwhile


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


def refuse() -> None:
    """Raise `FsdrayError` on the loop's own thread, where plain code that waits waits for ever."""
    running = asyncio._get_running_loop()  # the other way raises where there is none
    if running is not None and running is _loop:
        raise FsdrayError(
            "this would wait on fsdray's own event loop for itself: in a coroutine that "
            "fsdray runs, await instead (a ref, or a method of AsyncCommunicator)"
        )


def _after_fork() -> None:
    global _loop, _turn, _lock, _is_called
    _loop, _turn, _lock, _is_called = None, None, threading.Lock(), False
    _posted.clear()


os.register_at_fork(after_in_child=_after_fork)
