"""Where fsdray differs from Ray on purpose: each difference has a reason, and tests of both sides.

The reasons are those of the page ``docs/ray.md``; `tests.semantics.test_differences` compares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

Test = Callable[..., Any]


@dataclass
class Difference:
    """One difference; its two decorators mark the tests that show it."""

    reason: str
    shown: set[str] = field(default_factory=set)

    def in_ray(self, test: Test) -> Test:
        """What Ray does: runs with Ray only."""
        return self._mark(test, "ray")

    def here(self, test: Test) -> Test:
        """What fsdray does: runs with fsdray only."""
        return self._mark(test, "fsdray")

    def _mark(self, test: Test, system: str) -> Test:
        self.shown.add(system)
        return pytest.mark.differs(self.reason, system)(test)


DIFFERENCES: dict[str, Difference] = {}


def differs(reason: str) -> Difference:
    """The difference that has this reason."""
    return DIFFERENCES.setdefault(reason, Difference(reason))
