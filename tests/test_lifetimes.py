"""How long values live: those of refs that left a process until the session ends, others no longer.

What is kept is looked up in the session's objects. Python's cycle collector is off meanwhile: a
value that only it would find is one that is kept too long.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fsdray as fsd
from fsdray import loop, session
from fsdray.errors import (
    FunctionCrashed,
    RankFailed,
    SettingsError,
    TaskCancelled,
    TaskError,
)
from tests import on_aws
from tests.conftest import clean_session

pytestmark = [pytest.mark.usefixtures("small_limit", "no_collector")]

LARGE = b"x" * 5_000  # with the limit below, an object of its own
SHARED = ("functions/", "modules/", "cancel/")  # kept for all calls, or told to stop one


@pytest.fixture(scope="module")
def small_limit() -> Iterator[None]:
    """A session in which little is large."""
    with clean_session(inline_limit=1_000):
        yield


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def kept() -> set[str]:
    """What the session keeps, once all that was under way is over."""
    here = session.current()
    loop.run(here.flush())
    found = loop.run(here.backend.objects.list(""))
    return {key for key in found if not key.startswith(SHARED)}


@pytest.fixture
def before() -> set[str]:
    """What earlier tests let escape."""
    return kept()


@fsd.remote
def large(size: int = 5_000) -> bytes:
    return b"y" * size


@fsd.remote
def length(value: bytes) -> int:
    return len(value)


@fsd.remote
def length_of_nested(refs: list[Any]) -> int:
    return sum(len(fsd.get(ref)) for ref in refs)


@fsd.remote
def fail(*values: bytes) -> None:
    raise ValueError(LARGE)


async def awaited(ref: Any) -> Any:
    return await ref


USES: dict[str, Callable[[Any], Any]] = {
    "get": fsd.get,
    "get twice": lambda ref: (fsd.get(ref), fsd.get([ref, ref])),
    "wait": lambda ref: fsd.wait([ref]),
    "wait, then get": lambda ref: fsd.get(fsd.wait([ref])[0]),
    "as_completed": lambda ref: list(fsd.as_completed([ref])),
    "future": lambda ref: ref.future().result(),
    "await": lambda ref: asyncio.run(awaited(ref)),
    "argument": lambda ref: fsd.get(length.remote(ref)),
    "arguments": lambda ref: fsd.get([length.remote(ref) for _ in range(5)]),
    "receipt": lambda ref: (fsd.get(ref), ref.receipt()),
    "nothing": lambda ref: None,
}


@pytest.mark.parametrize("make", [large.remote, lambda: fsd.put(LARGE)], ids=["task", "put"])
@pytest.mark.parametrize("use", USES)
def test_a_value_goes_with_its_last_ref_however_it_was_used(
    make: Any, use: str, before: set[str]
) -> None:
    ref = make()
    USES[use](ref)
    fsd.wait([ref])
    assert kept() - before == {f"values/{ref.id}"}
    other = ref
    del ref
    assert kept() - before == {f"values/{other.id}"}
    del other
    assert kept() == before


def test_a_ref_that_dies_before_its_value_is_there_leaves_nothing(before: set[str]) -> None:
    for _ in range(5):
        large.remote()
    assert kept() == before


def test_of_several_values_each_goes_with_its_own_ref(before: set[str]) -> None:
    @fsd.remote(num_returns=3)
    def three() -> tuple[bytes, ...]:
        return LARGE, LARGE, b""

    one, two, none = three.remote()
    assert fsd.get([one, two, none]) == [LARGE, LARGE, b""]
    del one
    assert kept() - before == {f"values/{two.id}"}
    del two
    assert kept() == before


def test_a_ref_that_left_keeps_its_value_until_the_end(before: set[str]) -> None:
    refs = [large.remote(), fsd.put(LARGE), large.remote(10)]
    ids = {f"values/{ref.id}" for ref in refs}
    assert fsd.get(length_of_nested.remote(refs)) == 10_010
    del refs
    assert kept() - before == ids


def test_arguments_go_with_their_call_however_it_ends(before: set[str]) -> None:
    @fsd.remote(max_retries=0)
    def crash(value: bytes) -> None:
        os._exit(1)

    @fsd.remote
    def stay(value: bytes) -> None:
        time.sleep(600)

    assert fsd.get(length.remote(LARGE)) == len(LARGE)
    with pytest.raises(ValueError, match="x"):
        fsd.get(fail.remote(LARGE))
    with pytest.raises(FunctionCrashed):
        fsd.get(crash.remote(LARGE))
    cancelled = stay.remote(LARGE)
    fsd.cancel(cancelled)
    with pytest.raises(TaskCancelled):
        fsd.get(cancelled)
    del cancelled
    assert kept() == before


def test_what_depends_on_a_failure_leaves_nothing(before: set[str]) -> None:
    failed = fail.remote(LARGE)
    with pytest.raises(ValueError, match="x"):
        fsd.get(length.remote(failed))
    del failed
    assert kept() == before


def test_a_call_that_was_refused_leaves_nothing(before: set[str]) -> None:
    @fsd.remote(world_size=2)
    def ranks(one: Any, two: Any = None) -> None: ...

    unpicklable = (number for number in range(3))
    with pytest.raises(SettingsError, match="generator"):
        ranks.remote(fsd.per_rank([LARGE, unpicklable]))
    with pytest.raises(SettingsError, match="generator"):
        ranks.remote(LARGE, fsd.per_rank([LARGE, unpicklable]))
    refused = length.options(runtime_env={"pip": ["-e nothing"]})
    with pytest.raises(SettingsError, match="editable"):
        refused.remote(LARGE)
    assert kept() == before


def test_a_value_that_cannot_be_pickled_leaves_none_of_the_others(before: set[str]) -> None:
    @fsd.remote(num_returns=2)
    def two() -> tuple[Any, Any]:
        return LARGE, (number for number in range(3))

    refs = two.remote()
    with pytest.raises(TypeError, match="generator"):
        fsd.get(refs)
    del refs
    assert kept() == before


def test_a_gang_leaves_its_values_alone(before: set[str]) -> None:
    @fsd.remote(world_size=3)
    def gather(mine: bytes, fails: bool) -> bytes:
        comm = fsd.collective.world()
        comm.allgather(mine)
        if fails and comm.rank == 1:
            raise KeyError(LARGE)
        return mine

    parts = fsd.per_rank([LARGE * (rank + 1) for rank in range(3)])
    refs = gather.remote(parts, False)
    assert [len(value) for value in fsd.get(refs)] == [5_000, 10_000, 15_000]
    assert kept() - before == {f"values/{ref.id}" for ref in refs}
    del refs
    assert kept() == before
    refs = gather.remote(parts, True)
    with pytest.raises(KeyError):
        fsd.get(refs)
    del refs
    assert kept() == before


def test_a_gang_whose_rank_dies_leaves_nothing(before: set[str]) -> None:
    @fsd.remote(world_size=3)
    def die(mine: bytes) -> bytes:
        comm = fsd.collective.world()
        if comm.rank == 1:
            os._exit(1)
        comm.barrier()
        return mine

    refs = die.remote(fsd.per_rank([LARGE] * 3))
    with pytest.raises(RankFailed):
        fsd.get(refs)
    del refs
    assert kept() == before


def test_maps_and_executors_leave_nothing(before: set[str]) -> None:
    inputs = [LARGE] * 20
    assert sum(length.map(inputs)) == sum(length.map(inputs, ordered=False)) == 100_000
    assert [len(value) for value in large.map([5_000] * 20)] == [5_000] * 20
    with fsd.Executor() as executor:
        assert sum(executor.map(len, inputs)) == 100_000
    assert kept() == before


@pytest.mark.local_only("on AWS a call that is cancelled may store its value, for the session")
def test_maps_that_are_left_leave_nothing(before: set[str]) -> None:
    for ordered in (True, False):
        outputs = large.map([5_000] * 50, ordered=ordered)
        next(outputs)
        outputs.close()
        del outputs
    assert kept() == before


def test_the_failure_of_one_value_outlives_the_ref_of_another(before: set[str]) -> None:
    one, two = fail.options(num_returns=2).remote()
    fsd.wait([one, two], num_returns=2)
    del one
    assert kept() - before == {f"values/{two.id}"}
    with pytest.raises(ValueError, match="x"):
        fsd.get(two)
    del two
    assert kept() == before


# Inside tasks


@pytest.mark.parametrize("use", USES)
def test_what_a_task_made_and_did_not_hand_on_goes_with_it(use: str, before: set[str]) -> None:
    @fsd.remote
    def outer(fails: bool) -> int:
        refs = [large.remote(), fsd.put(LARGE)]
        for ref in refs:
            USES[use](ref)
        if fails:
            raise KeyError("on purpose")
        return len(refs)

    assert fsd.get(outer.remote(False)) == 2
    with pytest.raises(KeyError, match="on purpose"):
        fsd.get(outer.remote(True))
    assert kept() == before


def test_what_a_task_returns_refs_of_can_be_had_for_the_whole_session(before: set[str]) -> None:
    @fsd.remote
    def outer() -> tuple[Any, ...]:
        failing = fail.remote()
        return large.remote(), fsd.put(LARGE), large.remote(10), failing

    one, two, small, failing = fsd.get(outer.remote())
    names = {f"values/{ref.id}" for ref in (one, two, small, failing)}
    assert [len(value) for value in fsd.get([one, two, small])] == [5_000, 5_000, 10]
    with pytest.raises(ValueError, match="x") as raised:
        fsd.get(failing)
    assert isinstance(raised.value, TaskError)
    assert fsd.get(length_of_nested.remote([one, two, small])) == 10_010
    del one, two, small, failing, raised
    assert kept() - before == names


@dataclass
class Box:
    """Something of the user's that holds a ref."""

    ref: Any
    label: str


