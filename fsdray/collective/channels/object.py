"""The object channel: what a rank sends in one operation is one object, read by ranges.

An object starts with an index of its frames, so a reader fetches the head, which often holds its
frame too, and at most one range more. Keys are known, so nothing is ever listed.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import replace

from fsdray.collective.frames import (
    RANK_SIZE,
    Codec,
    Corrupted,
    Frame,
    Key,
    Operation,
    head_size,
    operation_in,
    pack,
    pack_parts,
    pack_ranks,
    unpack,
    unpack_ranks,
)
from fsdray.collective.mailbox import Mailbox
from fsdray.collective.parcels import Outgoing, Parcel
from fsdray.errors import CollectiveError, MismatchedCollective
from fsdray.services import KIB, MIB, Blob, Buffer, Objects, Pace

HEAD = 64 * KIB  # bytes of the first read: an index, and small frames behind it
WINDOW = 64
"""Objects of one collective that a rank looks for at a time. More would not come sooner, since a
client has no more connections, and each look at an object that is not there yet is billed."""
ABORT_PACE = Pace(first=0.5, factor=1.5, ceiling=5.0)  # seconds between looks for an abort
_WAIT = 900.0  # seconds of one wait; deadlines are the communicator's
_PATIENCE = 0.25  # seconds of waiting before a rank looks for an abort at all
_ALIGN = 64  # bytes: arrays are used where they lie in a mapped object
_BLOCKING = 4 * MIB  # checksums of more than this are left to a thread
_COUNT = struct.Struct("<II")  # frames, bytes of index
_ENTRY = struct.Struct("<QQI")  # offset, length, destinations


class SendsNothing(MismatchedCollective):
    """What a rank sent in an operation has nothing for this rank; both are the gang's numbers."""

    def __init__(self, source: int, called: str, rank: int) -> None:
        self.source = source
        self.called = called
        super().__init__(f"rank {source} called {called}, which sends nothing to rank {rank}")


def prefix(gang: str) -> str:
    """Where all objects of a gang lie; it starts with random digits, which spreads S3's load."""
    return f"{gang}/"


