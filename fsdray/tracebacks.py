"""Tracebacks that cross between processes: places of a stack, taken in one, rebuilt in another.

What crosses is where each call stood and its source line, never a variable. What is rebuilt is a
traceback like any other: Python, pytest, IPython and pdb show it by their own means. The exceptions
that tracebacks belong to are the matter of `fsdray.failure`.
"""

from __future__ import annotations

import linecache
import sys
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from types import FunctionType, TracebackType
from typing import Any, NamedTuple

_ENDS = 64  # places that are kept at each end of a traceback: a recursion has a thousand
_LINES = 10  # source lines of one place: an expression may go over any number of them
_PASSING = frozenset(
    {
        "fsdray.api",
        "fsdray.coroutines",
        "fsdray.maps",
        "fsdray.streams",
        "fsdray.values",
        "fsdray.worker",
    }
)
"""Modules of ours that only pass on what was raised: they say nothing to the user."""


class Place(NamedTuple):
    """Where one call stood when the exception went through it.

    Lines count from 1, columns from 0 in bytes of UTF-8; the columns are None where Python does
    not know them. `source` is the lines from `line` on, "" where their process had none. A
    named tuple, where all else that travels is a dataclass: it has half the bytes and takes half
    the time to read, and one exception may have hundreds.
    """

    filename: str
    module: str
    name: str
    first_line: int
    line: int
    end_line: int
    column: int | None
    end_column: int | None
    source: str


def take(raised: TracebackType | None) -> tuple[Place, ...]:
    """The places of a traceback, outermost first; a deep one's middle is one place that says so."""
    first: list[TracebackType] = []
    last: deque[TracebackType] = deque(maxlen=_ENDS)
    count = 0
    while raised is not None:
        if raised.tb_frame.f_globals.get("__name__") not in _PASSING:
            (first if count < _ENDS else last).append(raised)
            count += 1
        raised = raised.tb_next
    checked: set[str] = set()
    places = [_place(each, checked) for each in first]
    if count > len(first) + len(last):
        told = f"<{count - len(first) - len(last)} calls left out>"
        places.append(Place("<traceback>", "", told, 1, 1, 1, None, None, ""))
    places += (_place(each, checked) for each in last)
    return tuple(places)


def _place(raised: TracebackType, checked: set[str]) -> Place:
    frame, code = raised.tb_frame, raised.tb_frame.f_code
    line = raised.tb_lineno or code.co_firstlineno
    at = max(raised.tb_lasti, 0) // 2
    positions = next(islice(code.co_positions(), at, None), None)
    end_line, column, end_column = line, None, None
    # Code that was made from trees (by pytest, by macros) may have positions that make no sense.
    if positions is not None and positions[0] == line and None not in positions:
        end_line, column, end_column = max(line, positions[1] or line), positions[2], positions[3]
    filename = code.co_filename
    if filename not in checked:
        checked.add(filename)
        linecache.checkcache(filename)
    last = min(end_line, line + _LINES - 1)
    source = "".join(
        linecache.getline(filename, number, frame.f_globals) for number in range(line, last + 1)
    )
    module = frame.f_globals.get("__name__")
    return Place(
        filename,
        module if isinstance(module, str) else "",
        code.co_name,
        code.co_firstlineno,
        line,
        end_line,
        column,
        end_column,
        source,
    )


def rebuild(places: Sequence[Place]) -> TracebackType | None:
    """A traceback through `places`; source that this process does not have is made known to it."""
    built: TracebackType | None = None
    for place in reversed(places):
        built = _entry(place, _known_here(place), built)
    return built


def _stand() -> Iterator[None]:
    yield


_STAND = _stand.__code__
_UNITS = len(_STAND.co_code) // 2  # instructions, as the location table counts them


def _entry(place: Place, filename: str, inner: TracebackType | None) -> TracebackType:
    code = _STAND.replace(
        co_filename=filename,
        co_name=place.name,
        co_qualname=place.name,
        co_firstlineno=place.first_line,
        co_linetable=_locations(place),
    )
    names: dict[str, Any] = {"__name__": place.module, "__file__": filename}
    # A generator that never starts has a frame without a caller: nothing of this process is kept
    # alive by it, or shown as if it had been there.
    frame = FunctionType(code, names)().gi_frame
    return TracebackType(inner, frame, 0, place.line)


def _locations(place: Place) -> bytes:
    """A location table that puts every instruction at the place.

    The format is that of CPython's Objects/locations.md, the same from 3.11 on: entries of at most
    8 instructions, with the line as a difference from the one before.
    """
    line = _signed(place.line - place.first_line)
    if place.column is None or place.end_column is None:
        kind, rest = 13, b""
    else:
        kind = 14
        rest = b"".join(
            map(_varint, (place.end_line - place.line, place.column + 1, place.end_column + 1))
        )
    table = bytearray()
    for done in range(0, _UNITS, 8):
        table.append(0x80 | kind << 3 | min(8, _UNITS - done) - 1)
        table += (line if done == 0 else b"\0") + rest
    return bytes(table)


def _signed(value: int) -> bytes:
    return _varint(-value << 1 | 1 if value < 0 else value << 1)


def _varint(value: int) -> bytes:
    """Six bits a byte, the lowest first."""
    groups = bytearray()
    while value > 63:
        groups.append(0x40 | value & 63)
        value >>= 6
    groups.append(value)
    return bytes(groups)


# Source lines

_told: dict[str, list[str]] = {}  # by file name, what other processes said of its lines


def _known_here(place: Place) -> str:
    """The file name under which this process shows the line that ran there."""
    filename = place.filename
    here = linecache.getline(filename, place.line)
    there = place.source.splitlines(keepends=True)
    if not there or here == there[0]:
        return filename
    if filename not in _told and here:
        linecache.checkcache(filename)
        if linecache.getline(filename, place.line) == there[0]:
            return filename
        # Another version of the file lies here: its line would be a lie.
        filename += " (remote)"
    lines = _told.setdefault(filename, [])
    lines += ["\n"] * (place.line + len(there) - 1 - len(lines))
    lines[place.line - 1 : place.line - 1 + len(there)] = there
    # Without a time of change it is never compared with a file.
    linecache.cache[filename] = (sum(map(len, lines)), None, lines, filename)
    if sys.version_info < (3, 13) and sys.excepthook is sys.__excepthook__:
        # The interpreter's own hook looks for lines in files alone, until 3.13.
        sys.excepthook = traceback.print_exception
    return filename
