"""The virtual loop: asyncio as ever, but time costs nothing and chance has no part in it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from fsdray.backends.simulated.clock import Stalled, VirtualLoop


def run(program: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(program)


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_year_passes_at_once() -> None:
    async def program() -> float:
        await asyncio.sleep(365 * 86400)
        return now()

    assert run(program()) == 365 * 86400


def test_timers_fire_in_order_of_time_and_then_of_setting() -> None:
    async def program() -> list[str]:
        loop, seen = asyncio.get_running_loop(), []
        for name, when in [("c", 2.0), ("a", 1.0), ("d", 2.0), ("b", 1.0), ("e", 2.0)]:
            loop.call_at(when, seen.append, name)
        loop.call_at(1.5, seen.append, "never").cancel()
        loop.call_soon(seen.append, "first")
        await asyncio.sleep(3)
        return seen

    assert run(program()) == ["first", "a", "b", "c", "d", "e"]


def test_waits_timeouts_queues_and_locks_work_unchanged() -> None:
    async def program() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 5)
        assert now() == 5
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(7):
                await asyncio.get_running_loop().create_future()
        assert now() == 12
        queue: asyncio.Queue[int] = asyncio.Queue(1)

        async def produce() -> None:
            for i in range(3):
                await asyncio.sleep(1)
                await queue.put(i)

        async with asyncio.TaskGroup() as group:
            group.create_task(produce())
            assert [await queue.get() for _ in range(3)] == [0, 1, 2]
        assert now() == 15
        done, pending = await asyncio.wait(
            [asyncio.create_task(asyncio.sleep(n, n)) for n in (3, 1, 2)],
            return_when=asyncio.FIRST_COMPLETED,
        )
        assert [task.result() for task in done] == [1]
        assert len(pending) == 2

    run(program())


def test_what_is_left_to_threads_is_called_here_and_takes_no_time() -> None:
    async def program() -> None:
        assert await asyncio.to_thread(threading.get_ident) == threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(divmod, 1, 0)
        assert now() == 0

    run(program())


def test_many_cancelled_timers_are_forgotten() -> None:
    async def program() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        for _ in range(10_000):
            loop.call_later(1000, print).cancel()
        assert len(loop._timers) < 500
        await asyncio.sleep(1)
        assert now() == 1

    run(program())


def test_a_wait_that_nothing_can_end_is_an_error() -> None:
    async def program() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Stalled, match="no timer"):
        run(program())


def test_idle_and_endless_timers_do_not_hide_a_stall() -> None:
    async def program() -> list[float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        stalls: list[float] = []

        def stalled() -> None:
            stalls.append(loop.time())
            loop.expire()

        async def poll() -> None:
            while True:
                woken = loop.create_future()
                loop.call_idle_at(loop.time() + 20, woken.set_result, None)
                await woken

        polling = asyncio.create_task(poll())
        await asyncio.sleep(50)  # while something else goes on, polls end and begin
        loop.on_stall = stalled
        done, _ = await asyncio.wait([polling], timeout=math.inf)
        assert not done
        loop.on_stall = None
        polling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await polling
        return stalls

    assert run(program()) == [50.0]


def test_sets_of_tasks_iterate_in_the_order_in_which_they_were_made() -> None:
    async def program() -> list[int]:
        tasks = [asyncio.create_task(asyncio.sleep(0, i)) for i in range(6)]
        done, _ = await asyncio.wait(set(tasks))
        return [task.result() for task in done]

    assert run(program()) == run(program())
