"""How an exception crosses between processes: as a `Failure`, encoded like any value.

Ours cross as they are. The user's own come back as an instance of both `TaskError` and their own
type, with the original and its remote traceback as the cause.
"""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass
from typing import Any

import cloudpickle

from fsdray import wire
from fsdray.errors import FsdrayError, TaskError
from fsdray.services import Buffer


@dataclass(frozen=True)
class Failure:
    """An exception that left its process.

    `pickled` is None where the exception cannot be pickled; its text then stands for it.
    """

    kind: str
    text: str
    task: str
    trace: str
    pickled: bytes | None


class RemoteTraceback(Exception):
    """The traceback of the function, as text; it is the cause of what the caller sees."""

    def __str__(self) -> str:
        return "\n" + str(self.args[0])


def capture(error: BaseException, task: str) -> Failure:
    """A failure that stands for `error`, which the task named `task` raised."""
    own = error.__traceback__.tb_next if error.__traceback__ is not None else None
    trace = "".join(traceback.format_exception(type(error), error, own or error.__traceback__))
    try:
        pickled = cloudpickle.dumps(error, protocol=5)
        pickle.loads(pickled)
    except Exception:
        # An exception's own __reduce__ and __init__ may raise anything; the text remains.
        pickled = None
    return Failure(type(error).__name__, str(error), task, trace, pickled)


def encode(failure: Failure) -> bytes:
    """The failure as the bytes of a value."""
    return b"".join(wire.encode(failure))


def decode(data: Buffer) -> BaseException:
    """The exception of an encoded failure, to be raised by the caller."""
    failure = wire.decode(data)
    assert isinstance(failure, Failure)
    return restore(failure)


def restore(failure: Failure) -> BaseException:
    """The exception to raise at the caller."""
    cause = RemoteTraceback(failure.trace)
    original = None
    if failure.pickled is not None:
        try:
            original = pickle.loads(failure.pickled)
        except Exception:
            # Its class may need what only the function had; the text remains.
            original = None
    if original is None:
        error: BaseException = TaskError(f"{failure.task} raised {failure.kind}: {failure.text}")
    elif isinstance(original, FsdrayError):
        error = original
        if error.__cause__ is not None:
            return error  # a RankFailed says more by its own cause
    else:
        error = _both(original, failure)
    error.__cause__ = cause
    return error


def _both(original: BaseException, failure: Failure) -> BaseException:
    """An instance of `TaskError` and of the original's type, with the original's state."""
    kind = type(original)
    builtin: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    try:
        both: Any = type(f"TaskError({kind.__name__})", (kind, TaskError), {})
        # What C keeps beside args and __dict__ (file names, a codec's positions) is in how the
        # built-in type pickles; its own __init__ sets it, without running the user's.
        _, given, *state = builtin.__reduce__(original)
        error: BaseException = both.__new__(both, *given)
        builtin.__init__(error, *given)
        if state:
            builtin.__setstate__(error, state[0])
    except TypeError:
        # A type that cannot be combined, or that cannot be made from its own args.
        return TaskError(f"{failure.task} raised {failure.kind}: {failure.text}")
    return error
