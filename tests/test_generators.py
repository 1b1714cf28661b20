"""Generator functions: refs that stream while the function runs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pickle
import random
import select
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fsdray as fsd
from fsdray import promise
from fsdray.errors import (
    FunctionCrashed,
    FunctionTimeout,
    GetTimeout,
    SettingsError,
    TaskCancelled,
    TaskError,
)
from tests import on_aws
from tests.conftest import clean_session, two_at_a_time

pytestmark = pytest.mark.usefixtures("session")


@fsd.remote
def count(to: int) -> Iterator[int]:
    yield from range(to)


@fsd.remote
async def count_async(to: int) -> AsyncIterator[int]:
    for number in range(to):
        await asyncio.sleep(0)
        yield number


@fsd.remote
def endless() -> Iterator[int]:
    yield os.getpid()
    yield from itertools.count()


@fsd.remote
def add(left: Any, right: Any = 1) -> Any:
    return left + right


@fsd.remote
def break_at(number: int) -> Iterator[int]:
    for at in itertools.count():
        if at == number:
            raise KeyError("midway")
        yield at


@fsd.remote
def gated(gate: str, first: int = 1) -> Iterator[Any]:
    """Yield `first` items; the next only when the gate is open."""
    yield from range(first)
    fsd.loop.run(objects().get(gate, wait=60))
    yield "through"


def objects() -> Any:
    return fsd.session.current().backend.objects


def stored(task: str) -> list[str]:
    """What there is of a generator's call: its items, and how far it was read."""
    keys = [fsd.loop.run(objects().list(f"{kind}/{task}-")) for kind in ("values", "taken")]
    return [key for found in keys for key in found]


def open_gate(gate: str) -> None:
    fsd.loop.run(objects().put(gate, b""))


def swept() -> None:
    """Wait until all that was dropped here has been removed."""
    fsd.loop.run(fsd.session.current().flush())


def values(generator: Any, timeout: float = 60) -> list[Any]:
    return [fsd.get(ref, timeout=timeout) for ref in generator]


def receipt_of_all(generator: Any) -> Any:
    """What a generator's whole call asked for, once it has ended."""
    done = generator.completed()
    fsd.get(done)
    return done.receipt()


