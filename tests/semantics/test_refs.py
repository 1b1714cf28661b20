"""What a ref is, where it may go, and what becomes of it there."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import pickle
from typing import Any

import pytest

from tests.semantics.differs import differs


@pytest.fixture
def plus(ray: Any) -> Any:
    @ray.remote
    def plus(x, more=1):
        return x + more

    return plus


def test_refs_are_equal_where_they_stand_for_the_same_value(ray: Any, plus: Any) -> None:
    ref, other = plus.remote(1), plus.remote(1)
    for same in (copy.copy(ref), copy.deepcopy([ref])[0], pickle.loads(pickle.dumps(ref))):
        assert same == ref
        assert hash(same) == hash(ref)
        assert ray.get(same) == 2
    assert ref != other
    assert ref != 3
    assert len({ref, other, copy.copy(ref)}) == 2
    assert ref.hex() == copy.copy(ref).hex() != other.hex()


def test_a_ref_is_no_number_and_no_list(plus: Any) -> None:
    ref = plus.remote(1)
    for misuse in (lambda: ref + 1, lambda: list(ref), lambda: ref < ref, lambda: ref[0]):
        with pytest.raises(TypeError):
            misuse()
    with pytest.raises(AttributeError):
        ref.anything = 1


def test_refs_can_stand_in_annotations(ray: Any) -> None:
    assert ray.ObjectRef[int] is not None


shown = differs(
    "A ref is shown as its task's name and state, and its id (`hex()`, `id`) is text that no "
    "other ref of the session has: there are no `binary`, `task_id`, `job_id`, nor "
    "`ray.ObjectID`."
)


@shown.in_ray
def test_a_ref_is_shown_as_its_number(ray: Any, plus: Any) -> None:
    ref = plus.remote(1)
    assert repr(ref) == f"ObjectRef({ref.hex()})"
    assert bytes.fromhex(ref.hex()) == ref.binary()


@shown.here
def test_a_ref_is_shown_as_its_task_and_state(ray: Any, plus: Any) -> None:
    ref = plus.remote(1)
    ray.wait([ref])
    assert repr(ref) == "ObjectRef(plus, finished)"
    assert ref.hex() == ref.id
    assert not hasattr(ref, "binary")


def test_a_ref_given_as_an_argument_becomes_its_value(ray: Any, plus: Any) -> None:
    assert ray.get(plus.remote(plus.remote(1), more=plus.remote(2))) == 5
    assert ray.get(plus.remote(ray.put(1))) == 2


def test_a_ref_inside_an_argument_stays_a_ref(ray: Any, plus: Any) -> None:
    @ray.remote
    def look(given):
        return [isinstance(x, ray.ObjectRef) for x in given], ray.get(list(given))

    ref = plus.remote(1)
    assert ray.get(look.remote([ref])) == ([True], [2])
    assert ray.get(look.remote((ref, ray.put(5)))) == ([True, True], [2, 5])
    assert ray.get(look.remote({ref: None})) == ([True], [2])


def test_a_ref_travels_in_objects_and_closures(ray: Any, plus: Any) -> None:
    class Holder:
        def __init__(self, ref):
            self.ref = ref

    ref = plus.remote(1)

    @ray.remote
    def of_object(holder):
        return ray.get(holder.ref)

    @ray.remote
    def of_closure():
        return ray.get(ref)

    @ray.remote
    def of_default(given=ref):
        return ray.get(given)

    assert ray.get([of_object.remote(Holder(ref)), of_closure.remote(), of_default.remote()]) == [
        2, 2, 2,
    ]  # fmt: skip


def test_refs_come_back_as_results(ray: Any, plus: Any) -> None:
    @ray.remote
    def start(n):
        return [plus.remote(i) for i in range(n)]

    @ray.remote
    def start_one():
        return plus.remote(10)

    @ray.remote
    def deep():
        return {"inner": start.remote(2), "put": ray.put("here")}

    assert ray.get(ray.get(start.remote(3))) == [1, 2, 3]
    assert ray.get(ray.get(start_one.remote())) == 11, "a returned ref is not resolved by itself"
    found = ray.get(deep.remote())
    assert ray.get(found["put"]) == "here"
    assert ray.get(ray.get(found["inner"])) == [1, 2]


def test_what_a_task_returned_a_ref_to_can_be_passed_on(ray: Any, plus: Any) -> None:
    @ray.remote
    def make():
        return [ray.put(1)]

    [inner] = ray.get(make.remote())
    assert ray.get(plus.remote(inner)) == 2


def test_a_value_stays_while_somebody_refers_to_it(ray: Any) -> None:
    @ray.remote
    def keep(x):
        return x

    @ray.remote
    def later(refs, gate):
        return ray.get(refs[0])

    held = keep.remote(ray.put("argument"))
    assert ray.get(held) == "argument", "the ref of the argument is gone by now"
    assert ray.get(later.remote([ray.put("nested")], None)) == "nested"


def test_long_chains_and_wide_fans_of_refs(ray: Any, plus: Any) -> None:
    ref = ray.put(0)
    for _ in range(30):
        ref = plus.remote(ref)
    assert ray.get(ref) == 30

    @ray.remote
    def total(*numbers):
        return sum(numbers)

    assert ray.get(total.remote(*[plus.remote(n) for n in range(30)])) == sum(range(31))


def test_a_ref_can_be_awaited(ray: Any, plus: Any, gate: Any) -> None:
    @ray.remote
    def held(gate):
        gate.wait()
        return "done"

    @ray.remote
    def fail():
        raise KeyError("x")

    async def main():
        values = await asyncio.gather(*[plus.remote(n) for n in range(3)])
        waiting = held.remote(gate)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(waiting, 0.05)
        gate.open()
        with pytest.raises(KeyError):
            await fail.remote()
        return [*values, await waiting, await waiting]

    assert asyncio.run(main()) == [1, 2, 3, "done", "done"]


def test_a_ref_has_a_future(ray: Any, plus: Any) -> None:
    @ray.remote
    def fail():
        raise KeyError("x")

    futures = [plus.remote(n).future() for n in range(4)]
    assert all(isinstance(future, concurrent.futures.Future) for future in futures)
    done, _ = concurrent.futures.wait(futures, timeout=60)
    assert sorted(future.result() for future in done) == [1, 2, 3, 4]
    assert isinstance(fail.remote().future().exception(timeout=60), KeyError)


ended = differs(
    "A ref of an earlier session gives its value if that was small and is still at hand, and "
    "`ObjectLostError` otherwise. Ray raises a `ValueError` about an unknown owner."
)


@ended.in_ray
def test_a_ref_of_an_earlier_session_is_a_value_error(bare: Any) -> None:
    ref = bare.put("x")
    bare.shutdown()
    with pytest.raises(ValueError, match="owner"):
        bare.get(ref)


@ended.here
def test_a_ref_of_an_earlier_session_is_lost(bare: Any) -> None:
    @bare.remote
    def identity(x):
        return x

    ref, small = bare.put("x"), identity.remote("small")
    assert bare.get(small) == "small"
    bare.shutdown()
    assert bare.get(small) == "small"
    for call in (
        lambda: bare.get(ref),
        lambda: bare.get(identity.remote(ref)),
        lambda: identity.remote([ref]),
        lambda: identity.remote([small]),
    ):
        with pytest.raises(bare.exceptions.ObjectLostError):
            call()
