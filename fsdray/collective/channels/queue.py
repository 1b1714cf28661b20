"""The queue channel: frames through inboxes, batched, multicast and acknowledged.

A batch mixes targets and holds as many frames as the service takes at once. Reading goes on only
while somebody waits, so that frames gather meanwhile and few receives are billed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from fsdray.collective.arrivals import READERS
from fsdray.collective.channels.sendlog import SendLog
from fsdray.collective.forms import groups
from fsdray.collective.frames import Corrupted, Frame, Key, Operation, overhead, pack, split, unpack
from fsdray.collective.mailbox import Called, Mailbox
from fsdray.collective.parcels import Outgoing, Parcel, frames
from fsdray.costs.medium import USUAL, Medium
from fsdray.services import Delivery, Message, MessageLimits, Messages, NearMessages
from fsdray.steps import is_stepping

T = TypeVar("T")

LOOK = 1.0
"""Seconds between looks of a rank that computes, where ranks may be started again: one that was
waits for what this one had sent it. A receive costs 0.4 µ$, a second of a rank of 1,769 MB 29."""

LINGER = 0.001
"""Seconds that an `isend` which nobody waits for stays for company, and that a reader who waits for
several messages gives the next ones to gather after the first. A receive and its part of an
acknowledgement cost 0.5 µ$, which is what a rank of 1,769 MB costs in 16 ms: worth a moment, not
more (prices: FACTS, section 3)."""

PATIENCE = 0.005
"""Seconds for which a thread that has the loop waits for messages itself: several small
collectives' time. Who else needs the loop waits so long at most."""

_SMALL = 4  # ranks of a gang in which nobody waits for enough messages for that moment to pay


