"""joblib's parallel loops, and so scikit-learn's, on the session's platform.

After `register`, ``joblib.parallel_config(backend="fsdray")`` sends each batch of a loop as one
call of a `fsdray.Executor`.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from fsdray import session
from fsdray.errors import SettingsError
from fsdray.executor import Executor, waiting
from fsdray.refs import ObjectRef
from fsdray.session import Session

# Workers that are forked with these loaded need not import them one by one.
_PRELOAD = ("joblib", "sklearn.utils.parallel", "sklearn.model_selection")


def register() -> None:
    """Make ``"fsdray"`` the name of a backend of joblib.

    ``joblib.parallel_config(backend="fsdray", n_jobs=-1, memory=2048, timeout=60)`` then chooses
    it; `memory` (MB) and `timeout` (seconds) are those of each call. ``n_jobs=-1`` is what the
    session lets run at one time. Loops inside a loop's functions are sequential.

    Raises
    ------
    SettingsError
        where joblib is not installed, or older than 1.5.
    """
    try:
        import joblib
    except ImportError as error:
        raise SettingsError(
            "fsdray.integrations.joblib needs joblib: pip install 'joblib>=1.5'"
        ) from error
    if not hasattr(joblib.parallel.ParallelBackendBase, "submit"):
        raise SettingsError(
            f"joblib {joblib.__version__} is too old for fsdray: pip install 'joblib>=1.5'"
        )
    joblib.register_parallel_backend("fsdray", _backend())


@functools.cache
def _backend() -> type:
    """The backend's class, made when joblib is there."""
    from joblib.parallel import (
        AutoBatchingMixin,
        FallbackToBackend,
        ParallelBackendBase,
        SequentialBackend,
    )

    class FsdrayBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
        """What joblib asks of a backend; its base says when each method is called."""

        default_n_jobs = -1
        supports_retrieve_callback = True

        def __init__(
            self, memory: int | None = None, timeout: float | None = None, **options: Any
        ) -> None:
            super().__init__(**options)
            self._memory = memory
            self._timeout = timeout
            self._executor = self._new_executor(None)  # bad options are errors now

        def effective_n_jobs(self, n_jobs: int | None) -> int:
            if n_jobs == 0:
                raise ValueError("n_jobs == 0 in Parallel has no meaning")
            if n_jobs is None or self.nesting_level:
                return 1
            if n_jobs > 0:
                return n_jobs
            return max(1, session.current().backend.functions.limits.concurrency + 1 + n_jobs)

        def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
            count = self.effective_n_jobs(n_jobs)
            if count == 1:
                raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
            self.parallel = parallel
            self._session = session.current()
            self._executor = self._new_executor(count)
            self._shared = _Shared(self._session)
            self._session.backend.functions.prepare([m for m in _PRELOAD if m in sys.modules])
            return count

        def start_call(self) -> None:
            self._shared = _Shared(self._session)

        def stop_call(self) -> None:
            self._shared = _Shared(self._session)

        def submit(self, func: Any, callback: Callable[[Any], Any] | None = None) -> Future[Any]:
            batch, refs = self._shared.lightened(func)
            future = self._executor._submit(self._session, _run, (batch, *refs), {})
            if callback is not None:
                future.add_done_callback(callback)
            return future

        def retrieve_result_callback(self, out: Future[Any]) -> Any:
            return out.result()

        def abort_everything(self, ensure_ready: bool = True) -> None:
            self._executor.abandon()
            if ensure_ready:
                self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)

        def terminate(self) -> None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self.reset_batch_stats()

        def get_nested_backend(self) -> tuple[Any, None]:
            return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None

        @contextmanager
        def retrieval_context(self) -> Iterator[None]:
            with waiting():
                yield

        def _new_executor(self, count: int | None) -> Executor:
            return Executor(count, memory=self._memory, timeout=self._timeout)

    return FsdrayBackend


class _Shared:
    """Large arrays among the arguments of one parallel loop, each stored once."""

    def __init__(self, here: Session) -> None:
        self._session = here
        # The array is held with its ref: an id is only good while its object lives.
        self._refs: dict[int, tuple[Any, ObjectRef[Any]]] = {}

    def lightened(self, batch: Any) -> tuple[Any, list[ObjectRef[Any]]]:
        """A batch whose large arrays are places in a list of refs, and that list."""
        refs: list[ObjectRef[Any]] = []
        places: dict[int, _Place] = {}

        def light(value: Any) -> Any:
            if _size(value) <= self._session.settings.inline_limit:
                return value
            if id(value) not in places:
                if id(value) not in self._refs:
                    self._refs[id(value)] = value, self._session.put(value)
                places[id(value)] = _Place(len(refs))
                refs.append(self._refs[id(value)][1])
            return places[id(value)]

        return _with_items(batch, light), refs


class _Place:
    def __init__(self, number: int) -> None:
        self.number = number


def _run(batch: Any, *values: Any) -> Any:
    """Run a batch in a worker, its arrays in their places."""
    register()  # a loop inside may ask for this backend by name

    def fill(value: Any) -> Any:
        return values[value.number] if isinstance(value, _Place) else value

    return _with_items(batch, fill)()


def _with_items(batch: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of joblib's `BatchedCalls` with each argument changed."""
    changed = copy.copy(batch)
    changed.items = [
        (function, [change(v) for v in args], {name: change(v) for name, v in kwargs.items()})
        for function, args, kwargs in batch.items
    ]
    return changed


def _size(value: Any) -> int:
    """Bytes of an array, dense or sparse; 0 of anything else."""
    for array in (value, getattr(value, "data", None)):
        size = getattr(array, "nbytes", None)
        if isinstance(size, int):
            return size
    return 0
