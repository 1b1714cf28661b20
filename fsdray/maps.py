"""Maps: one function over many inputs, in chunks, with bounded memory.

Inputs are taken from their iterator only as results are taken out, so a million of them from a
generator need no more memory than those under way. How large a chunk is, is the pure policy
`next_size`.
"""

from __future__ import annotations

import os
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from fsdray import context, coroutines, failure, session
from fsdray.errors import SettingsError, TaskError
from fsdray.failure import Failure
from fsdray.refs import ObjectRef

if TYPE_CHECKING:
    from fsdray.observe.progress import Progress
    from fsdray.remote import RemoteFunction

TARGET = 0.25  # seconds of a chunk: long against what a call costs, short against a person's wait
LARGEST = 4096  # inputs of a chunk
_GROWTH = 4  # a chunk has at most so many times the inputs of the one that was measured
_AHEAD = 2  # chunks under way for each call that may run at one time

_Results = tuple[float, list[Any]]
"""What a chunk comes to: its seconds, and for each input its value or a `Failure`."""


def next_size(size: int, seconds: float) -> int:
    """Inputs of the next chunks, after one of `size` inputs took `seconds`."""
    wanted = size * TARGET / seconds if seconds > 0 else LARGEST
    return max(1, int(min(wanted, size * _GROWTH, LARGEST)))


class Map(Iterator[Any]):
    """The results of a map, as they are taken; `close` it (or leave its block) to stop early.

    Parameters
    ----------
    function : a remote function. inputs : the positional arguments of each call.
    ordered : whether results come in the order of their inputs, or as they are there.
    return_exceptions : whether an exception of the user's code is a result, or raised.
    chunksize : inputs of one call; None adapts it to what they take.
    progress : whether to show a bar on a terminal; total : how many inputs there are, if known.
    """

    def __init__(
        self,
        function: RemoteFunction[..., Any],
        inputs: Iterator[tuple[Any, ...]],
        *,
        ordered: bool,
        return_exceptions: bool,
        chunksize: int | None,
        progress: bool,
        total: int | None,
    ) -> None:
        if chunksize is not None and (not isinstance(chunksize, int) or chunksize < 1):
            raise SettingsError(f"chunksize={chunksize!r}: give a whole number from 1")
        if function.is_gang:
            raise SettingsError("a gang has no map: each of its calls is many ranks already")
        if function.is_generator:
            raise SettingsError(
                f"{function.__name__} is a generator function, and a map takes one value of each "
                f"call: iterate over {function.__name__}.remote(...), or return a list"
            )
        self._inputs = inputs
        self._ordered = ordered
        self._return_exceptions = return_exceptions
        # What is to be retried must fail as a call of its own.
        self._is_single = function.retries_exceptions
        self._adapts = chunksize is None and not self._is_single
        self._size = 1 if self._is_single else chunksize or 1
        self._run = function.wrapping(
            _chunk_of(function.__wrapped__, not self._is_single, return_exceptions)
        )
        self._session = session.current()
        limits = self._session.backend.functions.limits
        self._most = _AHEAD * limits.concurrency
        self._underway: deque[ObjectRef[_Results]] = deque()
        self._finished: queue.SimpleQueue[ObjectRef[_Results]] = queue.SimpleQueue()
        self._ready: deque[Any] = deque()
        self._input_error: BaseException | None = None
        self._is_over = False
        self._bar = ExitStack()
        self._progress = self._shown(function.__name__, total) if progress else None
        self._fill()

    def __next__(self) -> Any:
        try:
            result, error = self._next()
        except KeyboardInterrupt as interrupt:
            self.close()
            result, error = None, interrupt.with_traceback(None)
        if error is not None:
            __tracebackhide__ = True  # as in `fsdray.get`
            raise error
        return result

    def _next(self) -> tuple[Any, BaseException | None]:
        """The next result, or what is to be raised: so that no frame of this is shown."""
        while not self._ready:
            if not self._underway:
                self.close()
                return None, self._input_error or StopIteration()
            ref = self._next_chunk()
            values, failed = self._session.get([ref], None)
            if failed is not None:
                if self._is_single and self._return_exceptions and isinstance(failed, TaskError):
                    self._fill()
                    return failed, None
                self.close()
                return None, failed
            seconds, results = values[0]
            if self._adapts and results:
                self._size = next_size(len(results), seconds)
            self._ready.extend(results)
            if self._progress is not None:
                self._progress.advance(len(results))
            self._fill()
        result = self._ready.popleft()
        if isinstance(result, Failure):
            error = failure.restore(result)
            if self._return_exceptions:
                return error, None
            self.close()
            return None, error
        return result, None

    def close(self) -> None:
        """Stop: inputs are not taken any more, and calls under way are cancelled."""
        self._is_over = True
        self._ready.clear()
        self._session.stop(self._underway)
        self._underway.clear()
        self._bar.close()

    def __enter__(self) -> Map:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if session.is_open() and not getattr(self, "_is_over", True):
            self.close()

    def _shown(self, name: str, total: int | None) -> Progress:
        from fsdray.observe.progress import live  # its bar takes longer to import than all else

        progress = self._bar.enter_context(live())
        progress.phase(name, total)
        return progress

    def _fill(self) -> None:
        """Start chunks until enough are under way."""
        try:
            self._start_chunks()
        except BaseException:
            # An interrupt, or options that no call can have: what has started is for nothing.
            self.close()
            raise

    def _start_chunks(self) -> None:
        while len(self._underway) < self._most and not self._is_over:
            items = self._take()
            if not items:
                self._is_over = True
                return
            ref: ObjectRef[_Results] = self._run.remote(items)
            self._underway.append(ref)
            if not self._ordered:
                self._session.when_there(ref, self._finished.put)

    def _take(self) -> list[tuple[Any, ...]]:
        items: list[tuple[Any, ...]] = []
        try:
            while len(items) < self._size:
                items.append(next(self._inputs))
        except StopIteration:
            pass
        except Exception as error:
            # Whatever it is, the map ends with it, once what came before is out.
            self._input_error = error
            self._is_over = True
        return items

    def _next_chunk(self) -> ObjectRef[_Results]:
        if self._ordered:
            return self._underway.popleft()
        with self._session.yielded():
            ref = self._finished.get()
        self._underway.remove(ref)
        return ref


def inputs_of(iterable: Iterable[Any]) -> tuple[Iterator[Any], int | None]:
    """An iterator over it, and its length where it has one."""
    length = len(iterable) if isinstance(iterable, Sized) else None
    return iter(iterable), length


def _chunk_of(
    function: Callable[..., Any], captures: bool, return_exceptions: bool
) -> Callable[[list[tuple[Any, ...]]], _Results]:
    """A function that runs `function` on each of some inputs."""
    name = getattr(function, "__name__", "a function")

    def run(items: list[tuple[Any, ...]]) -> _Results:
        began = time.perf_counter()
        results: list[Any] = []
        for args in items:
            try:
                results.append(coroutines.finished(session.current(), function(*args)))
            except Exception as error:
                if not captures:
                    raise
                # Whatever the user's code raises is this input's result.
                note = f"{context.get_runtime_context().whereabouts()}, on pid {os.getpid()}"
                results.append(failure.capture(error, name, note))
                if not return_exceptions:
                    break  # the map ends here
        return time.perf_counter() - began, results

    return run
