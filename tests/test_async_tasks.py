"""`async def` tasks: they run to their end in the worker, and await refs there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import fsdray as fsd
from fsdray import coroutines
from fsdray.errors import FunctionCrashed, FunctionTimeout, TaskCancelled, TaskError
from tests.conftest import two_at_a_time

pytestmark = pytest.mark.usefixtures("session")


@fsd.remote
def add(left: Any, right: Any = 1) -> Any:
    return left + right


@fsd.remote
async def add_async(left: Any, right: Any = 1) -> Any:
    await asyncio.sleep(0)
    return left + right


@fsd.remote
def wait_for(gate: str) -> str:
    fsd.loop.run(fsd.session.current().backend.objects.get(gate, wait=60))
    return gate


def open_gate(gate: str) -> None:
    fsd.loop.run(fsd.session.current().backend.objects.put(gate, b""))


def test_an_async_function_is_a_task_like_any() -> None:
    assert fsd.get(add_async.remote(1, right=2)) == 3
    assert fsd.get(add_async.remote(add_async.remote(1), add.remote(1))) == 4
    one, two = add_async.options(num_returns=2).remote((1,), (2,))
    assert fsd.get([one, two]) == [1, 2]
    assert fsd.get(add_async.options(world_size=2).remote(1)) == [2, 2]


def test_it_runs_on_the_main_thread_and_not_on_our_loop() -> None:
    @fsd.remote
    async def where() -> tuple[bool, bool]:
        is_main = threading.current_thread() is threading.main_thread()
        return is_main, asyncio.get_running_loop() is fsd.loop.get()

    assert fsd.get(where.remote()) == (True, False)


def test_refs_are_awaited_alone_and_together() -> None:
    @fsd.remote
    async def total(refs: list[Any]) -> int:
        own = await asyncio.gather(*(add.remote(number) for number in range(10)))
        return sum(own) + await refs[0] + fsd.get(add.remote(1, 1))

    assert fsd.get(total.remote([fsd.put(100)])) == 55 + 100 + 2


def test_an_async_callable_and_a_lambda_are_run_too() -> None:
    assert fsd.get(fsd.remote(lambda: add_async.__wrapped__(1)).remote()) == 2


def test_map_takes_async_functions() -> None:
    assert list(add_async.map(range(20))) == list(range(1, 21))
    assert list(add_async.starmap([(1, 2), (3, 4)])) == [3, 7]


def test_an_exception_has_the_users_frames_alone() -> None:
    async def inner() -> None:
        await asyncio.sleep(0)
        raise KeyError("inside")

    @fsd.remote
    async def fail() -> None:
        await inner()

    with pytest.raises(KeyError, match="inside") as raised:
        fsd.get(fail.remote())
    assert isinstance(raised.value, TaskError)
    assert [entry.name for entry in raised.traceback][-2:] == ["fail", "inner"]
    modules = [entry.frame.f_globals.get("__name__", "") for entry in raised.traceback]
    assert not [name for name in modules if "asyncio" in name or name == "fsdray.coroutines"]


def test_causes_of_an_exception_stay() -> None:
    @fsd.remote
    async def fail() -> None:
        try:
            await add.remote("text")
        except TypeError as error:
            raise ValueError("outer") from error

    with pytest.raises(ValueError, match="outer") as raised:
        fsd.get(fail.remote())
    assert isinstance(raised.value.__cause__, TypeError)


def test_what_led_to_an_exception_stays_where_nothing_was_said_of_it() -> None:
    def again() -> None:
        raise ValueError("outer")

    @fsd.remote
    async def fail() -> None:
        try:
            await add.remote("text")
        except TypeError:
            again()

    with pytest.raises(ValueError, match="outer") as raised:
        fsd.get(fail.remote())
    assert isinstance(raised.value.__context__, TypeError)
    assert not raised.value.__suppress_context__


def test_what_is_left_running_is_cancelled_at_the_end(tmp_path: Path) -> None:
    @fsd.remote
    async def leave(note: str) -> None:
        async def linger() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                write()

        def write() -> None:
            Path(note).write_text("cancelled")

        lingering = asyncio.create_task(linger())
        await asyncio.sleep(0)
        assert not lingering.done()

    note = tmp_path / "note"
    fsd.get(leave.remote(str(note)))
    assert note.read_text() == "cancelled"


def test_a_time_limit_and_cancel_stop_it() -> None:
    @fsd.remote
    async def linger() -> None:
        await asyncio.Event().wait()

    with pytest.raises(FunctionTimeout):
        fsd.get(linger.options(timeout=0.5).remote())
    ref = linger.remote()
    fsd.cancel(ref)
    with pytest.raises(TaskCancelled):
        fsd.get(ref)


def test_an_exit_is_a_crash_and_its_own_cancellation_an_error() -> None:
    @fsd.remote(max_retries=0)
    async def leave() -> None:
        raise SystemExit(4)

    @fsd.remote
    async def give_up() -> None:
        raise asyncio.CancelledError("by itself")

    with pytest.raises(FunctionCrashed, match="status 4"):
        fsd.get(leave.remote())
    with pytest.raises(asyncio.CancelledError) as raised:
        fsd.get(give_up.remote())
    assert isinstance(raised.value, TaskError)
    assert fsd.get(add_async.remote(1)) == 2


@pytest.mark.slow_on_aws
def test_nested_awaits_do_not_deadlock_with_room_for_two() -> None:
    @fsd.remote
    async def deep(depth: int) -> int:
        if depth == 0:
            return 0
        return 1 + max(await asyncio.gather(*(deep.remote(depth - 1) for _ in range(2))))

    @fsd.remote
    def deep_in_loops_of_its_own(depth: int) -> int:
        async def below() -> int:
            refs = [deep_in_loops_of_its_own.remote(depth - 1) for _ in range(2)]
            return 1 + max(await asyncio.gather(*refs))

        return asyncio.run(below()) if depth else 0

    @fsd.remote
    async def deep_in_threads(depth: int) -> int:
        if depth == 0:
            return 0
        refs = [deep_in_threads.remote(depth - 1) for _ in range(2)]
        found = await asyncio.gather(*(asyncio.to_thread(fsd.get, ref) for ref in refs))
        return 1 + max(found)

    with two_at_a_time():
        for function in (deep, deep_in_loops_of_its_own, deep_in_threads):
            assert fsd.get(function.remote(4), timeout=120) == 4


def test_two_waits_of_one_task_give_its_room_until_both_are_over(tmp_path: Path) -> None:
    gate = f"gate-{tmp_path.name}"

    @fsd.remote
    def wait_twice(gate: str, others: list[Any]) -> Any:
        short, long = add.remote(1), wait_for.remote(gate)
        thread = threading.Thread(target=fsd.get, args=(short,))
        thread.start()
        # When the thread's wait is over, this one still is not.
        found = fsd.get(long)
        thread.join()
        return found

    with two_at_a_time():
        ref = wait_twice.remote(gate, [])
        # One slot is that of `wait_for`; the other must be free all the time.
        for number in range(5):
            assert fsd.get(add.remote(number), timeout=60) == number + 1
        open_gate(gate)
        assert fsd.get(ref, timeout=60) == gate


class Waits:
    """A session that notes when its concurrency is given back."""

    def __init__(self, is_busy: bool) -> None:
        self.is_busy = is_busy
        self.given_back = 0
        self.is_given_back = False

    def is_waiting(self) -> bool:
        return self.is_busy

    @contextmanager
    def yielded(self) -> Iterator[None]:
        self.given_back += 1
        self.is_given_back = True
        yield
        self.is_given_back = False


def test_a_loop_gives_concurrency_back_only_while_it_sleeps() -> None:
    waits = Waits(is_busy=True)

    async def compute(turns: int) -> bool:
        for _ in range(turns):
            await asyncio.sleep(0)
            assert not waits.is_given_back
        return True

    async def sleep_beside() -> bool:
        sleeping = asyncio.create_task(asyncio.sleep(3600))
        await compute(100)
        sleeping.cancel()
        return coroutines.gives_back()

    assert coroutines.run(waits, compute(100))
    assert coroutines.run(waits, sleep_beside())
    assert waits.given_back == 0, "one of its coroutines could always go on"
    coroutines.run(waits, asyncio.sleep(0.01))
    assert waits.given_back == 1
    nobody = Waits(is_busy=False)
    coroutines.run(nobody, asyncio.sleep(0.01))
    assert nobody.given_back == 0, "it waits for nobody's call"