@fsd.remote
def down(depth: int, held: Any) -> Any:
    """Hand what holds refs on, `depth` times, and return what comes back."""
    if depth == 0:
        return {"back": [held["box"], held["closure"]], held["ref"]: "as a key"}
    return fsd.get(down.remote(depth - 1, held))


def test_refs_go_down_and_come_up_in_any_structure() -> None:
    ref = large.remote()
    fresh = fsd.put({"deep": [ref]})
    held = {"box": Box(ref, "box"), "closure": lambda: fsd.get(ref), "ref": fresh}
    found = fsd.get(down.remote(4, held))
    box, closure = found.pop("back")
    assert box.ref == ref
    assert fsd.get(box.ref) == closure() == fsd.get(ref) == b"y" * 5_000
    [(key, word)] = found.items()
    assert (key, word) == (fresh, "as a key")
    assert fsd.get(key) == {"deep": [ref]}


def test_a_worker_forgets_the_refs_of_calls_that_are_over() -> None:
    @fsd.remote
    def holds(refs: list[Any]) -> int:
        fsd.get(refs)
        return len(session.current()._foreign)

    found = [fsd.get(holds.remote([fsd.put(number)])) for number in range(5)]
    assert set(found) == {1}


def test_a_thousand_calls_with_large_arguments_leave_what_escaped(before: set[str]) -> None:
    escaped = fsd.put(LARGE)
    count = on_aws.amount(1_000, 100)
    refs = [length.remote(LARGE + bytes(number)) for number in range(count)]
    refs.append(length_of_nested.remote([escaped]))
    assert sum(fsd.get(refs)) == 5_000 * (count + 1) + sum(range(count))
    names = {f"values/{escaped.id}"}
    del refs, escaped
    assert kept() - before == names


