"""`Pool`: the standard library's pool of processes, over fsdray's tasks.

Chunks of items become calls of a `fsdray.Executor`; how those run is told there.
"""

from __future__ import annotations

import itertools
import secrets
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from multiprocessing import TimeoutError as PoolTimeout
from types import TracebackType
from typing import Any

from fsdray import session
from fsdray.errors import FsdrayError, SessionError, SettingsError, TaskCancelled
from fsdray.executor import Executor, Pickled, waiting

_AHEAD = 4  # chunks a process that imap reads before their results are taken

Callback = Callable[[Any], object] | None


class Pool:
    """`multiprocessing.Pool` whose processes are the session's workers.

    Parameters
    ----------
    processes : calls that may be under way at one time; by default what the session lets run.
    initializer, initargs : called once in each worker process before its first item. Where it
        raises, so do the items of that process.
    maxtasksperchild : refused: the platform decides how long a process lives.
    memory, timeout, name : options of each call, which does one chunk; see `fsdray.Executor`.

    Raises
    ------
    ValueError, TypeError
        as the standard's, for a bad number or an initializer that cannot be called.
    SettingsError
        for options that cannot be had.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        *,
        memory: int | None = None,
        timeout: float | None = None,
        name: str | None = None,
    ) -> None:
        here = session.current()
        if processes is None:
            processes = here.backend.functions.limits.concurrency
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if maxtasksperchild is not None:
            raise SettingsError(
                f"maxtasksperchild={maxtasksperchild!r}: workers are the platform's, which keeps "
                "and ends them as it likes; leave it out"
            )
        self._session = here
        self._processes = processes
        self._executor = _Workers(processes, memory=memory, timeout=timeout, name=name)
        self._id = secrets.token_hex(8)
        self._initializer = initializer
        self._initargs = tuple(initargs)
        self._lock = threading.Lock()
        self._unfinished: set[AsyncResult] = set()
        self._feeds: set[_Feed] = set()
        self._is_running = True

    def apply(
        self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: Mapping[str, Any] = {}
    ) -> Any:
        """The value of ``func(*args, **kwds)``."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> AsyncResult:
        """Start ``func(*args, **kwds)``; callbacks run on a thread of the pool."""
        self._check_running()
        call = self._job(_call, func)
        result = AsyncResult(self, 1, lambda values: values[0], callback, error_callback)
        return result._of([self._submit(call, tuple(args), dict(kwds))])

    def map(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None
    ) -> list[Any]:
        """The values of `func` over an iterable, in its order."""
        return self.map_async(func, iterable, chunksize).get()  # type: ignore[no-any-return]

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> AsyncResult:
        """`map` that does not wait; all input is read at once."""
        return self._map(_call_each, func, iterable, chunksize, callback, error_callback)

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[Any]:
        """`map` of a function that is given each item's elements as its arguments."""
        return self.starmap_async(func, iterable, chunksize).get()  # type: ignore[no-any-return]

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> AsyncResult:
        """`starmap` that does not wait; all input is read at once."""
        return self._map(_call_each_star, func, iterable, chunksize, callback, error_callback)

    def imap(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1
    ) -> Iterator[Any]:
        """`map` as an iterator; the input is read only some chunks ahead of what was taken.

        With chunks of one, its `next` method takes a timeout, and an item that raises does not
        end it.
        """
        return self._imap(func, iterable, chunksize, is_ordered=True)

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1
    ) -> Iterator[Any]:
        """`imap` that gives each value when it is there."""
        return self._imap(func, iterable, chunksize, is_ordered=False)

    def close(self) -> None:
        """Take no more work; what was given is done."""
        self._is_running = False

    def terminate(self) -> None:
        """End all waits at once, with `TaskCancelled`; nothing more is started.

        Calls that run already go on until they end by themselves; nobody hears of them.
        """
        self._is_running = False
        with self._lock:
            unfinished, feeds = list(self._unfinished), list(self._feeds)
        for feed in feeds:
            feed.stop()
        self._executor.abandon()
        for result in unfinished:
            result._fail(TaskCancelled("the pool was terminated"))

    def join(self) -> None:
        """Wait until all work is done; call `close` or `terminate` first."""
        if self._is_running:
            raise ValueError("Pool is still running")
        with self._lock:
            feeds = list(self._feeds)
        for feed in feeds:
            feed.join()
        self._executor.shutdown()

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.terminate()

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    # Inside

    def _check_running(self) -> None:
        if not self._is_running:
            raise ValueError("Pool not running")

    def _submit(self, job: Pickled, *args: Any) -> Future[Any]:
        if self._session._closed:
            raise SessionError("the session of this pool was shut down: make a new pool")
        return self._executor._submit(self._session, job, args, {})

    def _job(self, run: Callable[..., Any], func: Callable[..., Any]) -> Pickled:
        job = _Job(run, func, self._id, self._initializer, self._initargs)
        return Pickled(job, getattr(func, "__name__", type(func).__name__))

    def _map(
        self,
        run: Callable[..., Any],
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Callback,
        error_callback: Callback,
    ) -> AsyncResult:
        self._check_running()
        items = iterable if isinstance(iterable, Sequence) else list(iterable)
        if chunksize is None:
            chunksize = max(1, -(-len(items) // (self._processes * 4)))
        job = self._job(run, func)
        chunks = list(_chunks(items, max(1, chunksize)))
        result = AsyncResult(self, len(chunks), _joined, callback, error_callback)
        return result._of([self._submit(job, chunk) for chunk in chunks])

    def _imap(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int, is_ordered: bool
    ) -> Iterator[Any]:
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")
        job = self._job(_call_each, func)
        feed = _Feed(
            lambda chunk: self._submit(job, chunk),
            _chunks(iterable, chunksize),
            under_way=2 * self._processes,
            ahead=_AHEAD * self._processes,
            is_ordered=is_ordered,
            ended=self._feed_ended,
        )
        with self._lock:
            self._feeds.add(feed)
        feed.start()
        results = IMapIterator(feed)
        if chunksize == 1:
            return results
        return (value for chunk in results._chunks() for value in chunk)

    def _feed_ended(self, feed: _Feed) -> None:
        with self._lock:
            self._feeds.discard(feed)


class _Workers(Executor):
    # As with the standard's pool, what nobody has waited for does not keep a program from ending.
    _is_left_at_exit = True


class AsyncResult:
    """What will be the result of `Pool.apply_async` and its kin."""

    def __init__(
        self,
        pool: Pool,
        parts: int,
        join: Callable[[list[Any]], Any],
        callback: Callback,
        error_callback: Callback,
    ) -> None:
        self._pool = pool
        self._left = parts
        self._join = join
        self._callback = callback
        self._error_callback = error_callback
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._is_settled = False
        self._error: BaseException | None = None
        self._value: Any = None
        self._parts: list[Future[Any]] = []
        with pool._lock:
            pool._unfinished.add(self)

    def ready(self) -> bool:
        """Whether the call has ended."""
        return self._ready.is_set()

    def successful(self) -> bool:
        """Whether it ended without an exception; a ValueError before it has ended."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._error is None

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it has ended, or for `timeout` seconds."""
        if not self._ready.is_set():
            with waiting():
                self._ready.wait(timeout)

    def get(self, timeout: float | None = None) -> Any:
        """The result, or the exception that was raised.

        Raises
        ------
        multiprocessing.TimeoutError
            where it is not there after `timeout` seconds.
        """
        self.wait(timeout)
        if not self.ready():
            raise PoolTimeout
        if self._error is not None:
            raise self._error
        return self._value

    def _of(self, parts: list[Future[Any]]) -> AsyncResult:
        self._parts = parts
        for part in parts:
            part.add_done_callback(self._part_ended)
        if not parts:
            self._settle(None)
        return self

    def _part_ended(self, part: Future[Any]) -> None:
        error = CancelledError() if part.cancelled() else part.exception()
        with self._lock:
            self._left -= 1
            self._error = self._error or error  # the first in time is the one that is told
            if self._left:
                return
        if isinstance(self._error, CancelledError):
            self._error = TaskCancelled("the pool was terminated")
        self._settle(self._error)

    def _fail(self, error: BaseException) -> None:
        self._settle(error)

    def _settle(self, error: BaseException | None) -> None:
        """Tell the outcome, once: the callback first, then those that wait."""
        with self._lock:
            if self._is_settled:
                return
            self._is_settled = True
        try:
            self._error = error
            if error is None:
                self._value = self._join([part.result() for part in self._parts])
                if self._callback is not None:
                    self._callback(self._value)
            elif self._error_callback is not None:
                self._error_callback(error)
        finally:
            self._parts = []
            self._ready.set()
            with self._pool._lock:
                self._pool._unfinished.discard(self)


class IMapIterator:
    """The values of `Pool.imap`, as they come."""

    def __init__(self, feed: _Feed) -> None:
        self._feed = feed
        # Nobody will take the rest: it is done, as the standard's pool does it, and dropped.
        weakref.finalize(self, feed.drop).atexit = False

    def __iter__(self) -> IMapIterator:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """The next value; multiprocessing.TimeoutError where there is none in `timeout` seconds."""
        [value] = self._feed.take(timeout)
        return value

    def _chunks(self) -> Iterator[list[Any]]:
        while True:
            try:
                chunk = self._feed.take(None)
            except StopIteration:
                return
            yield chunk


class _Feed:
    """Reads input on a thread, no further than there is room, and holds the results.

    Parameters
    ----------
    under_way : chunks whose calls may be unfinished at one time.
    ahead : chunks that may have been read and not taken.
    """

    def __init__(
        self,
        submit: Callable[[list[Any]], Future[Any]],
        chunks: Iterator[list[Any]],
        *,
        under_way: int,
        ahead: int,
        is_ordered: bool,
        ended: Callable[[_Feed], None],
    ) -> None:
        self._submit = submit
        self._input = chunks
        self._most_under_way = under_way
        self._most_ahead: float = ahead
        self._is_ordered = is_ordered
        self._ended = ended
        self._changed = threading.Condition()
        self._results: deque[Future[Any]] = deque()  # not taken; unordered: those that ended
        self._under_way = 0
        self._ahead = 0
        self._is_read = False
        self._is_stopped = False
        self._is_dropped = False
        self._thread = threading.Thread(target=self._read, name="fsdray-imap", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def take(self, timeout: float | None) -> list[Any]:
        """The next chunk's values; its exception where it failed; StopIteration at the end."""
        with self._changed:
            if not self._can_take():
                with waiting():
                    self._changed.wait_for(self._can_take, timeout)
            if self._is_stopped:
                raise TaskCancelled("the pool was terminated")
            if not self._results:
                if self._is_over():
                    raise StopIteration
                raise PoolTimeout
            if not self._results[0].done():
                raise PoolTimeout
            future = self._results.popleft()
            self._ahead -= 1
            self._changed.notify_all()
        return future.result()  # type: ignore[no-any-return]

    def join(self) -> None:
        """Read all that there is, since nobody may take results meanwhile; wait for its calls."""
        with self._changed:
            self._most_ahead = float("inf")
            self._changed.notify_all()
        if not self._is_stopped:
            with waiting():
                self._thread.join()

    def drop(self) -> None:
        """Nobody takes results any more: do the rest for its side effects."""
        with self._changed:
            self._is_dropped = True
            self._most_ahead = float("inf")
            self._results.clear()
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def _can_take(self) -> bool:
        has_result = bool(self._results) and self._results[0].done()
        return has_result or self._is_stopped or self._is_over()

    def _is_over(self) -> bool:
        return self._is_read and not self._results and (self._is_ordered or not self._under_way)

    def _has_room(self) -> bool:
        return self._is_stopped or (
            self._under_way < self._most_under_way and self._ahead < self._most_ahead
        )

    def _read(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(self._has_room)
                    if self._is_stopped:
                        return
                try:
                    chunk = next(self._input)
                except StopIteration:
                    return
                except Exception as error:
                    # As the standard's: what the input raised is the last item's exception.
                    self._add(_failed(error))
                    return
                try:
                    self._add(self._submit(chunk))
                except (FsdrayError, RuntimeError) as error:
                    # The session was shut down, or the pool terminated: there is no more.
                    self._add(_failed(error))
                    return
        finally:
            with self._changed:
                self._is_read = True
                self._changed.notify_all()
            self._ended(self)

    def _add(self, future: Future[Any]) -> None:
        with self._changed:
            self._under_way += 1
            self._ahead += 1
            if self._is_ordered and not self._is_dropped:
                self._results.append(future)
        future.add_done_callback(self._call_ended)

    def _call_ended(self, future: Future[Any]) -> None:
        with self._changed:
            self._under_way -= 1
            if not self._is_ordered and not self._is_dropped:
                self._results.append(future)
            self._changed.notify_all()


class _Job:
    """What a worker runs on each chunk, after the initializer has run in its process.

    It travels as one: functions of `__main__` share their globals only with what they are
    pickled with.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        func: Callable[..., Any],
        pool: str,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
    ) -> None:
        self._run = run
        self._func = func
        self._pool = pool
        self._initializer = initializer
        self._initargs = initargs
        self._is_ready = initializer is None

    def __call__(self, *args: Any) -> Any:
        if self._initializer is not None and not self._is_ready:
            _initialize(self._pool, self._initializer, self._initargs)
            self._is_ready = True
        return self._run(self._func, *args)


_initialized: dict[str, dict[str, Any]] = {}
"""Pools whose initializer ran in this process, and the globals that it set."""


def _initialize(pool: str, initializer: Callable[..., object], initargs: tuple[Any, ...]) -> None:
    """Run a pool's initializer, once in this process."""
    names = getattr(initializer, "__globals__", {})
    known = _initialized.get(pool)
    if known is None:
        before = dict(names)
        initializer(*initargs)
        _initialized[pool] = {
            name: value
            for name, value in names.items()
            if name not in before or before[name] is not value
        }
    elif names is not vars(sys.modules.get(initializer.__module__, object)):
        # A function that travelled by value has globals of its own, new with every job.
        names.update(known)


def _call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def _call_each(func: Callable[[Any], Any], chunk: list[Any]) -> list[Any]:
    return [func(item) for item in chunk]


def _call_each_star(func: Callable[..., Any], chunk: list[Iterable[Any]]) -> list[Any]:
    return [func(*item) for item in chunk]


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _joined(chunks: list[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(chunks))


def _failed(error: BaseException) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future
