"""Reduction operations under MPI's names; any callable of two values serves as well.

They take what two ranks gave, the lower rank's first, and work element by element on arrays.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from fsdray.services import MIB

Op: TypeAlias = Callable[[Any, Any], Any]

_QUICK = 4 * MIB  # bytes that are added up in some 300 µs; another thread takes 50 to 400 to begin


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


def makes_new(op: Op, value: Any) -> bool:
    """Whether `op` with this value on either side leaves it as it is and gives no part of it back.

    So it is with our own operations on arrays of plain numbers: there is no need of a copy. Those
    that lie in pieces are not as the others receive them, and results would be laid out otherwise.
    """
    return _is_ours(op) and is_plain_array(value) and value.ndim > 0 and bool(value.flags.forc)


def fold(op: Op, values: list[Any], kept: int | None = None) -> Any:
    """The values reduced in their order: ``op(op(v0, v1), v2)``, and so on.

    With our own operations, arrays of one type and shape are reduced into one of them, which is
    what new memory would hold.

    Parameters
    ----------
    kept : which of the values is not to be written; None: any may be.
    """
    result, may_write = values[0], kept != 0
    name = _INTO.get(id(op))
    ufunc = None if name is None else getattr(_numpy(), name, None)
    for i, value in enumerate(values[1:], 1):
        into = result if may_write else value if i != kept else None
        if (
            ufunc is not None
            and into is not None
            and _are_alike(result, value)
            and into.flags.writeable
        ):
            ufunc(result, value, out=into)
            result = into
        else:
            result = op(result, value)
        may_write = True  # what an operation of ours made; of others nothing is written into
    return result


def is_quick(op: Op, values: Sequence[Any]) -> bool:
    """Whether `fold` takes less than having another thread do it: ours, of plain numbers."""
    if not _is_ours(op):
        return False
    size = 0
    for value in values:
        if type(value) in (bool, float, complex) or (type(value) is int and abs(value) < 1 << 64):
            continue
        if not is_plain_array(value):
            return False
        size += value.nbytes
    return size <= _QUICK


_OURS = frozenset(map(id, (SUM, PROD, MAX, MIN, LAND, LOR, LXOR, BAND, BOR, BXOR)))
_INTO = {id(SUM): "add", id(PROD): "multiply", id(MAX): "maximum", id(MIN): "minimum"}
"""NumPy's names of what is of its operands' type: the logical ones give truth values."""


def _is_ours(op: Op) -> bool:
    # By identity: an operation of the user's own may be equal to anything, or have no hash.
    return id(op) in _OURS


def is_plain_array(value: Any) -> bool:
    """Whether it is an array of plain numbers, and of no class of somebody's own."""
    numpy = _numpy()
    return numpy is not None and type(value) is numpy.ndarray and value.dtype.kind in "biufc"


def _are_alike(left: Any, right: Any) -> bool:
    """Whether an operation on these arrays gives one that is like them, element by element."""
    return (
        is_plain_array(left)
        and is_plain_array(right)
        and left.ndim > 0
        and left.dtype == right.dtype
        and left.dtype.isnative
        and left.shape == right.shape
        and left.strides == right.strides
    )


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