# Any program

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["task", "put", "get", "drop", "pass", "nest", "copy", "fail", "return"]),
        st.integers(0, 9),
    ),
    max_size=20,
)


@fsd.remote
def holding(refs: list[Any]) -> list[Any]:
    return refs


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(STEPS)
@pytest.mark.slow_on_aws
def test_in_any_program_what_is_kept_is_what_has_refs_or_had_one_that_left(
    steps: list[tuple[str, int]],
) -> None:
    already = kept()
    refs: list[Any] = []
    escaped: set[str] = set()
    for step, number in steps:
        chosen = refs[number % len(refs)] if refs else None
        if step == "task":
            refs.append(large.remote())
        elif step == "put":
            refs.append(fsd.put(LARGE))
        elif chosen is None:
            continue
        elif step == "get":
            fsd.get(chosen)
        elif step == "drop":
            refs.remove(chosen)
        elif step == "pass":
            length.remote(chosen)
        elif step == "copy":
            refs.append(chosen)
        elif step == "fail":
            with pytest.raises(ValueError, match="x"):
                fsd.get(fail.remote(chosen))
        else:
            escaped.add(f"values/{chosen.id}")
            back = holding.remote([chosen])
            if step == "return":
                refs += fsd.get(back)
            del back
        del chosen
    if refs:
        fsd.wait(list(dict.fromkeys(refs)), num_returns=len(set(refs)))
    held = {f"values/{ref.id}" for ref in refs}
    assert kept() - already == held | escaped
    refs.clear()
    assert kept() - already == escaped
