"""The object channel: what a rank sends in one operation is one object, read by ranges.

An object starts with an index of its frames, so a reader fetches the head, which often holds its
frame too, and at most one range more. Keys are known, so nothing is ever listed. The objects
themselves are in `combined`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from fsdray.collective.combined import (
    HEAD,
    SendsNothing,
    combine,
    find,
    first_operation,
    path,
    path_of,
    prefix,
    read,
)
from fsdray.collective.forms import WINDOW
from fsdray.collective.frames import Frame, Key, Operation, pack, unpack
from fsdray.collective.mailbox import Called, Mailbox
from fsdray.collective.parcels import Outgoing
from fsdray.costs.medium import USUAL, Medium
from fsdray.services import MessageLimits, Objects, Pace

ABORT_PACE = Pace(first=0.5, factor=1.5, ceiling=5.0)  # seconds between looks for an abort
PATIENCE = 0.25  # seconds of waiting before a rank looks for an abort at all
STRAYS = 1.0  # seconds of waiting before a rank looks whether another called something else
_WAIT = 900.0  # seconds of one wait; deadlines are the communicator's


class ObjectChannel:
    """See `fsdray.collective.channels.Channel`."""

    name = "object"
    is_leaving = False  # each goes by itself
    limits = MessageLimits()

    def __init__(
        self,
        objects: Objects,
        gang: str,
        epoch: bytes,
        rank: int,
        size: int,
        mailbox: Mailbox,
        medium: Medium = USUAL,
    ) -> None:
        self.medium = medium
        self._objects = objects
        self._gang = gang
        self._epoch = epoch
        self._rank = rank
        self._size = size
        self._mailbox = mailbox
        self._fetching: dict[Key, asyncio.Task[None]] = {}
        self._collecting: dict[asyncio.Future[None], Sequence[Key]] = {}
        self.written: list[str] = []

    def post(self, outgoing: Outgoing, *, may_linger: bool = False) -> asyncio.Future[None]:
        return asyncio.ensure_future(self._post(outgoing))

    async def _post(self, outgoing: Outgoing) -> None:
        if not outgoing.parcels:
            return
        where = path_of(self._gang, self._rank, outgoing)
        data, _ = combine(self._epoch, self._rank, outgoing, outgoing.parcels)
        # Noted first: a put that is given up may have been done.
        self.written.append(where)
        # A twin's object is the same object: who comes second finds it written.
        await self._objects.put(where, data, if_absent=True)

    def hurry(self) -> None:
        """Nothing lingers: an object for two readers would cost each of them another range."""

    def collect_here(self, missing: Callable[[], int]) -> bool:
        """Objects are waited for on the loop."""
        return not missing()

    def move(self, rank: int, incarnation: int, inbox: str) -> None:
        """Objects stay where they are until the gang has ended: there is nothing to do."""

    async def collect(self, keys: Sequence[Key], called: Called | None = None) -> None:
        changed = self._mailbox.changed()
        self._collecting[changed] = keys
        # Of a collective all are needed, so the first ones do; of sends, whichever comes first.
        is_collective = any(not key.is_send for key in keys[:1])
        for key in keys[:WINDOW] if is_collective else keys:
            if key not in self._fetching:
                self._fetching[key] = asyncio.create_task(self._fetch(key))
        watch: asyncio.Task[None] | None = None
        try:
            await asyncio.wait([changed], timeout=PATIENCE)
            if not changed.done():
                watch = asyncio.create_task(self._watch_abort())
                await asyncio.wait([changed, watch], return_when=asyncio.FIRST_COMPLETED)
                if watch.done():
                    watch.result()
            await changed
        finally:
            del self._collecting[changed]
            changed.cancel()
            if watch is not None:
                watch.cancel()

    async def strays(self, key: Key, operation: Operation) -> None:
        await asyncio.sleep(STRAYS)
        where = path(self._gang, key, self._rank)
        blob = None
        while blob is None:
            blob = await self._objects.get(where, range=(0, HEAD), wait=_WAIT, pace=ABORT_PACE)
        called = first_operation(blob)
        if called is not None and called != operation:
            raise SendsNothing(key.source, called.name.lower(), self._rank)
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        for task in self._fetching.values():
            task.cancel()
        if self._fetching:
            await asyncio.wait(list(self._fetching.values()))

    async def _fetch(self, key: Key) -> None:
        """Bring one message; an error is that of all who collect it."""
        try:
            where = path(self._gang, key, self._rank)
            blob = None
            while blob is None:
                blob = await self._objects.get(where, range=(0, HEAD), wait=_WAIT)
            span = await find(self._objects, where, blob, self._rank, key.source)
            self._mailbox.deposit(await read(self._objects, where, span, blob))
        except Exception as error:  # whatever it is: this task has nobody who awaits it
            for changed, keys in self._collecting.items():
                if key in keys and not changed.done():
                    changed.set_exception(error)
        finally:
            self._fetching.pop(key, None)

    async def _watch_abort(self) -> None:
        blob = None
        while blob is None:
            blob = await self._objects.get(abort_key(self._gang), wait=_WAIT, pace=ABORT_PACE)
        self._mailbox.deposit(unpack(blob.data))


async def announce(objects: Objects, gang: str, frame: Frame) -> None:
    """Write the object that waiting ranks look for."""
    await objects.put(abort_key(gang), pack(frame), if_absent=True)


def abort_key(gang: str) -> str:
    """The key that is there when the gang is broken."""
    return f"{prefix(gang)}abort"
