"""Promises: set once, told once, to any number of threads and coroutines."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import pytest

from fsdray import loop, promise
from fsdray.promise import Promise


def test_what_is_asked_for_before_and_after_is_called_once_each() -> None:
    made: Promise[int] = Promise()
    seen: list[int] = []
    made.when_done(lambda it: seen.append(it.result()))
    assert not made.done()
    made.set_result(7)
    made.when_done(lambda it: seen.append(it.result() + 1))
    assert seen == [7, 8]
    assert made.exception() is None


def test_callbacks_that_two_threads_race_for_are_called_once() -> None:
    for _ in range(200):
        assert race(5) == [0, 1, 2, 3, 4]


def race(count: int) -> list[int]:
    made: Promise[None] = Promise()
    calls: list[int] = []
    together = threading.Barrier(2)

    def ask() -> None:
        together.wait()
        for number in range(count):
            made.when_done(partial(lambda n, _: calls.append(n), number))

    thread = threading.Thread(target=ask)
    thread.start()
    together.wait()
    made.set_result(None)
    thread.join()
    return sorted(calls)


def test_a_callback_that_is_forgotten_is_not_called() -> None:
    made: Promise[None] = Promise()
    calls: list[object] = []
    made.when_done(calls.append)
    made.forget(calls.append)
    made.forget(calls.append)
    made.set_result(None)
    assert calls == []


def test_an_error_is_raised_where_the_value_is_asked_for() -> None:
    made: Promise[int] = Promise()
    made.set_exception(KeyError("k"))
    with pytest.raises(KeyError):
        made.result()
    with pytest.raises(KeyError):
        loop.run(made.there())
    loop.run(made.settled())  # that it is there is no error


def test_coroutines_wait_and_may_be_cancelled() -> None:
    async def run() -> int:
        impatient = asyncio.create_task(made.there())
        patient = asyncio.create_task(made.there())
        await asyncio.sleep(0)
        impatient.cancel()
        threading.Thread(target=made.set_result, args=(3,)).start()
        value = await patient
        assert impatient.cancelled()
        return value

    made: Promise[int] = Promise()
    assert loop.run(run()) == 3


def test_a_wait_ends_with_enough_of_them_or_with_one_that_ends_it() -> None:
    made: list[Promise[int]] = [Promise() for _ in range(4)]
    assert not promise.wait(made, 1, 0)
    made[2].set_result(-1)
    assert promise.wait(made, 1, 0)
    assert not promise.wait(made, 2, 0)
    assert promise.wait(made, 4, 0, ends=lambda each: each.result() < 0)
    threading.Thread(target=lambda: [each.set_result(0) for each in (made[0], made[1])]).start()
    assert promise.wait(made, 3, 20)


def test_waiting_again_and_again_leaves_nothing_with_what_is_not_there() -> None:
    made: Promise[int] = Promise()
    for _ in range(100):
        assert not promise.wait([made], 1, 0)
    assert made._callbacks == []
