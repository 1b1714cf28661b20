"""Which reductions are quick enough for the loop, and which memory they write."""

from __future__ import annotations

import functools
import itertools
import operator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from fsdray.collective import BAND, BXOR, LAND, LXOR, MAX, MAXLOC, MIN, PROD, SUM
from fsdray.collective.ops import fold, is_quick, makes_new


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
        (SUM, [np.zeros(1 << 18), np.zeros(1 << 18)]),
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
        (SUM, [np.zeros((1 << 18) + 1), np.zeros(1 << 18)]),
        (MAXLOC, [(1, 0), (2, 1)]),
        (operator.add, [1, 2]),
        (Equal(), [1, 2]),
    ],
)
def test_whatever_may_take_its_time_is_not(op: Any, values: list[Any]) -> None:
    assert not is_quick(op, values)


DTYPES = ("?", "i1", "u2", "<i4", ">i4", "f2", "<f8", ">f8", "c16")


@pytest.mark.parametrize(
    ("op", "dtype"),
    [
        *itertools.product((SUM, PROD, MAX, MIN, LAND, LXOR, operator.add, np.maximum), DTYPES),
        *itertools.product((BAND,), ("?", "i1", "u2", "<i4", ">i4")),
    ],
)
@pytest.mark.parametrize("kept", [0, 1, 3, None])
def test_a_fold_is_what_its_operation_says_and_leaves_what_is_kept(
    op: Any, dtype: str, kept: int | None
) -> None:
    draw = np.random.default_rng(1)
    values = [(draw.random((3, 5)) * 9 - 1).astype(dtype) for _ in range(4)]
    before = [value.copy() for value in values]
    expected = functools.reduce(op, before)
    result = fold(op, values, kept)
    assert result.dtype == expected.dtype
    assert result.dtype.byteorder == expected.dtype.byteorder
    assert result.tobytes() == expected.tobytes()
    if kept is not None:
        assert values[kept].tobytes() == before[kept].tobytes()
        assert not np.shares_memory(result, values[kept])


def test_arrays_of_one_kind_need_no_new_memory() -> None:
    values = [np.arange(10.0) + i for i in range(3)]
    assert fold(SUM, values, 0) is values[1]
    values = [np.arange(10.0) + i for i in range(3)]
    assert fold(MAX, values, 2) is values[0]
    values = [np.arange(10.0), np.arange(10.0)]
    values[1].flags.writeable = False
    assert fold(SUM, values, 0) is not values[1]


@pytest.mark.parametrize(
    "values",
    [
        [np.arange(3.0), np.arange(3)],
        [np.arange(3.0), 2.0],
        [np.arange(3.0), np.arange(6.0).reshape(2, 3)],
        [np.ones((2, 3)), np.asfortranarray(np.ones((2, 3)))],
        [np.array(1.0), np.array(2.0)],
    ],
)
def test_values_that_are_not_alike_are_reduced_as_they_are(values: list[Any]) -> None:
    expected = values[0] + values[1]
    result = fold(SUM, values, 0)
    assert np.array_equal(result, expected)
    assert result.dtype == expected.dtype
    assert type(result) is type(expected)


def test_what_makes_a_new_array_is_known() -> None:
    assert makes_new(SUM, np.arange(3))
    assert not makes_new(SUM, np.array(3))
    assert not makes_new(SUM, [1, 2])
    assert not makes_new(MAXLOC, (1, 2))
    assert not makes_new(operator.add, np.arange(3))
    assert not makes_new(SUM, np.arange(3).view(Sneaky))
    assert makes_new(SUM, np.ones((2, 3)).T)
    assert not makes_new(SUM, np.arange(6)[::2])