def has_ended(pid: int) -> bool:
    """Whether a process ends within a minute."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], 60)[0])
    finally:
        os.close(fd)


# What is yielded


def test_a_generator_function_gives_the_refs_of_its_items_in_order() -> None:
    generator = count.remote(5)
    assert isinstance(generator, fsd.ObjectRefGenerator)
    assert iter(generator) is generator
    assert values(generator) == [0, 1, 2, 3, 4]
    with pytest.raises(StopIteration):
        next(generator)
    assert values(count.remote(0)) == []
    assert values(count.options(num_returns="streaming").remote(2)) == [0, 1]


def test_an_item_is_there_before_the_function_goes_on(tmp_path: Path) -> None:
    gate = f"gate-{tmp_path.name}"
    generator = gated.remote(gate, 2)
    assert [fsd.get(next(generator)) for _ in range(2)] == [0, 1]
    assert not generator.is_finished()
    open_gate(gate)
    assert values(generator) == ["through"]
    assert generator.is_finished()


def test_asynchronous_generator_functions_stream_too() -> None:
    assert values(count_async.remote(5)) == [0, 1, 2, 3, 4]

    @fsd.remote
    async def sums(to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield await add.remote(number)

    assert values(sums.remote(4)) == [1, 2, 3, 4]


def test_refs_can_be_awaited_as_they_come() -> None:
    async def take() -> list[int]:
        async with contextlib.aclosing(count.remote(4)) as generator:
            return [await ref async for ref in generator]

    assert asyncio.run(take()) == [0, 1, 2, 3]


def test_giving_up_an_await_of_the_next_item_loses_nothing(tmp_path: Path) -> None:
    gate = f"gate-{tmp_path.name}"

    async def take() -> list[Any]:
        generator = gated.remote(gate, 1)
        found = [await (await anext(generator))]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(generator), 0.01)
        await asyncio.wrap_future(fsd.loop.submit(objects().put(gate, b"")))
        return found + [await ref async for ref in generator]

    assert asyncio.run(take()) == [0, "through"]


def test_what_a_generator_function_returns_is_dropped() -> None:
    @fsd.remote
    def returning() -> Any:
        yield 1
        return 2

    assert values(returning.remote()) == [1]


def test_items_can_be_anything_that_can_be_sent() -> None:
    @fsd.remote
    def mixed() -> Any:
        yield None
        yield {"ref": add.remote(1, 1)}
        yield b"x" * 1_000_000
        yield []

    none, nested, large, empty = values(mixed.remote())
    assert (none, len(large), empty) == (None, 1_000_000, [])
    assert fsd.get(nested["ref"]) == 2


def test_a_buffer_that_is_filled_anew_for_each_item_gives_each_as_it_was() -> None:
    @fsd.remote
    def refill() -> Iterator[Any]:
        buffer = np.zeros(100_000)
        for number in range(3):
            buffer[:] = number
            yield buffer

    assert [value.mean() for value in values(refill.remote())] == [0, 1, 2]


def test_an_array_is_a_read_only_view() -> None:
    @fsd.remote
    def arrays() -> Iterator[Any]:
        yield np.arange(1_310_720.0)  # 10 MB

    [ref] = list(arrays.remote())
    found = fsd.get(ref)
    assert found[-1] == 1_310_719
    assert not found.flags.writeable
    assert not found.flags.owndata
    again = fsd.get(ref)
    assert again.__array_interface__["data"] == found.__array_interface__["data"], "no copy"


def test_ten_thousand_items_come_in_order_and_few_are_kept() -> None:
    items, most = on_aws.amount(10_000, 300), 100
    generator = count.options(_generator_backpressure_num_objects=most).remote(items)
    task = generator.task_id()
    for number, ref in enumerate(generator):
        assert fsd.get(ref) == number
        if number % (items // 10) == 0:
            kept = fsd.loop.run(objects().list(f"values/{task}-"))
            assert len(kept) <= most + 1
    del ref, generator
    swept()
    assert stored(task) == []


# What becomes of its refs


def test_refs_of_items_can_be_given_to_tasks_and_come_back_from_them() -> None:
    assert fsd.get([add.remote(ref, 10) for ref in count.remote(3)]) == [10, 11, 12]

    @fsd.remote
    def refs(to: int) -> list[Any]:
        return list(count.remote(to))

    @fsd.remote
    def total(refs: list[Any]) -> int:
        return sum(fsd.get(refs))

    inner = refs.remote(4)
    assert fsd.get(fsd.get(inner)) == [0, 1, 2, 3]
    assert fsd.get(total.remote(fsd.get(inner))) == 6


def test_an_item_goes_with_its_last_ref() -> None:
    generator = count.remote(3)
    task, refs = generator.task_id(), list(generator)
    assert len(stored(task)) == 3
    del refs[:2]
    swept()
    assert len(stored(task)) == 1
    assert fsd.get(refs[0]) == 2
    refs.clear()
    swept()
    assert stored(task) == []


def test_items_that_nobody_took_go_with_the_generator() -> None:
    generator = count.remote(10)
    fsd.get(generator.completed())
    kept = next(generator)
    task = generator.task_id()
    assert len(stored(task)) == 10
    del generator
    swept()
    assert len(stored(task)) == 1
    assert fsd.get(kept) == 0


def test_a_generator_that_nobody_took_from_leaves_nothing_after_the_session() -> None:
    fsd.shutdown()
    with clean_session():
        generators = [count.remote(100), endless.remote()]
        fsd.wait(generators, num_returns=2)
    assert "failed" in repr(generators[1])
    fsd.init(concurrency=on_aws.amount(40, 16))


# Failures


@pytest.mark.parametrize("number", [0, 3])
def test_items_before_an_exception_are_good_and_the_next_ref_raises_it(number: int) -> None:
    generator = break_at.remote(number)
    refs = list(generator)
    assert len(refs) == number + 1
    assert fsd.get(refs[:-1]) == list(range(number))
    with pytest.raises(KeyError, match="midway") as raised:
        fsd.get(refs[-1])
    assert isinstance(raised.value, TaskError)
    assert raised.traceback[-1].name == "break_at"
    names = [entry.frame.f_globals.get("__name__") for entry in raised.traceback]
    assert "fsdray.streams" not in names, "what is ours says nothing"
    with pytest.raises(KeyError):
        fsd.get(generator.completed())
    assert generator.is_finished()
    assert "failed" in repr(generator)


def test_an_exception_of_an_asynchronous_generator_is_its_last_ref() -> None:
    @fsd.remote
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise OSError(5, "midway")

    good, bad = broken.remote()
    assert fsd.get(good) == 1
    with pytest.raises(OSError, match="midway"):
        fsd.get(bad)


def test_an_item_that_cannot_be_sent_ends_the_generator_and_its_finally_runs(
    tmp_path: Path,
) -> None:
    @fsd.remote
    def unsendable(note: str) -> Iterator[Any]:
        try:
            yield 1
            yield threading.Lock()
        finally:
            Path(note).write_text("closed")

    note = tmp_path / "note"
    good, bad = unsendable.remote(str(note))
    assert fsd.get(good) == 1
    with pytest.raises(SettingsError, match="lock"):
        fsd.get(bad)
    assert note.read_text() == "closed"


def test_a_process_that_dies_midway_is_an_error_after_the_items_before() -> None:
    @fsd.remote(max_retries=0)
    def mortal() -> Iterator[int]:
        yield 1
        yield 2
        os._exit(3)

    generator = mortal.remote()
    first, second, last = list(generator)
    assert fsd.get([first, second]) == [1, 2]
    with pytest.raises(FunctionCrashed, match="status 3"):
        fsd.get(last)
    with pytest.raises(FunctionCrashed):
        fsd.get(generator.completed())


def test_the_time_limit_is_that_of_the_whole_generator(tmp_path: Path) -> None:
    generator = gated.options(timeout=on_aws.amount(1, 4)).remote(f"never-{tmp_path.name}", 2)
    *good, last = list(generator)
    assert fsd.get(good) == [0, 1]
    with pytest.raises(FunctionTimeout):
        fsd.get(last)


def test_after_a_death_midway_another_attempt_goes_on_with_the_items(tmp_path: Path) -> None:
    gate = f"gate-{tmp_path.name}"

    @fsd.remote
    def mortal() -> Iterator[tuple[int, Any]]:
        attempt = fsd.get_runtime_context().attempt
        for number in range(6):
            if number == 4 and attempt == 1:
                fsd.loop.run(objects().get(gate, wait=60))
                os.kill(os.getpid(), signal.SIGKILL)
            yield number, attempt

    generator = mortal.remote()
    refs = [next(generator) for _ in range(2)]
    assert fsd.get(refs.pop(0)) == (0, 1)
    open_gate(gate)
    refs += list(generator)
    assert [number for number, _ in fsd.get(refs)] == [1, 2, 3, 4, 5]
    assert [attempt for _, attempt in fsd.get(refs)] == [1, 1, 1, 2, 2], "stored once each"
    task = generator.task_id()
    refs.clear()
    del generator
    swept()
    assert stored(task) == [], "what the second attempt could not know to be taken is gone too"


def test_an_exception_that_is_retried_is_not_seen_and_items_go_on() -> None:
    @fsd.remote(retry_exceptions=[ConnectionError])
    def flaky() -> Iterator[int]:
        for number in range(6):
            if number == fsd.get_runtime_context().attempt:
                raise ConnectionError("again")
            yield number

    with pytest.raises(ConnectionError):
        values(flaky.options(max_retries=1).remote())
    generator = flaky.options(max_retries=5).remote()
    assert values(generator) == list(range(6))
    assert receipt_of_all(generator).requests["invoke"] == 6


def test_a_ctrl_c_while_an_item_is_waited_for_stops_the_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: Any) -> bool:
        raise KeyboardInterrupt

    generator = gated.remote("never", 0)
    with monkeypatch.context() as patched:
        patched.setattr(promise, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(generator)
    with pytest.raises(TaskCancelled):
        fsd.get(generator.completed(), timeout=60)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.slow_on_aws
def test_generators_killed_at_random_give_all_items_right(seed: int) -> None:
    print(f"seed {seed}")

    @fsd.remote(max_retries=-1)
    def mortal(which: int, seed: int) -> Iterator[Any]:
        attempt = fsd.get_runtime_context().attempt
        chance = random.Random(f"{seed}-{which}-{attempt}")
        for number in range(20):
            if chance.random() < 0.05:
                os.kill(os.getpid(), signal.SIGKILL)
            yield which, number

    generators = [mortal.remote(which, seed) for which in range(10)]
    for which, generator in enumerate(generators):
        assert values(generator) == [(which, number) for number in range(20)]
    assert any(g.completed().receipt().requests["invoke"] > 1 for g in generators)
    tasks = [generator.task_id() for generator in generators]
    generators.clear()
    del generator
    swept()
    assert [stored(task) for task in tasks] == [[]] * 10


def test_a_failed_dependency_is_the_only_ref() -> None:
    @fsd.remote
    def fail() -> int:
        raise ZeroDivisionError("before")

    [ref] = count.remote(fail.remote())
    with pytest.raises(ZeroDivisionError, match="before"):
        fsd.get(ref)


# Stopping early


@pytest.mark.local_only("on Lambda a function learns of it after its first second")
def test_closing_stops_the_function_at_once() -> None:
    generator = endless.remote()
    ref = next(generator)
    pid = fsd.get(ref)
    generator.close()
    assert has_ended(pid)
    with pytest.raises(StopIteration):
        next(generator)
    assert generator.is_finished()
    assert fsd.get(ref) == pid, "what was taken stays good"
    del ref
    swept()
    assert stored(generator.task_id()) == []


def test_dropping_the_generator_stops_the_function() -> None:
    generator = endless.remote()
    pid = fsd.get(next(generator))
    del generator
    assert has_ended(pid)


def test_leaving_a_loop_early_stops_the_function() -> None:
    for ref in endless.remote():
        pid = fsd.get(ref)
        break
    assert has_ended(pid)


def test_who_holds_the_ref_of_the_end_lets_the_function_run_to_it() -> None:
    done = count.remote(5).completed()
    assert fsd.get(done, timeout=60) is None


def test_a_cancelled_generator_gives_what_it_had_and_then_says_so() -> None:
    generator = endless.remote()
    pid = fsd.get(next(generator))
    fsd.cancel(generator)
    assert has_ended(pid)
    *_, last = generator
    with pytest.raises(TaskCancelled, match="endless was cancelled"):
        fsd.get(last)


def test_a_thread_that_waits_for_an_item_ends_when_the_generator_is_closed() -> None:
    generator = gated.remote("never", 0)
    found: list[Any] = []
    began = threading.Event()

    def take() -> None:
        began.set()
        found.extend(generator)

    thread = threading.Thread(target=take)
    thread.start()
    began.wait()
    generator.close()
    thread.join(60)
    assert not thread.is_alive()
    assert found == []


def test_threads_take_each_item_once() -> None:
    generator = count.remote(200)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.extend(values(generator))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == list(range(200))


# Waiting


def test_wait_takes_generators_and_refs_together(tmp_path: Path) -> None:
    gate = f"gate-{tmp_path.name}"
    generator = gated.remote(gate, 1)
    ref = add.remote(1)
    assert fsd.wait([generator, ref], num_returns=2, timeout=60) == ([generator, ref], [])
    assert generator.next_ready()
    assert fsd.get(next(generator)) == 0
    assert fsd.wait([generator, ref], num_returns=2, timeout=0.05) == ([ref], [generator])
    assert not generator.next_ready()
    open_gate(gate)
    assert fsd.wait([generator], timeout=60) == ([generator], [])
    assert values(generator) == ["through"]
    assert fsd.wait([generator], timeout=60) == ([generator], []), "at its end it need not wait"
    assert not generator.next_ready()
    with pytest.raises(ValueError, match="once"):
        fsd.wait([generator, generator])


def test_wait_lets_one_take_from_several_generators_as_items_come(tmp_path: Path) -> None:
    gates = [f"gate-{n}-{tmp_path.name}" for n in range(2)]
    running: list[Any] = [gated.remote(gate, 0) for gate in gates]
    slow, fast = running
    open_gate(gates[1])
    assert fsd.wait(running, timeout=60) == ([fast], [slow])
    assert values(fast) == ["through"]
    open_gate(gates[0])
    assert values(slow) == ["through"]


def test_the_value_of_an_unknown_end_is_waited_for_like_any() -> None:
    generator = endless.remote()
    with pytest.raises(GetTimeout):
        fsd.get(generator.completed(), timeout=0.05)


# Inside tasks


@pytest.mark.slow_on_aws
def test_tasks_take_from_generators_of_their_own_with_room_for_two() -> None:
    @fsd.remote
    def total(to: int) -> int:
        return sum(values(count.remote(to)))

    @fsd.remote
    def tree(depth: int) -> Iterator[int]:
        yield depth
        if depth:
            for child in [tree.remote(depth - 1) for _ in range(2)]:
                yield from values(child)

    with two_at_a_time():
        assert fsd.get([total.remote(10) for _ in range(6)], timeout=60) == [45] * 6
        assert sorted(values(tree.remote(3))) == [0] * 8 + [1] * 4 + [2] * 2 + [3]


@pytest.mark.slow_on_aws
def test_awaiting_items_in_a_task_gives_its_room_to_others() -> None:
    @fsd.remote
    async def total(to: int) -> int:
        return sum([await ref async for ref in count.remote(to)])

    @fsd.remote
    def total_in_a_loop_of_its_own(to: int) -> int:
        async def take() -> int:
            return sum([await ref async for ref in count.remote(to)])

        return asyncio.run(take())

    with two_at_a_time():
        tasks = (total, total_in_a_loop_of_its_own)
        refs = [task.remote(10) for _ in range(4) for task in tasks]
        assert fsd.get(refs, timeout=60) == [45] * 8


def test_a_task_that_leaves_a_generator_of_its_own_behind_still_ends() -> None:
    @fsd.remote
    def take_one() -> int:
        global left_behind
        left_behind = endless.remote()  # type: ignore[name-defined]
        pid: int = fsd.get(next(left_behind))  # type: ignore[name-defined]
        return pid

    @fsd.remote
    def fail() -> None:
        generator = endless.remote()
        raise ValueError(fsd.get(next(generator)))

    assert has_ended(fsd.get(take_one.remote(), timeout=60))
    with pytest.raises(ValueError, match=r"\d+") as raised:
        fsd.get(fail.remote(), timeout=60)
    assert has_ended(raised.value.args[0])


# Back-pressure


def test_a_function_that_is_too_far_ahead_waits(tmp_path: Path) -> None:
    @fsd.remote(_generator_backpressure_num_objects=4)
    def noted(notes: str) -> Iterator[int]:
        for number in range(20):
            with Path(notes).open("a") as file:
                file.write(".")
            yield number

    notes = tmp_path / "notes"
    generator = noted.remote(str(notes))
    for number in range(20):
        assert len(notes.read_text() if notes.exists() else "") <= number + 4
        assert fsd.get(next(generator)) == number
    spent = receipt_of_all(generator).requests
    assert (spent["put"], spent["get"]) == (20, 9), "one get for each two items, but the last two"


@pytest.mark.local_only("on Lambda a call that waits keeps its place")
def test_functions_that_wait_for_their_readers_give_their_room_to_others() -> None:
    with two_at_a_time():
        generators = [
            each.options(_generator_backpressure_num_objects=1).remote(10)
            for each in (count, count_async)
        ]
        for number in range(10):
            assert fsd.get([next(each) for each in generators], timeout=60) == [number] * 2
            assert fsd.get(add.remote(number), timeout=60) == number + 1


def test_back_pressure_holds_over_a_death_midway(tmp_path: Path) -> None:
    note = tmp_path / "note"

    @fsd.remote(_generator_backpressure_num_objects=2)
    def mortal() -> Iterator[int]:
        for number in range(20):
            if number == 11 and fsd.get_runtime_context().attempt == 1:
                note.write_text("died")
                os.kill(os.getpid(), signal.SIGKILL)
            yield number

    generator = mortal.remote()
    task = generator.task_id()
    assert values(generator) == list(range(20))
    assert note.exists()
    del generator
    swept()
    assert stored(task) == []


def test_a_generator_that_waits_for_its_reader_ends_when_it_has_none_any_more() -> None:
    generator = count.options(_generator_backpressure_num_objects=1).remote(10)
    done = generator.completed()
    next(generator)
    del generator
    with pytest.raises(TaskCancelled):
        fsd.get(done, timeout=60)


# What it costs


@pytest.mark.local_only("on Lambda there may be a mark besides, which tells a call to stop")
def test_an_item_costs_one_put_and_one_get() -> None:
    before = fsd.receipt().requests
    generator = count.remote(10)
    assert receipt_of_all(generator).requests["put"] == 10
    assert values(generator) == list(range(10))
    after = fsd.receipt().requests
    spent = {name: after[name] - before.get(name, 0) for name in ("put", "get", "miss")}
    assert spent == {"put": 10, "get": 10, "miss": 1}, "the end is found by one look"


# A number of returns


@pytest.mark.parametrize("function", [count, count_async])
def test_with_a_number_of_returns_a_generator_gives_so_many_refs(function: Any) -> None:
    assert fsd.get(function.options(num_returns=3).remote(10**9)) == [0, 1, 2]
    assert fsd.get(function.options(num_returns=1).remote(10**9)) == 0
    with pytest.raises(ValueError, match="num_returns=3, but yielded 2 items") as raised:
        fsd.get(function.options(num_returns=3).remote(2))
    assert isinstance(raised.value, TaskError)
    with pytest.raises(ValueError, match="num_returns=1, but yielded 0 items"):
        fsd.get(function.options(num_returns=1).remote(0))


def test_with_no_returns_a_generator_runs_to_its_end(tmp_path: Path) -> None:
    gate = f"gate-{tmp_path.name}"

    @fsd.remote(num_returns=0)
    def work(gate: str) -> Iterator[int]:
        yield 1
        yield 2
        open_gate(gate)

    assert work.remote(gate) is None
    assert fsd.loop.run(objects().get(gate, wait=60)) is not None


# Misuse


def plain() -> list[int]:
    return [1]


def generate() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "options", "told"),
    [
        (plain, {"num_returns": "streaming"}, "plain is none: nothing in it yields"),
        (generate, {"num_returns": "dynamic"}, 'use "streaming"'),
        (generate, {"num_returns": "many"}, "'many'"),
        (generate, {"num_returns": True}, "True"),
        (generate, {"num_returns": -1}, "-1"),
        (generate, {"world_size": 2}, "a rank has one value"),
        (generate, {"world_size": 2, "num_returns": "streaming"}, "world_size"),
        (generate, {"_generator_backpressure_num_objects": 0}, "from 1, or -1"),
        (plain, {"_generator_backpressure_num_objects": 2}, "plain does not"),
        (generate, {"_generator_backpressure_num_objects": 2, "num_returns": 2}, "generate does"),
    ],
)
def test_options_that_do_not_fit_are_refused_where_the_function_is_made(
    function: Callable[..., Any], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        fsd.remote(**options)(function)
    assert told in str(raised.value)


def test_no_limit_can_be_said_as_minus_one() -> None:
    assert values(count.options(_generator_backpressure_num_objects=-1).remote(3)) == [0, 1, 2]


def test_what_generators_are_not_for_says_what_to_do_instead() -> None:
    generator = count.remote(1)
    with pytest.raises(ValueError, match="iterate over it"):
        fsd.get(generator)
    with pytest.raises(TypeError, match="come in order from itself"):
        fsd.as_completed([generator])
    with pytest.raises(SettingsError, match="pass on its refs"):
        add.remote(generator)
    with pytest.raises(TypeError, match="pass on its refs"):
        pickle.dumps(generator)
    with pytest.raises(SettingsError, match=r"iterate over count.remote\(...\), or return a list"):
        count.map([1, 2])


def test_a_generator_says_what_it_is_and_how_far() -> None:
    generator = count.remote(2)
    fsd.get(next(generator))
    fsd.get(generator.completed())
    assert repr(generator) == (
        f"<ObjectRefGenerator of count (task {generator.task_id()}): 1 taken, finished>"
    )
    generator.close()
    assert "closed" in repr(generator)
