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
from fsdray.services import (
    Count,
    Delivery,
    Message,
    MessageLimits,
    count_publish,
    count_receive,
    is_direct,
)


class Post(Protocol):
    """What `LocalMessages` needs of `Inboxes`, or of a link to them."""

    async def lease(self, count: int) -> list[str]: ...
    async def release(self, inboxes: Sequence[str]) -> None: ...
    async def publish(self, messages: Sequence[tuple[bytes, tuple[str, ...]]]) -> None: ...
    async def receive(self, inbox: str, wait: float) -> list[tuple[str, bytes, int]]: ...
    async def acknowledge(self, inbox: str, receipts: Sequence[str]) -> None: ...


_Kept = tuple[bytes, int]  # a body, and what of its message is billed


@dataclass
class _Inbox:
    ready: deque[_Kept] = field(default_factory=deque)
    # By receipt: what was delivered, and when it comes again.
    in_flight: dict[str, tuple[_Kept, float]] = field(default_factory=dict)
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
            kept = body, Message(body, names).billed
            for name in names:
                inbox = self._inbox(name)
                inbox.ready.append(kept)
                inbox.wake()

    async def receive(self, inbox: str, wait: float) -> list[tuple[str, bytes, int]]:
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

    def _take(self, box: _Inbox) -> list[tuple[str, bytes, int]]:
        taken: list[tuple[str, bytes, int]] = []
        size = 0
        again = asyncio.get_running_loop().time() + self._limits.visibility
        while box.ready and len(taken) < self._limits.receive_messages:
            size += box.ready[0][1]
            if taken and size > self._limits.receive:
                break
            kept = box.ready.popleft()
            receipt = f"r{next(self._receipts)}"
            box.in_flight[receipt] = (kept, again)
            taken.append((receipt, *kept))
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

    async def release(self, inboxes: Sequence[str], *, is_broken: bool = False) -> None:
        await self._post.release(inboxes)

    async def publish(self, messages: Sequence[Message]) -> None:
        self.limits.check_publish(messages)
        count_publish(self._count, messages, direct=is_direct(messages))
        await self._post.publish([(bytes(m.body), m.inboxes) for m in messages])

    async def receive(self, inbox: str, *, wait: float) -> list[Delivery]:
        self.limits.check_wait(wait)
        taken = await self._post.receive(inbox, wait)
        deliveries = [Delivery(inbox, *each) for each in taken]
        count_receive(self._count, deliveries)
        return deliveries

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        self.limits.check_acknowledge(deliveries)
        self._count("acknowledge", 1)
        await self._post.acknowledge(deliveries[0].inbox, [d.receipt for d in deliveries])


def _not_leased(name: str) -> ServiceError:
    return ServiceError(f"no inbox {name!r} is leased: its gang has ended")
