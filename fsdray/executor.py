"""`Executor`: tasks behind the interface of `concurrent.futures`.

At most `max_workers` calls are handed to the platform; the rest wait here, where they can still be
cancelled. What a call is, and how it is sent, is in `fsdray.session`.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from types import FunctionType, TracebackType
from typing import Any, Literal, ParamSpec, TypeVar, cast

from fsdray import session, wire
from fsdray.bindings import Bindings
from fsdray.errors import SettingsError, TaskCancelled
from fsdray.refs import ObjectRef
from fsdray.remote import TaskOptions
from fsdray.runtime_env import RuntimeEnv
from fsdray.session import Session
from fsdray.submission import Submission

P = ParamSpec("P")
T = TypeVar("T")


class Executor(futures.Executor):
    """A `concurrent.futures.Executor` whose calls run on the session's platform.

    Each call is a task: refs among its arguments are replaced by their values, and a failure is
    an instance of the user's own type and of `TaskError`. A call whose process dies fails alone;
    there is no broken pool. A Ctrl-C while a result is waited for stops the call; one that ends a
    ``with`` block, or the program, stops all calls.

    Parameters
    ----------
    max_workers : calls that may be under way at one time; by default what the session lets run.
    memory : MB that a call may use. timeout : seconds that it may take.
    name : what the calls are called in logs and errors; by default the function's own name.
    runtime_env : see `fsdray.remote.TaskOptions`.

    Raises
    ------
    SettingsError
        (a `ValueError`) for an option that cannot be had.
    """

    # As with the standard's executors, a program that comes to its end waits for its calls.
    _is_left_at_exit = False

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        memory: int | None = None,
        timeout: float | None = None,
        name: str | None = None,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> None:
        if max_workers is not None and (
            not isinstance(max_workers, int) or isinstance(max_workers, bool) or max_workers < 1
        ):
            raise SettingsError(f"max_workers={max_workers!r}: give a whole number from 1")
        self._options = TaskOptions(
            memory=memory, timeout=timeout, name=name, runtime_env=runtime_env
        )
        self._max_workers = max_workers
        self._changed = threading.Condition()
        self._waiting: deque[_Work] = deque()
        self._running: set[_Work] = set()
        self._ended: list[tuple[_Work, futures.Future[Any]]] = []
        self._manager: threading.Thread | None = None
        self._is_shut = False
        self._last: Pickled | None = None

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> futures.Future[T]:
        """Start a call of `fn`, or have it wait for its turn.

        As with the standard's process pool, what cannot be pickled is the future's exception.

        Raises
        ------
        RuntimeError
            after `shutdown`.
        """
        return self._submit(session.current(), fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[T]:
        """The values of ``fn`` over the zipped `iterables`, in their order.

        All of the input is read at once; a chunk of `chunksize` items is one call.

        Raises
        ------
        TimeoutError
            from the iterator, `timeout` seconds after this call.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        run = Pickled(partial(_run_chunk, fn), _name(fn))
        deadline = None if timeout is None else time.monotonic() + timeout
        chunks = _chunks(zip(*iterables, strict=False), chunksize)
        here = session.current()
        submitted = deque(self._submit(here, run, (chunk,), {}) for chunk in chunks)
        return _results(submitted, deadline)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; wait for those that there are, or cancel those that wait."""
        with self._changed:
            self._is_shut = True
            unwanted = list(self._waiting) if cancel_futures else []
            if cancel_futures:
                self._waiting.clear()
            manager = self._manager
            self._changed.notify_all()
        for work in unwanted:
            work.cancel()
        if wait and manager is not None and manager is not threading.current_thread():
            with waiting():
                manager.join()

    def abandon(self) -> None:
        """Shut down and wait for nothing: what waits is cancelled, and what runs is stopped.

        Futures that are not done are cancelled or fail with `TaskCancelled`, at once.
        """
        self.shutdown(wait=False, cancel_futures=True)
        with self._changed:
            running, self._running = self._running, set()
            self._changed.notify_all()
        for work in running:
            work.stop()
            work.future.set_exception(TaskCancelled("the executor was abandoned"))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[False]:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            # It ends the processes of a standard pool, too.
            self.abandon()
        else:
            self.shutdown(wait=True)
        return False

    # Inside

    def _submit(
        self, here: Session, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> ExecutorFuture[T]:
        """`submit` to a given session: what goes on by itself must never start a new one."""
        work = _Work(here, self._pickled(fn), args, kwargs)
        with self._changed:
            if self._is_shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._waiting.append(work)
            if self._manager is None:
                self._manager = threading.Thread(
                    target=self._manage, name="fsdray-executor", daemon=self._is_left_at_exit
                )
                self._manager.start()
                if not self._is_left_at_exit:
                    _waited_for.add(self)
            self._changed.notify_all()
        return work.future

    def _pickled(self, fn: Callable[..., Any]) -> Pickled:
        """`fn` to be sent; a plain function that is submitted again and again is pickled once."""
        if isinstance(fn, Pickled):
            return fn
        last = self._last
        if last is not None and last.function is fn and last.bindings.hold():
            return last
        made = Pickled(fn, _name(fn))
        if isinstance(fn, FunctionType):
            self._last = made
        return made

    def _manage(self) -> None:
        """Hand calls to the platform and outcomes to their futures, while there are any.

        Futures are completed here and not on the event loop: their callbacks are user code.
        """
        while (turn := self._next()) is not None:
            started, ended = turn
            for work, outcome in ended:
                work.settle(outcome)
            for work in started:
                self._start(work)

    def _next(self) -> tuple[list[_Work], list[tuple[_Work, futures.Future[Any]]]] | None:
        """What can start and what has ended, once there is anything; None when all is done."""
        with self._changed:
            while True:
                ended = [(work, outcome) for work, outcome in self._ended if work in self._running]
                self._ended.clear()
                self._running.difference_update(work for work, _ in ended)
                started = []
                while self._waiting and len(self._running) < self._most(self._waiting[0].session):
                    work = self._waiting.popleft()
                    # From here on it cannot be cancelled, and is completed by who takes it out.
                    if work.future.set_running_or_notify_cancel():
                        self._running.add(work)
                        started.append(work)
                if started or ended:
                    return started, ended
                if not self._waiting and not self._running:
                    self._manager = None
                    return None
                self._changed.wait()

    def _most(self, here: Session) -> int:
        concurrency = here.backend.functions.limits.concurrency
        return concurrency if self._max_workers is None else self._max_workers

    def _start(self, work: _Work) -> None:
        def ended(outcome: futures.Future[Any]) -> None:
            with self._changed:
                self._ended.append((work, outcome))
                self._changed.notify_all()

        try:
            outcome = work.submit(self._options)
        except BaseException as error:
            # Unpicklable arguments, refused options, a closed session: all are the call's.
            outcome = futures.Future()
            outcome.set_exception(error)
        outcome.add_done_callback(ended)


class Pickled:
    """A callable that is pickled once, however often it is submitted to an `Executor`."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function = function
        self.name = name
        self.bindings = Bindings(function)

    @cached_property
    def made(self) -> tuple[bytes, frozenset[str]]:
        """The bytes, and the modules that they refer to."""
        try:
            with wire.collecting_modules() as modules:
                data = wire.encode_function(self.function)
        except Exception as error:
            # Pickling runs the __reduce__ of whatever the function holds.
            raise SettingsError(
                f"{self.name} cannot be pickled, so it cannot run elsewhere: {error}. "
                "Look at what it refers to from outside"
            ) from error
        return data, frozenset(modules)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def waiting() -> AbstractContextManager[None]:
    """Around a wait for other calls: inside a task, it gives this call's concurrency to them."""
    if not session.is_open() or session.current().is_driver:
        return nullcontext()
    return session.current().yielded()