class ObjectChannel:
    """See `fsdray.collective.channels.Channel`."""

    def __init__(
        self,
        objects: Objects,
        gang: str,
        epoch: bytes,
        rank: int,
        size: int,
        mailbox: Mailbox,
    ) -> None:
        self._objects = objects
        self._gang = gang
        self._epoch = epoch
        self._rank = rank
        self._size = size
        self._mailbox = mailbox
        self._fetching: dict[Key, asyncio.Task[None]] = {}
        self._collecting: dict[asyncio.Future[None], Sequence[Key]] = {}
        self.written: list[str] = []

    async def post(self, outgoing: Outgoing, *, may_linger: bool = False) -> None:
        if not outgoing.parcels:
            return
        first = outgoing.parcels[0].destinations[0]
        key = Key(
            outgoing.communicator,
            outgoing.operation == Operation.SEND,
            outgoing.number,
            self._rank,
        )
        where = self._path(key, first)
        data = combine(self._epoch, self._rank, outgoing)
        # Noted first: a put that is given up may have been done.
        self.written.append(where)
        # A twin's object is the same object: who comes second finds it written.
        await self._objects.put(where, data, if_absent=True)

    def hurry(self) -> None:
        """Nothing lingers: an object for two readers would cost each of them another range."""

    def move(self, rank: int, incarnation: int, inbox: str) -> None:
        """Objects stay where they are until the gang has ended: there is nothing to do."""

    async def collect(self, keys: Sequence[Key]) -> None:
        changed = self._mailbox.changed()
        self._collecting[changed] = keys
        # Of a collective all are needed, so the first ones do; of sends, whichever comes first.
        is_collective = any(not key.is_send for key in keys[:1])
        for key in keys[:WINDOW] if is_collective else keys:
            if key not in self._fetching:
                self._fetching[key] = asyncio.create_task(self._fetch(key))
        watch: asyncio.Task[None] | None = None
        try:
            await asyncio.wait([changed], timeout=_PATIENCE)
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

    async def close(self) -> None:
        for task in self._fetching.values():
            task.cancel()
        if self._fetching:
            await asyncio.wait(list(self._fetching.values()))

    async def _fetch(self, key: Key) -> None:
        """Bring one message; an error is that of all who collect it."""
        try:
            await self._bring(key, self._path(key, self._rank))
        except Exception as error:  # whatever it is: this task has nobody who awaits it
            for changed, keys in self._collecting.items():
                if key in keys and not changed.done():
                    changed.set_exception(error)
        finally:
            self._fetching.pop(key, None)

    async def _bring(self, key: Key, path: str) -> None:
        try:
            blob = None
            while blob is None:
                blob = await self._objects.get(path, range=(0, HEAD), wait=_WAIT)
            start, end = await self._locate(path, key.source, blob)
            data = blob.data[start:end] if end <= len(blob.data) else None
            if data is None:
                before = start % _ALIGN  # read too, so that arrays are aligned here as well
                rest = await self._objects.get(path, range=(start - before, end))
                if rest is None:
                    raise CollectiveError(f"object {path!r} vanished while it was read")
                data = rest.data[before:]
            if len(data) > _BLOCKING:
                frame = await asyncio.to_thread(unpack, data)
            else:
                frame = unpack(data)
            if len(frame.payload) < len(data) // 2:  # do not keep the index for its sake
                frame = replace(frame, payload=bytearray(frame.payload))
            self._mailbox.deposit(frame)
        except Corrupted as error:
            raise CollectiveError(f"object {path!r} is damaged: {error}") from error

    async def _locate(self, path: str, source: int, blob: Blob) -> tuple[int, int]:
        """Where in the object this rank's frame lies."""
        head = blob.data
        count, index_size = _COUNT.unpack_from(head)
        if index_size > len(head):
            more = await self._objects.get(path, range=(0, index_size))
            if more is None:
                raise CollectiveError(f"object {path!r} vanished while it was read")
            head = more.data
        at = _COUNT.size
        for _ in range(count):
            offset, length, destinations = _ENTRY.unpack_from(head, at)
            at += _ENTRY.size
            if self._rank in unpack_ranks(head, at, destinations):
                return offset, offset + length
            at += RANK_SIZE * destinations
        first, _, _ = _ENTRY.unpack_from(head, _COUNT.size)
        called = operation_in(blob.data[first:])
        what = "another operation" if called is None else called.name.lower()
        raise SendsNothing(source, what, self._rank)

    async def _watch_abort(self) -> None:
        blob = None
        while blob is None:
            blob = await self._objects.get(abort_key(self._gang), wait=_WAIT, pace=ABORT_PACE)
        self._mailbox.deposit(unpack(blob.data))

    def _path(self, key: Key, destination: int) -> str:
        return path(self._gang, key, destination)


def combine(epoch: bytes, source: int, outgoing: Outgoing) -> list[Buffer]:
    """One object of all parcels: an index, then their frames, their payloads aligned."""
    index_size = _COUNT.size + sum(
        _ENTRY.size + RANK_SIZE * len(parcel.destinations) for parcel in outgoing.parcels
    )
    index = [_COUNT.pack(len(outgoing.parcels), index_size)]
    body: list[Buffer] = []
    at = index_size
    for parcel in outgoing.parcels:
        head = head_size(len(parcel.destinations))
        pad = -(at + head) % _ALIGN
        packed = pack_parts(_frame(epoch, source, outgoing, parcel), parcel.payload)
        length = sum(memoryview(part).nbytes for part in packed)
        index.append(_ENTRY.pack(at + pad, length, len(parcel.destinations)))
        index.append(pack_ranks(parcel.destinations))
        body += (bytes(pad), *packed)
        at += pad + length
    return [b"".join(index), *body]


def path(gang: str, key: Key, destination: int) -> str:
    """One object an operation and source; of sends, one for each pair of ranks."""
    kind = f"send-{destination}" if key.is_send else "all"
    return f"{prefix(gang)}{key.communicator}/{kind}/{key.number}/{key.source}"


async def announce(objects: Objects, gang: str, frame: Frame) -> None:
    """Write the object that waiting ranks look for."""
    await objects.put(abort_key(gang), pack(frame), if_absent=True)


def abort_key(gang: str) -> str:
    """The key that is there when the gang is broken."""
    return f"{prefix(gang)}abort"


def _frame(epoch: bytes, source: int, outgoing: Outgoing, parcel: Parcel) -> Frame:
    return Frame(
        epoch=epoch,
        operation=outgoing.operation,
        codec=Codec(parcel.codec),
        communicator=outgoing.communicator,
        number=outgoing.number,
        source=source,
        destinations=parcel.destinations,
        tag=outgoing.tag,
        part=0,
        parts=1,
        payload=b"",
    )
