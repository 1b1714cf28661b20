"""`fsdray.integrations.multiprocessing.Pool` is the standard library's pool, from elsewhere."""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.pool
import operator
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fsdray as fsd
from fsdray.errors import SettingsError, TaskCancelled, TaskError
from fsdray.integrations.multiprocessing import AsyncResult, IMapIterator, Pool
from tests.test_executor import add, begun, fail, gate, opened, wait_for

pytestmark = pytest.mark.usefixtures("session")

_started: dict[str, int] = {}


def start(key: str) -> None:
    _started[key] = _started.get(key, 0) + 1


def started(key: str) -> tuple[int, int]:
    return os.getpid(), _started.get(key, 0)


def square(n: int) -> int:
    return n * n


def divide(n: int) -> float:
    return 6 / n


def test_apply_gives_the_value_and_its_exception_keeps_its_type() -> None:
    with Pool(2) as pool:
        assert pool.apply(add, (1,), {"right": 2}) == 3
        assert pool.apply(os.getpid) != os.getpid()
        with pytest.raises(KeyError) as raised:
            pool.apply(fail, [KeyError("lost")])
    assert isinstance(raised.value, TaskError)


def test_an_async_result_is_waited_for_and_asked() -> None:
    key = gate()
    with Pool(2) as pool:
        slow = pool.apply_async(wait_for, [key])
        assert not slow.ready()
        with pytest.raises(ValueError, match="not ready"):
            slow.successful()
        with pytest.raises(multiprocessing.TimeoutError):
            slow.get(timeout=0.01)
        slow.wait(0.01)
        opened(key)
        slow.wait()
        assert slow.ready()
        assert slow.successful()
        assert slow.get() == "open"
        failed = pool.apply_async(fail, [KeyError("x")])
        failed.wait()
        assert not failed.successful()


def test_callbacks_have_run_when_get_returns() -> None:
    told: list[Any] = []
    with Pool(2) as pool:
        pool.apply_async(add, [1], callback=told.append).get()
        pool.map_async(square, range(5), callback=told.append).get()
        pool.starmap_async(add, [(1, 2)], callback=told.append).get()
        assert told == [2, [0, 1, 4, 9, 16], [3]]
        result = pool.apply_async(fail, [KeyError("x")], error_callback=told.append)
        with pytest.raises(KeyError):
            result.get()
        assert isinstance(told[-1], KeyError)


@settings(max_examples=25)
@given(
    items=st.lists(st.integers(), max_size=40),
    chunksize=st.none() | st.integers(1, 50),
    processes=st.integers(1, 5),
)
def test_all_maps_are_the_built_in_map(
    items: list[int], chunksize: int | None, processes: int
) -> None:
    expected = [square(n) for n in items]
    pairs = [(n, n) for n in items]
    with Pool(processes) as pool:
        assert pool.map(square, items, chunksize) == expected
        assert pool.map(square, iter(items), chunksize) == expected
        assert pool.starmap(operator.mul, pairs, chunksize) == expected
        size = chunksize or 1
        assert list(pool.imap(square, iter(items), size)) == expected
        assert sorted(pool.imap_unordered(square, iter(items), size)) == sorted(expected)


def test_a_map_makes_four_chunks_a_process_as_the_standard_does() -> None:
    def chunks(count: int, **options: Any) -> float:
        before = fsd.receipt().requests.get("invoke", 0)
        with Pool(2) as pool:
            assert pool.map(square, range(count), **options) == [square(n) for n in range(count)]
        return fsd.receipt().requests.get("invoke", 0) - before

    assert chunks(100) == 8
    assert chunks(100, chunksize=50) == 2
    assert chunks(3) == 3
    assert chunks(0) == 0


def test_a_map_whose_item_raises_raises_it() -> None:
    with Pool(2) as pool:
        with pytest.raises(ZeroDivisionError):
            pool.map(divide, [1, 0, 2], chunksize=1)
        assert pool.map(divide, [1, 2]) == [6, 3], "and the pool goes on"


