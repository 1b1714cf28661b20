"""Counting billed requests, per call and in total.

A service reports each request to `count`. The count goes to the innermost open `metering` block
of the calling context and to every block around it, so one call's requests and the session's
total come from the same report. Threads and tasks inherit the context that started them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_ambient: ContextVar[Meter | None] = ContextVar("fsdray_meter", default=None)
_outermost: Meter | None = None


class Meter:
    """Requests by name (the names are listed at `fsdray.services.Count`); thread-safe."""

    def __init__(self, parent: Meter | None = None) -> None:
        self._parent = parent
        self._counts: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, name: str, amount: float = 1) -> None:
        """Count `amount` more of `name`, here and in every meter around this one."""
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + amount
        if self._parent is not None:
            self._parent.add(name, amount)

    def merge(self, counts: Mapping[str, float]) -> None:
        """Add what another meter, such as a worker's, has counted."""
        for name, amount in counts.items():
            self.add(name, amount)

    def counts(self) -> dict[str, float]:
        """A copy of what was counted so far, sorted by name."""
        with self._lock:
            return dict(sorted(self._counts.items()))


def count(name: str, amount: float = 1) -> None:
    """Report a billed request to the meters of this context; outside of any it is dropped."""
    meter = _ambient.get() or _outermost
    if meter is not None:
        meter.add(name, amount)


def ambient() -> Meter | None:
    """The innermost meter of this context."""
    inner = _ambient.get()
    return inner if inner is not None else _outermost


def set_outermost(meter: Meter | None) -> None:
    """Count in `meter` whatever this process asks for outside of all `metering` blocks.

    A session's total in the driver, and a call's requests in a worker, are counted so.
    """
    global _outermost
    _outermost = meter


@contextmanager
def metering(meter: Meter | None = None) -> Iterator[Meter]:
    """Count what this block (and what it starts) asks for in a meter of its own.

    `meter` is the one to use; by default a new one inside the ambient one.
    """
    inner = meter if meter is not None else Meter(ambient())
    token = _ambient.set(inner)
    try:
        yield inner
    finally:
        _ambient.reset(token)
