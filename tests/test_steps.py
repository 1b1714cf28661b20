"""First steps: what is over in one, what goes on in a task, and what runs meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from fsdray import loop, steps, turn
from fsdray.errors import FsdrayError

TIME = 20.0  # seconds for what takes some milliseconds
word: ContextVar[str] = ContextVar("word", default="none")


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A new loop, which who waits runs, and which nobody has asked for anything."""
    for name, value in (("_loop", None), ("_turn", None), ("_is_lent", True)):
        monkeypatch.setattr(loop, name, value)
    loop.get()
    yield
    loop.submit(asyncio.sleep(0)).result(TIME)  # what was posted before has been called


async def where() -> tuple[bool, bool]:
    """Whether this is a first step, and whether it is in a task."""
    return steps.is_stepping(), asyncio.current_task() is not None


@pytest.mark.usefixtures("lent")
def test_what_need_not_wait_is_over_without_a_task() -> None:
    assert loop.step(where()) == (True, False)
    assert not steps.is_stepping()
    assert loop.run(where()) == (False, True)


def test_where_the_loop_is_not_lent_it_is_a_task() -> None:
    assert loop.step(where()) == (False, True)


@pytest.mark.usefixtures("lent")
def test_what_has_to_wait_goes_on_in_a_task_in_the_same_context() -> None:
    async def program() -> list[Any]:
        word.set("inside")
        seen: list[Any] = [await where()]
        await asyncio.sleep(0)
        seen.append(await where())
        async with asyncio.timeout(TIME):
            await asyncio.sleep(0.001)
        return [*seen, word.get(), threading.current_thread()]

    assert loop.step(program()) == [
        (True, False),
        (False, True),
        "inside",
        threading.current_thread(),
    ]
    assert word.get() == "none"


@pytest.mark.usefixtures("lent")
def test_a_future_that_it_waits_for_may_be_done_by_others() -> None:
    async def program() -> str:
        waited: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        threading.Timer(
            0.01, loop.get().call_soon_threadsafe, [waited.set_result, "from there"]
        ).start()
        return await waited

    assert loop.step(program()) == "from there"


@pytest.mark.usefixtures("lent")
@pytest.mark.parametrize("is_first", [True, False])
def test_what_it_raises_is_raised(is_first: bool) -> None:
    async def fail() -> None:
        if not is_first:
            await asyncio.sleep(0)
        raise KeyError("here")

    for _ in range(3):
        with pytest.raises(KeyError, match="here"):
            loop.step(fail())
    assert eventually_steps()


@pytest.mark.usefixtures("lent")
def test_a_coroutine_that_is_cancelled_may_still_end_otherwise() -> None:
    ended: list[str] = []

    async def stubborn() -> str:
        try:
            await asyncio.sleep(TIME)
        except asyncio.CancelledError:
            ended.append("cancelled")
            await asyncio.sleep(0)
        return "done all the same"

    async def program() -> str:
        begun = asyncio.ensure_future(asyncio.sleep(0))
        stepped = steps.begun(stubborn())
        await begun
        stepped.cancel()
        return await stepped

    assert loop.step(program()) == "done all the same"
    assert ended == ["cancelled"]


@pytest.mark.usefixtures("lent")
def test_within_a_first_step_others_begin_as_first_steps() -> None:
    async def fail() -> None:
        raise KeyError("there")

    async def program() -> tuple[Any, bool, Any]:
        at_once, failed = steps.begun(where()), steps.begun(fail())
        assert at_once.done()
        assert failed.done()
        with pytest.raises(KeyError, match="there"):
            await failed
        await steps.in_task()
        later = steps.begun(where())
        is_done = later.done()
        return await at_once, is_done, await later

    assert loop.step(program()) == ((True, False), False, (False, True))


@pytest.mark.usefixtures("lent")
def test_on_the_loop_itself_it_is_refused() -> None:
    async def program() -> None:
        loop.step(where())

    for run in (loop.step, loop.run):
        with pytest.raises(FsdrayError, match="would wait on fsdray's own event loop"):
            run(program())


@pytest.mark.usefixtures("lent")
def test_who_takes_one_step_after_the_other_has_the_loop_run_now_and_then() -> None:
    rung = threading.Event()

    async def begin() -> None:
        asyncio.get_running_loop().call_later(0.001, rung.set)

    loop.step(begin())
    end = time.monotonic() + TIME
    while not rung.is_set() and time.monotonic() < end:
        assert loop.step(where()) == (True, False)
    assert rung.is_set()


@pytest.mark.usefixtures("lent")
def test_what_others_ask_of_the_loop_goes_before_first_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A coroutine of many turns ends while another thread calls and calls."""
    monkeypatch.setattr(turn, "OFTEN", TIME)
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            loop.step(where())

    async def turns() -> int:
        count = 0
        for _ in range(300):
            await asyncio.sleep(0)
            count += 1
        return count

    thread = threading.Thread(target=call)
    thread.start()
    try:
        assert loop.submit(turns()).result(TIME) == 300
        assert loop.run(turns()) == 300
    finally:
        stop.set()
        thread.join(TIME)
    assert eventually_steps()


def eventually_steps() -> bool:
    """Whether a lull later calls are first steps again."""
    end = time.monotonic() + TIME
    while loop.step(where()) != (True, False):
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True
