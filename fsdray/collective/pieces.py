"""Large arrays reduced in pieces: each rank reduces some elements of all, in rank order.

An operation that works element by element gives each element the same bits however an array is
cut, so this comes to what reducing whole arrays comes to. A rank cuts its own array where that is
worth it; whether all did, and alike, their messages say (`fsdray.collective.relay`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

from fsdray.collective import ops
from fsdray.collective.ops import Op

Signature: TypeAlias = tuple[str, tuple[int, ...], str]
"""Type, shape and order of an array."""

HEAD, PLAIN = 256, 192
"""Bytes that the messages of a piece, and of one that is reduced, have beside the elements."""

_ANY = (ops.SUM, ops.PROD, ops.MAX, ops.MIN, ops.LAND, ops.LOR, ops.LXOR)
_BITS = (ops.BAND, ops.BOR, ops.BXOR)


@dataclass(frozen=True)
class Piece:
    """Some elements of an array that has this signature."""

    signature: Signature
    elements: Any


def can_cut(value: Any, op: Op) -> bool:
    """Whether `op` is known to work on this array element by element."""
    np = sys.modules.get("numpy")  # without it there are no arrays
    if np is None or type(value) is not np.ndarray or value.ndim == 0:
        return False
    kind = value.dtype.kind
    if isinstance(op, np.ufunc):
        return kind in "biufc" and op.nin == 2 and op.nout == 1 and op.signature is None
    if op in _BITS:
        return kind in "biu"
    return op in _ANY and kind in "biufc"


def cut(array: Any, count: int) -> list[Piece]:
    """An array in `count` pieces, as equal as can be."""
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    signature = (array.dtype.str, array.shape, order)
    flat = array.ravel(order=order)
    return [Piece(signature, flat[start:end]) for start, end in bounds(flat.size, count)]


def bounds(size: int, count: int) -> list[tuple[int, int]]:
    """Where the pieces begin and end."""
    ends = [size * i // count for i in range(count + 1)]
    return list(pairwise(ends))


def are_alike(values: Sequence[Any]) -> bool:
    """Whether all of these are pieces of arrays of one signature."""
    return all(isinstance(value, Piece) for value in values) and (
        len({value.signature for value in values}) == 1
    )


def join(signature: Signature, parts: Sequence[Any]) -> Any:
    """The array of reduced pieces, which may be of another type than what was cut."""
    import numpy as np  # the parts are arrays, so it was imported

    _, shape, order = signature
    return np.concatenate(parts).reshape(shape, order=order)  # type: ignore[call-overload]
