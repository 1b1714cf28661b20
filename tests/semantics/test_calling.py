"""Remote functions, their arguments and what they return."""

from __future__ import annotations

import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.semantics.differs import differs

FACTOR = 3


def scaled(number: int) -> int:
    return FACTOR * number


def test_a_call_gives_a_ref_at_once_and_its_value_later(ray: Any) -> None:
    @ray.remote
    def double(x):
        return 2 * x

    ref = double.remote(21)
    assert isinstance(ref, ray.ObjectRef)
    assert ray.get(ref) == 42
    assert ray.get([double.remote(n) for n in range(10)]) == [2 * n for n in range(10)]


def test_arguments_are_given_as_in_python(ray: Any) -> None:
    @ray.remote
    def show(a, /, b, c=3, *rest, d, e=5, **more):
        return a, b, c, rest, d, e, more

    assert ray.get(show.remote(1, 2, d=4)) == (1, 2, 3, (), 4, 5, {})
    assert ray.get(show.remote(1, b=2, c=0, d=4, e=6, f=7)) == (1, 2, 0, (), 4, 6, {"f": 7})
    assert ray.get(show.remote(1, 2, 3, 4, 5, d=6, a=7)) == (1, 2, 3, (4, 5), 6, 5, {"a": 7})


def test_arguments_may_have_any_names(ray: Any) -> None:
    @ray.remote
    def named(self, args, kwargs, name, function):
        return self, args, kwargs, name, function

    given = {"self": 1, "args": 2, "kwargs": 3, "name": 4, "function": 5}
    assert ray.get(named.remote(**given)) == (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    "call",
    [
        lambda f: f.remote(),
        lambda f: f.remote(1, 2, 3),
        lambda f: f.remote(1, c=3),
        lambda f: f.remote(1, a=1),
        lambda f: f(1),
    ],
    ids=["too few", "too many", "unknown", "twice", "called directly"],
)
def test_a_wrong_call_is_a_type_error_in_the_caller(ray: Any, call: Any) -> None:
    @ray.remote
    def takes(a, b=2):
        return a, b

    with pytest.raises(TypeError):
        call(takes)


def test_functions_are_made_remote_in_three_ways(ray: Any) -> None:
    def plain(x):
        return x + 1

    @ray.remote(num_cpus=1, max_retries=0)
    def with_options(x):
        return x + 1

    assert ray.get(ray.remote(plain).remote(1)) == 2
    assert ray.get(ray.remote(num_cpus=1)(plain).remote(1)) == 2
    assert ray.get(with_options.remote(1)) == 2
    assert ray.get(ray.remote(lambda x: x + 1).remote(1)) == 2
    assert plain(1) == 2, "the function itself stays as it was"


@pytest.mark.parametrize("thing", [3, "text", None], ids=str)
def test_what_is_no_function_cannot_be_made_remote(ray: Any, thing: Any) -> None:
    with pytest.raises((TypeError, AssertionError)):
        ray.remote(thing)


def test_a_remote_function_cannot_be_made_remote_again(ray: Any) -> None:
    with pytest.raises(TypeError):
        ray.remote(ray.remote(lambda: 1))


def test_a_decorator_takes_a_function_or_options_not_both(ray: Any) -> None:
    with pytest.raises((TypeError, AssertionError)):
        ray.remote(lambda: 1, num_cpus=1)


any_callable = differs(
    "Any callable can be made remote, also `functools.partial` and built-in functions, and "
    "`@ray.remote()` may have empty brackets: there is nothing that they could mean but that."
)


@any_callable.in_ray
def test_only_plain_functions_can_be_made_remote(ray: Any) -> None:
    for thing in (functools.partial(max, 1), len):
        with pytest.raises(TypeError):
            ray.remote(thing)
    with pytest.raises(AssertionError):
        ray.remote()


@any_callable.here
def test_any_callable_can_be_made_remote(ray: Any) -> None:
    assert ray.get(ray.remote(functools.partial(max, 1)).remote(2)) == 2
    assert ray.get(ray.remote(len).remote([1, 2])) == 2
    assert ray.get(ray.remote()(len).remote([1, 2])) == 2


