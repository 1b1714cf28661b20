"""The auto channel: all is received through the inbox, and what is large lies in an object.

For each operation the sender chooses (`fsdray.collective.forms.stored`) which of its messages go as
frames, and which as one object with a pointer that says where in it each receiver's lies: nobody
looks for an object that is not there yet. Order, acknowledgement and aborts are the queue's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from fsdray.collective.channels.queue import QueueChannel
from fsdray.collective.channels.sendlog import SendLog
from fsdray.collective.combined import (
    Span,
    combine,
    pack_spans,
    path,
    path_of,
    read,
    span_for,
)
from fsdray.collective.forms import pointers, stored
from fsdray.collective.frames import Codec, Frame, Key
from fsdray.collective.mailbox import Mailbox
from fsdray.collective.parcels import Outgoing, Parcel
from fsdray.costs.medium import Medium
from fsdray.services import Delivery, Messages, Objects
from fsdray.steps import begun, is_stepping

FETCHES = 64
"""Objects that a rank reads at a time: a client has no more connections."""

FORMS = 256
"""Choices that a rank remembers: a formula takes longer than a message."""


class AutoChannel(QueueChannel):
    """See `fsdray.collective.channels.Channel`."""

    name = "auto"

    def __init__(
        self,
        messages: Messages,
        objects: Objects,
        gang: str,
        epoch: bytes,
        rank: int,
        inboxes: Sequence[str],
        mailbox: Mailbox,
        medium: Medium,
        moved: Mapping[int, int] | None = None,
        log: SendLog | None = None,
    ) -> None:
        super().__init__(messages, epoch, rank, inboxes, mailbox, moved, log, medium)
        self._objects = objects
        self._gang = gang
        self._fetching: dict[Key, asyncio.Future[None]] = {}
        self._pointers: dict[Key, list[Delivery]] = {}  # of what is being fetched
        self._connections = asyncio.Semaphore(FETCHES)
        self._forms: dict[Any, frozenset[int]] = {}

    def post(self, outgoing: Outgoing, *, may_linger: bool = False) -> asyncio.Future[None]:
        large = self._stored(outgoing)
        if not large:
            return super().post(outgoing, may_linger=may_linger)
        return begun(self._post_stored(outgoing, large, may_linger))

    async def _post_stored(
        self, outgoing: Outgoing, large: frozenset[int], may_linger: bool
    ) -> None:
        """Send some parcels as an object, and pointers to it with the others."""
        parcels = outgoing.parcels
        written = [parcels[i] for i in sorted(large)]
        data, placed = combine(self._epoch, self._rank, outgoing, written)
        where = path_of(self._gang, self._rank, outgoing)
        pointing = self._pointing(written, placed.spans)
        # Noted first: a put that is given up may have been done.
        self.written.append(where)
        # A twin's object is the same object: who comes second finds it written.
        is_attached = self._is_attached(pointing)
        await self._objects.put(where, data, if_absent=True, is_attached=is_attached)
        inline = [parcel for i, parcel in enumerate(parcels) if i not in large]
        await self._post(outgoing, inline, may_linger, pointing, where)

    async def close(self) -> None:
        for task in self._fetching.values():
            task.cancel()
        if self._fetching:
            await asyncio.wait(list(self._fetching.values()))
        await super().close()

    # Sending

    def _stored(self, outgoing: Outgoing) -> frozenset[int]:
        """Which parcels go as an object."""
        specs = tuple((parcel.destinations, parcel.size) for parcel in outgoing.parcels)
        key = specs, outgoing.fellows
        if key not in self._forms:
            if len(self._forms) > FORMS:
                self._forms.clear()
            ranks, limits = len(self._inboxes), self._messages.limits
            self._forms[key] = stored(specs, outgoing.fellows, ranks, self.medium, limits)
        return self._forms[key]

    def _pointing(self, written: Sequence[Parcel], spans: Sequence[Span]) -> list[Parcel]:
        """The pointers to what was written."""
        at = {
            rank: span
            for parcel, span in zip(written, spans, strict=True)
            for rank in parcel.destinations
        }
        found = pointers([parcel.destinations for parcel in written], self._messages.limits)
        return [
            Parcel.of(ranks, Codec.RAW, [pack_spans([at[rank] for rank in ranks[:entries]])])
            for ranks, entries in found
        ]

    # Receiving

    def _outstanding(self, keys: Sequence[Key]) -> int:
        if keys and keys[0].is_send:
            # Any of them will do, so the one that is being fetched.
            return 0 if any(key in self._fetching for key in keys) else 1
        left = [key for key in keys if key not in self._fetching]
        return 0 if keys and not left else super()._outstanding(left)

    def _is_fetching(self) -> bool:
        return bool(self._fetching)

    def _accept(self, frame: Frame, delivery: Delivery) -> None:
        key = frame.key
        if key in self._fetching:  # a pointer that came again
            self._pointers.setdefault(key, []).append(delivery)
        elif frame.is_pointer and self._mailbox.is_for_us(frame) and not self._mailbox.knows(key):
            self._pointers[key] = [delivery]
            self._fetch(key, span_for(frame, self._rank))
        elif frame.is_pointer:
            self._mailbox.dropped += 1
            self._hold(delivery)
        else:
            super()._accept(frame, delivery)

    def _fetch(self, key: Key, span: Span) -> None:
        bringing = begun(self._bring(key, span))
        if bringing.done():
            bringing.result()
        else:
            self._fetching[key] = bringing

    async def _bring(self, key: Key, span: Span) -> None:
        """Bring one message; an error is that of all who collect it."""
        try:
            async with self._connections:
                frame = await read(self._objects, path(self._gang, key, self._rank), span)
            self._mailbox.deposit(frame)
            for delivery in self._pointers.get(key, ()):
                self._hold(delivery)
        except Exception as error:  # whatever it is: this task has nobody who awaits it
            for changed, keys in self._collecting.items():
                if key in keys and not changed.done():
                    changed.set_exception(error)
            if is_stepping():
                raise
        finally:
            self._fetching.pop(key, None)
            self._pointers.pop(key, None)
