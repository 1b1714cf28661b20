"""`fsdray.Executor` does what the standard library's executors do."""

from __future__ import annotations

import itertools
import operator
import os
import subprocess
import sys
import threading
from concurrent import futures
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fsdray as fsd
from fsdray.errors import FsdrayError, FunctionCrashed, SettingsError, TaskCancelled, TaskError
from tests import on_aws

pytestmark = pytest.mark.usefixtures("session")

_gates = itertools.count()


def wait_for(key: str) -> str:
    """A call that says that it has begun, and ends when `opened` says so."""
    objects = fsd.session.current().backend.objects
    fsd.loop.run(objects.put(f"{key}-begun", b""))
    blob = fsd.loop.run(objects.get(key, wait=60))
    return bytes(blob.data).decode() if blob is not None else "nothing"


def gate() -> str:
    return f"gate-{next(_gates)}"


def opened(key: str) -> None:
    fsd.loop.run(fsd.session.current().backend.objects.put(key, b"open"))


def begun(key: str) -> None:
    objects = fsd.session.current().backend.objects
    assert fsd.loop.run(objects.get(f"{key}-begun", wait=60)) is not None


def add(left: Any, right: Any = 1) -> Any:
    return left + right


def fail(error: BaseException) -> None:
    raise error


def test_a_submitted_call_runs_elsewhere_and_its_future_has_the_value() -> None:
    with fsd.Executor() as executor:
        assert executor.submit(os.getpid).result() != os.getpid()
        assert executor.submit(add, 1, right=2).result(timeout=30) == 3
        assert executor.submit(int, "12", base=3).result() == 5, "classes are callables"
        assert executor.submit(lambda x: x * 2, 21).result() == 42
        assert executor.submit(max, [3, 1]).result() == 3, "and so are built-in functions"
        assert executor.submit([1, 2].count, 2).result() == 1


def test_arguments_may_have_any_name_and_refs_are_given_as_values() -> None:
    def names(**kwargs: Any) -> list[str]:
        return sorted(kwargs)

    with fsd.Executor() as executor:
        given = dict.fromkeys(("fn", "function", "self", "name"), 0)
        assert executor.submit(names, **given).result() == sorted(given)
        assert executor.submit(add, fsd.put(3), right=fsd.put(4)).result() == 7


def test_an_exception_keeps_the_users_type() -> None:
    with fsd.Executor() as executor:
        future = executor.submit(fail, KeyError("lost"))
        error = future.exception(timeout=30)
        assert isinstance(error, KeyError)
        assert isinstance(error, TaskError)
        assert error.args == ("lost",)
        with pytest.raises(TypeError, match="argument"):
            executor.submit(add).result()


def test_what_cannot_be_pickled_is_the_futures_exception() -> None:
    with fsd.Executor() as executor:
        assert isinstance(executor.submit(add, threading.Lock()).exception(), SettingsError)
        assert isinstance(executor.submit(threading.Lock().acquire).exception(), SettingsError)
        assert executor.submit(add, 1).result() == 2, "and the executor goes on"


def test_a_process_that_dies_fails_its_own_call_and_no_other() -> None:
    with fsd.Executor() as executor:
        dies, lives = executor.submit(os._exit, 3), executor.submit(add, 1)
        assert isinstance(dies.exception(), FunctionCrashed)
        assert lives.result() == 2


def test_at_most_max_workers_calls_are_under_way() -> None:
    keys = [gate(), gate(), gate()]
    with fsd.Executor(max_workers=2) as executor:
        one, two, three = [executor.submit(wait_for, key) for key in keys]
        opened(keys[0])
        assert one.result() == "open"
        opened(keys[2])
        assert three.result() == "open", "the third took the place of the first"
        assert two.running()
        opened(keys[1])


def test_a_call_that_waits_for_its_turn_can_be_cancelled_and_a_running_one_cannot() -> None:
    key = gate()
    with fsd.Executor(max_workers=1) as executor:
        running, second, third = [executor.submit(wait_for, key) for _ in range(3)]
        begun(key)
        assert second.cancel()
        assert second.cancelled()
        assert not running.cancel()
        opened(key)
        assert futures.wait([running, second, third], timeout=30).not_done == set()
        with pytest.raises(futures.CancelledError):
            second.result()
        assert third.result() == "open"


def test_shutdown_refuses_new_calls_and_waits_for_old_ones() -> None:
    executor = fsd.Executor()
    future = executor.submit(add, 1)
    executor.shutdown()
    assert future.done()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(add, 1)
    executor.shutdown()