def test_imap_goes_on_after_an_item_that_raised() -> None:
    with Pool(2) as pool:
        values = pool.imap(divide, [1, 0, 2])
        assert isinstance(values, IMapIterator)
        assert values.next(timeout=30) == 6
        with pytest.raises(ZeroDivisionError):
            values.next()
        assert next(values) == 3
        with pytest.raises(StopIteration):
            values.next()


def test_imap_reaches_its_timeout_and_can_be_asked_again() -> None:
    keys = [gate(), gate()]
    with Pool(2) as pool:
        values = pool.imap(wait_for, keys)
        assert isinstance(values, IMapIterator)
        opened(keys[1])
        with pytest.raises(multiprocessing.TimeoutError):
            values.next(timeout=0.05)
        opened(keys[0])
        assert list(values) == ["open", "open"]


def test_imap_unordered_gives_first_what_is_there_first() -> None:
    keys = [gate(), gate()]
    with Pool(2) as pool:
        values = pool.imap_unordered(add_name, keys)
        opened(keys[1])
        assert next(values) == keys[1]
        opened(keys[0])
        assert list(values) == [keys[0]]


def add_name(key: str) -> str:
    wait_for(key)
    return key


@pytest.mark.parametrize("ordered", [True, False])
def test_imap_reads_an_endless_input_only_some_way_ahead(ordered: bool) -> None:
    read = itertools.count()
    with Pool(2) as pool:
        values = (pool.imap if ordered else pool.imap_unordered)(square, read, chunksize=3)
        first = list(itertools.islice(values, 100))
        assert len(set(first)) == 100
    # 2 processes, 4 chunks a process, 3 items a chunk; one chunk may be in the reader's hands.
    assert next(read) <= 102 + 2 * 4 * 3 + 3


def test_an_input_that_raises_is_the_last_items_exception() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise LookupError("no more input")

    with Pool(2) as pool:
        values = pool.imap(square, items())
        assert [next(values), next(values)] == [1, 4]
        with pytest.raises(LookupError, match="no more input"):
            next(values)
        with pytest.raises(StopIteration):
            next(values)
        with pytest.raises(LookupError):
            pool.map(square, items())


def test_an_imap_that_nobody_reads_is_done_by_join() -> None:
    done = f"done-{gate()}"

    def note(n: int) -> None:
        fsd.loop.run(fsd.session.current().backend.objects.put(f"{done}/{n}", b""))

    pool = Pool(2)
    kept = pool.imap(note, range(40))
    pool.imap_unordered(note, range(40, 60))
    pool.close()
    pool.join()
    assert len(fsd.loop.run(fsd.session.current().backend.objects.list(done))) == 60
    assert list(kept) == [None] * 40


def test_the_initializer_runs_once_in_each_process() -> None:
    key = gate()
    with Pool(3, initializer=start, initargs=(key,)) as pool:
        seen = pool.map(started, [key] * 30, chunksize=1) + pool.starmap(started, [(key,)] * 30)
    assert {count for _, count in seen} == {1}


