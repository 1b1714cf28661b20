"""Generator functions: their refs come while they run."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import numpy as np
import pytest

from tests.semantics.differs import differs


@pytest.fixture
def count(ray: Any) -> Any:
    @ray.remote
    def count(n):
        for i in range(n):  # noqa: UP028  # Ray cannot stream `yield from range(n)`
            yield i

    return count


def test_a_generator_function_gives_a_generator_of_refs(ray: Any, count: Any) -> None:
    stream = count.remote(3)
    assert isinstance(stream, ray.ObjectRefGenerator)
    refs = list(stream)
    assert all(isinstance(ref, ray.ObjectRef) for ref in refs)
    assert ray.get(refs) == [0, 1, 2]
    assert [ray.get(ref) for ref in count.options(num_returns="streaming").remote(2)] == [0, 1]
    assert list(count.remote(0)) == []


def test_refs_come_one_by_one_and_then_no_more(ray: Any, count: Any) -> None:
    stream = count.remote(2)
    assert iter(stream) is stream
    assert [ray.get(next(stream)), ray.get(next(stream))] == [0, 1]
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(stream)


def test_refs_come_before_the_generator_is_over(ray: Any, gate: Any) -> None:
    @ray.remote
    def held(gate):
        yield "first"
        gate.wait()
        yield "second"

    stream = held.remote(gate)
    assert ray.get(next(stream), timeout=60) == "first"
    gate.open()
    assert [ray.get(ref) for ref in stream] == ["second"]


def test_what_it_raises_is_the_value_of_the_last_ref(ray: Any) -> None:
    @ray.remote
    def breaks():
        yield 1
        raise KeyError("midway")

    stream = breaks.remote()
    assert ray.get(next(stream)) == 1
    last = next(stream)
    with pytest.raises(KeyError) as raised:
        ray.get(last)
    assert isinstance(raised.value, ray.exceptions.RayTaskError)
    with pytest.raises(StopIteration):
        next(stream)


def test_a_generator_that_raises_at_once_gives_one_ref(ray: Any) -> None:
    @ray.remote
    def breaks(n):
        if n > 0:
            raise KeyError("at once")
        yield n

    [ref] = breaks.remote(1)
    with pytest.raises(KeyError):
        ray.get(ref)


def test_num_returns_takes_a_generator_apart_all_the_same(ray: Any, count: Any) -> None:
    refs = count.options(num_returns=2).remote(2)
    assert ray.get(refs) == [0, 1]
    assert count.options(num_returns=0).remote(2) is None


def test_its_refs_can_be_passed_on_and_are_resolved(ray: Any, count: Any) -> None:
    @ray.remote
    def double(x):
        return 2 * x

    assert ray.get([double.remote(ref) for ref in count.remote(4)]) == [0, 2, 4, 6]


def test_its_arguments_may_be_refs(ray: Any, count: Any) -> None:
    assert ray.get(list(count.remote(ray.put(3)))) == [0, 1, 2]


def test_large_values_stream(ray: Any) -> None:
    @ray.remote
    def arrays(n):
        for i in range(n):
            yield np.full(200_000, i)

    sums = [int(ray.get(ref).sum()) for ref in arrays.remote(4)]
    assert sums == [200_000 * i for i in range(4)]


def test_wait_takes_generators(ray: Any, gate: Any) -> None:
    @ray.remote
    def held(gate):
        gate.wait()
        yield 1

    @ray.remote
    def quick():
        yield 2

    slow, fast = held.remote(gate), quick.remote()
    ready, rest = ray.wait([slow, fast], num_returns=1, timeout=60)
    assert (ready, rest) == ([fast], [slow])
    assert ray.get(next(fast)) == 2
    gate.open()
    assert ray.wait([slow], timeout=60) == ([slow], [])


def test_get_of_a_generator_is_an_error(ray: Any, count: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        ray.get([[count.remote(1)]])


def test_it_can_be_iterated_in_asyncio(ray: Any, count: Any) -> None:
    async def main():
        return [await ref async for ref in count.remote(3)]

    assert asyncio.run(main()) == [0, 1, 2]


def test_it_can_be_cancelled(ray: Any, bell: Any) -> None:
    @ray.remote(max_retries=0)
    def endless(bell):
        yield 0
        bell.ring()
        while True:
            pass

    stream = endless.remote(bell)
    assert ray.get(next(stream)) == 0
    bell.hear()
    ray.cancel(stream)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(next(stream), timeout=60)


def test_a_process_that_ends_midway_runs_again(ray: Any, tally: Any) -> None:
    @ray.remote(max_retries=1)
    def unsteady(tally):
        yield "a"
        if tally.add() == 1:
            os._exit(1)
        yield "b"

    assert [ray.get(ref) for ref in unsteady.remote(tally)] == ["a", "b"]
    assert tally.count == 2


def test_a_task_can_stream_what_it_streams_itself(ray: Any, count: Any) -> None:
    @ray.remote
    def relay(n):
        for ref in count.remote(n):
            yield ray.get(ref) * 10

    @ray.remote
    def total(n):
        return sum(ray.get(list(count.remote(n))))

    assert ray.get(list(relay.remote(3))) == [0, 10, 20]
    assert ray.get(total.remote(4)) == 6


kinds = differs(
    'A generator may `yield from` any iterable, not generators alone. `num_returns="dynamic"`, '
    "which Ray has given up, is refused."
)


def _from_range(ray: Any) -> Any:
    @ray.remote
    def from_range(n):
        yield from range(n)

    return from_range


@kinds.in_ray
def test_ray_streams_from_generators_alone(ray: Any) -> None:
    last = list(_from_range(ray).remote(2))[-1]
    with pytest.raises(AttributeError, match="send"):
        ray.get(last)
    dynamic = _from_range(ray).options(num_returns="dynamic").remote(2)
    assert ray.get(list(ray.get(dynamic))) == [0, 1]


@kinds.here
def test_a_generator_yields_from_any_iterable(ray: Any) -> None:
    assert ray.get(list(_from_range(ray).remote(2))) == [0, 1]
    with pytest.raises(ValueError, match="dynamic"):
        _from_range(ray).options(num_returns="dynamic")
