"""Jobs on the loop: their order, their ends however early, and how many may be under way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdray import loop
from fsdray.loop import Job, Turnstile
from fsdray.promise import Promise


class Ends:
    """What ended, and with what."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, BaseException | None]] = []
        self._more = threading.Semaphore(0)

    def of(
        self, name: Any, also: Callable[[], None] = lambda: None
    ) -> Callable[[Job, BaseException | None], None]:
        def ended(_: Job, error: BaseException | None) -> None:
            self.seen.append((name, error))
            also()
            self._more.release()

        return ended

    def wait(self, count: int) -> list[tuple[Any, BaseException | None]]:
        for _ in range(count):
            assert self._more.acquire(timeout=20)
        return self.seen


async def nothing() -> None:
    pass


async def fail() -> None:
    raise KeyError("here")


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


def test_a_ctrl_c_while_the_loop_is_called_keeps_it_from_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, interrupts = loop.get, [KeyboardInterrupt()]

    def interrupted() -> asyncio.AbstractEventLoop:
        if interrupts:
            raise interrupts.pop()
        return real()

    monkeypatch.setattr(loop, "get", interrupted)
    called: list[str] = []
    over = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        loop.post(called.append, "before")
    loop.post(called.append, "after")
    loop.post(over.set)
    assert over.wait(20)
    assert called == ["before", "after"]


def test_what_is_posted_is_called_in_order_though_from_two_threads() -> None:
    called: list[tuple[int, int]] = []
    over = threading.Event()

    def post(thread: int) -> None:
        for number in range(500):
            loop.post(called.append, (thread, number))

    threads = [threading.Thread(target=post, args=(thread,)) for thread in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loop.post(over.set)
    assert over.wait(20)
    for thread in range(2):
        assert [n for which, n in called if which == thread] == list(range(500))


def test_a_job_tells_what_it_raised_and_keeps_nothing_of_it() -> None:
    ends = Ends()
    for name, work in (("fine", nothing()), ("bad", fail())):
        job = Job(work, ends.of(name))
        job.start()
        ends.wait(1)
        job.cancel()  # it has ended: nothing happens
        assert not any(getattr(job, slot) for slot in Job.__slots__)
    (fine, none), (bad, error) = ends.seen
    assert (fine, none, bad) == ("fine", None, "bad")
    assert isinstance(error, KeyError)


def test_a_job_that_is_cancelled_at_once_or_before_it_begins_ends_all_the_same() -> None:
    ends = Ends()
    at_once = Job(for_ever(), ends.of("at once"))
    at_once.start()
    at_once.cancel()
    before = Job(for_ever(), ends.of("before"))
    before.cancel()
    ends.wait(2)
    before.start()  # too late: it has ended
    loop.run(nothing())
    assert {name for name, _ in ends.seen} == {"at once", "before"}
    assert all(isinstance(error, asyncio.CancelledError) for _, error in ends.seen)


@given(
    places=st.integers(1, 4),
    cancelled=st.lists(st.booleans(), min_size=1, max_size=12),
)
@settings(max_examples=60)
def test_a_turnstile_lets_each_begin_in_turn_and_no_more_than_it_has_places(
    places: int, cancelled: list[bool]
) -> None:
    turnstile = Turnstile(places)
    ends = Ends()
    began: list[int] = []
    running: set[int] = set()
    most = 0
    gates: list[Promise[None]] = [Promise() for _ in cancelled]

    def work(number: int) -> Coroutine[Any, Any, None]:
        async def run() -> None:
            nonlocal most
            began.append(number)
            running.add(number)
            most = max(most, len(running))
            try:
                await gates[number].settled()
            finally:
                running.discard(number)

        return run()

    jobs = [Job(work(n), ends.of(n, turnstile.leave)) for n in range(len(cancelled))]
    for job in jobs:
        turnstile.start(job)
    for number, is_cancelled in enumerate(cancelled):
        if is_cancelled and number >= places:
            jobs[number].cancel()  # before its turn
    for gate in gates:
        gate.set_result(None)
    ends.wait(len(jobs))
    assert began == sorted(began), "they begin in their order"
    kept = [n for n, is_cancelled in enumerate(cancelled) if not (is_cancelled and n >= places)]
    assert set(kept) <= set(began)
    # One that is cancelled before its turn lets the next in, once.
    assert most <= places + sum(cancelled[places:])
    last = Job(nothing(), ends.of("last", turnstile.leave))
    turnstile.start(last)
    ends.wait(1)
    assert turnstile._free == places, "no place is lost"