def test_shutdown_can_cancel_what_waits() -> None:
    key = gate()
    executor = fsd.Executor(max_workers=1)
    running = executor.submit(wait_for, key)
    begun(key)
    waiting = [executor.submit(add, n) for n in range(5)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert futures.wait(waiting, timeout=30).not_done == set()
    assert all(future.cancelled() for future in waiting)
    opened(key)
    assert running.result() == "open"


def test_abandon_ends_every_wait_at_once() -> None:
    key = gate()
    executor = fsd.Executor(max_workers=1)
    running, waiting = executor.submit(wait_for, key), executor.submit(add, 1)
    begun(key)
    executor.abandon()
    assert isinstance(running.exception(timeout=0), TaskCancelled)
    assert waiting.cancelled()
    executor.shutdown()
    opened(key)


def test_a_ctrl_c_in_the_block_waits_for_nothing() -> None:
    key = gate()
    calls: list[futures.Future[Any]] = []

    def interrupted() -> None:
        with fsd.Executor(max_workers=1) as executor:
            calls.extend(executor.submit(wait_for, key) for _ in range(2))
            begun(key)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert isinstance(calls[0].exception(timeout=0), TaskCancelled)
    assert calls[1].cancelled()
    opened(key)


@pytest.mark.parametrize(
    "options",
    [
        {"max_workers": 0},
        {"max_workers": -1},
        {"max_workers": 1.5},
        {"max_workers": True},
        {"memory": 0},
        {"memory": "much"},
        {"timeout": 0},
        {"name": 3},
    ],
)
def test_options_are_checked_when_the_executor_is_made(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))) as raised:
        fsd.Executor(**options)
    assert isinstance(raised.value, SettingsError)


def test_options_are_those_of_its_calls() -> None:
    with fsd.Executor(memory=256, timeout=0.2, name="hasty") as executor:
        error = executor.submit(wait_for, gate()).exception()
        assert isinstance(error, fsd.errors.FunctionTimeout)
        assert "hasty ran longer than its timeout of 0.2 s" in str(error)
    with fsd.Executor(memory=1) as executor:
        assert isinstance(executor.submit(add, 1).exception(), SettingsError)


def test_as_completed_gives_futures_as_they_end() -> None:
    key = gate()
    with fsd.Executor() as executor:
        slow, fast = executor.submit(wait_for, key), executor.submit(add, 1)
        ended = futures.as_completed([slow, fast], timeout=30)
        assert next(ended) is fast
        opened(key)
        assert next(ended) is slow


def test_a_callback_may_submit_and_get() -> None:
    # Callbacks are user code, which never runs on the loop: there, this would deadlock.
    seen: list[Any] = []
    with fsd.Executor() as executor:
        follow = threading.Event()

        def callback(future: futures.Future[Any]) -> None:
            seen.append(fsd.get(fsd.put(future.result())))
            seen.append(executor.submit(add, 10))
            follow.set()

        executor.submit(add, 1).add_done_callback(callback)
        assert follow.wait(30)
    assert seen[0] == 2
    assert seen[1].result() == 11


def test_many_calls_end_right() -> None:
    with fsd.Executor(max_workers=4) as executor:
        count = on_aws.amount(500, 100)
        pending = [executor.submit(add, n) for n in range(count)]
        assert [future.result() for future in pending] == list(range(1, count + 1))


@settings(max_examples=20)
@given(
    left=st.lists(st.integers(), max_size=30),
    right=st.lists(st.integers(), max_size=30),
    chunksize=st.integers(1, 40),
)
def test_map_is_the_built_in_map(left: list[int], right: list[int], chunksize: int) -> None:
    with fsd.Executor() as executor:
        got = list(executor.map(operator.sub, left, right, chunksize=chunksize))
    assert got == list(map(operator.sub, left, right))


def test_map_raises_where_an_item_did_and_the_values_before_it_are_given() -> None:
    with fsd.Executor() as executor:
        values = executor.map(operator.truediv, [1, 2, 3], [1, 0, 1])
        assert next(values) == 1
        with pytest.raises(ZeroDivisionError):
            next(values)
        with pytest.raises(ValueError, match="chunksize"):
            executor.map(add, [1], chunksize=0)


def test_map_reaches_its_timeout_and_cancels_what_waits() -> None:
    key = gate()
    with fsd.Executor(max_workers=1) as executor:
        with pytest.raises(TimeoutError):
            list(executor.map(wait_for, [key, key], timeout=0.05))
        opened(key)


def test_an_executor_inside_a_task_gives_its_place_to_its_calls() -> None:
    fsd.shutdown()
    fsd.init(concurrency=1)

    @fsd.remote
    def outer() -> list[int]:
        with fsd.Executor() as executor:
            return [*executor.map(add, range(5)), executor.submit(add, 41).result()]

    assert fsd.get(outer.remote(), timeout=60) == [1, 2, 3, 4, 5, 42]


def test_calls_of_a_session_that_was_shut_down_fail_and_start_no_other() -> None:
    executor = fsd.Executor(max_workers=1)
    key = gate()
    running, waiting = executor.submit(wait_for, key), executor.submit(add, 1)
    begun(key)
    fsd.shutdown()
    assert isinstance(running.exception(timeout=30), FsdrayError)
    assert isinstance(waiting.exception(timeout=30), FsdrayError)
    assert not fsd.is_initialized()
    assert executor.submit(add, 1).result() == 2, "a new call starts a new session"
    executor.shutdown()


def test_a_program_that_ends_waits_for_its_calls(tmp_path: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import fsdray as fsd\n"
        "def double(n): return 2 * n\n"
        "def told(future): print(future.result(), flush=True)\n"
        "executor = fsd.Executor(max_workers=1)\n"
        "for n in range(3):\n"
        "    executor.submit(double, n).add_done_callback(told)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["0", "2", "4"]
    assert done.stderr == ""
