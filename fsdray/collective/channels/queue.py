"""The queue channel: frames through inboxes, batched, multicast and acknowledged.

A batch mixes targets and holds as many frames as the service takes at once. Reading goes on only
while somebody waits, so that frames gather meanwhile and few receives are billed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from fsdray.collective.algorithms import groups
from fsdray.collective.frames import Corrupted, Frame, Key, Operation, overhead, pack, split, unpack
from fsdray.collective.mailbox import Mailbox
from fsdray.collective.parcels import Outgoing, frames
from fsdray.services import Delivery, Message, MessageLimits, Messages

T = TypeVar("T")

LINGER = 0.001
"""Seconds that a rank which waits for several messages gives the next ones to gather, after the
first came. A receive and its part of an acknowledgement cost 0.5 µ$, which is what a rank of 1,769
MB costs in 16 ms: worth a moment, not more (prices: FACTS, section 3)."""


class QueueChannel:
    """See `fsdray.collective.channels.Channel`."""

    def __init__(
        self,
        messages: Messages,
        epoch: bytes,
        rank: int,
        inboxes: Sequence[str],
        mailbox: Mailbox,
    ) -> None:
        self._messages = messages
        self._epoch = epoch
        self._rank = rank
        self._inboxes = inboxes
        self._mailbox = mailbox
        # To go with the next departure, by the group of inboxes that one publish reaches.
        self._ready: dict[int, list[Message]] = {}
        self._departure: asyncio.Task[None] | None = None
        self._hurried = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()
        self._reading: asyncio.Task[None] | None = None
        self._held: list[Delivery] = []  # deposited, not acknowledged yet
        self._due: asyncio.TimerHandle | None = None
        self._acknowledging: set[asyncio.Task[None]] = set()
        self.written: Sequence[str] = ()
        self.corrupted = 0  # frames that were refused; the service delivers them again

    async def post(self, outgoing: Outgoing, *, may_linger: bool = False) -> None:
        limits = self._messages.limits
        for parcel in outgoing.parcels:
            for group, some in groups(parcel.destinations, limits.fanout):
                room = limits.room(len(some)) - overhead(len(some))
                addressed = type(parcel)(some, parcel.codec, parcel.payload)
                self._ready.setdefault(group, []).extend(
                    Message(pack(frame), tuple(self._inboxes[rank] for rank in some))
                    for frame in frames(self._epoch, self._rank, outgoing, addressed, room)
                )
        if self._departure is None:
            self._departure = asyncio.create_task(self._depart())
            self._under_way.add(self._departure)
            self._departure.add_done_callback(self._arrived)
        waiting = sum(map(len, self._ready.values()))
        if not may_linger or waiting >= limits.batch_messages:
            self.hurry()
        # Others travel with it: who gives up waiting does not stop it.
        await asyncio.shield(self._departure)

    def hurry(self) -> None:
        if self._departure is not None:
            self._hurried.set()

    async def collect(self, keys: Sequence[Key]) -> None:
        # One reader serves all who wait at the same time.
        changed = self._mailbox.changed()
        self.hurry()  # what this rank waits for may be an answer to what lingers
        try:
            while not changed.done():
                if self._reading is None or self._reading.done():
                    self._reading = asyncio.create_task(self._read())
                    self._reading.add_done_callback(_seen)  # nobody may wait for it by then
                await asyncio.wait((changed, self._reading), return_when=asyncio.FIRST_COMPLETED)
                if self._reading.done():
                    self._reading.result()
            changed.result()
            if any(not key.is_send and not self._mailbox.has(key) for key in keys):
                # The others are on their way, and a receive that brings several is billed once.
                await asyncio.sleep(LINGER)
        finally:
            changed.cancel()

    async def close(self) -> None:
        self.hurry()
        if self._under_way:
            await asyncio.wait(list(self._under_way))
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        self._acknowledge(len(self._held))
        if self._acknowledging:
            await asyncio.wait(list(self._acknowledging))

    async def _depart(self) -> None:
        """Publish what has gathered, when somebody is in a hurry or a moment is over.

        What is posted in one turn of the loop goes together.
        """
        if not self._hurried.is_set():
            with suppress(TimeoutError):  # nobody was in a hurry
                await asyncio.wait_for(self._hurried.wait(), LINGER)
        ready, self._ready, self._departure = self._ready, {}, None
        self._hurried.clear()
        limits = self._messages.limits
        await asyncio.gather(
            *(
                self._messages.publish(batch)
                for group in ready.values()
                for batch in batches(group, limits)
            )
        )

    def _arrived(self, departure: asyncio.Task[None]) -> None:
        self._under_way.discard(departure)
        if not departure.cancelled():
            departure.exception()  # those who wait for it are told; who gave up is not

    async def _read(self) -> None:
        """One receive; what is held is acknowledged by and by, in full batches."""
        limits = self._messages.limits
        for delivery in await self._messages.receive(self._inboxes[self._rank], wait=limits.wait):
            try:
                frame = unpack(delivery.body)
            except Corrupted:
                self.corrupted += 1
                continue
            self._mailbox.deposit(frame)
            self._held.append(delivery)
        self._acknowledge(len(self._held) // limits.acknowledge * limits.acknowledge)
        if self._held and self._due is None:
            # The rest goes before the service would deliver it again.
            loop = asyncio.get_running_loop()
            self._due = loop.call_later(limits.visibility / 3, self._acknowledge_late)

    def _acknowledge(self, count: int) -> None:
        done, self._held = self._held[:count], self._held[count:]
        if self._due is not None and not self._held:
            self._due.cancel()
            self._due = None
        for some in _chunks(done, self._messages.limits.acknowledge):
            task = asyncio.create_task(self._messages.acknowledge(some))
            self._acknowledging.add(task)
            task.add_done_callback(self._acknowledged)

    def _acknowledged(self, task: asyncio.Task[None]) -> None:
        self._acknowledging.discard(task)
        if not task.cancelled():
            task.exception()  # what is not acknowledged comes again, and is dropped as known

    def _acknowledge_late(self) -> None:
        self._due = None
        self._acknowledge(len(self._held))


def batches(messages: Sequence[Message], limits: MessageLimits) -> Iterator[list[Message]]:
    """Messages in as few publishes as the limits allow, first fit in order of size."""
    open_batches: list[tuple[int, list[Message]]] = []
    for message in sorted(messages, key=lambda m: -m.billed):
        size = message.billed
        for i, (used, batch) in enumerate(open_batches):
            if used + size <= limits.batch and len(batch) < limits.batch_messages:
                batch.append(message)
                open_batches[i] = (used + size, batch)
                break
        else:
            open_batches.append((size, [message]))
    return (batch for _, batch in open_batches)


async def announce(messages: Messages, inboxes: Sequence[str], frame: Frame) -> None:
    """Publish an abort to every rank, in as many parts as what it says needs."""
    assert frame.operation == Operation.ABORT
    limits = messages.limits
    for some in _chunks(tuple(inboxes), limits.fanout):
        room = limits.room(len(some)) - overhead(len(frame.destinations))
        pieces = split([frame.payload], room)
        for part, piece in enumerate(pieces):
            body = pack(replace(frame, part=part, parts=len(pieces), payload=piece))
            await messages.publish([Message(body, tuple(some))])


def _seen(reading: asyncio.Task[None]) -> None:
    if not reading.cancelled():
        reading.exception()


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[at : at + size] for at in range(0, len(items), size))