def test_an_initializer_of_a_script_sets_globals_for_all_of_its_functions(tmp_path: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from fsdray.integrations.multiprocessing import Pool\n"
        "def begin(value):\n"
        "    global state\n"
        "    print('begin')\n"
        "    state = value\n"
        "def plus(n): return state + n\n"
        "def times(n): return state * n\n"
        "with Pool(1, begin, (10,)) as pool:\n"
        "    print(pool.map(plus, range(3)), pool.map(times, range(3)), pool.apply(plus, (7,)))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[10, 11, 12] [0, 10, 20] 17\n"
    pids = [line.partition(")")[0] for line in done.stderr.splitlines()]
    assert len(pids) == len({pid.partition("pid ")[2] for pid in pids}), "once in each process"


def test_an_initializer_that_raises_fails_the_items() -> None:
    with (
        Pool(1, initializer=fail, initargs=(OSError("no licence"),)) as pool,
        pytest.raises(OSError, match="no licence"),
    ):
        pool.map(square, [1])


def test_a_closed_pool_takes_nothing_more_and_ends_what_it_has() -> None:
    key = gate()
    pool = Pool(1)
    with pytest.raises(ValueError, match="Pool is still running"):
        pool.join()
    results = [pool.apply_async(wait_for, [key]) for _ in range(3)]
    pool.close()
    for start_more in (
        lambda: pool.apply(square, (1,)),
        lambda: pool.map(square, [1]),
        lambda: pool.imap(square, [1]),
        lambda: pool.starmap_async(add, [(1, 2)]),
        pool.__enter__,
    ):
        with pytest.raises(ValueError, match="Pool not running"):
            start_more()
    opened(key)
    pool.join()
    assert [result.get(0) for result in results] == ["open"] * 3


def test_terminate_ends_every_wait() -> None:
    key = gate()
    pool = Pool(1)
    running, waiting = pool.apply_async(wait_for, [key]), pool.map_async(square, range(3))
    values = pool.imap(square, itertools.count())
    begun(key)
    pool.terminate()
    for result in (running, waiting):
        with pytest.raises(TaskCancelled):
            result.get(0)
    with pytest.raises(TaskCancelled):
        next(values)
    pool.join()
    opened(key)


def test_leaving_the_block_terminates() -> None:
    key = gate()
    with Pool(1) as pool:
        result = pool.apply_async(wait_for, [key])
        begun(key)
    assert isinstance(result, AsyncResult)
    with pytest.raises(TaskCancelled):
        result.get(0)
    with pytest.raises(ValueError, match="Pool not running"):
        pool.apply(square, (1,))
    opened(key)


def test_a_program_ends_though_its_pool_has_work_left(tmp_path: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import itertools\n"
        "from fsdray.integrations.multiprocessing import Pool\n"
        "pool = Pool(2)\n"
        "print(next(pool.imap_unordered(abs, itertools.count(5))) >= 5)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"processes": 0}, ValueError),
        ({"initializer": 3}, TypeError),
        ({"maxtasksperchild": 1}, SettingsError),
        ({"memory": -1}, SettingsError),
    ],
)
def test_bad_options_are_errors_when_the_pool_is_made(options: Any, error: Any) -> None:
    with pytest.raises(error):
        Pool(**options)


def test_a_pool_cannot_be_pickled() -> None:
    with Pool(1) as pool, pytest.raises(NotImplementedError):
        pickle.dumps(pool)


def test_the_surface_is_the_standard_pools() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(multiprocessing.pool.Pool) - public(Pool) == {"Process"}
    assert public(multiprocessing.pool.AsyncResult) == public(AsyncResult)
    assert public(multiprocessing.pool.IMapIterator) == public(IMapIterator)


def test_a_pool_inside_a_task_gives_its_place_to_its_calls() -> None:
    fsd.shutdown()
    fsd.init(concurrency=1)

    @fsd.remote
    def outer() -> Any:
        with Pool() as pool:
            return pool.map(square, range(3)), list(pool.imap(square, range(20)))

    mapped, lazily = fsd.get(outer.remote(), timeout=60)
    assert mapped == [0, 1, 4]
    assert lazily == [n * n for n in range(20)]


def test_a_session_that_is_shut_down_ends_an_endless_imap_and_starts_no_other() -> None:
    pool = Pool(2)
    values = pool.imap(square, itertools.count())
    assert next(values) == 0
    threads = [thread for thread in threading.enumerate() if thread.name == "fsdray-imap"]
    fsd.shutdown()
    with pytest.raises(fsd.errors.FsdrayError):
        for _ in values:
            pass
    del values
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not fsd.is_initialized()
    pool.terminate()
    fsd.init()
