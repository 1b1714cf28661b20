"""What becomes of exceptions, of processes that end, and when a task runs again."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import pytest

from tests.semantics.differs import differs


class Told(Exception):
    """An exception with a field of its own."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@pytest.fixture
def fail(ray: Any) -> Any:
    @ray.remote
    def fail(error):
        raise error

    return fail


@pytest.fixture
def plus(ray: Any) -> Any:
    @ray.remote
    def plus(x, more=1):
        return x + more

    return plus


def test_a_tasks_exception_is_of_its_own_type_and_the_task_error(ray: Any, fail: Any) -> None:
    for error in (
        KeyError("k"),
        ValueError("v"),
        OSError(2, "gone"),
        ExceptionGroup("g", [KeyError()]),
    ):
        with pytest.raises(type(error)) as raised:
            ray.get(fail.remote(error))
        assert isinstance(raised.value, ray.exceptions.RayTaskError)
        assert isinstance(raised.value, ray.exceptions.RayError)
        assert type(raised.value.cause) is type(error) or raised.value.cause is raised.value
        assert isinstance(raised.value.as_instanceof_cause(), type(error))


def test_a_users_own_type_can_be_caught_with_its_fields(ray: Any) -> None:
    @ray.remote
    def tell():
        raise Told(7)

    with pytest.raises(Told) as raised:
        ray.get(tell.remote())
    assert raised.value.cause.code == 7


whole = differs(
    "What is raised is the task's exception itself, under its own type's name, with its `args` "
    "and fields, and a real traceback through the remote frames: `error.cause` is the error "
    "itself. Ray raises a `RayTaskError(KeyError)` whose text holds the traceback and whose "
    "`cause` is the original."
)


@whole.in_ray
def test_ray_wraps_the_exception(ray: Any, fail: Any) -> None:
    with pytest.raises(KeyError) as raised:
        ray.get(fail.remote(KeyError("k")))
    assert type(raised.value).__name__ == "RayTaskError(KeyError)"
    assert raised.value.cause.args == ("k",)
    assert "Traceback" in str(raised.value) or "in fail" in str(raised.value)


@whole.here
def test_the_exception_is_whole(ray: Any, fail: Any) -> None:
    with pytest.raises(KeyError) as raised:
        ray.get(fail.remote(KeyError("k")))
    assert type(raised.value).__name__ == "KeyError"
    assert raised.value.args == ("k",)
    assert str(raised.traceback[-1].statement).strip() == "raise error"
    assert raised.value.cause is raised.value
    with pytest.raises(FileNotFoundError) as missing:
        ray.get(fail.remote(FileNotFoundError(2, "gone", "there")))
    assert (missing.value.errno, missing.value.filename) == (2, "there")


def test_an_exception_that_cannot_be_pickled_arrives_as_text(ray: Any) -> None:
    @ray.remote
    def strange():
        error = Told("still told")
        error.lock = threading.Lock()
        raise error

    with pytest.raises(ray.exceptions.RayTaskError, match="still told"):
        ray.get(strange.remote())


unloadable = differs(
    "An exception that can be pickled but not unpickled (its `__init__` takes other arguments "
    "than its `args`) is a `RayTaskError` that tells its type and text, not an "
    "`UnserializableException`."
)


