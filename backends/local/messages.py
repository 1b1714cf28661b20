"""Inboxes in the driver's memory, with SNS's and SQS's limits and what those would bill.

`Inboxes` holds the messages of a session; `LocalMessages` is what any process of it uses,
directly in the driver and through a `Link` in a worker.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from fsdray.backends.local.bodies import Bodies, Shared
from fsdray.backends.local.link import Later
from fsdray.errors import ServiceError
from fsdray.services import (
    ADDRESS,
    ENVELOPE,
    Buffer,
    Count,
    Delivery,
    Message,
    MessageLimits,
    count_publish,
    count_receive,
    is_direct,
)

Body: TypeAlias = bytes | Shared
Posted: TypeAlias = tuple[Body, tuple[str, ...], str | None]
"""A message's body, its inboxes, and the object that only its receivers read."""
Taken: TypeAlias = tuple[str, Body, int]
"""A delivery's receipt, body and billed size."""


class Post(Protocol):
    """What `LocalMessages` needs of `Inboxes`, or of a link to them."""

    async def lease(self, count: int) -> list[str]: ...
    async def release(self, inboxes: Sequence[str]) -> None: ...
    async def publish(self, messages: Sequence[Posted]) -> list[str]: ...
    async def receive(self, inbox: str, wait: float) -> list[Taken]: ...
    async def acknowledge(self, inbox: str, receipts: Sequence[str]) -> None: ...


@dataclass
class _Kept:
    body: Body
    attached: str | None
    billed: int
    inboxes: int  # that have it


@dataclass
class _Inbox:
    ready: deque[_Kept] = field(default_factory=deque)
    # By receipt, in the order in which they come again: what was ready, and when it is again.
    in_flight: dict[str, tuple[_Kept, float]] = field(default_factory=dict)
    readers: deque[_Reader] = field(default_factory=deque)


class _Reader(Later):
    """One who waits for a message of an inbox, until a time of the loop."""

    def __init__(self, box: _Inbox, deadline: float) -> None:
        super().__init__(self.leave)
        self.deadline = deadline
        self.timer: asyncio.TimerHandle | None = None
        self._box = box

    def leave(self) -> None:
        """Wait no more."""
        if self.timer is not None:
            self.timer.cancel()
        with suppress(ValueError):  # it has its messages already
            self._box.readers.remove(self)


