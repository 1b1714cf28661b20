"""Tasks: what a user does with @remote, get, put and wait."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

import fsdray as fsd
from fsdray.errors import (
    FunctionCrashed,
    FunctionTimeout,
    GetTimeout,
    OutOfMemory,
    PlatformError,
    ServiceError,
    SettingsError,
    TaskError,
)
from tests import on_aws

pytestmark = pytest.mark.usefixtures("session")


@fsd.remote
def add(left: Any, right: Any = 1) -> Any:
    return left + right


@fsd.remote
def fail(error: BaseException) -> None:
    raise error


def test_a_task_returns_its_value() -> None:
    assert fsd.get(add.remote(2, right=3)) == 5
    assert fsd.get([add.remote(n) for n in range(50)]) == list(range(1, 51))
    assert fsd.get([]) == []


def test_tasks_run_in_other_processes_and_reuse_them() -> None:
    @fsd.remote
    def pid() -> int:
        return os.getpid()

    pids = [fsd.get(pid.remote()) for _ in range(10)]
    assert os.getpid() not in pids
    assert len(set(pids)) == 1, "a warm worker is used again"


def test_tasks_that_wait_run_beside_one_another() -> None:
    @fsd.remote
    def meet(key: str, others: int) -> int:
        # Every task writes that it is here and waits for all: only if all run can one end.
        here = fsd.session.current().backend.objects
        fsd.loop.run(here.put(f"{key}/{os.getpid()}", b""))
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if len(fsd.loop.run(here.list(key))) == others:
                return others
            time.sleep(0.02)  # others need the cores
        return 0

    assert fsd.get([meet.remote("meeting", 6) for _ in range(6)], timeout=30) == [6] * 6


def test_closures_lambdas_and_globals_travel() -> None:
    offset = np.arange(3)
    remote = fsd.remote(lambda x, scale=2: x * scale + offset)
    assert fsd.get(remote.remote(10)).tolist() == [20, 21, 22]

    @fsd.remote
    def fib(n: int) -> int:
        return n if n < 2 else sum(fsd.get([fib.remote(n - 1), fib.remote(n - 2)]))

    assert fsd.get(fib.remote(6), timeout=60) == 8


def test_refs_as_arguments_are_values_and_nested_refs_stay_refs() -> None:
    seven = add.remote(3, 4)
    assert fsd.get(add.remote(seven, right=seven)) == 14

    @fsd.remote
    def kind(direct: Any, nested: list[Any]) -> tuple[str, str, int]:
        return type(direct).__name__, type(nested[0]).__name__, fsd.get(nested[0])

    assert fsd.get(kind.remote(seven, [seven])) == ("int", "ObjectRef", 7)


def test_refs_in_results_can_be_got_by_the_caller() -> None:
    @fsd.remote
    def outer() -> dict[str, Any]:
        return {"child": add.remote(20, 22), "put": fsd.put(np.ones(100_000))}

    refs = fsd.get(outer.remote())
    assert fsd.get(refs["child"]) == 42
    assert fsd.get(refs["put"]).sum() == 100_000
    assert fsd.get(add.remote(refs["child"], refs["child"])) == 84


def test_a_ref_that_went_through_a_task_is_the_same_ref() -> None:
    ref = fsd.put("value")
    back = fsd.get(fsd.remote(lambda box: box).remote([ref]))[0]
    assert back == ref
    assert hash(back) == hash(ref)
    assert fsd.get(back) == "value"


def test_nested_waits_do_not_deadlock_at_any_depth() -> None:
    fsd.shutdown()
    fsd.init(concurrency=2)

    @fsd.remote
    def deep(depth: int) -> int:
        return 0 if depth == 0 else 1 + max(fsd.get([deep.remote(depth - 1) for _ in range(2)]))

    assert fsd.get(deep.remote(4), timeout=60) == 4


def test_arrays_are_read_only_views_and_arguments_too() -> None:
    array = np.random.default_rng(0).random(1_000_000)
    ref = fsd.put(array)
    one, other = fsd.get(ref), fsd.get(ref)
    assert (one == array).all()
    assert not one.flags.writeable
    assert np.shares_memory(one, other), "both are views of one mapping"

    @fsd.remote
    def look(given: Any) -> tuple[bool, float]:
        return bool(given.flags.writeable), float(given.sum())

    assert fsd.get(look.remote(ref)) == (False, array.sum())
    assert fsd.get(look.remote(array)) == (False, array.sum())


def test_what_is_put_or_passed_may_be_changed_at_once() -> None:
    array = np.zeros(500_000)
    ref, task = fsd.put(array), add.remote(array, 0)
    array += 1
    assert fsd.get(ref).sum() == 0
    assert fsd.get(task).sum() == 0


def test_values_go_when_nobody_refers_to_them() -> None:
    objects = fsd.session.current().backend.objects
    ref = fsd.put(np.zeros(100_000))
    key = f"values/{ref.id}"
    assert key in fsd.loop.run(objects.list("values/"))
    del ref
    fsd.loop.run(fsd.session.current().flush())
    assert key not in fsd.loop.run(objects.list("values/"))


def test_num_returns_gives_as_many_refs() -> None:
    @fsd.remote(num_returns=3)
    def three() -> tuple[int, int, int]:
        return 1, 2, 3

    assert fsd.get(list(three.remote())) == [1, 2, 3]
    assert three.options(num_returns=0).remote() is None
    short = three.options(num_returns=2).remote()
    with pytest.raises(ValueError, match="num_returns=2, but returned 3 values"):
        fsd.get(short[0])


def test_an_exception_keeps_its_type_and_shows_the_remote_lines() -> None:
    with pytest.raises(KeyError) as raised:
        fsd.get(fail.remote(KeyError("lost")))
    assert isinstance(raised.value, TaskError)
    assert raised.value.args == ("lost",)
    assert str(raised.traceback[-1].statement).strip() == "raise error"
    with pytest.raises(FileNotFoundError) as missing:
        fsd.get(fail.remote(FileNotFoundError(2, "gone", "there")))
    assert (missing.value.errno, missing.value.filename) == (2, "there")


def test_a_failed_dependency_fails_its_dependents_with_its_own_error() -> None:
    with pytest.raises(ZeroDivisionError):
        fsd.get(add.remote(add.remote(fail.remote(ZeroDivisionError("first"))), 1))


def test_an_exception_that_cannot_be_pickled_arrives_as_text() -> None:
    @fsd.remote
    def strange() -> None:
        class Strange(Exception):
            def __reduce__(self) -> Any:
                raise RuntimeError("no")

        raise Strange("still told")

    with pytest.raises(TaskError, match="strange raised Strange: still told"):
        fsd.get(strange.remote())


def test_the_three_deaths_are_three_errors_with_the_last_lines() -> None:
    @fsd.remote(memory=256)
    def die(how: str) -> None:
        print(f"dying by {how}")
        if how == "exit":
            os._exit(5)
        if how == "memory":
            hoard = [np.ones(1 << 22) for _ in range(40)]
            print(len(hoard))
        while True:
            time.sleep(0.01)

    for how, error, says in (
        ("exit", FunctionCrashed, "status 5"),
        ("memory", OutOfMemory, "memory=MB"),
        ("time", FunctionTimeout, "timeout=SECONDS"),
    ):
        with pytest.raises(error, match=says) as raised:
            fsd.get(die.options(timeout=3 if how == "time" else 60).remote(how))
        assert isinstance(raised.value, PlatformError)
        assert f"dying by {how}" in raised.value.log[-2:]  # the platform may have the last word
    assert fsd.get(add.remote(1)) == 2


def test_get_reaches_its_timeout_and_the_task_goes_on() -> None:
    gate = f"gate-{time.monotonic_ns()}"

    @fsd.remote
    def wait_for(key: str) -> str:
        blob = fsd.loop.run(fsd.session.current().backend.objects.get(key, wait=30))
        return bytes(blob.data).decode() if blob is not None else "nothing"

    ref = wait_for.remote(gate)
    with pytest.raises(GetTimeout):
        fsd.get(ref, timeout=0)
    with pytest.raises(TimeoutError):
        fsd.get(ref, timeout=0.05)
    fsd.loop.run(fsd.session.current().backend.objects.put(gate, b"open"))
    assert fsd.get(ref) == "open"


def test_wait_splits_refs_in_their_order() -> None:
    gate = f"gate-{time.monotonic_ns()}"

    @fsd.remote
    def wait_for(key: str) -> None:
        fsd.loop.run(fsd.session.current().backend.objects.get(key, wait=30))

    slow, one, other = wait_for.remote(gate), add.remote(1), add.remote(2)
    ready, rest = fsd.wait([slow, one, other], num_returns=2)
    assert (ready, rest) == ([one, other], [slow])
    ready, rest = fsd.wait([slow], timeout=0.01)
    assert (ready, rest) == ([], [slow])
    fsd.loop.run(fsd.session.current().backend.objects.put(gate, b""))
    assert fsd.wait([slow]) == ([slow], [])


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: fsd.get(3), ValueError),
        (lambda: fsd.get((fsd.put(1),)), ValueError),
        (lambda: fsd.get([1]), TypeError),
        (lambda: fsd.get(fsd.put(1), timeout=-1), ValueError),
        (lambda: fsd.put(fsd.put(1)), TypeError),
        (lambda: fsd.wait(fsd.put(1)), TypeError),
        (lambda: fsd.wait([fsd.put(1)], num_returns=2), ValueError),
        (lambda: fsd.wait([fsd.put(1)], num_returns=0), ValueError),
        (lambda: fsd.wait([fsd.put(1)], timeout=-1), ValueError),
        (lambda: fsd.wait([ref := fsd.put(1), ref]), ValueError),
        (lambda: add(1), TypeError),
        (lambda: add.remote(), TypeError),
        (lambda: add.remote(1, 2, 3), TypeError),
        (lambda: add.remote(1, nonsense=2), TypeError),
        (lambda: add.options(nonsense=2), ValueError),
        (lambda: add.options(memory=-5), SettingsError),
        (lambda: add.options(memory=1).remote(1), SettingsError),
        (lambda: add.options(timeout=0), SettingsError),
        (lambda: add.options(num_returns=-1), SettingsError),
        (lambda: add.options(world_size=0), SettingsError),
        (lambda: add.options(channel="queue"), SettingsError),
        (lambda: add.options(world_size=2, channel="pigeon"), SettingsError),
        (lambda: add.remote(threading.Lock()), SettingsError),
        (lambda: add.remote(fsd.per_rank([1, 2])), SettingsError),
        (lambda: add.options(world_size=3).remote(fsd.per_rank([1, 2])), SettingsError),
        (lambda: fsd.put(threading.Lock()), SettingsError),
        (lambda: fsd.remote(lambda: threading.Lock)(1), TypeError),
        (lambda: fsd.remote(type("Actor", (), {})), TypeError),
        (lambda: fsd.remote(3), TypeError),
    ],
)
def test_misuse_is_an_error_in_the_caller_and_starts_nothing(call: Any, error: Any) -> None:
    before = fsd.receipt().requests.get("invoke", 0)
    with pytest.raises(error):
        call()
    assert fsd.receipt().requests.get("invoke", 0) == before


def test_rays_options_mean_what_they_can_or_are_refused_with_the_reason() -> None:
    @fsd.remote(num_cpus=2)
    def limit() -> int:
        return fsd.session.current().settings.memory

    assert limit._options.memory == 2 * 1769
    assert limit.options(num_cpus=1).remote() is not None
    assert add.options(num_cpus=4, memory=9000)._options.memory == 9000
    for option, reason in (
        ("num_gpus", "no GPUs"),
        ("resources", "memory=MB"),
        ("scheduling_strategy", "no nodes"),
        ("max_cost", "no estimates"),
    ):
        with pytest.raises(SettingsError, match=reason):
            add.options(**{option: 1})
    with pytest.raises(SettingsError, match="num_cpus"):
        add.options(num_cpus="many")


def test_an_unpicklable_closure_is_named_before_anything_starts() -> None:
    lock = threading.Lock()

    @fsd.remote
    def locked() -> None:
        lock.acquire()

    with pytest.raises(SettingsError, match="locked cannot be pickled"):
        locked.remote()


def test_an_argument_that_cannot_be_pickled_is_named() -> None:
    @fsd.remote
    def several(*args: Any, **kwargs: Any) -> None: ...

    with pytest.raises(TypeError, match=r"argument 2 of several: a value of type lock cannot be"):
        several.remote(1, threading.Lock())
    with pytest.raises(TypeError, match=r"argument given of several: .*generator"):
        several.remote(1, given=[(x for x in range(3))])


def test_a_remote_function_keeps_its_name_docstring_and_wrapped_self() -> None:
    assert add.__name__ == "add"
    assert add.__wrapped__(1, 1) == 2
    assert "add" in repr(add)
    assert add.options(name="plus").__name__ == "add"


def test_a_ref_says_its_tasks_name_and_state() -> None:
    ref = add.options(name="plus").remote(1)
    fsd.wait([ref])
    assert repr(ref) == "ObjectRef(plus, finished)"


def test_a_second_init_is_an_error_and_shutdown_is_not() -> None:
    with pytest.raises(fsd.errors.FsdrayError, match="shutdown"):
        fsd.init()
    assert fsd.is_initialized()


def test_refs_can_be_awaited_and_have_futures() -> None:
    async def main() -> list[int]:
        return list(await asyncio.gather(*[add.remote(n) for n in range(5)]))

    assert asyncio.run(main()) == [1, 2, 3, 4, 5]
    assert add.remote(1).future().result(10) == 2
    with pytest.raises(KeyError):
        fail.remote(KeyError("x")).future().result(10)


@pytest.mark.local_only("on AWS lines name no process")
def test_what_a_task_prints_appears_at_the_caller(tmp_path: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import fsdray as fsd\n"
        "@fsd.remote\n"
        "def speak(n): print('hello', n)\n"
        "fsd.get([speak.remote(n) for n in range(3)])\n"
        "print('the end')\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "the end\n"
    spoken = sorted(line.partition(") ")[2] for line in done.stderr.splitlines())
    assert spoken == ["hello 0", "hello 1", "hello 2"]
    assert re.match(r"\(speak [0-9a-f]{4}-\d+, pid \d+\) hello", done.stderr)


@pytest.mark.local_only("S3 is never full")
def test_a_full_store_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = fsd.session.current().backend.objects

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(objects._files, "write", full)
    with pytest.raises(ServiceError, match="FSDRAY_DIRECTORY"):
        fsd.put(np.zeros(100_000))
    with pytest.raises(ServiceError, match="no space left"):
        add.remote(np.zeros(100_000))
    monkeypatch.undo()
    assert fsd.get(fsd.put(3)) == 3


def test_a_calls_receipt_counts_what_it_asked_for() -> None:
    fsd.get(add.remote(0))  # the first call reads this module's source
    ref = add.remote(1)
    fsd.get(ref)
    assert ref.receipt().requests["invoke"] == 1
    assert set(ref.receipt().requests) == {"invoke", "gb_seconds"}

    @fsd.remote
    def two() -> int:
        return sum(fsd.get([add.remote(1), add.remote(1)]))

    nested = two.remote()
    assert fsd.get(nested) == 4
    assert nested.receipt().requests["invoke"] == 3


def test_a_ref_that_many_tasks_are_given_is_stored_once() -> None:
    def puts() -> float:
        return fsd.receipt().requests.get("put", 0)

    @fsd.remote
    def pick(array: Any, index: int) -> int:
        return int(array[index])

    fsd.get(pick.remote(np.arange(3), 0))  # the first call brings this module's source
    before, array = puts(), np.arange(100_000)
    ref = fsd.put(array)
    assert fsd.get([pick.remote(ref, n) for n in range(100)]) == list(range(100))
    assert puts() - before == 1


def test_a_large_argument_is_stored_once_while_any_task_needs_it() -> None:
    here = fsd.session.current()

    def puts() -> float:
        return fsd.receipt().requests.get("put", 0)

    @fsd.remote
    def pick(index: int, array: Any, *, gate: str, label: str = "") -> tuple[int, str]:
        assert fsd.loop.run(fsd.session.current().backend.objects.get(gate, wait=30)) is not None
        return int(array[index]), label[:1]

    objects = here.backend.objects
    fsd.loop.run(objects.put("gate-0", b""))
    fsd.get(pick.remote(0, np.arange(3), gate="gate-0"))  # brings this module's source
    stored = set(fsd.loop.run(objects.list("")))
    before, array, text = puts(), np.arange(100_000), "t" * 300_000
    refs = [pick.remote(n, array.copy(), gate="gate-1", label=text) for n in range(50)]
    array[7] = -1  # another value from now on
    refs += [pick.remote(n, array, gate="gate-1") for n in range(50)]
    assert puts() - before == 3, "one for each value, however often it was given"
    fsd.loop.run(objects.put("gate-1", b""))
    values = fsd.get(refs)
    assert values[:50] == [(n, "t") for n in range(50)]
    assert values[50:] == [(-1 if n == 7 else n, "") for n in range(50)]
    fsd.loop.run(here.flush())
    left = set(fsd.loop.run(objects.list(""))) - stored
    assert left == {"gate-1"}, "an argument goes with the last call that needs it"
    fsd.loop.run(objects.delete(["gate-0", "gate-1"]))


def test_thousands_of_results_stay_right_and_leave_no_objects() -> None:
    count = on_aws.amount(2000, 200)
    refs = [add.remote(n) for n in range(count)]
    assert fsd.get(refs) == list(range(1, count + 1))
    fsd.loop.run(fsd.session.current().flush())
    keys = fsd.loop.run(fsd.session.current().backend.objects.list("arguments/"))
    assert keys == []


def test_a_dependency_that_fails_is_told_before_the_others_are_there() -> None:
    never = fsd.remote(lambda: threading.Event().wait()).remote()
    with pytest.raises(KeyError, match="early"):
        fsd.get(add.remote(never, fail.remote(KeyError("early"))), timeout=60)
    with pytest.raises(FunctionCrashed):
        fsd.get(add.remote(never, fsd.remote(max_retries=0)(os._exit).remote(3)), timeout=60)
    fsd.cancel(never)
