"""When a failed call is tried again: a pure policy."""

from __future__ import annotations

from dataclasses import dataclass

from fsdray.errors import FunctionTimeout, OutOfMemory, PlatformError, SettingsError

FOR_EVER = -1
"""`max_retries` that never gives up (Ray's convention)."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often a task may run again.

    Parameters
    ----------
    max_retries : times that a call may run again after the platform failed it; -1 for ever. A call
        that used up its memory or its time is not tried again: it would do so once more, and be
        billed for it.
    retry_exceptions : whether exceptions of the user's code count as well; or which types.
    """

    max_retries: int = 3
    retry_exceptions: bool | tuple[type[BaseException], ...] = False

    def __post_init__(self) -> None:
        if (
            not isinstance(self.max_retries, int)
            or isinstance(self.max_retries, bool)
            or self.max_retries < FOR_EVER
        ):
            raise SettingsError(
                f"max_retries={self.max_retries!r}: give a whole number from 0, or -1 for ever"
            )
        given = self.retry_exceptions
        if not isinstance(given, bool):
            kinds = tuple(given) if isinstance(given, list | tuple | set) else (given,)
            if not all(
                isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds
            ):
                raise SettingsError(
                    f"retry_exceptions={given!r}: give True, False, or a list of exception types"
                )
            object.__setattr__(self, "retry_exceptions", kinds)

    def after_platform(self, error: BaseException, attempt: int) -> bool:
        """Whether to run again after attempt number `attempt` (from 1) ended in this error."""
        retried = isinstance(error, PlatformError) and not isinstance(
            error, OutOfMemory | FunctionTimeout
        )
        return retried and self._has_left(attempt)

    def after_exception(self, error: BaseException, attempt: int) -> bool:
        """Whether to run again after the user's code raised this in attempt number `attempt`."""
        kinds = self.retry_exceptions
        wanted = kinds if isinstance(kinds, bool) else isinstance(error, kinds)
        return wanted and self._has_left(attempt)

    def _has_left(self, attempt: int) -> bool:
        return self.max_retries == FOR_EVER or attempt <= self.max_retries


def catches_up(took: float, left: float) -> bool:
    """Whether a rank that died after `took` seconds can be where it was, and some left.

    It does again what it did, and at most as slowly, since all that it waits for is there; its
    gang has `left` seconds, which the other ranks wait at most.
    """
    return took < left
