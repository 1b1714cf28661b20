"""Inboxes in the driver's memory, with SNS's and SQS's limits and what those would bill.

`Inboxes` holds the messages of a session; `LocalMessages` is what any process of it uses,
directly in the driver and through a `Link` in a worker.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fsdray.errors import ServiceError
from fsdray.services import Count, Delivery, Message, MessageLimits, units


class Post(Protocol):
    """What `LocalMessages` needs of `Inboxes`, or of a link to them."""

    async def lease(self, count: int) -> list[str]: ...
    async def release(self, inboxes: Sequence[str]) -> None: ...
    async def publish(self, messages: Sequence[tuple[bytes, tuple[str, ...]]]) -> None: ...
    async def receive(self, inbox: str, wait: float) -> list[tuple[str, bytes]]: ...
    async def acknowledge(self, inbox: str, receipts: Sequence[str]) -> None: ...


@dataclass
class _Inbox:
    ready: deque[bytes] = field(default_factory=deque)
    # By receipt: the body, and when it comes again.
    in_flight: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    readers: deque[asyncio.Future[None]] = field(default_factory=deque)

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
    """The messages of a session; it lives in the driver and knows no billing."""

    def __init__(self, limits: MessageLimits) -> None:
        self._limits = limits
        self._inboxes: dict[str, _Inbox] = {}
        self._names = itertools.count()
        self._receipts = itertools.count()

    async def lease(self, count: int) -> list[str]:
        names = [f"inbox-{next(self._names)}" for _ in range(count)]
        self._inboxes.update((name, _Inbox()) for name in names)
        return names

    async def release(self, inboxes: Sequence[str]) -> None:
        for name in inboxes:
            inbox = self._inboxes.pop(name, None)
            for reader in inbox.readers if inbox else ():
                if not reader.done():
                    reader.set_exception(_not_leased(name))

    async def publish(self, messages: Sequence[tuple[bytes, tuple[str, ...]]]) -> None:
        for _, names in messages:
            for name in names:
                self._inbox(name)
        for body, names in messages:
            for name in names:
                inbox = self._inbox(name)
                inbox.ready.append(body)
                inbox.wake()

    async def receive(self, inbox: str, wait: float) -> list[tuple[str, bytes]]:
        box = self._inbox(inbox)
        deadline = asyncio.get_running_loop().time() + wait
        while True:
            again = self._redeliver(box)
            if box.ready:
                return self._take(box)
            left = min(deadline, again) - asyncio.get_running_loop().time()
            if left <= 0 and again > deadline:
                return []
            reader: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            box.readers.append(reader)
            try:
                async with asyncio.timeout(max(0.0, left)):
                    await reader
            except TimeoutError:
                continue
            except asyncio.CancelledError:
                if reader.done() and not reader.cancelled():
                    box.wake()  # this reader was woken for a message that it will not take
                raise
            finally:
                if reader in box.readers:
                    box.readers.remove(reader)

    async def acknowledge(self, inbox: str, receipts: Sequence[str]) -> None:
        box = self._inboxes.get(inbox)
        for receipt in receipts if box else ():
            assert box is not None
            box.in_flight.pop(receipt, None)

    def _inbox(self, name: str) -> _Inbox:
        try:
            return self._inboxes[name]
        except KeyError:
            raise _not_leased(name) from None

    def _take(self, box: _Inbox) -> list[tuple[str, bytes]]:
        taken: list[tuple[str, bytes]] = []
        size = 0
        again = asyncio.get_running_loop().time() + self._limits.visibility
        while box.ready and len(taken) < self._limits.receive_messages:
            size += len(box.ready[0])
            if taken and size > self._limits.receive:
                break
            body = box.ready.popleft()
            receipt = f"r{next(self._receipts)}"
            box.in_flight[receipt] = (body, again)
            taken.append((receipt, body))
        # Those who wait take what is left, or learn when this comes again.
        box.wake_all()
        return taken

    def _redeliver(self, box: _Inbox) -> float:
        """Make overdue deliveries ready again; return when the next one is due."""
        now = asyncio.get_running_loop().time()
        due = [r for r, (_, again) in box.in_flight.items() if again <= now]
        for receipt in due:
            box.ready.append(box.in_flight.pop(receipt)[0])
        return min((again for _, again in box.in_flight.values()), default=float("inf"))


class LocalMessages:
    """`fsdray.services.Messages` over a `Post`; it checks the limits and counts requests."""

    def __init__(self, post: Post, count: Count, limits: MessageLimits = MessageLimits()) -> None:
        self._post = post
        self._count = count
        self.limits = limits

    async def lease(self, count: int) -> list[str]:
        return await self._post.lease(count)

    async def release(self, inboxes: Sequence[str]) -> None:
        await self._post.release(inboxes)

    async def publish(self, messages: Sequence[Message]) -> None:
        self.limits.check_publish(messages)
        size = sum(memoryview(message.body).nbytes for message in messages)
        self._count("publish", 1)
        self._count("publish_units", units(size))
        self._count("publish_bytes", size)
        await self._post.publish([(bytes(m.body), m.inboxes) for m in messages])

    async def receive(self, inbox: str, *, wait: float) -> list[Delivery]:
        self.limits.check_wait(wait)
        taken = await self._post.receive(inbox, wait)
        self._count("receive", 1)
        self._count("receive_units", units(sum(len(body) for _, body in taken)))
        return [Delivery(inbox, receipt, body) for receipt, body in taken]

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        self.limits.check_acknowledge(deliveries)
        self._count("acknowledge", 1)
        await self._post.acknowledge(deliveries[0].inbox, [d.receipt for d in deliveries])


def _not_leased(name: str) -> ServiceError:
    return ServiceError(f"no inbox {name!r} is leased: its gang has ended")
