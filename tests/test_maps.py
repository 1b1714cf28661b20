"""Maps, as_completed and cancel: many calls, and stopping them."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fsdray as fsd
from fsdray.errors import GetTimeout, SettingsError, TaskCancelled
from fsdray.maps import LARGEST, TARGET, next_size

SOON = 60  # seconds: what should come at once, on a busy machine

pytestmark = pytest.mark.usefixtures("session")


@fsd.remote
def square(x: int) -> int:
    return x * x


@fsd.remote
def picky(x: int) -> int:
    if x == 7:
        raise KeyError("seven")
    return x


@fsd.remote
def wait_for(key: str) -> str:
    fsd.loop.run(fsd.session.current().backend.objects.get(key, wait=60))
    return key


def open_gate(key: str) -> None:
    fsd.loop.run(fsd.session.current().backend.objects.put(key, b""))


@given(st.integers(1, LARGEST), st.floats(0, 100))
def test_chunks_grow_no_faster_than_fourfold_and_aim_at_the_target(
    size: int, seconds: float
) -> None:
    following = next_size(size, seconds)
    assert 1 <= following <= min(4 * size, LARGEST)
    if seconds > TARGET:
        assert following <= size
    if 0 < seconds < TARGET / 8 and size < LARGEST // 4:
        assert following == 4 * size


@pytest.mark.parametrize("chunksize", [None, 1, 7, 1000])
def test_a_map_gives_every_value_in_order(chunksize: int | None) -> None:
    assert list(square.map(range(500), chunksize=chunksize)) == [n * n for n in range(500)]
    assert list(square.map([])) == []


def test_an_unordered_map_gives_every_value_once() -> None:
    assert sorted(square.map(range(300), ordered=False)) == [n * n for n in range(300)]


def test_a_starmap_spreads_its_arguments() -> None:
    power = fsd.remote(pow)
    assert list(power.starmap(zip([2, 3, 4], [5, 2, 1], strict=True))) == [32, 9, 4]


def test_an_exception_ends_the_map_when_its_turn_comes() -> None:
    values = picky.map(range(100), chunksize=5)
    assert list(itertools.islice(values, 7)) == list(range(7))
    with pytest.raises(KeyError, match="seven"):
        next(values)
    assert list(values) == []


@pytest.mark.parametrize("retry", [False, True])
def test_exceptions_may_be_values(retry: bool) -> None:
    function = picky.options(retry_exceptions=retry, max_retries=1)
    values = list(function.map(range(10), return_exceptions=True))
    assert isinstance(values[7], KeyError)
    assert values[:7] + values[8:] == [0, 1, 2, 3, 4, 5, 6, 8, 9]


def test_an_iterator_that_raises_ends_the_map_after_what_came_before() -> None:
    def inputs() -> Iterator[int]:
        yield from range(20)
        raise RuntimeError("no more")

    values = square.map(inputs())
    assert list(itertools.islice(values, 20)) == [n * n for n in range(20)]
    with pytest.raises(RuntimeError, match="no more"):
        next(values)


def test_an_endless_iterator_is_read_as_values_are_taken() -> None:
    read: list[int] = []

    def inputs() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            yield number

    with square.map(inputs(), chunksize=2) as values:
        most = 2 * 2 * fsd.session.current().backend.functions.limits.concurrency
        assert list(itertools.islice(values, 50)) == [n * n for n in range(50)]
        assert len(read) <= 50 + most + 2
    assert list(values) == []


def test_a_hundred_thousand_inputs_need_few_calls_and_little_memory() -> None:
    before = fsd.receipt().requests["invoke"]
    total = sum(square.map(iter(range(100_000)), ordered=False))
    assert total == sum(n * n for n in range(100_000))
    assert fsd.receipt().requests["invoke"] - before < 2_000


def test_closing_a_map_cancels_what_is_under_way() -> None:
    values = wait_for.map([f"never-{n}" for n in range(4)])
    refs = list(values._underway)
    values.close()
    for ref in refs:
        with pytest.raises(TaskCancelled):
            fsd.get(ref, timeout=SOON)


def test_bad_maps_are_refused() -> None:
    with pytest.raises(SettingsError, match="chunksize"):
        square.map([1], chunksize=0)
    with pytest.raises(SettingsError, match="gang"):
        square.options(world_size=2).map([1])


def test_a_map_shows_a_bar_only_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(square.map(range(10), progress=True)) == [n * n for n in range(10)]
    assert capsys.readouterr() == ("", "")


def test_as_completed_gives_refs_as_they_come(tmp_path: Path) -> None:
    gates = [f"{tmp_path.name}-{n}" for n in range(3)]
    refs = [wait_for.remote(gate) for gate in gates]
    done = fsd.as_completed(refs)
    for number in (2, 0, 1):
        open_gate(gates[number])
        assert next(done) == refs[number]
    assert next(done, None) is None
    assert list(fsd.as_completed([])) == []


def test_as_completed_ends_with_its_timeout(tmp_path: Path) -> None:
    gate = f"{tmp_path.name}-gate"
    slow, quick = wait_for.remote(gate), square.remote(2)
    done = fsd.as_completed([slow, quick], timeout=SOON)
    assert next(done) == quick
    with pytest.raises(GetTimeout, match="1 of 1"):
        list(fsd.as_completed([slow], timeout=0.05))
    open_gate(gate)
    assert next(done) == slow


def test_a_running_task_is_cancelled_at_once_with_what_it_started(tmp_path: Path) -> None:
    @fsd.remote
    def parent(depth: int) -> Any:
        (tmp_path / str(depth)).write_text(str(os.getpid()))
        if depth == 0:
            threading.Event().wait()
        return fsd.get(parent.remote(depth - 1))

    ref = parent.remote(3)
    assert _becomes(lambda: (tmp_path / "0").exists())
    fsd.cancel(ref)
    with pytest.raises(TaskCancelled, match="parent was cancelled"):
        fsd.get(ref, timeout=SOON)
    pids = [int(path.read_text()) for path in tmp_path.iterdir()]
    assert len(pids) == 4
    assert _becomes(lambda: not any(map(_is_alive, pids))), "a child of the task lives on"


def test_a_gang_is_cancelled_whole() -> None:
    @fsd.remote(world_size=3)
    def stuck() -> None:
        fsd.collective.world().recv()

    refs = stuck.remote()
    assert fsd.wait(refs, timeout=0.5)[0] == []
    fsd.cancel(refs[1])
    for ref in refs:
        with pytest.raises(TaskCancelled):
            fsd.get(ref, timeout=SOON)


def test_a_task_that_waits_for_its_turn_never_starts(tmp_path: Path) -> None:
    fsd.shutdown()
    fsd.init(concurrency=1)
    gate, note = f"{tmp_path.name}-gate", tmp_path / "note"

    @fsd.remote
    def write() -> None:
        note.write_text(str(os.getpid()))

    first = wait_for.remote(gate)
    waiting = write.remote()
    fsd.cancel(waiting)
    with pytest.raises(fsd.exceptions.TaskCancelledError):
        fsd.get(waiting, timeout=SOON)
    open_gate(gate)
    assert fsd.get(first, timeout=SOON) == gate
    assert fsd.get(square.remote(3), timeout=SOON) == 9
    assert not note.exists()


def test_cancelling_what_is_done_or_is_no_ref() -> None:
    ref = square.remote(3)
    assert fsd.get(ref) == 9
    fsd.cancel(ref, force=True)
    assert fsd.get(ref) == 9
    with pytest.raises(TypeError):
        fsd.cancel(9)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="recursive"):
        fsd.cancel(ref, recursive=False)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _becomes(is_so: Callable[[], bool]) -> bool:
    """Whether it becomes true within some seconds."""
    for _ in range(100):
        if is_so():
            return True
        threading.Event().wait(0.1)
    return False
