"""Options of tasks: those that both know, and those that mean something else here, or nothing."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.semantics.differs import differs


@pytest.fixture
def plus(ray: Any) -> Any:
    @ray.remote
    def plus(x, more=1):
        return x + more

    return plus


def test_options_vary_one_call_and_leave_the_function_alone(ray: Any) -> None:
    @ray.remote(num_returns=2)
    def pair():
        return 1, 2

    assert ray.get(pair.options(num_returns=1).remote()) == (1, 2)
    assert ray.get(pair.remote()) == [1, 2]
    assert ray.get(pair.options().remote()) == [1, 2]


@pytest.mark.parametrize(
    "options",
    [
        {"num_cpus": 0},
        {"num_cpus": 0.5},
        {"num_cpus": 1},
        {"num_cpus": None},
        {"num_gpus": 0},
        {"num_gpus": None},
        {"resources": {}},
        {"resources": None},
        {"memory": None},
        {"name": "a name"},
        {"name": None},
        {"max_retries": 0},
        {"max_retries": -1},
        {"retry_exceptions": True},
        {"retry_exceptions": [KeyError]},
        {"runtime_env": None},
        {"runtime_env": {}},
        {"runtime_env": {"env_vars": {}}},
        {"scheduling_strategy": "DEFAULT"},
        {"scheduling_strategy": "SPREAD"},
        {"scheduling_strategy": None},
        {"enable_task_events": False},
    ],
    ids=str,
)
def test_an_option_of_ray_that_asks_for_what_is_there_is_taken(
    ray: Any, plus: Any, options: dict[str, Any]
) -> None:
    assert ray.get(plus.options(**options).remote(1)) == 2
    assert ray.get(ray.remote(**options)(lambda: 1).remote()) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"nonsense": 1},
        {"num_returns": -1},
        {"max_retries": -2},
        {"num_cpus": -1},
        {"memory": -1},
        {"num_gpus": -1},
    ],
    ids=str,
)
def test_a_wrong_option_is_a_value_error_at_once(
    ray: Any, plus: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        plus.options(**options)
    with pytest.raises(ValueError, match=next(iter(options))):
        ray.remote(**options)(lambda: 1)


types = differs(
    "An option or setting of a wrong type is a `SettingsError`, a `ValueError`, like all that is "
    "wrong with one; Ray raises `TypeError` for the type of a task's option, and `RuntimeError` "
    "for an argument that `init` does not know."
)
WRONG_TYPES: list[dict[str, Any]] = [
    {"num_returns": 1.5},
    {"retry_exceptions": 3},
    {"name": 3},
    {"num_cpus": "many"},
]


@types.in_ray
@pytest.mark.parametrize("options", WRONG_TYPES, ids=str)
def test_a_wrong_type_is_a_type_error(ray: Any, plus: Any, options: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        plus.options(**options)


@types.here
@pytest.mark.parametrize("options", WRONG_TYPES, ids=str)
def test_a_wrong_type_is_a_settings_error(ray: Any, plus: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ray.errors.SettingsError, match=next(iter(options))):
        plus.options(**options)


memory = differs(
    "`memory` is in MB, not in bytes, as functions are sold; it is a limit that is kept, and "
    "brings CPUs in proportion (one at 1,769 MB), so `num_cpus=n` asks for as much memory as has "
    "n CPUs."
)


@memory.in_ray
def test_memory_is_in_bytes(ray: Any, plus: Any) -> None:
    assert ray.get(plus.options(memory=300 * 1024 * 1024).remote(1)) == 2


@memory.here
def test_memory_is_in_megabytes(ray: Any, plus: Any) -> None:
    assert ray.get(plus.options(memory=300).remote(1)) == 2
    with pytest.raises(ValueError, match="did you mean memory=300"):
        plus.options(memory=300 * 1024 * 1024)
    assert plus.options(num_cpus=2)._options.memory == 2 * 1769


hardware = differs(
    "Options that choose hardware or a node (`num_gpus`, `resources`, `accelerator_type`, "
    "`scheduling_strategy`, `label_selector`, placement groups) and `max_calls` are refused by "
    "name with the reason, unless they ask for nothing: functions have memory and CPUs, and there "
    "are no nodes."
)


@hardware.in_ray
def test_what_nobody_has_is_waited_for(ray: Any, plus: Any) -> None:
    ref = plus.options(resources={"unicorn": 1}).remote(1)
    assert ray.wait([ref], timeout=0.1) == ([], [ref])
    ray.cancel(ref)


@hardware.here
@pytest.mark.parametrize(
    "options",
    [
        {"num_gpus": 1},
        {"resources": {"unicorn": 1}},
        {"accelerator_type": "A100"},
        {"scheduling_strategy": object()},
        {"label_selector": {"a": "b"}},
        {"placement_group": object()},
        {"max_calls": 1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_nobody_has_is_refused(ray: Any, plus: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="has no meaning here"):
        plus.options(**options)


ours = differs(
    "There is more: the options `timeout`, `world_size` (gangs that talk as in MPI), `channel` "
    "and `preload`; `f.map`, `f.starmap`, `as_completed`, `receipt`, `Executor`; `max_cost` will "
    "come."
)


@ours.in_ray
def test_ray_has_none_of_it(ray: Any, plus: Any) -> None:
    for name in ("timeout", "world_size", "channel", "preload", "max_cost"):
        with pytest.raises(ValueError, match=name):
            plus.options(**{name: 1})
    for name in ("as_completed", "receipt", "Executor"):
        assert not hasattr(ray, name)
    assert not hasattr(plus, "map")


@ours.here
def test_fsdray_has_more(ray: Any, plus: Any) -> None:
    assert list(plus.map(range(3))) == [1, 2, 3]
    refs = [plus.remote(n) for n in range(3)]
    assert sorted(ray.get(list(ray.as_completed(refs)))) == [1, 2, 3]
    assert ray.get(plus.options(world_size=2, timeout=60).remote(1)) == [2, 2]
    ray.get(ref := plus.remote(1))
    assert ref.receipt().requests["invoke"] == 1
    with pytest.raises(ValueError, match="estimates"):
        plus.options(max_cost=1)


def test_environment_variables_of_one_call(ray: Any) -> None:
    @ray.remote
    def look():
        return os.environ.get("SEMANTICS_ONE"), os.environ.get("SEMANTICS_TWO")

    one = {"env_vars": {"SEMANTICS_ONE": "1"}}
    assert ray.get(look.options(runtime_env=one).remote()) == ("1", None)
    assert ray.get(look.remote()) == (None, None)


def test_a_tasks_own_tasks_have_its_environment_variables(ray: Any) -> None:
    @ray.remote
    def look():
        return os.environ.get("SEMANTICS_ONE"), os.environ.get("SEMANTICS_TWO")

    @ray.remote(runtime_env={"env_vars": {"SEMANTICS_ONE": "1"}})
    def outer():
        two = {"env_vars": {"SEMANTICS_TWO": "2"}}
        return ray.get([look.remote(), look.options(runtime_env=two).remote()])

    assert ray.get(outer.remote()) == [("1", None), ("1", "2")]


unknown = differs(
    "A `runtime_env` with a key that nobody knows is an error in the caller, at once; Ray drops it."
)


@unknown.in_ray
def test_an_unknown_key_of_runtime_env_is_dropped(ray: Any, plus: Any) -> None:
    assert ray.get(plus.options(runtime_env={"nonsense": 1}).remote(1)) == 2


@unknown.here
def test_an_unknown_key_of_runtime_env_is_refused(ray: Any, plus: Any) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        plus.options(runtime_env={"nonsense": 1})
