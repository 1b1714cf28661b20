"""How an exception crosses between processes: as a `Failure`, encoded like any value.

Ours cross as they are. The user's own come back as an instance of both `TaskError` and their own
type. Each has the traceback that it had in its process, and so have its causes, contexts and group
members; how tracebacks cross is told in `fsdray.tracebacks`.
"""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cloudpickle

from fsdray import tracebacks, wire
from fsdray.errors import FsdrayError, TaskError
from fsdray.services import Buffer
from fsdray.tracebacks import Place

_CHAIN = 50  # exceptions of one failure: a loop that retries can chain any number


@dataclass(frozen=True)
class Raised:
    """One exception of a failure; others of it are given by their numbers.

    `pickled` is None where the exception cannot be pickled; its text and notes then stand for it.
    """

    kind: str
    text: str
    notes: tuple[str, ...]
    pickled: bytes | None
    places: tuple[Place, ...]
    cause: int | None
    context: int | None
    is_context_suppressed: bool
    is_cut: bool  # whether what it was raised from stayed behind, as the chain is too long


@dataclass(frozen=True)
class Failure:
    """An exception that left its process, with all that hangs on it; it is the first of `raised`.

    `note` says which task it was.
    """

    task: str
    note: str | None
    raised: tuple[Raised, ...]


def capture(error: BaseException, task: str, note: str | None = None) -> Failure:
    """A failure that stands for `error`, which the task named `task` raised."""
    found = _Found([error])
    raised = []
    for each in found.errors:  # it grows meanwhile
        pickled = _pickle(each, found)
        cause, context = found.number(each.__cause__), found.number(each.__context__)
        led_to = each.__cause__ if each.__suppress_context__ else each.__context__
        raised.append(
            Raised(
                kind=type(each).__name__,
                text=_text(each),
                notes=_notes(each),
                pickled=pickled,
                places=tracebacks.take(each.__traceback__),
                cause=cause,
                context=context,
                is_context_suppressed=each.__suppress_context__,
                is_cut=led_to is not None and cause is None and context is None,
            )
        )
    return Failure(task, note, tuple(raised))


def encode(failure: Failure) -> bytes:
    """The failure as the bytes of a value."""
    return b"".join(wire.encode(failure))


def decode(data: Buffer) -> BaseException:
    """The exception of an encoded failure, to be raised by the caller."""
    failure = wire.decode(data)
    assert isinstance(failure, Failure)
    return restore(failure)


def restore(failure: Failure) -> BaseException:
    """The exception to raise at the caller, where nothing was raised yet."""
    error = _Restored(failure).all()[0]
    if failure.note is not None:
        _add_note(error, failure.note)
    return error


def _add_note(error: BaseException, note: str) -> None:
    with contextlib.suppress(TypeError):  # the user's __notes__ may be anything
        error.add_note(note)


class _Found:
    """The exceptions of a failure, numbered as they are found."""

    def __init__(self, errors: list[BaseException]) -> None:
        self.errors = errors

    def number(self, error: BaseException | None) -> int | None:
        if error is None:
            return None
        for number, known in enumerate(self.errors):
            if known is error:
                return number
        if len(self.errors) == _CHAIN:
            return None
        self.errors.append(error)
        return len(self.errors) - 1


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Exceptions within another one cross beside it, so that each keeps its traceback."""

    def __init__(self, stream: io.BytesIO, outer: BaseException, found: _Found) -> None:
        super().__init__(stream, protocol=5)
        self._outer = outer
        self._found = found

    def persistent_id(self, obj: Any) -> int | None:
        if isinstance(obj, BaseException) and obj is not self._outer:
            return self._found.number(obj)
        return None


def _pickle(error: BaseException, found: _Found) -> bytes | None:
    stream = io.BytesIO()
    known = len(found.errors)
    try:
        _Pickler(stream, error, found).dump(error)
    except Exception:
        # An exception's own __reduce__ may raise anything, and its fields may be locks.
        del found.errors[known:]
        return None
    return stream.getvalue()


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        # The user's __str__ may raise anything; Python's own traceback says as much.
        return f"<exception {type(error).__name__} whose str() failed>"


def _notes(error: BaseException) -> tuple[str, ...]:
    notes = getattr(error, "__notes__", None)
    return tuple(x for x in notes if isinstance(x, str)) if isinstance(notes, list) else ()


class _Restored:
    """The exceptions of one failure, each made once."""

    def __init__(self, failure: Failure) -> None:
        self._failure = failure
        self._made: dict[int, BaseException] = {}
        self._underway: set[int] = set()

    def all(self) -> Sequence[BaseException]:
        errors = [self.make(number) for number in range(len(self._failure.raised))]
        for error, raised in zip(errors, self._failure.raised, strict=True):
            error.__traceback__ = tracebacks.rebuild(raised.places)
            error.__cause__ = None if raised.cause is None else errors[raised.cause]
            error.__context__ = None if raised.context is None else errors[raised.context]
            error.__suppress_context__ = raised.is_context_suppressed
            if raised.is_cut:
                _add_note(error, f"what led to it is left out, after {_CHAIN} exceptions")
        return errors

    def make(self, number: int) -> BaseException:
        if number not in self._made:
            if number in self._underway:
                raise pickle.UnpicklingError("exceptions that hold one another")
            self._underway.add(number)
            self._made[number] = self._error(number)
        return self._made[number]

    def _error(self, number: int) -> BaseException:
        raised = self._failure.raised[number]
        if raised.pickled is not None:
            try:
                error = _Unpickler(raised.pickled, self).load()
                is_own = number == 0 and not isinstance(error, FsdrayError)
                error = _both(error) if is_own else error
                if isinstance(error, BaseException):
                    return error
            except Exception:
                # Its class may need what only the function had, and may not be made from its
                # own args, or not be combined; the text remains.
                pass
        who = f"{self._failure.task} raised " if number == 0 else ""
        told = TaskError(f"{who}{raised.kind}: {raised.text}")
        for note in raised.notes:
            told.add_note(note)
        return told


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, restored: _Restored) -> None:
        super().__init__(io.BytesIO(data))
        self._restored = restored

    def persistent_load(self, pid: Any) -> BaseException:
        return self._restored.make(pid)


# The user's type and ours in one


def _both(original: BaseException) -> Any:
    """An instance of `TaskError` and of the original's type, with the original's state."""
    kind = type(original)
    # What C keeps beside args and __dict__ (file names, a codec's positions) is in how the
    # built-in type pickles; its own __init__ sets it, without running the user's.
    _, given, *state = _builtin(kind).__reduce__(original)
    return _combined(kind, given, *state)


def _combined(kind: Any, given: tuple[Any, ...], state: Any = None) -> Any:
    builtin, both = _builtin(kind), _combination(kind)
    error = both.__new__(both, *given)
    builtin.__init__(error, *given)
    if state:
        builtin.__setstate__(error, state)
    return error


@lru_cache(maxsize=256)
def _combination(kind: type[Any]) -> Any:
    """A type that is shown as `kind` is: the user knows it by that name."""

    def reduce(self: BaseException) -> Any:
        _, given, *state = _builtin(kind).__reduce__(self)
        return _combined, (kind, given, *state)

    names = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__reduce__": reduce,
    }
    return type(kind.__name__, (kind, TaskError), names)


def _builtin(kind: type[Any]) -> Any:
    return next(base for base in kind.__mro__ if base.__module__ == "builtins")
