"""`fsdray.services.Functions` on this machine: warm worker processes, under Lambda's limits.

Any process of the session uses it; the driver's `pool` decides which worker runs a call.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

from fsdray import loop
from fsdray.backends.local.pool import Outcome
from fsdray.errors import SettingsError
from fsdray.services import Buffer, Count, FunctionLimits


class Runner(Protocol):
    """What `LocalFunctions` needs of `pool.Pool`, or of a link to it."""

    async def run(self, payload: bytes, memory: int, timeout: float, label: str) -> Outcome: ...
    async def admit(self, count: int) -> None: ...
    async def dismiss(self, count: int) -> None: ...
    def waiting(self, is_waiting: bool) -> None: ...
    def prepare(self, names: Sequence[str]) -> None: ...


class LocalFunctions:
    """`fsdray.services.Functions` over a `Runner`; it checks the limits and counts requests."""

    def __init__(self, runner: Runner, count: Count, limits: FunctionLimits) -> None:
        self._runner = runner
        self._count = count
        self.limits = limits

    async def invoke(
        self, payload: Buffer, *, memory: int, timeout: float, label: str = ""
    ) -> bytes:
        self.limits.check(memory, timeout)
        size = memoryview(payload).nbytes
        if size > self.limits.payload:
            raise SettingsError(f"a payload of {size:,} bytes: at most {self.limits.payload:,}")
        self._count("invoke", 1)
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            seconds, reply, error = await self._runner.run(bytes(payload), memory, timeout, label)
        except asyncio.CancelledError:
            # How long it waited for a place is not known here: at most this is what it ran.
            self._count("gb_seconds", _gb_seconds(memory, clock() - began))
            raise
        self._count("gb_seconds", _gb_seconds(memory, seconds))
        if error is not None:
            raise error
        assert reply is not None
        return reply

    @asynccontextmanager
    async def admitted(self, count: int) -> AsyncIterator[None]:
        if count > self.limits.concurrency:
            raise SettingsError(
                f"a gang of {count} cannot be whole: {self.limits.concurrency} calls may run at "
                f"one time. Start fewer ranks, or fsdray.init(concurrency={count})"
            )
        await self._runner.admit(count)
        try:
            yield
        finally:
            await self._runner.dismiss(count)

    @contextmanager
    def yielded(self) -> Iterator[None]:
        self._runner.waiting(True)
        try:
            yield
        finally:
            self._runner.waiting(False)

    def prepare(self, names: Sequence[str]) -> None:
        # From any thread, and what it speaks to lives on the loop.
        loop.get().call_soon_threadsafe(self._runner.prepare, list(names))


def _gb_seconds(memory: int, seconds: float) -> float:
    """What Lambda bills for a call: whole milliseconds."""
    return memory / 1024 * math.ceil(seconds * 1000) / 1000
