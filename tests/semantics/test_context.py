"""What a task may know of itself."""

from __future__ import annotations

import os
from typing import Any

from tests.semantics.differs import differs


def test_a_task_knows_its_id_and_name(ray: Any) -> None:
    @ray.remote
    def look():
        context = ray.get_runtime_context()
        return context.get_task_id(), context.get_task_name(), context.get_worker_id()

    seen = ray.get([look.remote(), look.remote(), look.options(name="renamed").remote()])
    ids, names, workers = zip(*seen, strict=True)
    assert len(set(ids)) == 3
    assert all(isinstance(each, str) for each in (*ids, *workers))
    assert names[0].endswith("look")
    assert names[2] == "renamed"


def test_the_driver_has_no_task(ray: Any) -> None:
    context = ray.get_runtime_context()
    assert context.get_task_id() is None
    assert context.get_task_name() is None
    assert isinstance(context.get_worker_id(), str)


def test_driver_and_tasks_know_where_they_are(ray: Any) -> None:
    @ray.remote
    def where():
        return ray.get_runtime_context().get_node_id()

    assert ray.get(where.remote()) == ray.get_runtime_context().get_node_id()


knows = differs(
    "`get_runtime_context()` has `attempt`, `backend`, `rank` and `world_size` besides Ray's "
    "`get_task_id`, `get_task_name`, `get_worker_id` and `get_node_id` (the machine's name); "
    "jobs, actors, namespaces and assigned resources are not there."
)


@knows.in_ray
def test_ray_has_jobs(ray: Any) -> None:
    context = ray.get_runtime_context()
    assert isinstance(context.get_job_id(), str)
    assert not hasattr(context, "attempt")


@knows.here
def test_a_task_knows_its_attempt(ray: Any, tally: Any) -> None:
    @ray.remote
    def third(tally):
        if tally.add() < 3:
            os._exit(1)
        context = ray.get_runtime_context()
        return context.attempt, context.backend, context.rank

    assert ray.get(third.remote(tally)) == (3, ray.get_runtime_context().backend, None)
    assert not hasattr(ray.get_runtime_context(), "get_job_id")