class Odd(Exception):
    """Its `args` do not fit its constructor."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def _odd(ray: Any) -> Any:
    @ray.remote
    def odd():
        raise Odd(1, 2)

    return odd


@unloadable.in_ray
def test_an_exception_that_cannot_be_unpickled_is_another_one(ray: Any) -> None:
    with pytest.raises(ray.exceptions.UnserializableException):
        ray.get(_odd(ray).remote())


@unloadable.here
def test_an_exception_that_cannot_be_unpickled_arrives_as_text(ray: Any) -> None:
    with pytest.raises(ray.exceptions.RayTaskError, match="Odd: 1 and 2"):
        ray.get(_odd(ray).remote())


interrupts = differs(
    "A `KeyboardInterrupt` that a task raises itself arrives as one (it is a `RayTaskError` too, "
    "so `except Exception` catches it). Ray takes it for a cancellation."
)


@interrupts.in_ray
def test_an_interrupt_of_a_task_is_a_cancellation(ray: Any, fail: Any) -> None:
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(fail.remote(KeyboardInterrupt()))


@interrupts.here
def test_an_interrupt_of_a_task_arrives_as_what_it_is(ray: Any, fail: Any) -> None:
    with pytest.raises(ray.exceptions.RayTaskError) as raised:
        ray.get(fail.remote(KeyboardInterrupt()))
    assert isinstance(raised.value, KeyboardInterrupt)


def test_a_failed_dependency_is_the_dependents_failure(ray: Any, fail: Any, plus: Any) -> None:
    bad = fail.remote(ZeroDivisionError("first"))
    for ref in (plus.remote(bad), plus.remote(plus.remote(bad)), plus.remote(1, more=bad)):
        with pytest.raises(ZeroDivisionError) as raised:
            ray.get(ref)
        assert isinstance(raised.value, ray.exceptions.RayTaskError)
        assert "first" in str(raised.value)


def test_a_dependent_of_a_failure_does_not_run(ray: Any, fail: Any, tally: Any) -> None:
    @ray.remote
    def note(tally, _):
        tally.add()

    with pytest.raises(KeyError):
        ray.get(note.remote(tally, fail.remote(KeyError("x"))))
    assert tally.count == 0


def test_a_task_can_catch_what_its_own_task_raised(ray: Any, fail: Any) -> None:
    @ray.remote
    def careful():
        try:
            ray.get(fail.remote(KeyError("inner")))
        except KeyError as error:
            return isinstance(error, ray.exceptions.RayTaskError)
        return None

    @ray.remote
    def careless():
        return ray.get(fail.remote(KeyError("inner")))

    assert ray.get(careful.remote()) is True
    with pytest.raises(KeyError):
        ray.get(careless.remote())


def _end(how: str) -> None:
    if how == "os._exit":
        os._exit(1)
    if how == "os._exit(0)":
        os._exit(0)
    if how == "kill":
        os.kill(os.getpid(), 9)
    sys.exit(0 if how == "sys.exit(0)" else "text")


@pytest.mark.parametrize("how", ["os._exit", "os._exit(0)", "kill", "sys.exit(0)", "sys.exit"])
def test_a_process_that_ends_is_a_crash_that_is_tried_again(ray: Any, tally: Any, how: str) -> None:
    @ray.remote(max_retries=1)
    def end(tally):
        tally.add()
        _end(how)

    with pytest.raises(ray.exceptions.WorkerCrashedError) as raised:
        ray.get(end.remote(tally))
    assert tally.count == 2
    assert not isinstance(raised.value, ray.exceptions.RayTaskError)
    assert isinstance(raised.value, ray.exceptions.RayError)


def test_a_crash_is_tried_again_three_times_unless_said_otherwise(ray: Any, tally: Any) -> None:
    @ray.remote
    def end(tally):
        tally.add()
        os._exit(1)

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(end.remote(tally))
    assert tally.count == 4
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(end.options(max_retries=0).remote(tally))
    assert tally.count == 5


def test_a_task_that_crashes_at_first_gives_its_value_in_the_end(ray: Any, tally: Any) -> None:
    @ray.remote(max_retries=-1)
    def third_time(tally):
        if tally.add() < 6:
            os._exit(1)
        return "there"

    assert ray.get(third_time.remote(tally)) == "there"
    assert tally.count == 6


def test_a_dependent_of_a_crash_fails_with_it(ray: Any, plus: Any) -> None:
    @ray.remote(max_retries=0)
    def end():
        os._exit(1)

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(plus.remote(end.remote()))


@pytest.mark.parametrize(
    ("options", "attempts"),
    [
        ({}, 1),
        ({"max_retries": 5}, 1),
        ({"retry_exceptions": True}, 4),
        ({"retry_exceptions": True, "max_retries": 1}, 2),
        ({"retry_exceptions": True, "max_retries": 0}, 1),
        ({"retry_exceptions": [ZeroDivisionError], "max_retries": 1}, 2),
        ({"retry_exceptions": [ArithmeticError, KeyError], "max_retries": 1}, 2),
        ({"retry_exceptions": (ArithmeticError,), "max_retries": 1}, 2),
        ({"retry_exceptions": [KeyError], "max_retries": 1}, 1),
        ({"retry_exceptions": [], "max_retries": 1}, 1),
        ({"retry_exceptions": False, "max_retries": 1}, 1),
    ],
    ids=str,
)
def test_exceptions_are_tried_again_as_retry_exceptions_says(
    ray: Any, tally: Any, options: dict[str, Any], attempts: int
) -> None:
    @ray.remote
    def divide(tally):
        tally.add()
        return 1 / 0

    if options:
        divide = divide.options(**options)
    with pytest.raises(ZeroDivisionError):
        ray.get(divide.remote(tally))
    assert tally.count == attempts


def test_an_exception_that_passes_gives_the_value(ray: Any, tally: Any) -> None:
    @ray.remote(max_retries=3, retry_exceptions=True)
    def unsteady(tally):
        if tally.add() < 3:
            raise ConnectionError("not yet")
        return "there"

    assert ray.get(unsteady.remote(tally)) == "there"


deaths = differs(
    "A task has a time limit (`timeout`, 900 seconds unless said otherwise) and its own memory "
    "limit. What used up either is not tried again, whatever `max_retries` says: it would do so "
    "again, and be billed again. Ray has no time limit, kills for memory when the machine is "
    "full, and tries again."
)


@deaths.in_ray
def test_there_is_no_time_limit(ray: Any, plus: Any) -> None:
    with pytest.raises(ValueError, match="timeout"):
        plus.options(timeout=1)


@deaths.here
def test_a_task_that_used_up_its_time_or_memory_is_not_tried_again(ray: Any, tally: Any) -> None:
    @ray.remote
    def greedy(tally):
        tally.add()
        hoard = []
        while True:
            hoard.append(bytearray(os.urandom(1)) * (1 << 24))

    @ray.remote
    def endless(tally):
        tally.add()
        while True:
            pass

    with pytest.raises(ray.exceptions.OutOfMemoryError):
        ray.get(greedy.options(memory=256, max_retries=3).remote(tally))
    assert tally.count == 1
    with pytest.raises(ray.exceptions.RaySystemError, match="timeout"):
        ray.get(endless.options(timeout=1, max_retries=3).remote(tally))
    assert tally.count == 2


def test_rays_names_of_errors_form_its_tree(ray: Any) -> None:
    errors = ray.exceptions
    for name in (
        "GetTimeoutError", "LocalRayletDiedError", "NodeDiedError", "ObjectFetchTimedOutError",
        "ObjectFreedError", "ObjectLostError", "ObjectReconstructionFailedError",
        "ObjectStoreFullError", "OutOfDiskError", "OutOfMemoryError", "OwnerDiedError",
        "RaySystemError", "RayTaskError", "RpcError", "RuntimeEnvSetupError",
        "TaskCancelledError", "TaskUnschedulableError", "WorkerCrashedError",
    ):  # fmt: skip
        assert issubclass(getattr(errors, name), errors.RayError), name
    for name in (
        "ObjectFetchTimedOutError", "ObjectFreedError", "ObjectReconstructionFailedError",
        "OwnerDiedError",
    ):  # fmt: skip
        assert issubclass(getattr(errors, name), errors.ObjectLostError), name
    assert issubclass(errors.RayError, Exception)
    assert issubclass(errors.GetTimeoutError, TimeoutError)
    assert not issubclass(errors.TaskCancelledError, errors.RayTaskError)
