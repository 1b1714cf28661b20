"""What a function refers to from outside: whether that is still what it was when it was pickled.

A function that travels by value takes along what its names stand for. At a prompt and in a notebook
those are defined anew all the time, and the next call must have the new ones. An object that is
changed in place is not noticed.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable, Iterator
from types import CellType, CodeType, FunctionType
from typing import Any

_MISSING = object()  # a name that stands for nothing yet


class Bindings:
    """What the names of a function stood for when this was made."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._known = [(where, name, _held(value)) for where, name, value in _referred(function)]

    def hold(self) -> bool:
        """Whether they stand for the same objects still."""
        for where, name, known in self._known:
            now = _content(where) if isinstance(where, CellType) else where.get(name, _MISSING)
            if now is not known():
                return False
        return True


def _held(value: Any) -> Callable[[], Any]:
    """What gives the value; a large one is not kept alive where that can be helped."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


def _referred(function: Callable[..., Any]) -> Iterator[tuple[Any, str, Any]]:
    """Where a name is looked up (a cell, or a module's names), the name, and what is there."""
    functions = [function]
    seen: set[int] = set()
    for each in functions:  # it grows meanwhile
        each = inspect.getattr_static(each, "__wrapped__", each)
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, type) and each.__module__ == "__main__":
            functions += vars(each).values()
        if not isinstance(each, FunctionType):
            continue
        for cell in each.__closure__ or ():
            value = _content(cell)
            yield cell, "", value
            functions.append(value)
        # Other modules have a file, and workers a copy of their own.
        if each.__globals__ is vars(sys.modules["__main__"]):
            for name in _names(each.__code__):
                value = each.__globals__.get(name, _MISSING)
                yield each.__globals__, name, value
                functions.append(value)


def _names(code: CodeType) -> set[str]:
    """Names that the code, and code within it, may look up as globals."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return _MISSING
