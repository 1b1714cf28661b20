"""Coroutines of the user's code: each runs to its end on the worker's main thread, on its own loop.

They never run on fsdray's loop (`fsdray.loop`), which goes on beside them. While such a loop has
nothing to do and the task waits for others, its concurrency is theirs.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Waits(Protocol):
    """What a loop needs of the session."""

    def is_waiting(self) -> bool:
        """Whether there is anything to wait for that other calls make."""
        ...

    def yielded(self) -> AbstractContextManager[None]:
        """Entered while this call only waits."""
        ...


class TaskLoop(asyncio.SelectorEventLoop):
    """The event loop of one call."""

    def __init__(self, waits: Waits) -> None:
        super().__init__(_Selector(waits))


class _Selector(selectors.DefaultSelector):
    """Gives the call's concurrency back while its loop sleeps.

    The loop sleeps only when none of its coroutines can go on. Whatever else they may wait for,
    the call computes nothing meanwhile, so this is both safe (no other rule lets more calls in)
    and enough (coroutines that all wait for refs let the loop sleep).
    """

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if (timeout is not None and timeout <= 0) or not self._waits.is_waiting():
            return super().select(timeout)
        with self._waits.yielded():
            return super().select(timeout)


def run(waits: Waits, coroutine: Coroutine[Any, Any, T]) -> T:
    """What `asyncio.run` does, on a `TaskLoop`."""
    try:
        with asyncio.Runner(loop_factory=lambda: TaskLoop(waits)) as runner:
            return runner.run(coroutine)
    except BaseException as error:
        # Whatever it is, how a loop ran it says nothing to the user.
        error.__traceback__ = _own(error.__traceback__)
        raise


def gives_back() -> bool:
    """Whether the running loop gives concurrency back by itself."""
    return isinstance(asyncio.get_running_loop(), TaskLoop)


def finished(waits: Waits, value: Any) -> Any:
    """What a function returned or, where that is a coroutine, what it comes to."""
    return run(waits, value) if isinstance(value, Coroutine) else value


def _own(raised: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame that is neither ours nor asyncio's."""
    at = raised
    while at is not None:
        module = at.tb_frame.f_globals.get("__name__", "")
        if module != __name__ and not module.startswith("asyncio."):
            return at
        at = at.tb_next
    return raised
