"""Reduction operations under MPI's names; any callable of two values serves as well.

They take what two ranks gave, the lower rank's first, and work element by element on arrays.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from fsdray.services import KIB

Op: TypeAlias = Callable[[Any, Any], Any]

_QUICK = 64 * KIB  # bytes that are added up in some 10 µs; another thread takes 50 to begin


def SUM(left: Any, right: Any) -> Any:  # noqa: N802  MPI's name
    """``left + right``: numbers and arrays add, lists and strings join."""
    return left + right


def PROD(left: Any, right: Any) -> Any:  # noqa: N802
    """``left * right``."""
    return left * right


def MAX(left: Any, right: Any) -> Any:  # noqa: N802
    """The larger; of equals the lower rank's."""
    if _is_array(left, right):
        return _numpy().maximum(left, right)
    return right if right > left else left


def MIN(left: Any, right: Any) -> Any:  # noqa: N802
    """The smaller; of equals the lower rank's."""
    if _is_array(left, right):
        return _numpy().minimum(left, right)
    return right if right < left else left


def LAND(left: Any, right: Any) -> Any:  # noqa: N802
    """Logical and."""
    return (
        _numpy().logical_and(left, right) if _is_array(left, right) else bool(left) and bool(right)
    )


def LOR(left: Any, right: Any) -> Any:  # noqa: N802
    """Logical or."""
    return _numpy().logical_or(left, right) if _is_array(left, right) else bool(left) or bool(right)


def LXOR(left: Any, right: Any) -> Any:  # noqa: N802
    """Logical exclusive or."""
    return (
        _numpy().logical_xor(left, right) if _is_array(left, right) else bool(left) != bool(right)
    )


BAND: Op = operator.and_
BOR: Op = operator.or_
BXOR: Op = operator.xor


def MAXLOC(left: Any, right: Any) -> Any:  # noqa: N802
    """Of two ``(value, location)`` pairs the larger; of equal values the lower location."""
    return _loc(left, right, right[0] > left[0])


def MINLOC(left: Any, right: Any) -> Any:  # noqa: N802
    """Of two ``(value, location)`` pairs the smaller; of equal values the lower location."""
    return _loc(left, right, right[0] < left[0])


def fold(op: Op, values: list[Any]) -> Any:
    """The values reduced in their order: ``op(op(v0, v1), v2)``, and so on."""
    result = values[0]
    for value in values[1:]:
        result = op(result, value)
    return result


def is_quick(op: Op, values: Sequence[Any]) -> bool:
    """Whether `fold` takes less than having another thread do it: ours, of few plain numbers."""
    # By identity: an operation of the user's own may be equal to anything, or have no hash.
    if not any(op is ours for ours in (SUM, PROD, MAX, MIN, LAND, LOR, LXOR, BAND, BOR, BXOR)):
        return False
    size = 0
    for value in values:
        if type(value) in (bool, float, complex) or (type(value) is int and abs(value) < 1 << 64):
            continue
        numpy = _numpy()
        if numpy is None or type(value) is not numpy.ndarray or value.dtype.kind not in "biufc":
            return False
        size += value.nbytes
    return size <= _QUICK


def _numpy() -> Any:
    """NumPy, where anybody has imported it: without it there are no arrays."""
    return sys.modules.get("numpy")


def _is_array(*values: Any) -> bool:
    numpy = _numpy()
    return numpy is not None and any(isinstance(value, numpy.ndarray) for value in values)


def _loc(left: Any, right: Any, right_wins: bool) -> Any:
    if left[0] == right[0]:
        return (left[0], min(left[1], right[1]))
    return right if right_wins else left
