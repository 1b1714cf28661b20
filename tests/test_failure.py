"""Errors that cross between processes keep their type, their fields and where they came from."""

from __future__ import annotations

import copy
import errno
import json
import pickle
import subprocess
import threading
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

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

E = TypeVar("E", bound=BaseException)


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


def raised_by(error: E) -> E:
    def user_code() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        user_code()
    return caught.value


def frames(error: BaseException) -> list[tuple[str, str | None]]:
    """The function and source line of each frame of its traceback."""
    return [(frame.name, frame.line) for frame in traceback.extract_tb(error.__traceback__)]


def shown(error: BaseException) -> str:
    """What Python prints of it."""
    return "".join(traceback.format_exception(error))


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


def test_the_traceback_goes_through_the_remote_frames() -> None:
    got = crossed(KeyError("x"))
    assert frames(got)[-1] == ("user_code", "raise error")
    assert got.__cause__ is None
    assert shown(got).rstrip().endswith("KeyError: 'x'")


def test_the_user_s_own_chain_crosses_with_its_frames() -> None:
    def chained() -> None:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("outer") from inner

    with pytest.raises(ValueError, match="outer") as caught:
        chained()
    got = failure.restore(failure.capture(caught.value, "f"))
    assert type(got.__cause__) is KeyError
    assert frames(got.__cause__) == [("chained", 'raise KeyError("inner")')]
    assert "direct cause of the following" in shown(got)


def test_a_context_crosses_and_stays_hidden_where_the_user_hid_it() -> None:
    def in_handler(hide: bool) -> None:
        try:
            raise KeyError("first")
        except KeyError:
            if hide:
                raise ValueError("second") from None
            raise ValueError("second")  # noqa: B904  # the context is what is tested

    for hide in (True, False):
        with pytest.raises(ValueError, match="second") as caught:
            in_handler(hide)
        got = failure.restore(failure.capture(caught.value, "f"))
        assert type(got.__context__) is KeyError
        assert frames(got.__context__) == [("in_handler", 'raise KeyError("first")')]
        assert ("KeyError: 'first'" in shown(got)) is not hide


def test_the_members_of_a_group_keep_their_frames_causes_and_notes() -> None:
    def member() -> None:
        error = SealedError()
        error.add_note("a note of the member")
        raise error from OSError("why")

    with pytest.raises(SealedError) as sealed:
        member()
    got = crossed(ExceptionGroup("two", [raised_by(KeyError("a")), sealed.value]))
    assert isinstance(got, ExceptionGroup)
    assert isinstance(got, TaskError)
    first, second = got.exceptions
    assert type(first) is KeyError
    assert frames(first)[-1] == ("user_code", "raise error")
    assert type(second) is TaskError
    assert str(second) == "SealedError: sealed"
    assert frames(second)[-1] == ("member", 'raise error from OSError("why")')
    assert isinstance(second.__cause__, OSError)
    assert second.__notes__ == ["a note of the member"]
    assert frames(got)[-1][0] == "user_code"


def test_an_error_held_in_a_field_keeps_its_frames() -> None:
    outer = ValueError("outer")
    outer.inner = raised_by(KeyError("inner"))  # type: ignore[attr-defined]
    inner = vars(crossed(outer))["inner"]
    assert type(inner) is KeyError
    assert frames(inner)[-1] == ("user_code", "raise error")


def test_errors_that_hold_one_another_cross() -> None:
    one, other = ValueError("one"), KeyError("other")
    one.held, other.held = other, one  # type: ignore[attr-defined]
    one.__context__, other.__context__ = other, one
    got = crossed(one)
    assert isinstance(got, ValueError)
    assert isinstance(got.__context__, TaskError)
    assert got.__context__.__context__ is got


def test_a_chain_without_end_is_cut_and_says_so() -> None:
    error = last = ValueError(0)
    for number in range(1, 10_000):
        last.__context__ = ValueError(number)
        last = last.__context__
    got: BaseException | None = crossed(error)
    count = 0
    while got is not None:
        count, end, got = count + 1, got, got.__context__
    assert count == 50
    assert end.__notes__ == ["what led to it is left out, after 50 exceptions"]


def test_an_error_that_cannot_even_be_shown_crosses() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

        def __reduce__(self) -> Any:
            raise RuntimeError("no")

    got = crossed(Mute(), "square")
    assert str(got) == "square raised Mute: <exception Mute whose str() failed>"
    assert frames(got)[-1] == ("user_code", "raise error")


def test_notes_that_are_no_list_do_not_hide_the_error() -> None:
    error = ValueError("x")
    error.__notes__ = 3  # type: ignore[assignment]
    got = failure.restore(failure.capture(error, "f", "in task f"))
    assert isinstance(got, ValueError)
    assert got.args == ("x",)


def test_which_task_it_was_is_a_note_after_the_user_s_own() -> None:
    error = ValueError("x")
    error.add_note("in layer 3")
    inner = failure.restore(failure.capture(error, "inner", "in task inner"))
    outer = failure.restore(failure.capture(inner, "outer", "in task outer"))
    assert outer.__notes__ == ["in layer 3", "in task inner", "in task outer"]
    assert error.__notes__ == ["in layer 3"]


def test_the_error_is_shown_under_the_user_s_name_for_it() -> None:
    got = crossed(KeyError("x"))
    assert repr(got) == "KeyError('x')"
    assert traceback.format_exception_only(got) == ["KeyError: 'x'\n"]
    own = crossed(OwnError(3, hint="try again"))
    assert traceback.format_exception_only(own) == [f"{__name__}.OwnError: code 3: try again\n"]


@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))],
    ids=["copied", "deeply", "pickled"],
)
@pytest.mark.parametrize(
    "error",
    [
        KeyError("key"),
        ShownError(1, 9),
        OwnError(3, hint="try again"),
        FileNotFoundError(errno.ENOENT, "No such file", "name.txt"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        ExceptionGroup("two", [KeyError("a"), ValueError("b")]),
        SealedError(),
        RankFailed([3], FunctionCrashed("signal 9", ["the end"])),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_restored_can_be_copied_and_pickled(
    error: BaseException, again: Callable[[BaseException], BaseException]
) -> None:
    got = crossed(error)
    other = again(got)
    assert type(other) is type(got)
    assert str(other) == str(got)
    assert repr(other) == repr(got)
    assert vars(other).keys() == vars(got).keys()


def test_local_variables_do_not_travel() -> None:
    def careless() -> None:
        password = "".join(reversed("drowssap ym"))
        raise ValueError(len(password))

    with pytest.raises(ValueError, match="11") as caught:
        careless()
    assert b"my password" not in failure.encode(failure.capture(caught.value, "f"))


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
    assert frames(got)[-1] == ("user_code", "raise error")


def test_the_cause_of_a_failed_rank_keeps_its_frames() -> None:
    got = crossed(RankFailed([1], crossed(KeyError("x"))))
    assert isinstance(got, RankFailed)
    assert isinstance(got.cause, KeyError)
    assert got.cause is got.__cause__
    assert frames(got.cause)[-1] == ("user_code", "raise error")


def test_an_error_crosses_twice_as_well_as_once() -> None:
    got = crossed(crossed(KeyError("deep")), "outer")
    assert isinstance(got, KeyError)
    assert isinstance(got, TaskError)
    assert got.args == ("deep",)
    assert [name for name, _ in frames(got)].count("user_code") == 2


def test_what_is_restored_can_be_raised_and_caught_as_the_user_s_type() -> None:
    with pytest.raises(KeyError, match="x"):
        raise crossed(KeyError("x"))
    with pytest.raises(TaskError):
        raise crossed(KeyError("x"))
