"""What a pool's calls come to: one result of many parts, or one after another.

How calls are started, and in which executor, is `pool`'s.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from multiprocessing import TimeoutError as PoolTimeout
from typing import Any

from fsdray.errors import FsdrayError, TaskCancelled
from fsdray.executor import ExecutorFuture, waiting

Callback = Callable[[Any], object] | None


class AsyncResult:
    """What will be the result of `Pool.apply_async` and its kin."""

    def __init__(
        self,
        parts: Sequence[ExecutorFuture[Any]],
        join: Callable[[list[Any]], Any],
        callback: Callback,
        error_callback: Callback,
    ) -> None:
        self._parts = parts
        self._left = len(parts)
        self._join = join
        self._callback = callback
        self._error_callback = error_callback
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._value: Any = None
        for part in parts:
            part.add_done_callback(self._part_ended)
        if not parts:
            self._settle()

    def ready(self) -> bool:
        """Whether the call has ended."""
        return self._ready.is_set()

    def successful(self) -> bool:
        """Whether it ended without an exception; a ValueError before it has ended."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._error is None

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it has ended, or for `timeout` seconds; a Ctrl-C meanwhile stops its calls."""
        if not self._ready.is_set():
            try:
                with waiting():
                    self._ready.wait(timeout)
            except KeyboardInterrupt:
                for part in self._parts:
                    part.stop()
                raise

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

    def _part_ended(self, part: Future[Any]) -> None:
        error = CancelledError() if part.cancelled() else part.exception()
        with self._lock:
            self._left -= 1
            self._error = self._error or error  # the first in time is the one that is told
            if self._left:
                return
        if isinstance(self._error, CancelledError):
            self._error = TaskCancelled("the call was cancelled before it began")
        self._settle()

    def _settle(self) -> None:
        """All parts have ended: the callback hears of it first, then those that wait."""
        try:
            if self._error is None:
                self._value = self._join([part.result() for part in self._parts])
                if self._callback is not None:
                    self._callback(self._value)
            elif self._error_callback is not None:
                self._error_callback(self._error)
        finally:
            self._parts = ()
            self._ready.set()


class IMapIterator:
    """The values of `Pool.imap`, as they come."""

    def __init__(self, feed: Feed) -> None:
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


class Feed:
    """Reads input on a thread, no further than there is room, and holds the results.

    Parameters
    ----------
    under_way : chunks whose calls may be unfinished at one time.
    ahead : chunks that may have been read and not taken.
    """

    def __init__(
        self,
        submit: Callable[[list[Any]], ExecutorFuture[Any]],
        chunks: Iterator[list[Any]],
        *,
        under_way: int,
        ahead: int,
        is_ordered: bool,
        ended: Callable[[Feed], None],
    ) -> None:
        self._submit = submit
        self._input = chunks
        self._most_under_way = under_way
        self._most_ahead: float = ahead
        self._is_ordered = is_ordered
        self._ended = ended
        self._changed = threading.Condition()
        self._results: deque[Future[Any]] = deque()  # not taken; unordered: those that ended
        self._under_way: set[Future[Any]] = set()
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
                self._wait(timeout)
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
        """End all waits, and the calls that are under way."""
        with self._changed:
            self._is_stopped = True
            under_way = list(self._under_way)
            self._changed.notify_all()
        for future in under_way:
            if isinstance(future, ExecutorFuture):
                future.stop()

    def _wait(self, timeout: float | None) -> None:
        try:
            with waiting():
                self._changed.wait_for(self._can_take, timeout)
        except KeyboardInterrupt:
            self.stop()
            raise

    def _can_take(self) -> bool:
        has_result = bool(self._results) and self._results[0].done()
        return has_result or self._is_stopped or self._is_over()

    def _is_over(self) -> bool:
        return self._is_read and not self._results and (self._is_ordered or not self._under_way)

    def _has_room(self) -> bool:
        return self._is_stopped or (
            len(self._under_way) < self._most_under_way and self._ahead < self._most_ahead
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
                    self._add(failed(error))
                    return
                try:
                    self._add(self._submit(chunk))
                except (FsdrayError, RuntimeError) as error:
                    # The session was shut down, or the pool terminated: there is no more.
                    self._add(failed(error))
                    return
        finally:
            with self._changed:
                self._is_read = True
                self._changed.notify_all()
            self._ended(self)

    def _add(self, future: Future[Any]) -> None:
        with self._changed:
            self._under_way.add(future)
            self._ahead += 1
            if self._is_ordered and not self._is_dropped:
                self._results.append(future)
        future.add_done_callback(self._call_ended)

    def _call_ended(self, future: Future[Any]) -> None:
        with self._changed:
            self._under_way.discard(future)
            if not self._is_ordered and not self._is_dropped:
                self._results.append(future)
            self._changed.notify_all()


def failed(error: BaseException) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def joined(chunks: list[list[Any]]) -> list[Any]:
    """The values of chunks as one list."""
    return list(itertools.chain.from_iterable(chunks))