coroutines = differs(
    "`async def` functions are tasks: each call runs on an event loop of its own. Ray refuses "
    "them, and has them in actors only."
)


@coroutines.in_ray
def test_coroutine_functions_are_refused(ray: Any) -> None:
    async def answer():
        return 42

    with pytest.raises(ValueError, match="async"):
        ray.remote(answer).remote()


@coroutines.here
def test_coroutine_functions_are_tasks_and_may_await_others(ray: Any) -> None:
    import asyncio

    @ray.remote
    def plus(x):
        return x + 1

    @ray.remote
    async def total(numbers):
        return sum(await asyncio.gather(*[plus.remote(n) for n in numbers]))

    @ray.remote
    async def fails():
        raise KeyError("within")

    assert ray.get(total.remote(range(5))) == 15
    with pytest.raises(KeyError, match="within"):
        ray.get(fails.remote())


@coroutines.here
@pytest.mark.slow_on_aws
def test_coroutine_functions_that_await_give_their_place_to_others(bare: Any) -> None:
    bare.init(num_cpus=2)

    @bare.remote
    async def deep(depth):
        import asyncio

        if depth == 0:
            return 1
        return sum(await asyncio.gather(deep.remote(depth - 1), deep.remote(depth - 1)))

    assert bare.get(deep.remote(3), timeout=60) == 8


names = differs(
    "A remote function is shown by its name, and has `__name__`, `__doc__` and `__wrapped__` "
    "(Ray: `_function`), as `functools.wraps` gives them."
)


@names.in_ray
def test_a_remote_function_has_no_name(ray: Any) -> None:
    function = ray.remote(scaled)
    assert not hasattr(function, "__name__")
    assert function._function(2) == 6


@names.here
def test_a_remote_function_has_the_name_of_its_function(ray: Any) -> None:
    function = ray.remote(scaled)
    assert function.__name__ == "scaled"
    assert "scaled" in repr(function)
    assert function.__wrapped__(2) == 6


classes = differs(
    "There are no actors: `@ray.remote` on a class is a `TypeError`, and so `get_actor`, `kill` "
    "and `method` are not there. Functions keep nothing between calls; gangs do while they run."
)


@classes.in_ray
def test_a_class_becomes_an_actor(ray: Any) -> None:
    class Counter:
        def more(self):
            return 1

    assert ray.get(ray.remote(Counter).remote().more.remote()) == 1


@classes.here
def test_a_class_is_refused_with_the_reason(ray: Any) -> None:
    with pytest.raises(TypeError, match="not actors"):
        ray.remote(type("Counter", (), {}))
    for name in ("get_actor", "kill", "method"):
        with pytest.raises(AttributeError, match="not actors"):
            getattr(ray, name)
    with pytest.raises(AttributeError, match="actors"):
        _ = ray.exceptions.RayActorError


def test_what_a_function_refers_to_goes_with_it(ray: Any) -> None:
    outside = {"offset": 100}

    def helper(x):
        return x + outside["offset"]

    @ray.remote
    def call(x):
        return helper(scaled(x))

    assert ray.get(call.remote(2)) == 106


def test_a_function_and_its_argument_that_is_one(ray: Any) -> None:
    @ray.remote
    def apply(function, *args):
        return function(*args)

    assert ray.get(apply.remote(lambda x: x * 5, 3)) == 15
    assert ray.get(apply.remote(scaled, 3)) == 9


def test_what_is_passed_is_copied(ray: Any) -> None:
    @ray.remote
    def change(items):
        items.append("changed")
        return items

    mine = ["mine"]
    assert ray.get(change.remote(mine)) == ["mine", "changed"]
    assert mine == ["mine"]


def test_what_was_passed_may_be_changed_at_once(ray: Any, gate: Any) -> None:
    @ray.remote
    def later(items, gate):
        gate.wait()
        return items

    mine = ["before"]
    ref = later.remote(mine, gate)
    mine[0] = "after"
    gate.open()
    assert ray.get(ref) == ["before"]


