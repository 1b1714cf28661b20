"""Which reductions are quick enough for the loop; what they come to is tested elsewhere."""

from __future__ import annotations

import operator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from fsdray.collective import BXOR, MAX, MAXLOC, SUM
from fsdray.collective.ops import is_quick


class Sneaky(np.ndarray[Any, Any]):
    """An array whose operations are somebody else's code."""


class Equal:
    """An operation that says it is any other."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, left: Any, right: Any) -> Any:
        return left


SMALL = np.arange(10.0)


@pytest.mark.parametrize(
    ("op", "values"),
    [
        (SUM, [1, 2**63]),
        (SUM, [1.5, True, 2j]),
        (MAX, [SMALL, SMALL]),
        (BXOR, [np.arange(3), 1]),
        (SUM, [np.zeros(4096), np.zeros(4096)]),
    ],
)
def test_a_few_plain_numbers_are(op: Any, values: list[Any]) -> None:
    assert is_quick(op, values)


@pytest.mark.parametrize(
    ("op", "values"),
    [
        (SUM, [1, 2**64]),
        (SUM, ["text", "text"]),
        (SUM, [Fraction(1, 3)] * 2),
        (SUM, [np.array([1, None])] * 2),
        (SUM, [SMALL.view(Sneaky)] * 2),
        (SUM, [np.zeros(4097), np.zeros(4096)]),
        (MAXLOC, [(1, 0), (2, 1)]),
        (operator.add, [1, 2]),
        (Equal(), [1, 2]),
    ],
)
def test_whatever_may_take_its_time_is_not(op: Any, values: list[Any]) -> None:
    assert not is_quick(op, values)
