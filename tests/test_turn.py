"""Who runs a loop that is lent: who waits, or a thread of its own, and never two."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fsdray import loop, turn
from fsdray.errors import FsdrayError
from fsdray.promise import Promise, wait

TIME = 20.0  # seconds for what takes some milliseconds


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A new loop, which who waits runs."""
    for name, value in (("_loop", None), ("_turn", None), ("_is_lent", True)):
        monkeypatch.setattr(loop, name, value)
    yield
    loop.post(lambda: None)
    loop.submit(thread()).result(TIME)  # what was posted before has been called


@pytest.fixture
def slow_to_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's own thread goes on only where it is called."""
    monkeypatch.setattr(turn, "LULL", TIME)


async def thread() -> threading.Thread:
    await asyncio.sleep(0)
    return threading.current_thread()


def eventually(happens: Callable[[], bool]) -> bool:
    end = time.monotonic() + TIME
    while not happens() and time.monotonic() < end:
        time.sleep(0.001)
    return happens()


@pytest.mark.usefixtures("lent")
def test_who_waits_runs_the_loop_and_in_between_a_thread_of_its_own_does() -> None:
    for _ in range(3):
        assert loop.run(thread()) is threading.current_thread()
        assert loop.submit(thread()).result(TIME).name == "fsdray-loop"


def test_a_loop_that_is_not_lent_is_run_by_its_own_thread() -> None:
    assert loop.run(thread()).name == "fsdray-loop"


@pytest.mark.usefixtures("lent")
def test_what_was_begun_goes_on_after_a_lull() -> None:
    over: list[threading.Thread] = []

    async def begin() -> None:
        async def later() -> None:
            await asyncio.sleep(0.005)
            over.append(await thread())

        begun.append(asyncio.create_task(later()))

    begun: list[asyncio.Task[None]] = []
    loop.run(begin())
    assert eventually(lambda: bool(over))
    assert over[0].name == "fsdray-loop"


@pytest.mark.usefixtures("lent", "slow_to_return")
@pytest.mark.parametrize("how", ["go_on", "post", "submit", "wait"])
def test_who_waits_elsewhere_has_it_go_on_at_once(how: str) -> None:
    over = threading.Event()

    async def begin() -> None:
        asyncio.get_running_loop().call_later(0.001, over.set)

    loop.run(begin())
    if how == "go_on":
        loop.go_on()
    elif how == "post":
        loop.post(lambda: None)
    elif how == "submit":
        loop.submit(begin())
    else:
        promise: Promise[None] = Promise()
        loop.get().call_soon_threadsafe(promise.set_result, None)
        assert wait([promise], 1, TIME)
    assert over.wait(TIME)


@pytest.mark.usefixtures("lent", "slow_to_return")
def test_of_two_who_wait_the_second_is_served_when_the_first_has_left() -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    results: dict[int, threading.Thread] = {}

    async def passed(number: int) -> threading.Thread:
        await gates[number].wait()
        return await thread()

    def rank(number: int) -> None:
        results[number] = loop.run(passed(number))

    threads = [threading.Thread(target=rank, args=(number,), name=str(number)) for number in (0, 1)]
    for each in threads:
        each.start()
        time.sleep(0.05)
    loop.get().call_soon_threadsafe(gates[0].set)
    threads[0].join(TIME)
    assert results[0].name == "0"
    loop.get().call_soon_threadsafe(gates[1].set)
    threads[1].join(TIME)
    assert results[1].name == "fsdray-loop"


@pytest.mark.usefixtures("lent")
def test_many_threads_that_come_and_go_are_all_served() -> None:
    served: list[int] = []

    async def work(number: int) -> int:
        await asyncio.sleep(0.0001 * (number % 7))
        return number

    def rank(number: int) -> None:
        for i in range(50):
            served.append(loop.run(work(number * 50 + i)))
            if i % 10 == number:
                time.sleep(0.03)  # a lull

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(TIME)
    assert sorted(served) == list(range(300))


@pytest.mark.usefixtures("lent")
def test_errors_and_interrupts_leave_the_loop_to_others() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("here")

    cancelled: list[bool] = []

    async def interrupted() -> None:
        try:
            asyncio.get_running_loop().call_later(0.01, interrupt)
            await asyncio.sleep(TIME)
        finally:
            cancelled.append(True)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyError, match="here"):
        loop.run(fail())
    with pytest.raises(KeyboardInterrupt):
        loop.run(interrupted())
    assert loop.run(thread()) is threading.current_thread()
    assert eventually(lambda: cancelled == [True])


@pytest.mark.usefixtures("lent")
def test_on_a_thread_with_a_loop_of_its_own_the_other_thread_runs_ours() -> None:
    async def user() -> threading.Thread:
        return loop.run(thread())

    assert asyncio.run(user()).name == "fsdray-loop"


@pytest.mark.usefixtures("lent")
def test_who_would_wait_for_itself_is_told() -> None:
    async def inside() -> None:
        loop.run(thread())

    with pytest.raises(FsdrayError, match="await instead"):
        loop.run(inside())


@pytest.mark.usefixtures("lent")
def test_a_long_wait_is_within_what_was_given_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Meanwhile:
        def __enter__(self) -> None:
            said.append("in")

        def __exit__(self, *_: object) -> None:
            said.append("out")

    monkeypatch.setattr(loop, "_meanwhile", Meanwhile)
    assert loop.run(thread()) is threading.current_thread()
    assert said == []

    async def long() -> threading.Thread:
        await asyncio.sleep(0.2)
        return await thread()

    assert loop.run(long()) is threading.current_thread()
    assert said == ["in", "out"]


@pytest.mark.usefixtures("lent")
def test_while_one_waits_for_long_the_other_thread_sleeps_until_that_leaves() -> None:
    over: list[str] = []

    async def long() -> None:
        await asyncio.sleep(0.3)
        asyncio.get_running_loop().call_later(0.005, over.append, "later")

    for _ in range(2):
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
        began = time.process_time()
        loop.run(long())
        assert time.process_time() - began < 0.05
        assert resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - switches < 20
        assert eventually(lambda: over == ["later"])
        over.clear()


def test_who_waits_changes_no_threads() -> None:
    """A worker's waits are its main thread's; it sleeps, and the other thread is not woken."""
    program = """
import asyncio, os, resource
from fsdray import loop
async def turns():
    for _ in range(10):
        await asyncio.sleep(0)
loop.lend()
loop.run(turns())
before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
for _ in range(2000):
    loop.run(turns())
print(resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before, flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout) < 500