class QueueChannel:
    """See `fsdray.collective.channels.Channel`.

    Parameters
    ----------
    moved : how often ranks were started again, of those that were: their inboxes are new.
    log : keeps what is sent; None where no rank is started again.
    """

    name = "queue"

    def __init__(
        self,
        messages: Messages,
        epoch: bytes,
        rank: int,
        inboxes: Sequence[str],
        mailbox: Mailbox,
        moved: Mapping[int, int] | None = None,
        log: SendLog | None = None,
        medium: Medium = USUAL,
    ) -> None:
        self.medium = medium
        self._messages = messages
        self._near = messages.near
        self._epoch = epoch
        self._rank = rank
        self._inboxes = list(inboxes)
        self._moved = dict(moved or {})
        self._log = log
        self._mailbox = mailbox
        # To go with the next departure, by the group of inboxes that one publish reaches.
        self._ready: dict[int, list[Message]] = {}
        self._departure: asyncio.Task[None] | None = None
        self._is_send = False  # what began it
        self._aboard: list[asyncio.Future[None]] = []  # of those who wait for it
        self._hurried = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()
        self._reading: set[asyncio.Task[None]] = set()
        self._is_listening = False  # where messages are near: instead of the tasks
        self._collecting: dict[asyncio.Future[None], Sequence[Key]] = {}
        self._most = 0  # messages of the last receive, which may have left some; 0: it left none
        self._held: list[Delivery] = []  # deposited, not acknowledged yet
        self._due: asyncio.TimerHandle | None = None
        self._acknowledging: set[asyncio.Task[None]] = set()
        self._looking: asyncio.TimerHandle | None = None
        self.written: list[str] = []
        self.corrupted = 0  # frames that were refused; the service delivers them again
        if log is not None:
            self._look_later()

    def post(self, outgoing: Outgoing, *, may_linger: bool = False) -> asyncio.Future[None]:
        return self._post(outgoing, outgoing.parcels, may_linger)

    @property
    def is_leaving(self) -> bool:
        return self._departure is not None and self._is_send and self._hurried.is_set()

    @property
    def limits(self) -> MessageLimits:
        return self._messages.limits

    def hurry(self) -> None:
        if self._departure is not None:
            self._hurried.set()

    async def collect(self, keys: Sequence[Key], called: Called | None = None) -> None:
        # The readers serve all who wait at the same time.
        changed = self._mailbox.changed(keys, called)
        self._collecting[changed] = keys
        self.hurry()  # what this rank waits for may be an answer to what lingers
        try:
            self._read_more()
            await changed
        finally:
            del self._collecting[changed]
            changed.cancel()

    def collect_here(self, missing: Callable[[], int]) -> bool:
        if self._near is None or self._departure is not None:
            return not missing()  # what lingers goes on the loop
        end = 0.0
        while count := missing():
            now = time.monotonic()
            end = end or now + PATIENCE
            if now >= end or self._is_fetching():
                return False
            self._received(self._near.wait(self._inboxes[self._rank], end - now, count))
        return True

    def move(self, rank: int, incarnation: int, inbox: str) -> None:
        """A rank was started again: what it was sent, and will be, goes to another inbox."""
        if incarnation <= self._moved.get(rank, 0):
            return
        self._moved[rank] = incarnation
        self._inboxes[rank] = inbox
        if self._log is not None:
            task = asyncio.create_task(self._resend(self._log, rank, inbox))
            self._under_way.add(task)
            task.add_done_callback(self._resent)

    async def strays(self, key: Key, operation: Operation) -> None:
        """What comes is seen in the mailbox."""
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        self.hurry()
        if self._under_way:
            await asyncio.wait(list(self._under_way))
        if self._near is not None and self._is_listening:
            self._near.stop(self._inboxes[self._rank], self._called)
        for reading in self._reading:
            reading.cancel()
        if self._reading:
            await asyncio.wait(list(self._reading))
        if self._under_way:  # of what was read last
            await asyncio.wait(list(self._under_way))
        self._acknowledge(len(self._held))
        if self._acknowledging:
            await asyncio.wait(list(self._acknowledging))

    # For channels that are built on this one

    def _post(
        self,
        outgoing: Outgoing,
        parcels: Sequence[Parcel],
        may_linger: bool,
        pointers: Sequence[Parcel] = (),
        stored: str = "",
    ) -> asyncio.Future[None]:
        """Send these parcels of what is sent as frames, and these as pointers to what is stored."""
        limits = self._messages.limits
        incarnation = self._moved.get(self._rank, 0) % 256
        for some_parcels, is_pointer in ((parcels, False), (pointers, True)):
            attached = stored if is_pointer and self._is_attached(pointers) else None
            for parcel in some_parcels:
                for group, ranks in groups(parcel.destinations, limits.fanout):
                    room = limits.room(len(ranks)) - overhead(len(ranks))
                    for frame in frames(
                        self._epoch,
                        self._rank,
                        outgoing,
                        parcel._replace(destinations=ranks),
                        room,
                        incarnation,
                        is_pointer,
                    ):
                        self._send(pack(frame), group, ranks, attached)
        arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._near is not None and self._departure is None and not may_linger and is_stepping():
            # Nothing else is posted in this turn.
            self._leave(self._near, arrived)
        else:
            self._board(arrived, outgoing.operation == Operation.SEND, may_linger)
        if self._log is not None and self._log.is_full:
            return asyncio.ensure_future(self._relieved(self._log, arrived))
        return arrived

    def _board(self, arrived: asyncio.Future[None], is_send: bool, may_linger: bool) -> None:
        """Have it go with the next departure: who gives up waiting does not stop that."""
        self._aboard.append(arrived)
        if self._departure is None:
            self._is_send = is_send
            self._departure = asyncio.create_task(self._depart())
            self._under_way.add(self._departure)
            self._departure.add_done_callback(self._under_way.discard)
        waiting = sum(map(len, self._ready.values()))
        if not may_linger or waiting >= self._messages.limits.batch_messages:
            self.hurry()

    def _leave(self, near: NearMessages, arrived: asyncio.Future[None]) -> None:
        """Publish at once."""
        try:
            for batch in self._full():
                near.publish(batch)
        except Exception as error:  # whatever it is: it is that of who waits
            arrived.set_exception(error)
        else:
            arrived.set_result(None)

    def _full(self) -> list[list[Message]]:
        """What is to be published now."""
        ready, self._ready = self._ready, {}
        limits = self._messages.limits
        return [batch for group in ready.values() for batch in batches(group, limits)]

    async def _relieved(self, log: SendLog, arrived: asyncio.Future[None]) -> None:
        await log.relieve()
        await arrived

    def _is_attached(self, pointers: Sequence[Parcel]) -> bool:
        """Whether an object that these point to goes when they have been read.

        Where ranks may be started again, or several messages point there, it stays.
        """
        return len(pointers) == 1 and self._log is None

    def _outstanding(self, keys: Sequence[Key]) -> int:
        """At least how many frames are to come for these keys; of sends any one will do."""
        if not keys or keys[0].is_send:
            return 1
        return sum(self._mailbox.outstanding(key) for key in keys if not self._mailbox.has(key))

    def _is_fetching(self) -> bool:
        """Whether what has come is still being brought, on the loop."""
        return False

    def _accept(self, frame: Frame, delivery: Delivery) -> None:
        """Keep a frame; its delivery is acknowledged once it is held."""
        self._mailbox.deposit(frame)
        self._hold(delivery)

    def _hold(self, delivery: Delivery) -> None:
        """What this delivery brought is safe: acknowledge it by and by, in full batches."""
        self._held.append(delivery)
        limits = self._messages.limits
        if len(self._held) >= limits.acknowledge:
            self._acknowledge(len(self._held) // limits.acknowledge * limits.acknowledge)
        if self._held and self._due is None:
            # The rest goes before the service would deliver it again.
            loop = asyncio.get_running_loop()
            self._due = loop.call_later(limits.visibility / 3, self._acknowledge_late)

    # Inside

    def _wanted(self) -> int:
        """How many receives are to be under way: one, or as many as come back full."""
        most = 0
        for changed, keys in self._collecting.items():
            coming = 0 if changed.done() else self._outstanding(keys)
            if coming:
                most = max(most, 1 if not self._most else min(READERS, -(-coming // self._most)))
        return most

    def _read_more(self) -> None:
        if self._near is not None:
            if self._is_listening or not self._wanted():
                return
            if len(self._inboxes) > _SMALL:  # a turn later more is there
                self._is_listening = True
                asyncio.get_running_loop().call_soon(self._called)
            else:
                self._look_here(self._near)
            return
        for _ in range(self._wanted() - len(self._reading)):
            self._begin_reading()

    def _called(self) -> None:
        """Something has come, where messages are near, or a moment is over."""
        self._is_listening = False
        if self._near is not None and self._wanted():
            self._look_here(self._near)

    def _look_here(self, near: NearMessages) -> None:
        """Take what is there, as long as somebody needs more, and be called for what comes.

        Where nobody does, it is one look.
        """
        try:
            while True:
                got = near.receive(self._inboxes[self._rank], self._called)
                if not got:
                    self._is_listening = True
                    return
                self._received(got)
                if not self._wanted():
                    return
                if self._gathers():
                    self._is_listening = True
                    asyncio.get_running_loop().call_later(LINGER, self._called)
                    return
        except Exception as error:  # whatever it is: it is that of all who wait
            self._cannot_read(error)

    def _begin_reading(self) -> None:
        reading = asyncio.create_task(self._read())
        reading.add_done_callback(self._has_read)
        self._reading.add(reading)

    def _has_read(self, reading: asyncio.Task[None]) -> None:
        self._reading.discard(reading)
        if reading.cancelled():
            return
        error = reading.exception()
        if error is None:
            self._read_more()
            return
        self._cannot_read(error)

    def _cannot_read(self, error: BaseException) -> None:
        for changed in self._collecting:  # where nobody waits, who reads next is told
            if not changed.done():
                changed.set_exception(error)

    def _look_later(self) -> None:
        self._looking = asyncio.get_running_loop().call_later(LOOK, self._look)

    def _look(self) -> None:
        if self._near is not None:
            if not self._is_listening:
                self._look_here(self._near)
        elif not self._reading:
            self._begin_reading()
        self._look_later()

    def _send(self, body: bytes, group: int, ranks: tuple[int, ...], attached: str | None) -> None:
        if self._log is not None:
            self._log.add(ranks, body)
        for each, message in addressed(body, group, ranks, self._inboxes, self._moved, attached):
            self._ready.setdefault(each, []).append(message)

    async def _resend(self, log: SendLog, rank: int, inbox: str) -> None:
        async for bodies in log.to(rank):
            await send(self._messages, bodies, inbox)

    def _resent(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            # The other would wait for what does not come: this rank fails, and says why.
            self._mailbox.fail(lambda: error)

    async def _depart(self) -> None:
        """Publish what has gathered, when somebody is in a hurry or a moment is over.

        What is posted in one turn of the loop goes together.
        """
        if not self._hurried.is_set():
            with suppress(TimeoutError):  # nobody was in a hurry
                await asyncio.wait_for(self._hurried.wait(), LINGER)
        full, self._departure = self._full(), None
        aboard, self._aboard = self._aboard, []
        self._hurried.clear()
        error: BaseException | None = None
        try:
            if len(full) == 1:  # mostly: no task of its own
                await self._messages.publish(full[0])
            else:
                await asyncio.gather(*map(self._messages.publish, full))
        except BaseException as raised:  # it is that of all who wait
            error = raised
        for arrived in aboard:
            if arrived.done():
                continue  # who waited gave up
            if error is None:
                arrived.set_result(None)
            elif isinstance(error, asyncio.CancelledError):
                arrived.cancel()
            else:
                arrived.set_exception(error)

    async def _read(self) -> None:
        """Receive, and again for as long as who waits needs more."""
        while True:
            has_come = await self._receive()
            if has_come and self._gathers() and self._wanted():
                await asyncio.sleep(LINGER)
            self._read_more()
            if len(self._reading) > self._wanted():
                return

    async def _receive(self) -> bool:
        """One receive; whether it brought anything."""
        wait = self._messages.limits.wait
        got = await self._messages.receive(self._inboxes[self._rank], wait=wait)
        self._received(got)
        return bool(got)

    def _gathers(self) -> bool:
        """Whether others are on their way: a receive that brings several is billed once."""
        return len(self._inboxes) > _SMALL and not self._most

    def _received(self, got: Sequence[Delivery]) -> None:
        limits = self._messages.limits
        size = sum(delivery.billed for delivery in got)
        is_full = len(got) >= limits.receive_messages or size > limits.receive - limits.message
        self._most = len(got) if is_full else 0
        for delivery in got:
            try:
                frame = unpack(delivery.body)
            except Corrupted:
                self.corrupted += 1
                continue
            self._accept(frame, delivery)

    def _acknowledge(self, count: int) -> None:
        done, self._held = self._held[:count], self._held[count:]
        if self._due is not None and not self._held:
            self._due.cancel()
            self._due = None
        for some in _chunks(done, self._messages.limits.acknowledge):
            if self._near is not None:
                self._near.acknowledge(some)
                continue
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
    if len(messages) == 1:
        return iter([list(messages)])
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


def addressed(
    body: bytes,
    group: int,
    ranks: Sequence[int],
    inboxes: Sequence[str],
    moved: Mapping[int, int],
    attached: str | None = None,
) -> Iterator[tuple[int, Message]]:
    """A frame for ranks of one group, as messages, each with the group that it goes to.

    Who was started again is a group of its own: its inbox was leased by itself.
    """
    together = tuple(inboxes[rank] for rank in ranks if rank not in moved)
    if together:
        yield group, Message(body, together, attached)
    for rank in ranks:
        if rank in moved:
            yield -1 - rank, Message(body, (inboxes[rank],))


async def announce(
    messages: Messages,
    inboxes: Sequence[str],
    moved: Mapping[int, int],
    frame: Frame,
    ranks: Sequence[int],
) -> None:
    """Publish what says something of the gang itself to these ranks, in parts where it must."""
    limits = messages.limits
    for group, some in groups(ranks, limits.fanout):
        pieces = split([frame.payload], limits.room(len(some)) - overhead(len(frame.destinations)))
        for part, piece in enumerate(pieces):
            body = pack(frame._replace(part=part, parts=len(pieces), payload=piece))
            for _, message in addressed(body, group, some, inboxes, moved):
                await messages.publish([message])


async def send(messages: Messages, bodies: Sequence[bytes], inbox: str) -> None:
    """Send frames to one inbox, in as few requests as can be."""
    waiting = [Message(body, (inbox,)) for body in bodies]
    for some in batches(waiting, messages.limits):
        await messages.publish(some)


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[at : at + size] for at in range(0, len(items), size))
