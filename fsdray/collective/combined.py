"""What a rank sends in one operation as one object: its layout, where it lies, and its parts.

The object starts with an index of its frames, and each frame's payload is aligned, so that arrays
are used where they lie. Who reads it knows the key; where in it a frame is, the index or a pointer
frame says. Waiting for objects, and the choice between them and messages, are the channels'.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fsdray.collective.frames import (
    RANK_SIZE,
    Codec,
    Corrupted,
    Frame,
    Key,
    Operation,
    head_size,
    operation_in,
    overhead,
    pack_parts,
    pack_ranks,
    unpack,
    unpack_ranks,
)
from fsdray.collective.parcels import Outgoing, Parcel
from fsdray.errors import CollectiveError, MismatchedCollective
from fsdray.services import KIB, MIB, Blob, Buffer, Objects

Span: TypeAlias = tuple[int, int]
"""Where in an object a frame lies: from, and up to without."""

HEAD = 64 * KIB  # bytes of the first read: an index, and small frames behind it
ALIGN = 64  # bytes: arrays are used where they lie in a mapped object
_BLOCKING = 4 * MIB  # checksums of more than this are left to a thread
_COUNT = struct.Struct("<II")  # frames, bytes of index
_ENTRY = struct.Struct("<QQI")  # offset, length, destinations
_SPAN = struct.Struct("<QQ")
SPAN_SIZE = _SPAN.size


class SendsNothing(MismatchedCollective):
    """What a rank sent in an operation has nothing for this rank; both are the gang's numbers."""

    def __init__(self, source: int, called: str, rank: int) -> None:
        self.source = source
        self.called = called
        super().__init__(f"rank {source} called {called}, which sends nothing to rank {rank}")


def prefix(gang: str) -> str:
    """Where all objects of a gang lie; it starts with random digits, which spreads S3's load."""
    return f"{gang}/"


def path(gang: str, key: Key, destination: int) -> str:
    """One object an operation and source; of sends, one for each pair of ranks."""
    kind = f"send-{destination}" if key.is_send else "all"
    return f"{prefix(gang)}{key.communicator}/{kind}/{key.number}/{key.source}"


def path_of(gang: str, source: int, outgoing: Outgoing) -> str:
    """Where a rank writes what it sends."""
    is_send = outgoing.operation == Operation.SEND
    key = Key(outgoing.communicator, is_send, outgoing.number, source)
    return path(gang, key, outgoing.parcels[0].destinations[0])


@dataclass(frozen=True)
class Layout:
    """Where everything lies in an object: the bytes of its index, and each frame's span."""

    index: int
    spans: tuple[Span, ...]

    @property
    def size(self) -> int:
        return self.spans[-1][1]


def layout(parcels: Sequence[tuple[int, int]]) -> Layout:
    """The layout of parcels, each given as how many destinations and bytes of payload it has."""
    index = _COUNT.size + sum(_ENTRY.size + RANK_SIZE * ranks for ranks, _ in parcels)
    spans = []
    at = index
    for ranks, size in parcels:
        start = at + -(at + head_size(ranks)) % ALIGN
        at = start + overhead(ranks) + size
        spans.append((start, at))
    return Layout(index, tuple(spans))


def combine(
    epoch: bytes, source: int, outgoing: Outgoing, parcels: Sequence[Parcel]
) -> tuple[list[Buffer], Layout]:
    """One object of these parcels of what is sent: an index, then their frames."""
    placed = layout([(len(parcel.destinations), parcel.size) for parcel in parcels])
    index = [_COUNT.pack(len(parcels), placed.index)]
    body: list[Buffer] = []
    at = placed.index
    for parcel, (start, end) in zip(parcels, placed.spans, strict=True):
        index.append(_ENTRY.pack(start, end - start, len(parcel.destinations)))
        index.append(pack_ranks(parcel.destinations))
        body += (
            bytes(start - at),
            *pack_parts(_frame(epoch, source, outgoing, parcel), parcel.payload),
        )
        at = end
    return [b"".join(index), *body], placed


async def find(objects: Objects, path: str, blob: Blob, rank: int, source: int) -> Span:
    """Where in an object, whose head is `blob`, the frame for a rank lies.

    Raises
    ------
    SendsNothing
        where it has none.
    """
    head = blob.data
    count, index_size = _COUNT.unpack_from(head)
    if index_size > len(head):
        more = await objects.get(path, range=(0, index_size))
        if more is None:
            raise vanished(path)
        head = more.data
    at = _COUNT.size
    for _ in range(count):
        offset, length, destinations = _ENTRY.unpack_from(head, at)
        at += _ENTRY.size
        if rank in unpack_ranks(head, at, destinations):
            return offset, offset + length
        at += RANK_SIZE * destinations
    called = first_operation(blob)
    what = "another operation" if called is None else called.name.lower()
    raise SendsNothing(source, what, rank)


def first_operation(blob: Blob) -> Operation | None:
    """What was called by who wrote the object with this head; None where too little is there."""
    first, _, _ = _ENTRY.unpack_from(blob.data, _COUNT.size)
    return operation_in(blob.data[first:])


async def read(objects: Objects, path: str, span: Span, blob: Blob | None = None) -> Frame:
    """The frame that lies there; `blob` is the object's head, if it was read."""
    start, end = span
    if blob is not None and end <= len(blob.data):
        data = blob.data[start:end]
    else:
        before = start % ALIGN  # read too, so that arrays are aligned here as well
        rest = await objects.get(path, range=(start - before, end))
        if rest is None:
            raise vanished(path)
        data = rest.data[before:]
    try:
        frame = await asyncio.to_thread(unpack, data) if len(data) > _BLOCKING else unpack(data)
    except Corrupted as error:
        raise CollectiveError(f"object {path!r} is damaged: {error}") from error
    if len(frame.payload) < len(data) // 2:  # do not keep the index for its sake
        frame = frame._replace(payload=bytearray(frame.payload))
    return frame


def pack_spans(spans: Sequence[Span]) -> bytes:
    """A pointer's payload: one span for all its destinations, or one for each, in their order."""
    return b"".join(_SPAN.pack(*span) for span in spans)


def span_for(pointer: Frame, rank: int) -> Span:
    """What a pointer says to a rank."""
    data = memoryview(pointer.payload)
    at = pointer.destinations.index(rank) if data.nbytes > SPAN_SIZE else 0
    start, end = _SPAN.unpack_from(data, at * SPAN_SIZE)
    return start, end


def vanished(path: str) -> CollectiveError:
    """What a rank says that finds an object removed while it reads it."""
    return CollectiveError(f"object {path!r} vanished while it was read")


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