class ExecutorFuture(futures.Future[T]):
    """What `Executor.submit` returns.

    Its waits, inside a task, let the calls that they wait for run; a Ctrl-C in them stops those.
    """

    def __init__(self, work: _Work) -> None:
        super().__init__()
        self._work = work

    def result(self, timeout: float | None = None) -> T:
        with self._waiting():
            return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        with self._waiting():
            return super().exception(timeout)

    def stop(self) -> None:
        """Cancel the call, also where it runs already: it then fails with `TaskCancelled`."""
        if not self.cancel():
            self._work.stop()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        if self.done():
            yield
            return
        try:
            with nullcontext() if self._work.session.is_driver else waiting():
                yield
        except KeyboardInterrupt:
            self.stop()
            raise


class _Work:
    """One call: what is to run, in which session, and the future that the user holds."""

    def __init__(
        self,
        here: Session,
        function: Pickled,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.session = here
        self.future: ExecutorFuture[Any] = ExecutorFuture(self)
        self._ref: ObjectRef[Any] | None = None  # while it runs
        self._is_unwanted = False
        self._call: tuple[Pickled, tuple[Any, ...], dict[str, Any]] | None = function, args, kwargs

    def submit(self, options: TaskOptions) -> futures.Future[Any]:
        """Hand the call to its session; a future of its value."""
        assert self._call is not None
        (function, args, kwargs), self._call = self._call, None  # arguments are not kept
        settings = self.session.settings
        data, modules = function.made
        [self._ref] = self.session.submit(
            Submission(
                name=options.name or function.name,
                function=data,
                modules=modules,
                args=args,
                kwargs=kwargs,
                num_returns=1,
                memory=options.memory or settings.memory,
                timeout=options.timeout or settings.timeout,
                world_size=None,
                channel=settings.channel,
                runtime_env=cast(RuntimeEnv | None, options.runtime_env),
            )
        )
        if self._is_unwanted:
            self.session.stop([self._ref])
        return self._ref.future()

    def stop(self) -> None:
        """Have the session cancel it, if it runs, or when it begins to."""
        self._is_unwanted = True
        ref = self._ref
        if ref is not None:
            self.session.stop([ref])

    def settle(self, outcome: futures.Future[Any]) -> None:
        """Tell the user how the call ended."""
        self._ref = None
        error = outcome.exception()
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(outcome.result())

    def cancel(self) -> None:
        if self.future.cancel():
            # Tells those that wait for several futures, which `cancel` alone does not.
            self.future.set_running_or_notify_cancel()


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _run_chunk(function: Callable[..., T], chunk: list[tuple[Any, ...]]) -> list[T]:
    return [function(*args) for args in chunk]


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def _results(chunks: deque[ExecutorFuture[Any]], deadline: float | None) -> Iterator[Any]:
    """The values of chunks in their order; what is not taken is cancelled, by a Ctrl-C stopped."""
    try:
        while chunks:
            left = None if deadline is None else deadline - time.monotonic()
            values = chunks[0].result(left)
            chunks.popleft()
            yield from values
    except KeyboardInterrupt:
        for chunk in chunks:
            chunk.stop()
        raise
    finally:
        for chunk in chunks:
            chunk.cancel()


_waited_for: weakref.WeakSet[Executor] = weakref.WeakSet()
"""Executors whose calls the program waits for at its end."""


def _at_exit() -> None:
    """A program that a Ctrl-C ends waits for nothing."""
    last = getattr(sys, "last_type", None)  # what the interpreter has told the user last
    is_prompt = hasattr(sys, "ps1")  # where a Ctrl-C ends a command, and no program
    if last is not None and issubclass(last, KeyboardInterrupt) and not is_prompt:
        for executor in list(_waited_for):
            executor.abandon()


# What atexit runs would be too late: the threads of executors have been waited for by then. The
# standard's executors use this, too.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
