"""What random programs send and reduce, made from a seed; nothing of fsdray's is used here."""

from __future__ import annotations

import operator
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

Op = Callable[[Any, Any], Any]

DTYPES = ("u1", "i1", "<i2", ">i4", "<i8", "<f2", "<f4", ">f8", "<c16", "?", "S3", "<U2", "M8[s]")
PLAIN = ("none", "int", "float", "text", "bytes", "bytearray", "nested")
KINDS = (*PLAIN, "array", "array", "array", "objects", "record")
"""Kinds of values that are only moved."""


def make(kind: str, size: int, shared: Any, own: Any) -> Any:
    """A value of a kind, of about `size` bytes; the same for the same arguments.

    Values to be reduced have one shape for one `shared`, whatever their `own` is.
    """
    draw = random.Random(f"{kind} {size} {shared} {own}")
    shape = random.Random(f"{kind} {shared}")
    match kind:
        case "none":
            return None
        case "int":
            return draw.randrange(-(2**size % 2**70) - 1, 2**70)
        case "float":
            return draw.choice([draw.random(), -0.0, float("inf"), 1e-310])
        case "text":
            return draw.randbytes(size // 2).decode("latin-1")
        case "bytes":
            return _noise(draw, size)
        case "bytearray":
            return bytearray(_noise(draw, size))
        case "nested":
            return {"a": [own, (_noise(draw, size // 2),)], 3: {draw.random(), None}, None: True}
        case "array":
            return _array(draw, size)
        case "objects":
            return np.array([None, {"a": draw.random()}, [2], _noise(draw, size)], dtype=object)
        case "record":
            length = 1 + size // 10
            data = np.frombuffer(_noise(draw, 10 * length), dtype=[("i", "<i2"), ("x", "V8")])
            return data.copy()
        # Those below are to be reduced
        case "small":
            return draw.randrange(-5, 12)
        case "letters":
            return draw.randbytes(size // 4).hex() + "|"
        case "pair":
            return (draw.randrange(4), draw.randrange(10))
        case "matrix":
            return np.array(draw.choices(range(-3, 4), k=4)).reshape(2, 2)
        case "ints":
            return _layout(shape, np.frombuffer(_noise(draw, size // 8 * 8), dtype="<i8").copy())
        case "bytes array":
            return _layout(shape, np.frombuffer(_noise(draw, size), dtype="u1").copy())
        case "floats":
            whole = np.frombuffer(_noise(draw, size // 8 * 4), dtype="<i4")
            return _layout(shape, whole / 1e3)
    raise ValueError(kind)


def _noise(draw: random.Random, size: int) -> bytes:
    if draw.random() < 0.3:
        return (b"ab" * (size // 2 + 1))[:size]  # it compresses
    return draw.randbytes(size)


def _array(draw: random.Random, size: int) -> Any:
    dtype = np.dtype(draw.choice(DTYPES))
    count = size // dtype.itemsize
    if dtype.kind == "U":
        data = np.array(draw.choices(["", "a", "bc"], k=count), dtype=dtype)
    elif dtype.kind == "b":
        data = np.array(draw.choices([False, True], k=count), dtype=dtype)
    else:
        data = np.frombuffer(_noise(draw, count * dtype.itemsize), dtype=dtype).copy()
    return _layout(draw, data)


def _layout(draw: random.Random, data: Any) -> Any:
    """The same elements in another shape or order."""
    match draw.randrange(7):
        case 0 if data.size >= 6:
            return np.asfortranarray(data[: data.size // 6 * 6].reshape(2, 3, -1))
        case 1:
            return data[::2]
        case 2:
            return data[::-1]
        case 3 if data.size >= 2:
            return data[: data.size // 2 * 2].reshape(-1, 2).T
        case 4 if data.size == 1:
            return data.reshape(())
        case 5:
            return data.reshape(1, -1, 1)
    return data


def spoil(value: Any) -> None:
    """Write into a value what its owner may: nobody else is to see it."""
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            value.fill("spoilt")
        elif value.size:
            whole = np.zeros_like(value)
            value[...] = whole if value.tobytes() != whole.tobytes() else np.ones_like(value[...])
    elif isinstance(value, bytearray):
        value[:] = b"spoilt"
    elif isinstance(value, list):
        for each in value:
            spoil(each)
        value.append("spoilt")
    elif isinstance(value, dict):
        value["spoilt"] = True


def canon(value: Any) -> Any:
    """What is equal exactly where two values are, to the bit, in type, and in an array's order."""
    if isinstance(value, np.ndarray):
        flags = value.flags
        order = "F" if flags.f_contiguous and not flags.c_contiguous else "C"
        data = canon(value.tolist()) if value.dtype.hasobject else value.tobytes()
        return ("array", str(value.dtype.descr), value.shape, order, data)
    if isinstance(value, np.generic):
        return (type(value).__name__, value.tobytes())
    if isinstance(value, float):
        return ("float", struct.pack("<d", value))
    if isinstance(value, list | tuple):
        return (type(value).__name__, *map(canon, value))
    if isinstance(value, dict):
        return ("dict", *((canon(k), canon(v)) for k, v in value.items()))
    if isinstance(value, bytearray):
        return ("bytearray", bytes(value))
    if isinstance(value, set):
        return ("set", *sorted(map(repr, value)))
    return (type(value).__name__, value)


# Reductions


def joined(left: Any, right: Any) -> Any:
    """Associative, not commutative."""
    return left + right


def minus(left: Any, right: Any) -> Any:
    """Neither."""
    return left - right


def in_place(left: Any, right: Any) -> Any:
    """One that writes into what it is given, as it may."""
    left += right
    return left


def turned(left: Any, right: Any) -> Any:
    """One that does not work element by element."""
    return left + right[..., ::-1] if right.ndim else left + right


def product(left: Any, right: Any) -> Any:
    """Matrices."""
    return left @ right


OWN: dict[str, Op] = {f.__name__: f for f in (joined, minus, in_place, turned, product)}
"""Operations that the programs bring themselves."""

REDUCED: dict[str, tuple[str, ...]] = {
    "small": (
        "SUM",
        "PROD",
        "MAX",
        "MIN",
        "LAND",
        "LOR",
        "LXOR",
        "BAND",
        "BOR",
        "BXOR",
        "minus",
        "in_place",
    ),
    "letters": ("SUM", "joined", "in_place", "MAX"),
    "pair": ("MAXLOC", "MINLOC", "MAX"),
    "matrix": ("product", "SUM"),
    "ints": (
        "SUM",
        "PROD",
        "MAX",
        "MIN",
        "BAND",
        "BOR",
        "BXOR",
        "LAND",
        "LXOR",
        "in_place",
        "turned",
        "minus",
    ),
    "bytes array": (
        "SUM",
        "PROD",
        "MAX",
        "MIN",
        "BAND",
        "BOR",
        "BXOR",
        "LOR",
        "in_place",
        "turned",
    ),
    "floats": ("SUM", "PROD", "MAX", "MIN", "in_place", "turned", "minus"),
}
"""Which operations reduce which kinds."""


def _is_array(left: Any, right: Any) -> bool:
    return isinstance(left, np.ndarray | np.generic) or isinstance(right, np.ndarray)


def _max(left: Any, right: Any) -> Any:
    if _is_array(left, right):
        return np.maximum(left, right)
    return max(left, right)


def _min(left: Any, right: Any) -> Any:
    if _is_array(left, right):
        return np.minimum(left, right)
    return min(left, right)


def _logical(name: str, plain: Op) -> Op:
    def op(left: Any, right: Any) -> Any:
        if _is_array(left, right):
            return getattr(np, f"logical_{name}")(left, right)
        return plain(bool(left), bool(right))

    return op


MEANT: dict[str, Op] = OWN | {
    "SUM": operator.add,
    "PROD": operator.mul,
    "MAX": _max,
    "MIN": _min,
    "LAND": _logical("and", operator.and_),
    "LOR": _logical("or", operator.or_),
    "LXOR": _logical("xor", operator.ne),
    "BAND": operator.and_,
    "BOR": operator.or_,
    "BXOR": operator.xor,
    "MAXLOC": lambda a, b: min(a, b, key=lambda pair: (-pair[0], pair[1])),
    "MINLOC": min,
}
"""What each operation means, MPI's under their own names."""


def arrived(value: Any) -> Any:
    """A copy as a receiver has it: whole in one piece, in its own order where it has one."""
    if isinstance(value, np.ndarray):
        forc = value.flags.c_contiguous or value.flags.f_contiguous
        return value.copy(order="K" if forc else "C")
    if isinstance(value, list):
        return [arrived(each) for each in value]
    if isinstance(value, bytearray):
        return bytearray(value)
    return value


def folded(name: str, values: list[Any]) -> Any:
    """Values of all ranks reduced in rank order."""
    result = arrived(values[0])
    for value in values[1:]:
        result = MEANT[name](result, arrived(value))
    return result
