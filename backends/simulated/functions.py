"""Simulated functions: environments that start cold and stay warm, and calls that take their time.

What a call runs is a coroutine on the same loop, for plain code cannot run in virtual time.
`Environments` are a simulation's; `SimulatedFunctions` is one node's way to call them.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TypeAlias

from fsdray.backends.simulated.world import Node, World
from fsdray.errors import FunctionTimeout, PlatformError, SettingsError
from fsdray.services import Buffer, FunctionLimits

Handler: TypeAlias = Callable[[bytes], Awaitable[bytes]]
"""What every environment runs: a payload in, a reply out. A `PlatformError` is its death."""


class Seats:
    """So many at one time; who does not fit waits, first come first served."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, count: int) -> None:
        if not self._waiting and count <= self._free:
            self._free -= count
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, turn))
        try:
            await turn
        except asyncio.CancelledError:
            # Either it had its seats already, or it may have been in the way of smaller ones.
            self.give(count if turn.done() and not turn.cancelled() else 0)
            raise

    def give(self, count: int) -> None:
        self._free += count
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.done():
                if wanted > self._free:
                    return
                self._free -= wanted
                turn.set_result(None)
            self._waiting.popleft()


class Environments:
    """The platform's side: how many run, how many are warm, and what they run."""

    def __init__(self, limits: FunctionLimits, handler: Handler, *, warm: int = 0) -> None:
        self.limits = limits
        self.handler = handler
        self.seats = Seats(limits.concurrency)
        self.admitted = Seats(limits.concurrency)
        self.warm = warm  # idle ones


class SimulatedFunctions:
    """`fsdray.services.Functions` of one node."""

    def __init__(self, world: World, node: Node, environments: Environments) -> None:
        self._world = world
        self._node = node
        self._environments = environments
        self.limits = environments.limits

    async def invoke(
        self, payload: Buffer, *, memory: int, timeout: float, label: str = ""
    ) -> bytes:
        self.limits.check(memory, timeout)
        body = bytes(payload)
        if len(body) > self.limits.payload:
            raise SettingsError(
                f"a payload of {len(body):,} bytes: at most {self.limits.payload:,}"
            )
        world, environments = self._world, self._environments
        await self._node.begin()
        world.count("invoke", 1)
        await environments.seats.take(1)
        try:
            is_cold = environments.warm == 0
            environments.warm -= not is_cold
            world.record(self._node.rank, "invoke", label=label, cold=int(is_cold))
            takes = world.latency(world.network.invoke)
            if is_cold:
                takes += world.latency(world.network.cold)
            await world.until(self._node.up.end(world.now, len(body)) + takes)
            reply = await self._run(body, memory, timeout, label)
        finally:
            environments.seats.give(1)
        environments.warm += 1
        await world.until(self._node.down.end(world.now, len(reply)))
        return reply

    async def _run(self, body: bytes, memory: int, timeout: float, label: str) -> bytes:
        """One call in its environment, from its start to its reply or its death."""
        world = self._world
        began = world.now
        call = asyncio.ensure_future(self._environments.handler(body))
        try:
            await asyncio.wait([call], timeout=timeout)
        finally:
            is_over = call.done()
            call.cancel()
            seconds = math.ceil((world.now - began) * 1000) / 1000  # as Lambda bills them
            world.count("gb_seconds", memory / 1024 * seconds)
        try:
            if not is_over:
                raise FunctionTimeout(
                    f"{label or 'a call'} ran longer than its timeout of {timeout:g} s"
                )
            return call.result()
        except PlatformError:
            await world.until(world.now + world.latency(world.network.notice))
            raise

    @asynccontextmanager
    async def admitted(self, count: int) -> AsyncIterator[None]:
        if count > self.limits.concurrency:
            raise SettingsError(
                f"a gang of {count} cannot be whole: {self.limits.concurrency} calls may run at "
                f"one time. Start fewer ranks, or give FunctionLimits(concurrency={count})"
            )
        await self._environments.admitted.take(count)
        try:
            yield
        finally:
            self._environments.admitted.give(count)

    @contextmanager
    def yielded(self) -> Iterator[None]:
        """A call that waits keeps its place, as on Lambda."""
        yield

    def prepare(self, names: Sequence[str]) -> None:
        """There is nothing to load."""
