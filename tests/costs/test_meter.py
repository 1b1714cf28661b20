from __future__ import annotations

import asyncio
import threading
from contextvars import copy_context

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdray.costs import meter as module
from fsdray.costs.meter import Meter, ambient, count, metering, set_outermost


@pytest.fixture(autouse=True)
def _no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the meter that an earlier test's session may have left."""
    monkeypatch.setattr(module, "_outermost", None)


def test_a_meter_adds_up_by_name() -> None:
    meter = Meter()
    meter.add("put")
    meter.add("put", 2)
    meter.add("gb_seconds", 0.5)
    assert meter.counts() == {"gb_seconds": 0.5, "put": 3}


def test_what_a_meter_gives_is_a_copy() -> None:
    meter = Meter()
    meter.add("put")
    meter.counts()["put"] = 100
    assert meter.counts() == {"put": 1}


def test_outside_of_any_block_requests_are_dropped() -> None:
    assert ambient() is None
    count("put")


def test_an_inner_block_counts_for_the_outer_ones_too() -> None:
    with metering() as session:
        count("invoke")
        with metering() as call:
            count("put", 2)
            with metering() as part:
                count("put")
        count("get")
    assert part.counts() == {"put": 1}
    assert call.counts() == {"put": 3}
    assert session.counts() == {"get": 1, "invoke": 1, "put": 3}


def test_a_block_can_be_given_its_meter() -> None:
    mine = Meter()
    with metering() as around, metering(mine) as inner:
        assert inner is mine
        count("put")
    assert mine.counts() == {"put": 1}
    assert around.counts() == {}


def test_an_error_closes_the_block() -> None:
    with pytest.raises(KeyError), metering():
        raise KeyError
    assert ambient() is None


def test_what_a_worker_counted_is_merged_all_the_way_up() -> None:
    session = Meter()
    call = Meter(session)
    call.merge({"put": 2, "gb_seconds": 0.25})
    call.merge({"put": 1})
    assert call.counts() == session.counts() == {"gb_seconds": 0.25, "put": 3}


def test_concurrent_tasks_count_each_for_itself() -> None:
    async def call(puts: int) -> dict[str, float]:
        with metering() as meter:
            for _ in range(puts):
                count("put")
                await asyncio.sleep(0)
        return meter.counts()

    async def session() -> tuple[list[dict[str, float]], dict[str, float]]:
        with metering() as meter:
            calls = await asyncio.gather(*(call(puts) for puts in range(1, 6)))
        return calls, meter.counts()

    calls, total = asyncio.run(session())
    assert calls == [{"put": puts} for puts in range(1, 6)]
    assert total == {"put": 15}


def test_a_task_goes_on_counting_for_the_block_that_started_it() -> None:
    async def late(closed: asyncio.Event) -> None:
        await closed.wait()
        count("put")

    async def main() -> dict[str, float]:
        closed = asyncio.Event()
        with metering() as meter:
            task = asyncio.create_task(late(closed))
        closed.set()
        await task
        return meter.counts()

    assert asyncio.run(main()) == {"put": 1}


def test_a_session_counts_what_is_outside_of_every_block_and_inside_too() -> None:
    session = Meter()
    set_outermost(session)
    count("put")
    with metering() as call:
        count("get")
    assert call.counts() == {"get": 1}
    assert session.counts() == {"get": 1, "put": 1}


def test_threads_that_inherit_nothing_count_for_the_session() -> None:
    session = Meter()
    set_outermost(session)
    thread = threading.Thread(target=count, args=("put",))
    thread.start()
    thread.join()
    assert session.counts() == {"put": 1}


@given(st.lists(st.integers(1, 200), min_size=2, max_size=4))
def test_no_count_is_lost_between_threads(amounts: list[int]) -> None:
    start = threading.Barrier(len(amounts))

    def work(amount: int) -> None:
        start.wait()
        for _ in range(amount):
            count("put")

    with metering() as meter:
        threads = [
            threading.Thread(target=copy_context().run, args=(work, amount)) for amount in amounts
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert meter.counts() == {"put": sum(amounts)}
