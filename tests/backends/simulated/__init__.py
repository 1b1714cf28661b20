"""What these tests share: simulated services for one coroutine, on a loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fsdray.backends.simulated import (
    Faults,
    Inboxes,
    Network,
    SimulatedMessages,
    SimulatedObjects,
    Store,
    Trace,
    VirtualLoop,
    World,
)
from fsdray.costs.meter import Meter
from fsdray.services import MessageLimits

T = TypeVar("T")


@dataclass
class Simulated:
    """A world, rank 0's services in it, and what they counted and did."""

    world: World
    messages: SimulatedMessages
    objects: SimulatedObjects
    inboxes: Inboxes
    store: Store
    trace: Trace
    meter: Meter = field(default_factory=Meter)

    def count(self, name: str) -> float:
        return self.meter.counts().get(name, 0)

    def events(self, what: str) -> int:
        return sum(event.what == what for event in self.trace.events)


def virtually(
    program: Callable[[Simulated], Coroutine[Any, Any, T]],
    *,
    seed: int = 0,
    network: Network = Network(),
    faults: Faults = Faults(),
    limits: MessageLimits = MessageLimits(),
) -> T:
    """Run ``await program(simulated)`` in virtual time."""

    async def whole() -> T:
        meter, trace = Meter(), Trace()
        world = World(meter.add, seed=seed, network=network, faults=faults, trace=trace)
        inboxes, store, node = Inboxes(world, limits), Store(), world.node(0)
        return await program(
            Simulated(
                world,
                SimulatedMessages(world, node, inboxes, limits),
                SimulatedObjects(world, node, store),
                inboxes,
                store,
                trace,
                meter,
            )
        )

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(whole())
