"""The end of an operation that only computes, such as a reduction: who waits for it does it.

Plain code waits in a thread of its own, which is where its operators belong; from the loop to a
third thread and back would take longer than the reduction of a small value.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

is_ours: ContextVar[bool] = ContextVar("fsdray_tail", default=False)
"""Whether who waits in this context takes a `Tail` for a result."""


class Tail:
    """A result that is still to be computed."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._function = function
        self._args = args

    def result(self) -> Any:
        """Compute it."""
        return self._function(*self._args)
