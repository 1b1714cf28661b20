"""`Pool`: the standard library's pool of processes, over fsdray's tasks.

Chunks of items become calls of a `fsdray.Executor`; how those run is told there.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from fsdray import session
from fsdray.errors import SessionError, SettingsError
from fsdray.executor import Executor, ExecutorFuture, Pickled
from fsdray.integrations.multiprocessing.jobs import Job, call, call_each, call_each_star
from fsdray.integrations.multiprocessing.results import (
    AsyncResult,
    Callback,
    Feed,
    IMapIterator,
    joined,
)

_AHEAD = 4  # chunks a process that imap reads before their results are taken


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
        self._feeds: set[Feed] = set()
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
        part = self._submit(self._job(call, func), tuple(args), dict(kwds))
        return AsyncResult([part], lambda values: values[0], callback, error_callback)

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
        return self._map(call_each, func, iterable, chunksize, callback, error_callback)

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
        return self._map(call_each_star, func, iterable, chunksize, callback, error_callback)

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
        """Stop all calls, and end all waits at once, with `TaskCancelled`."""
        self._is_running = False
        with self._lock:
            feeds = list(self._feeds)
        for feed in feeds:
            feed.stop()
        self._executor.abandon()

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

    def _submit(self, job: Pickled, *args: Any) -> ExecutorFuture[Any]:
        if self._session._closed:
            raise SessionError("the session of this pool was shut down: make a new pool")
        return self._executor._submit(self._session, job, args, {})

    def _job(self, run: Callable[..., Any], func: Callable[..., Any]) -> Pickled:
        job = Job(run, func, self._id, self._initializer, self._initargs)
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
        parts = [self._submit(job, chunk) for chunk in _chunks(items, max(1, chunksize))]
        return AsyncResult(parts, joined, callback, error_callback)

    def _imap(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int, is_ordered: bool
    ) -> Iterator[Any]:
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")
        job = self._job(call_each, func)
        feed = Feed(
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

    def _feed_ended(self, feed: Feed) -> None:
        with self._lock:
            self._feeds.discard(feed)


class _Workers(Executor):
    # As with the standard's pool, what nobody has waited for does not keep a program from ending.
    _is_left_at_exit = True


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
