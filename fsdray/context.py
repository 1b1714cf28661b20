"""What the running task may know of itself: `get_runtime_context`."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from fsdray import session
from fsdray.services import Backend


@dataclass(frozen=True)
class RuntimeContext:
    """Where this code runs. In the driver the task's fields are None.

    Parameters
    ----------
    task_id, task_name : the task's. attempt : 1 for the first.
    rank, world_size : of a gang's rank; None in a task on its own.
    backend : the platform's name.
    run : the session's id where the platform keeps logs (``fsdray logs RUN`` shows them).
    """

    backend: str
    task_id: str | None = None
    task_name: str | None = None
    attempt: int | None = None
    rank: int | None = None
    world_size: int | None = None
    run: str | None = None

    def get_task_id(self) -> str | None:
        """`task_id`, under Ray's name."""
        return self.task_id

    def get_task_name(self) -> str | None:
        """`task_name`, under Ray's name."""
        return self.task_name

    def get_node_id(self) -> str:
        """The machine that this runs on, as far as it has a name."""
        return socket.gethostname()

    def whereabouts(self) -> str:
        """Which call this is, for who reads its error."""
        rank = f", rank {self.rank} of {self.world_size}" if self.rank is not None else ""
        return f"in task {self.task_name} (id {self.task_id}){rank}, attempt {self.attempt}"

    def get_worker_id(self) -> str:
        """The process that this runs in."""
        return f"{socket.gethostname()}-{os.getpid()}"


_task: RuntimeContext | None = None


def get_runtime_context() -> RuntimeContext:
    """Who runs this: the task (and rank) inside one, the driver outside."""
    if _task is not None:
        return _task
    backend = session.current().backend
    return RuntimeContext(backend.name, run=run_of(backend))


def run_of(backend: Backend) -> str | None:
    """The id by which the platform knows the session; None where it keeps nothing of sessions."""
    run = getattr(backend, "session", None)
    return run if isinstance(run, str) else None


def enter(task: RuntimeContext | None) -> None:
    """Set what `get_runtime_context` returns; the worker does this around each call."""
    global _task
    _task = task
