"""What all simulated services share: the clock, the seed, the network's lines and the trace.

A `Node` is one worker (or the caller) with its own link to the network. `World.request` is how
every service makes a request, so that refusals, errors and deaths befall all of them alike.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fsdray.backends.simulated.clock import VirtualLoop
from fsdray.backends.simulated.faults import Death, Faults
from fsdray.backends.simulated.network import Network
from fsdray.backends.simulated.trace import Detail, Event, Trace
from fsdray.costs.latency import Latency
from fsdray.errors import PlatformError, ServiceError, SettingsError, Throttled
from fsdray.services import Count

T = TypeVar("T")

CALLER = -1
"""The number of the node that is no rank."""

_BACK_OFF = 0.05  # seconds of the first back-off; each is up to twice the one before
_LONGEST = 5.0  # seconds of any back-off


class Line:
    """Something that passes one thing after the other, so many a second."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._free = 0.0  # when all that it was given has passed

    def end(self, start: float, amount: float) -> float:
        """When `amount`, given at `start`, has passed."""
        self._free = max(self._free, start) + amount / self.rate
        return self._free


class Node:
    """One worker's place in the network.

    Parameters
    ----------
    slow : by what it is slower than others. death : which comes with one of its requests.
    """

    def __init__(self, world: World, rank: int, slow: float, death: Death | None) -> None:
        draw = random.Random(f"{world.seed} node {rank}")
        rate = draw.uniform(*world.network.bandwidth) / slow
        self.rank = rank
        self.slow = slow
        self.up = Line(rate)
        self.down = Line(rate)
        self.is_dead = False
        self.requests = 0
        self._death = death
        self._world = world
        self._connections: list[float] = []  # when those that were used are free

    async def begin(self) -> None:
        """Begin a request; of a dead node none begins."""
        self.requests += 1
        if self._death is not None and self.requests == self._death.request:
            self._world.kill(self, zombie=self._death.zombie)
        await self.answer()

    async def answer(self) -> None:
        """Take an answer; of a dead node nobody does."""
        if self.is_dead:
            await self._world.never()

    def connect(self, takes: float) -> float:
        """When a request that holds a connection for so long can start."""
        now = self._world.now
        if len(self._connections) < self._world.network.connections:
            heapq.heappush(self._connections, now + takes)
            return now
        start = max(now, self._connections[0])
        heapq.heapreplace(self._connections, start + takes)
        return start


class World:
    """One simulation's shared state; it must be made on a running `VirtualLoop`.

    Parameters
    ----------
    seed : of all that is drawn. count : told of each request that AWS would bill.
    trace : where events go; None: nowhere.
    """

    def __init__(
        self,
        count: Count,
        *,
        seed: int | str = 0,
        network: Network = Network(),
        faults: Faults = Faults(),
        trace: Trace | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, VirtualLoop):
            raise SettingsError(
                "simulated services live in virtual time: give coroutines to "
                "fsdray.testing.simulate, or run them on a fsdray.backends.simulated.VirtualLoop"
            )
        self.loop = loop
        self.count = count
        self.seed = seed
        self.network = network
        self.faults = faults
        self.on_death: Callable[[int], None] = lambda rank: None
        self._trace = trace
        self._latencies = random.Random(f"{seed} latencies")
        self.draws = random.Random(f"{seed} faults")
        self.puts = Line(network.put_rate)
        self.gets = Line(network.get_rate)
        self.publishes = Line(network.publish_rate)
        self._nodes: dict[int, Node] = {}
        self._ends: list[asyncio.Future[None]] = []  # that never come
        self._deaths = [death for death in faults.deaths if death.request]

    @property
    def now(self) -> float:
        return self.loop.time()

    def node(self, rank: int) -> Node:
        """The node of a rank, or of the `CALLER`."""
        if rank not in self._nodes:
            self.renew(rank)
        return self._nodes[rank]

    def renew(self, rank: int) -> None:
        """Give a rank another node, where it has one: that is dead, or thought to be."""
        death = next((death for death in self._deaths if death.rank == rank), None)
        if death is not None:
            self._deaths.remove(death)
        self._nodes[rank] = Node(self, rank, self.faults.slow.get(rank, 1.0), death)

    def record(self, rank: int, what: str, **details: Detail) -> None:
        """Enter an event into the trace."""
        if self._trace is not None:
            self._trace.events.append(Event(self.now, rank, what, tuple(details.items())))

    def latency(self, latency: Latency) -> float:
        """Draw a time."""
        return latency.draw(self._latencies)

    def happens(self, chance: float) -> bool:
        """Draw whether a fault happens; what never happens draws nothing."""
        return chance > 0 and self.draws.random() < chance

    def kill(self, node: Node, *, zombie: bool = False) -> None:
        """The node dies: what it had sent is sent, and it asks for nothing more.

        A zombie asks on, but is given up.
        """
        if not node.is_dead:
            node.is_dead = not zombie
            self.record(node.rank, "given up" if zombie else "died")
            self.on_death(node.rank)

    async def never(self) -> None:
        """Wait for ever; who waits so is kept until the simulation is over."""
        end = self.loop.create_future()
        self._ends.append(end)
        await end

    async def until(self, when: float) -> None:
        """Sleep until a time of the loop."""
        woken = self.loop.create_future()
        timer = self.loop.call_at(when, _wake, woken)
        try:
            await woken
        finally:
            timer.cancel()

    async def request(self, node: Node, what: str, once: Callable[[], Awaitable[T]]) -> T:
        """Make a request, again where a fault says so.

        Raises
        ------
        Throttled, ServiceError
            where it was refused, or failed, too often.
        """
        await node.begin()
        faults = self.faults
        error: PlatformError | None = None
        for attempt in range(faults.attempts):
            if attempt:
                longest = min(_LONGEST, _BACK_OFF * 2**attempt)
                await self.until(self.now + longest * self.draws.random())
            if self.happens(faults.throttle):
                self.record(node.rank, "throttled", request=what)
                error = Throttled(f"{what} was throttled {attempt + 1} times: ask for less at once")
                continue
            fails = self.happens(faults.error)
            is_done = not fails or self.happens(0.5)
            if is_done:
                try:
                    result = await once()
                except ServiceError:
                    await node.answer()
                    raise
                await node.answer()
            if not fails:
                return result
            self.record(node.rank, "failed", request=what, done=int(is_done))
            error = ServiceError(f"{what} failed {attempt + 1} times: a server's error")
        assert error is not None
        raise error


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
