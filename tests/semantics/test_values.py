"""`get`, `put` and `wait`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.semantics.differs import differs


@pytest.fixture
def ready(ray: Any) -> list[Any]:
    """Three refs whose values are there."""
    return [ray.put(n) for n in range(3)]


@pytest.fixture
def slow(ray: Any, gate: Any) -> Any:
    """A ref whose value comes when the gate opens."""

    @ray.remote
    def pass_through(gate):
        gate.wait()
        return "through"

    return pass_through.remote(gate)


def test_get_takes_a_ref_or_a_list_of_them(ray: Any, ready: list[Any]) -> None:
    assert ray.get(ready[1]) == 1
    assert ray.get(ready) == [0, 1, 2]
    assert ray.get(ready + ready) == [0, 1, 2, 0, 1, 2]
    assert ray.get([]) == []


@pytest.mark.parametrize("make", [tuple, set, iter, lambda _: 3, lambda _: None, lambda x: {1: x}])
def test_get_of_anything_else_is_a_value_error(ray: Any, ready: list[Any], make: Any) -> None:
    with pytest.raises(ValueError, match="ObjectRef"):
        ray.get(make(ready))


def test_get_of_a_list_with_something_else_is_a_type_error(ray: Any, ready: list[Any]) -> None:
    for refs in ([1], [*ready, 1], [ready]):
        with pytest.raises(TypeError):
            ray.get(refs)


def test_get_takes_its_timeout_by_name_only(ray: Any, ready: list[Any]) -> None:
    with pytest.raises(TypeError):
        ray.get(ready, 5)


def test_get_reaches_its_timeout_and_the_task_goes_on(ray: Any, slow: Any, gate: Any) -> None:
    for timeout in (0, 0.01):
        with pytest.raises(ray.exceptions.GetTimeoutError) as raised:
            ray.get(slow, timeout=timeout)
        assert isinstance(raised.value, TimeoutError)
        with pytest.raises(TimeoutError):
            ray.get([ray.put(1), slow], timeout=timeout)
    gate.open()
    assert ray.get(slow, timeout=60) == "through"
    assert ray.get(slow, timeout=0) == "through", "it is there now"


negative = differs(
    "A negative `timeout` is a `ValueError` everywhere; `ray.get` takes it as no timeout at all."
)


@negative.in_ray
def test_get_waits_with_a_negative_timeout(ray: Any, ready: list[Any]) -> None:
    assert ray.get(ready, timeout=-1) == [0, 1, 2]


@negative.here
def test_get_refuses_a_negative_timeout(ray: Any, ready: list[Any]) -> None:
    with pytest.raises(ValueError, match="timeout=-1"):
        ray.get(ready, timeout=-1)


def test_get_of_a_list_raises_at_the_first_failure_known(ray: Any, slow: Any) -> None:
    @ray.remote
    def fail():
        raise KeyError("now")

    with pytest.raises(KeyError):
        ray.get([slow, fail.remote()], timeout=60)


def test_each_get_gives_a_new_value(ray: Any) -> None:
    ref = ray.put([1])
    ray.get(ref).append(2)
    assert ray.get(ref) == [1]


def test_put_keeps_the_value_as_it_was(ray: Any) -> None:
    value = {"a": [1]}
    ref = ray.put(value)
    value["a"].append(2)
    assert ray.get(ref) == {"a": [1]}
    assert ray.get(ray.put(None)) is None


def test_put_of_a_ref_is_a_type_error_but_not_of_a_list_of_them(ray: Any, ready: list[Any]) -> None:
    with pytest.raises(TypeError):
        ray.put(ready[0])
    [again] = ray.get(ray.put([ready[0]]))
    assert ray.get(again) == 0


def test_arrays_are_read_only_where_they_arrive(ray: Any) -> None:
    @ray.remote
    def look(array):
        return array.flags.writeable, float(array.sum())

    @ray.remote
    def write(array):
        array[0] = 1

    @ray.remote
    def make(size):
        return np.ones(size)

    for size in (3, 300_000):
        array = np.ones(size)
        ref = ray.put(array)
        assert not ray.get(ref).flags.writeable
        assert not ray.get(make.remote(size)).flags.writeable
        assert ray.get(look.remote(ref)) == (False, size)
        assert ray.get(look.remote(array)) == (False, size)
        with pytest.raises(ValueError, match="read-only"):
            ray.get(write.remote(ref))
        assert array.flags.writeable


def test_large_arrays_are_not_copied_by_get(ray: Any) -> None:
    ref = ray.put(np.arange(300_000))
    assert np.shares_memory(ray.get(ref), ray.get(ref))


def test_an_array_that_was_put_serves_any_number_of_tasks(ray: Any) -> None:
    @ray.remote
    def pick(array, index):
        return int(array[index])

    ref = ray.put(np.arange(300_000))
    assert ray.get([pick.remote(ref, n) for n in range(100)]) == list(range(100))


def test_wait_splits_in_the_order_given(ray: Any, ready: list[Any], slow: Any) -> None:
    a, b, c = ready
    assert ray.wait([c, a, b], num_returns=3) == ([c, a, b], [])
    assert ray.wait([slow, c, a], num_returns=2) == ([c, a], [slow])
    assert ray.wait([slow, a], num_returns=1) == ([a], [slow])
    assert ray.wait([a, b], num_returns=2, timeout=None, fetch_local=True) == ([a, b], [])
    assert ray.wait([a], fetch_local=False) == ([a], [])


def test_wait_gives_no_more_than_it_was_asked_for(ray: Any, ready: list[Any]) -> None:
    for count in (1, 2):
        chosen, rest = ray.wait(ready, num_returns=count)
        assert len(chosen) == count
        assert [ref for ref in ready if ref in chosen] == chosen
        assert [ref for ref in ready if ref in rest] == rest
        assert len({*chosen, *rest}) == 3


def test_wait_gives_what_is_ready_when_time_is_up(
    ray: Any, ready: list[Any], slow: Any, gate: Any
) -> None:
    a, b, _ = ready
    assert ray.wait([slow], timeout=0) == ([], [slow])
    assert ray.wait([a, slow, b], num_returns=3, timeout=0.05) == ([a, b], [slow])
    gate.open()
    assert ray.wait([slow], timeout=60) == ([slow], [])


def test_wait_counts_failures_as_ready(ray: Any) -> None:
    @ray.remote
    def fail():
        raise KeyError("x")

    ref = fail.remote()
    assert ray.wait([ref], timeout=60) == ([ref], [])


def test_wait_of_nothing_is_nothing(ray: Any) -> None:
    assert ray.wait([]) == ([], [])


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda wait, refs: wait(refs[0]), TypeError),
        (lambda wait, refs: wait(tuple(refs)), TypeError),
        (lambda wait, refs: wait(set(refs)), TypeError),
        (lambda wait, refs: wait(iter(refs)), TypeError),
        (lambda wait, refs: wait([*refs, 1]), TypeError),
        (lambda wait, refs: wait(refs, 1), TypeError),
        (lambda wait, refs: wait([refs[0], refs[0]]), ValueError),
        (lambda wait, refs: wait(refs, num_returns=0), ValueError),
        (lambda wait, refs: wait(refs, num_returns=-1), ValueError),
        (lambda wait, refs: wait(refs, num_returns=4), ValueError),
        (lambda wait, refs: wait(refs, timeout=-1), ValueError),
        (lambda wait, refs: wait(refs, num_returns="1"), TypeError),
        (lambda wait, refs: wait(refs, timeout="1"), TypeError),
    ],
    ids=[
        "a ref", "a tuple", "a set", "an iterator", "not a ref", "by position", "twice",
        "none", "negative", "too many", "negative time", "text", "text as time",
    ],
)  # fmt: skip
def test_wait_checks_what_it_is_given(
    ray: Any, ready: list[Any], call: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        call(ray.wait, ready)