class Inboxes:
    """The messages of a session; it lives in the driver and knows no billing.

    What takes no time is done without a task: a message is handed to its reader in the turn of the
    loop after the one in which it was published.

    Parameters
    ----------
    remove : removes the object of a key, whose readers have all acknowledged their messages.
    """

    def __init__(
        self,
        limits: MessageLimits,
        bodies: Bodies | None = None,
        remove: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._limits = limits
        self._bodies = bodies
        self._remove = remove
        self._inboxes: dict[str, _Inbox] = {}
        self._names = itertools.count()
        self._receipts = itertools.count()
        self._reached: dict[str, _Inbox] = {}  # that have something new in this turn of the loop

    async def lease(self, count: int) -> list[str]:
        names = [f"inbox-{next(self._names)}" for _ in range(count)]
        self._inboxes.update((name, _Inbox()) for name in names)
        return names

    async def release(self, inboxes: Sequence[str]) -> None:
        for name in inboxes:
            inbox = self._inboxes.pop(name, None)
            for reader in list(inbox.readers) if inbox else ():
                reader.leave()
                reader.settle(None, _not_leased(name))
            if inbox is not None:
                for kept in (*inbox.ready, *(kept for kept, _ in inbox.in_flight.values())):
                    self._drop(kept)

    async def publish(self, messages: Sequence[Posted]) -> list[str]:
        return self.put(messages)

    async def receive(self, inbox: str, wait: float) -> list[Taken]:
        taken = self.take(inbox, wait)
        if not isinstance(taken, Later):
            return taken
        coming: asyncio.Future[list[Taken]] = asyncio.get_running_loop().create_future()

        def tell(value: list[Taken], error: Exception | None) -> None:
            if coming.done():  # given up in this turn of the loop
                self._give_back(inbox, value if error is None else [])
            elif error is None:
                coming.set_result(value)
            else:
                coming.set_exception(error)

        taken.then(tell)
        try:
            return await coming
        except asyncio.CancelledError:
            taken.cancel()
            if coming.done() and not coming.cancelled() and coming.exception() is None:
                self._give_back(inbox, coming.result())
            raise

    async def acknowledge(self, inbox: str, receipts: Sequence[str]) -> None:
        self.drop(inbox, receipts)

    # The same without a task, for a link

    def put(self, messages: Sequence[Posted]) -> list[str]:
        """`publish`; it returns the files that whose bodies these are may write again."""
        for _, names, _ in messages:
            for name in names:
                self._inbox(name)
        reached: dict[str, _Inbox] = {}
        for body, names, attached in messages:
            size = body.size if isinstance(body, Shared) else len(body)
            kept = _Kept(body, attached, size + ENVELOPE + ADDRESS * len(names), len(names))
            for name in names:
                reached[name] = box = self._inbox(name)
                box.ready.append(kept)
        if not self._reached:
            # With what others publish in this turn of the loop: a reader is woken once for all.
            asyncio.get_running_loop().call_soon(self._serve_reached)
        self._reached |= reached
        return [] if self._bodies is None else self._bodies.came([body for body, *_ in messages])

    def take(self, inbox: str, wait: float) -> list[Taken] | Later:
        """`receive`, which may have to wait."""
        box = self._inbox(inbox)
        self._redeliver(box)
        if box.ready or wait <= 0:
            return self._take(box)
        reader = _Reader(box, asyncio.get_running_loop().time() + wait)
        box.readers.append(reader)
        self._set_timer(box, reader)
        return reader

    def drop(self, inbox: str, receipts: Sequence[str]) -> None:
        """`acknowledge`."""
        box = self._inboxes.get(inbox)
        for receipt in receipts if box else ():
            assert box is not None
            kept, _ = box.in_flight.pop(receipt, (None, 0.0))
            if kept is not None:
                self._drop(kept)

    def _drop(self, kept: _Kept) -> None:
        """One inbox less has it."""
        kept.inboxes -= 1
        if kept.inboxes:
            return
        if self._bodies is not None:
            self._bodies.drop(kept.body)
        if kept.attached is not None:
            self._remove(kept.attached)

    def _inbox(self, name: str) -> _Inbox:
        try:
            return self._inboxes[name]
        except KeyError:
            raise _not_leased(name) from None

    def _serve_reached(self) -> None:
        reached, self._reached = self._reached, {}
        for box in reached.values():
            self._serve(box)

    def _serve(self, box: _Inbox) -> None:
        """Hand what is ready to those who wait for it."""
        while box.ready and box.readers:
            reader = box.readers[0]
            reader.leave()
            reader.settle(self._take(box))
            # The others learn when this comes again.
            for other in box.readers:
                self._set_timer(box, other)

    def _set_timer(self, box: _Inbox, reader: _Reader) -> None:
        if reader.timer is not None:
            reader.timer.cancel()
        _, again = next(iter(box.in_flight.values()), (None, reader.deadline))
        loop = asyncio.get_running_loop()
        reader.timer = loop.call_at(min(reader.deadline, again), self._timed, box, reader)

    def _timed(self, box: _Inbox, reader: _Reader) -> None:
        self._redeliver(box)
        self._serve(box)
        if reader not in box.readers:
            return
        if asyncio.get_running_loop().time() < reader.deadline:
            self._set_timer(box, reader)
        else:
            reader.leave()
            reader.settle([])

    def _take(self, box: _Inbox) -> list[Taken]:
        taken: list[Taken] = []
        size = 0
        again = asyncio.get_running_loop().time() + self._limits.visibility
        while box.ready and len(taken) < self._limits.receive_messages:
            size += box.ready[0].billed
            if taken and size > self._limits.receive:
                break
            kept = box.ready.popleft()
            receipt = f"r{next(self._receipts)}"
            box.in_flight[receipt] = (kept, again)
            taken.append((receipt, kept.body, kept.billed))
        return taken

    def _give_back(self, name: str, taken: Sequence[Taken]) -> None:
        """What was taken for a reader who had just given up is there for the next."""
        box = self._inboxes.get(name)
        if box is None:
            return
        for receipt, *_ in reversed(taken):
            kept, _ = box.in_flight.pop(receipt)
            box.ready.appendleft(kept)
        self._serve(box)

    def _redeliver(self, box: _Inbox) -> None:
        """Make overdue deliveries ready again."""
        now = asyncio.get_running_loop().time()
        while box.in_flight:
            receipt, (kept, again) = next(iter(box.in_flight.items()))
            if again > now:
                return
            del box.in_flight[receipt]
            box.ready.append(kept)


class LocalMessages:
    """`fsdray.services.Messages` over a `Post`; it checks the limits and counts requests."""

    def __init__(
        self,
        post: Post,
        count: Count,
        limits: MessageLimits = MessageLimits(),
        bodies: Bodies | None = None,
    ) -> None:
        self._post = post
        self._count = count
        self._bodies = bodies
        self.limits = limits

    async def lease(self, count: int) -> list[str]:
        return await self._post.lease(count)

    async def release(self, inboxes: Sequence[str], *, is_broken: bool = False) -> None:
        await self._post.release(inboxes)

    async def publish(self, messages: Sequence[Message]) -> None:
        self.limits.check_publish(messages)
        count_publish(self._count, messages, direct=is_direct(messages))
        bodies = self._bodies
        kept = [bytes(m.body) if bodies is None else bodies.put(m.body) for m in messages]
        try:
            posted = [(k, m.inboxes, m.attached) for k, m in zip(kept, messages, strict=True)]
            returned = await self._post.publish(posted)
        except ServiceError:  # refused, so nobody has them
            if bodies is not None:
                bodies.spare([each.name for each in kept if isinstance(each, Shared)])
            raise
        if returned and bodies is not None:
            bodies.spare(returned)

    async def receive(self, inbox: str, *, wait: float) -> list[Delivery]:
        self.limits.check_wait(wait)
        taken = await self._post.receive(inbox, wait)
        found = [(receipt, self._read(body), billed) for receipt, body, billed in taken]
        deliveries = [
            Delivery(inbox, receipt, body, billed)
            for receipt, body, billed in found
            if body is not None
        ]
        count_receive(self._count, deliveries)
        return deliveries

    def _read(self, body: Body) -> Buffer | None:
        if isinstance(body, Shared):
            assert self._bodies is not None
            return self._bodies.get(body)
        return body

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        self.limits.check_acknowledge(deliveries)
        self._count("acknowledge", 1)
        await self._post.acknowledge(deliveries[0].inbox, [d.receipt for d in deliveries])


def _not_leased(name: str) -> ServiceError:
    return ServiceError(f"no inbox {name!r} is leased: its gang has ended")
