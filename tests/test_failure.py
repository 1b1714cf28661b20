"""Errors that cross between processes keep their type, their fields and where they came from."""

from __future__ import annotations

import errno
import json
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest

from fsdray import failure
from fsdray.errors import (
    CollectiveTimeout,
    EnvironmentMismatch,
    FsdrayError,
    FunctionCrashed,
    FunctionTimeout,
    GetTimeout,
    ObjectLost,
    OutOfMemory,
    PlatformError,
    RankFailed,
    ServiceError,
    SettingsError,
    TaskError,
)


class OwnError(Exception):
    """As users write them: other arguments than those that Exception is given."""

    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"code {code}: {hint}")
        self.code = code
        self.hint = hint

    def __reduce__(self) -> Any:
        return _own_error, (self.code, self.hint)


def _own_error(code: int, hint: str) -> OwnError:
    return OwnError(code, hint=hint)


class CarelessError(Exception):
    """The same without __reduce__: it pickles, and cannot be unpickled."""

    def __init__(self, code: int, hint: str) -> None:
        super().__init__(f"code {code}: {hint}")


class ShownError(ValueError):
    """With a text and fields of its own."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        super().__init__(low, high)

    def __str__(self) -> str:
        return f"not between {self.low} and {self.high}"


class SealedError(Exception):
    """It can only be made with what cannot travel."""

    def __init__(self) -> None:
        super().__init__("sealed")
        self.lock = threading.Lock()


def raised_by(error: BaseException) -> BaseException:
    def user_code() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        user_code()
    return caught.value


def crossed(error: BaseException, task: str = "square") -> BaseException:
    """The error as the caller sees it, once it went through bytes."""
    return failure.decode(failure.encode(failure.capture(raised_by(error), task)))


@pytest.mark.parametrize(
    "error",
    [
        KeyError("key"),
        ValueError("a", 2),
        ZeroDivisionError("division by zero"),
        AssertionError(),
        StopIteration(7),
        KeyboardInterrupt(),
        MemoryError("none left"),
        NotImplementedError(),
        RecursionError("deep"),
        TimeoutError("late"),
        ShownError(1, 9),
        OwnError(3, hint="try again"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        ImportError("no such thing", name="thing", path="somewhere"),
        json.JSONDecodeError("bad", "{", 1),
        subprocess.CalledProcessError(3, ["false"], b"out", b"err"),
        OSError(errno.ENOSPC, "No space left on device"),
        FileNotFoundError(errno.ENOENT, "No such file", "name.txt"),
        FileExistsError(errno.EEXIST, "File exists", "one", None, "two"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_user_s_error_keeps_its_type_text_and_arguments(error: BaseException) -> None:
    text, arguments = str(error), error.args
    got = crossed(error)
    assert isinstance(got, type(error))
    assert isinstance(got, TaskError)
    assert str(got) == text
    assert got.args == arguments


def test_an_os_error_keeps_its_number_and_file() -> None:
    got = crossed(FileNotFoundError(errno.ENOENT, "No such file", "name.txt"))
    assert isinstance(got, FileNotFoundError)
    assert (got.errno, got.strerror, got.filename) == (errno.ENOENT, "No such file", "name.txt")


def test_a_unicode_error_keeps_its_fields() -> None:
    got = crossed(UnicodeDecodeError("utf-8", b"a\xff", 1, 2, "invalid start byte"))
    assert isinstance(got, UnicodeDecodeError)
    assert (got.encoding, got.object, got.start, got.end) == ("utf-8", b"a\xff", 1, 2)


def test_an_import_error_keeps_the_module_s_name() -> None:
    got = crossed(ImportError("no such thing", name="thing", path="somewhere"))
    assert isinstance(got, ImportError)
    assert (got.name, got.path) == ("thing", "somewhere")


def test_an_own_error_keeps_its_fields() -> None:
    got = crossed(OwnError(3, hint="try again"))
    assert isinstance(got, OwnError)
    assert (got.code, got.hint) == (3, "try again")


def test_fields_set_after_the_making_are_kept() -> None:
    error = KeyError("x")
    error.extra = [1, 2]  # type: ignore[attr-defined]
    assert vars(crossed(error))["extra"] == [1, 2]


def test_notes_are_kept() -> None:
    error = ValueError("x")
    error.add_note("in layer 3")
    assert crossed(error).__notes__ == ["in layer 3"]


def test_a_group_of_errors_can_be_caught_by_its_parts() -> None:
    got = crossed(ExceptionGroup("two", [KeyError("a"), ValueError("b")]))
    assert isinstance(got, ExceptionGroup)
    assert [type(each) for each in got.exceptions] == [KeyError, ValueError]


@pytest.mark.parametrize("error", [SealedError(), CarelessError(1, "x")])
def test_an_error_that_cannot_travel_arrives_as_text(error: Exception) -> None:
    got = crossed(error, "square")
    assert type(got) is TaskError
    assert str(got) == f"square raised {type(error).__name__}: {error}"


def test_an_error_of_a_class_within_a_function_keeps_its_name() -> None:
    class Local(Exception):
        pass

    got = crossed(Local("here"))
    assert isinstance(got, TaskError)
    assert "Local" in type(got).__name__
    assert str(got) == "here"


def test_the_cause_shows_the_remote_frames_with_their_source() -> None:
    cause = crossed(KeyError("x")).__cause__
    assert isinstance(cause, failure.RemoteTraceback)
    assert "in user_code" in str(cause)
    assert "raise error" in str(cause)
    assert str(cause).rstrip().endswith("KeyError: 'x'")


def test_the_user_s_own_chain_is_in_the_remote_traceback() -> None:
    def chained() -> None:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("outer") from inner

    with pytest.raises(ValueError, match="outer") as caught:
        chained()
    got = failure.restore(failure.capture(caught.value, "f"))
    assert "KeyError: 'inner'" in str(got.__cause__)


@pytest.mark.parametrize(
    "make",
    [FunctionCrashed, OutOfMemory, FunctionTimeout, ServiceError, PlatformError],
)
def test_a_platform_error_crosses_as_it_is_with_its_log(make: Callable[..., PlatformError]) -> None:
    got = crossed(make("it died", ["first", "last"]))
    assert type(got) is make
    assert isinstance(got, PlatformError)
    assert (got.message, got.log) == ("it died", ("first", "last"))
    assert str(got) == "it died\nIts last log lines:\n  | first\n  | last"


@pytest.mark.parametrize(
    "error",
    [
        GetTimeout("late"),
        ObjectLost("gone"),
        CollectiveTimeout("rank 3 was missing"),
        EnvironmentMismatch("3.11 and 3.12"),
        SettingsError("memory=0"),
    ],
)
def test_our_errors_cross_as_they_are(error: FsdrayError) -> None:
    got = crossed(error)
    assert type(got) is type(error)
    assert str(got) == str(error)
    assert not isinstance(got, TaskError)


def test_a_failed_rank_keeps_the_ranks_and_the_cause() -> None:
    got = crossed(RankFailed([3, 5], FunctionCrashed("signal 9", ["the end"])))
    assert isinstance(got, RankFailed)
    assert got.ranks == [3, 5]
    assert isinstance(got.cause, FunctionCrashed)
    assert got.cause.log == ("the end",)
    assert got.__cause__ is got.cause
    assert str(got).startswith("ranks [3, 5] failed: FunctionCrashed: signal 9")


def test_a_failed_rank_without_a_cause_shows_where_it_was_raised() -> None:
    got = crossed(RankFailed([1]))
    assert isinstance(got, RankFailed)
    assert (got.ranks, got.cause) == ([1], None)
    assert str(got) == "rank 1 failed"
    assert isinstance(got.__cause__, failure.RemoteTraceback)


def test_an_error_crosses_twice_as_well_as_once() -> None:
    got = crossed(crossed(KeyError("deep")), "outer")
    assert isinstance(got, KeyError)
    assert isinstance(got, TaskError)
    assert got.args == ("deep",)


def test_what_is_restored_can_be_raised_and_caught_as_the_user_s_type() -> None:
    with pytest.raises(KeyError, match="x"):
        raise crossed(KeyError("x"))
    with pytest.raises(TaskError):
        raise crossed(KeyError("x"))
