"""Which calls of this process may run now: single ones and gangs share the concurrency.

A gang is let in as a whole, or waits. Other processes of the session have turnstiles of their own,
so together they may ask for more than there is: Lambda then refuses, and `functions` waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

from fsdray.errors import SettingsError

_is_admitted: ContextVar[bool] = ContextVar("fsdray_aws_is_admitted", default=False)


class Admission:
    """Lets in up to `places` at one time, in the order of their coming."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._taken = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def gang(self, count: int) -> AsyncIterator[None]:
        """Entered while a gang of `count` runs; its calls, made within, ask for no place.

        Raises
        ------
        SettingsError : it never can be whole.
        """
        if count > self._places:
            raise SettingsError(
                f"a gang of {count} cannot be whole: {self._places} calls may run at one time. "
                f"Start fewer ranks, set concurrency={count} where that is the limit, or ask AWS "
                "for a higher quota of concurrent executions (`fsdray doctor` shows yours)"
            )
        await self.enter(count)
        token = _is_admitted.set(True)
        try:
            yield
        finally:
            _is_admitted.reset(token)
            self.leave(count)

    def is_of_gang(self) -> bool:
        """Whether what runs now is of a gang that was let in."""
        return _is_admitted.get()

    async def enter(self, count: int = 1) -> None:
        """Wait for places; `leave` must follow."""
        if not self._waiting and self._taken + count <= self._places:
            self._taken += count
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(count)
            else:
                self._next()  # it may have been in the way of smaller ones
            raise

    def leave(self, count: int = 1) -> None:
        """Give places back."""
        self._taken -= count
        self._next()

    def _next(self) -> None:
        while self._waiting:
            count, turn = self._waiting[0]
            if not turn.done():
                if self._taken + count > self._places:
                    return
                self._taken += count
                turn.set_result(None)
            self._waiting.popleft()