def test_what_cannot_be_pickled_is_a_type_error_in_the_caller(ray: Any) -> None:
    lock = threading.Lock()

    @ray.remote
    def take(x):
        return None

    @ray.remote
    def closes_over():
        return lock.locked()

    for call in (
        lambda: take.remote(lock),
        lambda: take.remote({"deep": [lock]}),
        lambda: ray.put(lock),
        closes_over.remote,
    ):
        with pytest.raises(TypeError, match="lock"):
            call()


def test_a_result_that_cannot_be_pickled_is_the_tasks_type_error(ray: Any) -> None:
    @ray.remote
    def bad():
        return threading.Lock()

    with pytest.raises(TypeError) as raised:
        ray.get(bad.remote())
    assert isinstance(raised.value, ray.exceptions.RayTaskError)


@pytest.mark.parametrize(
    "returned",
    [
        lambda: (1, 2),
        lambda: [1, 2],
        lambda: {1: "a", 2: "b"},
        lambda: range(1, 3),
        lambda: np.array([1, 2]),
        lambda: (n for n in (1, 2)),
    ],
    ids=["tuple", "list", "dict", "range", "array", "generator"],
)
def test_num_returns_takes_apart_what_is_returned(ray: Any, returned: Any) -> None:
    refs = ray.remote(num_returns=2)(returned).remote()
    assert isinstance(refs, list)
    assert ray.get(refs) == [1, 2]


def test_num_returns_zero_and_one(ray: Any, tally: Any) -> None:
    @ray.remote
    def pair(tally):
        tally.add()
        return 1, 2

    assert ray.get(pair.remote(tally)) == (1, 2)
    assert ray.get(pair.options(num_returns=1).remote(tally)) == (1, 2)
    assert ray.get(pair.options(num_returns=None).remote(tally)) == (1, 2)
    assert pair.options(num_returns=0).remote(tally) is None


def test_num_returns_that_does_not_fit_is_the_tasks_value_error(ray: Any) -> None:
    @ray.remote
    def give(value):
        return value

    for count, value in ((3, (1, 2)), (2, (1, 2, 3)), (2, [])):
        for ref in give.options(num_returns=count).remote(value):
            with pytest.raises(ValueError, match=f"num_returns={count}") as raised:
                ray.get(ref)
            assert isinstance(raised.value, ray.exceptions.RayTaskError)
    for value in (5, None):
        with pytest.raises(TypeError):
            ray.get(give.options(num_returns=2).remote(value))


def test_each_of_several_returns_has_the_tasks_error(ray: Any) -> None:
    @ray.remote(num_returns=2)
    def fail():
        raise KeyError("both")

    for ref in fail.remote():
        with pytest.raises(KeyError):
            ray.get(ref)


def test_tasks_call_tasks_and_themselves(ray: Any) -> None:
    @ray.remote
    def leaf(n):
        return n

    @ray.remote
    def branch(n):
        return sum(ray.get([leaf.remote(i) for i in range(n)]))

    @ray.remote
    def fibonacci(n):
        if n < 2:
            return n
        return sum(ray.get([fibonacci.remote(n - 1), fibonacci.remote(n - 2)]))

    assert ray.get([branch.remote(n) for n in range(4)]) == [0, 0, 1, 3]
    assert ray.get(fibonacci.remote(6)) == 8


def test_tasks_run_elsewhere_and_at_the_same_time(ray: Any, gate: Any, bell: Any) -> None:
    @ray.remote
    def meet(bell, gate):
        bell.ring()
        gate.wait()
        return os.getpid()

    refs = [meet.remote(bell, gate) for _ in range(3)]
    bell.hear(3)  # all are there before one may go on
    gate.open()
    pids = ray.get(refs)
    assert len(set(pids)) == 3
    assert os.getpid() not in pids


def test_a_driver_may_have_threads(ray: Any) -> None:
    @ray.remote
    def square(x):
        return x * x

    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(lambda n: ray.get(square.remote(n)), range(20)))
    assert values == [n * n for n in range(20)]


def test_many_small_tasks(ray: Any) -> None:
    @ray.remote
    def plus(x):
        return x + 1

    assert ray.get([plus.remote(n) for n in range(500)]) == list(range(1, 501))
