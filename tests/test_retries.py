"""What runs again, how often, and what it is told of itself."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fsdray as fsd
from fsdray import exceptions
from fsdray.errors import (
    FunctionCrashed,
    FunctionTimeout,
    OutOfMemory,
    ServiceError,
    SettingsError,
    TaskError,
    Throttled,
)
from fsdray.retries import RetryPolicy

pytestmark = pytest.mark.usefixtures("session")


@given(st.integers(0, 5), st.integers(1, 10))
def test_a_policy_allows_as_many_retries_as_it_says(most: int, attempt: int) -> None:
    policy = RetryPolicy(max_retries=most, retry_exceptions=True)
    crash = FunctionCrashed("gone")
    assert policy.after_platform(crash, attempt) == (attempt <= most)
    assert policy.after_exception(KeyError(), attempt) == (attempt <= most)
    assert RetryPolicy(max_retries=-1).after_platform(crash, attempt)


def test_limits_that_would_be_reached_again_are_not_retried() -> None:
    policy = RetryPolicy(max_retries=-1)
    for error in (OutOfMemory("x"), FunctionTimeout("x"), KeyError("x")):
        assert not policy.after_platform(error, 1)
    for error in (FunctionCrashed("x"), ServiceError("x"), Throttled("x")):
        assert policy.after_platform(error, 1)


def test_only_the_exceptions_that_are_named_are_retried() -> None:
    policy = RetryPolicy(retry_exceptions=[KeyError, OSError])  # type: ignore[arg-type]
    assert policy.after_exception(KeyError(), 1)
    assert policy.after_exception(FileNotFoundError(), 1)
    assert not policy.after_exception(ValueError(), 1)
    assert not RetryPolicy().after_exception(KeyError(), 1)


@fsd.remote
def attempts(notes: str, failures: int, how: str) -> int:
    """Fail the first `failures` times; return the number of this attempt."""
    attempt = fsd.get_runtime_context().attempt
    with Path(notes).open("a") as file:
        file.write(f"{attempt}\n")
    if attempt is not None and attempt <= failures:
        if how == "exit":
            os._exit(3)
        raise ConnectionError("again")
    return attempt or 0


def numbers(notes: Path) -> list[int]:
    return [int(line) for line in notes.read_text().splitlines()]


def test_a_crash_is_retried_three_times_by_default(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    ref = attempts.remote(str(notes), 3, "exit")
    assert fsd.get(ref) == 4
    assert numbers(notes) == [1, 2, 3, 4]
    assert ref.receipt().requests["invoke"] == 4


def test_a_crash_beyond_the_retries_is_an_error_that_says_how_often(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with pytest.raises(FunctionCrashed, match="status 3") as raised:
        fsd.get(attempts.options(max_retries=1).remote(str(notes), 9, "exit"))
    assert numbers(notes) == [1, 2]
    assert "attempt 2" in raised.value.__notes__[0]
    with pytest.raises(exceptions.WorkerCrashedError):
        fsd.get(attempts.options(max_retries=0).remote(str(notes), 9, "exit"))


def test_exceptions_of_the_users_code_are_retried_where_asked(tmp_path: Path) -> None:
    for wanted in (True, [ConnectionError], (OSError,)):
        notes = tmp_path / f"notes-{wanted}"
        ref = attempts.options(retry_exceptions=wanted).remote(str(notes), 2, "raise")
        assert fsd.get(ref) == 3
    notes = tmp_path / "never"
    with pytest.raises(ConnectionError) as raised:
        fsd.get(attempts.options(retry_exceptions=[KeyError]).remote(str(notes), 2, "raise"))
    assert isinstance(raised.value, TaskError)
    assert numbers(notes) == [1]


@pytest.mark.parametrize(
    "options",
    [
        {"max_retries": -2},
        {"max_retries": 1.5},
        {"retry_exceptions": "KeyError"},
        {"retry_exceptions": [3]},
        {"world_size": 2, "max_retries": -2},
        {"world_size": 2, "retry_exceptions": True},
    ],
)
def test_bad_retries_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="retr"):
        attempts.options(**options)


def test_the_context_knows_task_attempt_and_rank() -> None:
    @fsd.remote
    def alone() -> Any:
        return fsd.get_runtime_context()

    context = fsd.get(alone.remote())
    assert (context.task_name, context.attempt, context.rank) == ("alone", 1, None)
    assert context.backend == os.environ.get("FSDRAY_BACKEND", "local")
    assert context.get_task_id() == context.task_id
    ranks = fsd.get(alone.options(world_size=3).remote())
    assert [(c.rank, c.world_size) for c in ranks] == [(0, 3), (1, 3), (2, 3)]
    assert fsd.get_runtime_context().task_id is None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.slow_on_aws
def test_workers_killed_at_random_leave_all_results_right(seed: int) -> None:
    print(f"seed {seed}")

    @fsd.remote(max_retries=-1)
    def mortal(number: int, seed: int) -> tuple[int, int]:
        attempt = fsd.get_runtime_context().attempt or 0
        if random.Random(f"{seed}-{number}-{attempt}").random() < 0.2:
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number, attempt

    refs = [mortal.remote(number, seed) for number in range(100)]
    found = fsd.get(refs, timeout=120)
    assert [square for square, _ in found] == [n * n for n in range(100)]
    asked = [ref.receipt().requests["invoke"] for ref in refs]
    assert asked == [attempt for _, attempt in found], "every attempt is counted"
    assert max(asked) > 1


def test_a_failed_dependency_runs_nothing() -> None:
    @fsd.remote
    def fail() -> None:
        raise ZeroDivisionError("first")

    @fsd.remote
    def dependent(value: Any) -> Any:
        return value

    failed = fail.remote()
    ref = dependent.remote(failed)
    with pytest.raises(ZeroDivisionError):
        fsd.get(ref)
    assert ref.receipt().requests == {}


def test_get_does_not_wait_for_the_others_when_one_has_failed(tmp_path: Path) -> None:
    @fsd.remote
    def wait_for(key: str) -> None:
        fsd.loop.run(fsd.session.current().backend.objects.get(key, wait=60))

    @fsd.remote
    def fail() -> None:
        raise KeyError("soon")

    gate = f"gate-{tmp_path.name}"
    slow = wait_for.remote(gate)
    with pytest.raises(KeyError, match="soon"):
        fsd.get([slow, fail.remote()], timeout=30)
    fsd.loop.run(fsd.session.current().backend.objects.put(gate, b""))
    assert fsd.get(slow) is None


def test_rays_names_are_our_errors() -> None:
    assert exceptions.RayTaskError is TaskError
    assert issubclass(exceptions.GetTimeoutError, TimeoutError)
    assert {name for name in vars(exceptions) if name.endswith("Error")} == set(exceptions.__all__)
