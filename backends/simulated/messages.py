"""Simulated inboxes: each delivery takes its own time, and may befall what faults allow.

`Inboxes` holds the messages of a simulation; `SimulatedMessages` is one node's access to them. A
message's bytes are kept once, however many inboxes it goes to.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from fsdray import buffers
from fsdray.backends.simulated.world import Node, World
from fsdray.errors import ServiceError
from fsdray.services import (
    Delivery,
    Message,
    MessageLimits,
    count_publish,
    count_receive,
    is_direct,
)


class _Damaged(bytes):
    """A copy that was spoilt on its way; the service knows nothing of it and keeps none."""


_Kept = tuple[bytes, int]  # a body, and what of its message is billed


@dataclass
class _Inbox:
    ready: deque[_Kept] = field(default_factory=deque)
    # By receipt, in the order in which they come again: what was delivered, and when it does.
    in_flight: dict[str, tuple[_Kept, float]] = field(default_factory=dict)
    readers: deque[asyncio.Future[None]] = field(default_factory=deque)
    coming: int = 0  # deliveries on their way

    def wake(self) -> None:
        while self.readers:
            reader = self.readers.popleft()
            if not reader.done():
                reader.set_result(None)
                return

    def wake_all(self) -> None:
        while self.readers:
            self.wake()


class Inboxes:
    """The messages of a simulation; it knows no time of requests and no billing."""

    def __init__(self, world: World, limits: MessageLimits) -> None:
        self._world = world
        self._limits = limits
        self._inboxes: dict[str, _Inbox] = {}
        self._names = itertools.count()
        self._receipts = itertools.count()

    def lease(self, count: int) -> list[str]:
        names = [f"inbox-{next(self._names)}" for _ in range(count)]
        self._inboxes.update((name, _Inbox()) for name in names)
        return names

    def release(self, inboxes: Sequence[str]) -> None:
        for name in inboxes:
            inbox = self._inboxes.pop(name, None)
            for reader in inbox.readers if inbox else ():
                if not reader.done():
                    reader.set_exception(_not_leased(name))

    def leased(self) -> list[str]:
        """Inboxes that nobody has given back."""
        return list(self._inboxes)

    def left(self) -> dict[str, int]:
        """Messages that nobody has acknowledged, by the leased inboxes that have any."""
        counts = {
            name: len(box.ready) + len(box.in_flight) + box.coming
            for name, box in self._inboxes.items()
        }
        return {name: count for name, count in counts.items() if count}

    def check(self, message: Message) -> None:
        """Raise `ServiceError` where an inbox of a message is not leased."""
        for name in message.inboxes:
            self._inbox(name)

    def send(self, name: str, body: bytes, billed: int, arrival: float) -> None:
        """Have a body arrive, and what faults make of it."""
        world, faults = self._world, self._world.faults
        if world.happens(faults.delay):
            arrival += faults.lateness * world.draws.random()
        self._at(arrival, name, (body, billed))
        if world.happens(faults.duplicate):
            self._at(arrival + faults.lateness * world.draws.random(), name, (body, billed))
        if world.happens(faults.corrupt):
            damaged = bytearray(body or b"?")
            damaged[world.draws.randrange(len(damaged))] ^= 1 << world.draws.randrange(8)
            late = world.draws.random() * 0.01
            self._at(arrival + late, name, (_Damaged(damaged), billed))

    async def receive(self, node: Node, name: str, wait: float) -> list[tuple[str, bytes, int]]:
        """One receive: what is there takes a round trip, what comes later wakes who waits."""
        world = self._world
        box = self._inbox(name)
        deadline = world.now + wait
        self._redeliver(box)
        if box.ready or wait == 0:
            await world.until(world.now + world.latency(world.network.receive))
        while True:
            box = self._inbox(name)
            again = self._redeliver(box)
            if box.ready:
                return self._take(box)
            if world.now >= deadline:
                return []
            reader = world.loop.create_future()
            box.readers.append(reader)
            # The end of a long poll is no news, but what will be delivered again is.
            set_timer = world.loop.call_at if box.in_flight else world.loop.call_idle_at
            timer = set_timer(min(deadline, again), _end, reader)
            try:
                await reader
            except asyncio.CancelledError:
                if reader.done() and not reader.cancelled():
                    box.wake()  # this reader was woken for a message that it will not take
                raise
            finally:
                timer.cancel()
                if reader in box.readers:
                    box.readers.remove(reader)

    def acknowledge(self, name: str, receipts: Sequence[str]) -> None:
        box = self._inboxes.get(name)
        for receipt in receipts if box else ():
            assert box is not None
            box.in_flight.pop(receipt, None)

    def _inbox(self, name: str) -> _Inbox:
        try:
            return self._inboxes[name]
        except KeyError:
            raise _not_leased(name) from None

    def _at(self, when: float, name: str, kept: _Kept) -> None:
        box = self._inboxes.get(name)
        if box is not None:
            box.coming += 1
            self._world.loop.call_at(when, self._arrive, name, box, kept)

    def _arrive(self, name: str, box: _Inbox, kept: _Kept) -> None:
        world = self._world
        box.coming -= 1
        if self._inboxes.get(name) is not box:
            return  # released meanwhile: gone
        world.record(-1, "deliver", inbox=name, bytes=len(kept[0]))
        if world.happens(world.faults.reorder):
            box.ready.appendleft(kept)
        else:
            box.ready.append(kept)
        box.wake()

    def _take(self, box: _Inbox) -> list[tuple[str, bytes, int]]:
        taken: list[tuple[str, bytes, int]] = []
        size = 0
        again = self._world.now + self._limits.visibility
        while box.ready and len(taken) < self._limits.receive_messages:
            size += box.ready[0][1]
            if taken and size > self._limits.receive:
                break
            kept = box.ready.popleft()
            receipt = f"r{next(self._receipts)}"
            if not isinstance(kept[0], _Damaged):
                box.in_flight[receipt] = (kept, again)
            taken.append((receipt, *kept))
        # Those who wait take what is left, or learn when this comes again.
        box.wake_all()
        return taken

    def _redeliver(self, box: _Inbox) -> float:
        """Make overdue deliveries ready again; return when the next one is due."""
        while box.in_flight:
            receipt, (kept, again) = next(iter(box.in_flight.items()))
            if again > self._world.now:
                return again
            del box.in_flight[receipt]
            box.ready.append(kept)
        return float("inf")


class SimulatedMessages:
    """`fsdray.services.Messages` of one node: it takes time, checks limits and counts requests."""

    def __init__(
        self, world: World, node: Node, inboxes: Inboxes, limits: MessageLimits = MessageLimits()
    ) -> None:
        self._world = world
        self._node = node
        self._inboxes = inboxes
        self.limits = limits
        self.near = None

    async def lease(self, count: int) -> list[str]:
        return self._inboxes.lease(count)

    async def release(self, inboxes: Sequence[str], *, is_broken: bool = False) -> None:
        self._inboxes.release(inboxes)

    async def publish(self, messages: Sequence[Message]) -> None:
        self.limits.check_publish(messages)
        world = self._world
        left = [(buffers.joined([message.body]), message) for message in messages]
        direct = is_direct(messages)
        deliver = world.network.direct if direct else world.network.deliver

        async def once() -> None:
            nonlocal left
            for _, message in left:
                self._inboxes.check(message)
            size = sum(message.billed for _, message in left)
            count_publish(world.count, [message for _, message in left], direct=direct)
            what = "send" if direct else "publish"
            world.record(self._node.rank, what, messages=len(left), bytes=size)
            takes = world.latency(world.network.publish)
            start = self._node.connect(takes)
            if not direct:  # whose rate is each queue's own, and boundless
                start = world.publishes.end(start, len(left))
            sent = self._node.up.end(start, size)
            failed = [world.happens(world.faults.partial) for _ in left]
            for (body, message), is_failed in zip(left, failed, strict=True):
                for inbox in () if is_failed else message.inboxes:
                    self._inboxes.send(inbox, body, message.billed, sent + world.latency(deliver))
            await world.until(sent + takes)
            if any(failed):
                left = [each for each, is_failed in zip(left, failed, strict=True) if is_failed]
                world.record(self._node.rank, "partial", failed=len(left))
                await once()

        await world.request(self._node, "a publish", once)

    async def receive(self, inbox: str, *, wait: float) -> list[Delivery]:
        self.limits.check_wait(wait)
        world = self._world

        async def once() -> list[Delivery]:
            deliveries: list[Delivery] = []
            try:
                taken = await self._inboxes.receive(self._node, inbox, wait)
                deliveries = [Delivery(inbox, *each) for each in taken]
            finally:
                count_receive(world.count, deliveries)  # billed however it ends
            size = sum(delivery.billed for delivery in deliveries)
            if size:
                await world.until(self._node.down.end(world.now, size))
            world.record(self._node.rank, "receive", messages=len(taken), bytes=size)
            return deliveries

        return await world.request(self._node, "a receive", once)

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        self.limits.check_acknowledge(deliveries)
        world = self._world

        async def once() -> None:
            world.count("acknowledge", 1)
            world.record(self._node.rank, "acknowledge", messages=len(deliveries))
            takes = world.latency(world.network.receive)
            await world.until(self._node.connect(takes) + takes)
            if world.happens(world.faults.forget):
                world.record(self._node.rank, "forgotten", messages=len(deliveries))
            else:
                receipts = [delivery.receipt for delivery in deliveries]
                self._inboxes.acknowledge(deliveries[0].inbox, receipts)

        await world.request(self._node, "an acknowledgement", once)


def _end(reader: asyncio.Future[None]) -> None:
    if not reader.done():
        reader.set_result(None)


def _not_leased(name: str) -> ServiceError:
    return ServiceError(f"no inbox {name!r} is leased: its gang has ended")
