"""Every error that fsdray raises; above a backend no other platform error exists.

::

    FsdrayError
    ├── TaskError                  the user's code raised (also an instance of the user's own type)
    ├── PlatformError
    │   ├── FunctionCrashed        the process died: signal or exit code, last log lines
    │   ├── OutOfMemory            with the limit and how to raise it
    │   ├── FunctionTimeout        with the limit
    │   ├── Throttled              only after the back-off gave up
    │   └── ServiceError           anything else the platform said, translated at one border
    ├── TaskCancelled
    ├── GetTimeout                 (also TimeoutError)
    ├── ObjectLost
    ├── CollectiveError
    │   ├── RankFailed             which ranks, why
    │   ├── CollectiveTimeout      which operation, which ranks were missing
    │   └── MismatchedCollective   ranks called different operations
    ├── EnvironmentMismatch        Python, fsdray or architecture differ
    ├── CostLimitExceeded
    ├── SessionError               open already, or not any more (also RuntimeError)
    └── SettingsError              a bad option or setting (also ValueError)
        └── NotPicklable           what cannot be sent (also TypeError)

How an error travels between processes is told in `fsdray.failure`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class FsdrayError(Exception):
    """The root of the tree: ``except fsdray.errors.FsdrayError`` catches all of ours."""


class _Itself:
    """An attribute that is its object, unless the object has another one of that name."""

    def __get__(self, error: BaseException | None, kind: type[Any]) -> Any:
        return self if error is None else error


class TaskError(FsdrayError):
    """The user's own code raised inside a task.

    What `fsdray.get` raises is an instance of this class *and* of the type that the task
    raised, and shown under the latter's name: ``except KeyError`` works. Its traceback goes on
    through the remote frames, and a note says which task it was. What cannot be pickled arrives
    as a plain `TaskError` that tells its type and text.

    Ray's ``error.cause`` and ``error.as_instanceof_cause()`` are the error itself.
    """

    cause = _Itself()

    def as_instanceof_cause(self) -> BaseException:
        """The error itself, which is of the type that the task raised already."""
        return self


class PlatformError(FsdrayError):
    """The platform failed, not the user's code; ``max_retries`` is about these.

    Parameters
    ----------
    message : what happened, and what to do about it.
    log : the last lines that the function wrote to stdout and stderr, oldest first.
    """

    def __init__(self, message: str, log: Sequence[str] = ()) -> None:
        self.message = message
        self.log = tuple(log)
        super().__init__(message, self.log)

    def __str__(self) -> str:
        if not self.log:
            return self.message
        return self.message + "\nIts last log lines:\n" + "\n".join(f"  | {x}" for x in self.log)


class FunctionCrashed(PlatformError):
    """The function's process died before it replied."""


class OutOfMemory(PlatformError):
    """The function used more memory than its ``memory`` option (MB) allows."""


class FunctionTimeout(PlatformError):
    """The function ran longer than its ``timeout`` option (seconds) allows."""


class Throttled(PlatformError):
    """The platform refused the call for want of concurrency, after all the back-off."""


class ServiceError(PlatformError):
    """Anything else that a service said: no space, no permission, no such queue."""


class TaskCancelled(FsdrayError):
    """The task was cancelled before it could finish."""


class GetTimeout(FsdrayError, TimeoutError):
    """`fsdray.get` reached its timeout; the task goes on."""


class ObjectLost(FsdrayError):
    """The value behind a ref is no longer kept."""


class CollectiveError(FsdrayError):
    """A collective could not be completed."""


class RankFailed(CollectiveError):
    """Ranks of this gang died or raised, so the others cannot finish.

    Parameters
    ----------
    ranks : the ranks that failed first.
    cause : why: a `PlatformError` or the `TaskError` that ended them; also ``__cause__``.
    """

    def __init__(self, ranks: Sequence[int], cause: BaseException | None = None) -> None:
        self.ranks = list(ranks)
        self.cause = cause
        self.__cause__ = cause
        super().__init__(self.ranks, cause)

    def __str__(self) -> str:
        who = f"rank {self.ranks[0]}" if len(self.ranks) == 1 else f"ranks {self.ranks}"
        why = "" if self.cause is None else f": {type(self.cause).__name__}: {self.cause}"
        return f"{who} failed{why}"


class CollectiveTimeout(CollectiveError):
    """A collective's deadline came before all frames did; the message names who was missing."""


class MismatchedCollective(CollectiveError):
    """Ranks of one communicator called different operations at the same point."""


class EnvironmentMismatch(FsdrayError):
    """Caller and worker differ in Python, fsdray or architecture."""


class CostLimitExceeded(FsdrayError):
    """The run would cost, or has cost, more than ``max_cost``."""


class SessionError(FsdrayError, RuntimeError):
    """The session is not as the call needs it: open already, shut down, or not this process's."""


class SettingsError(FsdrayError, ValueError):
    """A bad option, setting or input, found before anything started."""


class NotPicklable(SettingsError, TypeError):
    """A value or function that cannot be pickled, and so cannot be sent."""
