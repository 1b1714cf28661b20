"""`cancel`: of what waits, of what runs, of what is over."""

from __future__ import annotations

from typing import Any

import pytest

from tests.semantics.differs import differs


@pytest.fixture
def held(ray: Any) -> Any:
    @ray.remote
    def held(bell, gate):
        bell.ring()
        gate.wait()
        return "through"

    return held


@pytest.fixture
def busy(ray: Any) -> Any:
    @ray.remote(max_retries=0)
    def busy(bell, tally):
        try:
            bell.ring()
            while True:  # Ray interrupts Python code, not what waits in C
                sum(range(100))
        except KeyboardInterrupt:
            tally.add()
            raise

    return busy


@pytest.fixture
def plus(ray: Any) -> Any:
    @ray.remote
    def plus(x, more=1):
        return x + more

    return plus


def test_a_task_that_waits_for_its_arguments_never_runs(
    ray: Any, held: Any, plus: Any, gate: Any, bell: Any, tally: Any
) -> None:
    @ray.remote
    def note(tally, _):
        tally.add()

    waits_for = held.remote(bell, gate)
    waiting, other = note.remote(tally, waits_for), note.remote(tally, waits_for)
    bell.hear()
    assert ray.cancel(waiting) is None
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(waiting)
    gate.open()
    ray.get(other)
    assert ray.get(waits_for) == "through", "what it waited for is not cancelled"
    assert tally.count == 1


def test_a_task_that_waits_for_a_cpu_never_runs(
    ray: Any, held: Any, gate: Any, bell: Any, tally: Any
) -> None:
    running = [held.remote(bell, gate) for _ in range(4)]
    bell.hear(4)  # all CPUs are taken
    waiting = held.remote(bell, gate)
    ray.cancel(waiting)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(waiting)
    gate.open()
    assert ray.get(running) == ["through"] * 4


@pytest.mark.parametrize("force", [False, True])
def test_a_task_that_runs_is_stopped(
    ray: Any, busy: Any, bell: Any, tally: Any, force: bool
) -> None:
    ref = busy.remote(bell, tally)
    bell.hear()
    ray.cancel(ref, force=force)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(ref, timeout=60)
    ray.cancel(ref, force=force)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(ref)


def test_a_dependent_of_a_cancelled_task_is_cancelled_too(
    ray: Any, busy: Any, plus: Any, bell: Any, tally: Any
) -> None:
    ref = busy.remote(bell, tally)
    dependent = plus.remote(ref)
    bell.hear()
    ray.cancel(ref)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(dependent, timeout=60)


def test_what_is_over_stays_as_it_is(ray: Any, plus: Any) -> None:
    ref, put = plus.remote(1), ray.put(5)
    assert ray.get(ref) == 2
    assert ray.cancel(ref) is None
    assert ray.cancel(put) is None
    assert ray.get([ref, put]) == [2, 5]


@pytest.mark.parametrize("thing", [3, None, [], "ref"], ids=str)
def test_only_refs_can_be_cancelled(ray: Any, thing: Any) -> None:
    with pytest.raises(TypeError):
        ray.cancel(thing)


gentle = differs(
    "`cancel` ends the task's process, with or without `force`: the task sees no "
    "`KeyboardInterrupt`, and its `finally` does not run. A running function cannot be "
    "interrupted from outside on every platform, and here all are to behave alike. It also ends "
    "what waits in C, as for a lock or a socket, which Ray leaves alone without `force`."
)


@gentle.in_ray
def test_a_running_task_is_interrupted(ray: Any, busy: Any, bell: Any, tally: Any) -> None:
    ref = busy.remote(bell, tally)
    bell.hear()
    ray.cancel(ref)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(ref, timeout=60)
    assert tally.count == 1


@gentle.here
def test_a_running_tasks_process_is_ended(
    ray: Any, busy: Any, held: Any, gate: Any, bell: Any, tally: Any
) -> None:
    for start in (lambda: busy.remote(bell, tally), lambda: held.remote(bell, gate)):
        ref = start()
        bell.hear()
        ray.cancel(ref)
        with pytest.raises(ray.exceptions.TaskCancelledError):
            ray.get(ref, timeout=60)
    assert tally.count == 0


recursive = differs(
    "`cancel(recursive=False)` is a `ValueError`: what a task started does not outlive it."
)


@recursive.in_ray
def test_children_may_be_left_to_go_on(ray: Any, plus: Any) -> None:
    assert ray.cancel(plus.remote(1), recursive=False) is None


@recursive.here
def test_children_cannot_be_left_to_go_on(ray: Any, plus: Any) -> None:
    with pytest.raises(ValueError, match="recursive"):
        ray.cancel(plus.remote(1), recursive=False)
