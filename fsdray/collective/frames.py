"""Frames: the keyed pieces in which messages travel, as bytes.

The header says all that a receiver needs to put a piece where it belongs, once, whatever order
and however often it arrives. What is done with frames is in `fsdray.collective.mailbox`.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import NamedTuple

from fsdray import buffers
from fsdray.collective.checksum import checksum
from fsdray.services import Buffer

VERSION = 3
_HEADER = struct.Struct("<2sBBBB16sQQIqIIQI")
_TRAILER = struct.Struct("<16sI")  # room for a MAC, checksum
_MAGIC = b"FR"
RANK_SIZE = 4  # bytes
_POINTER = 0x80  # beside the codec: the payload says where the message lies


class Operation(enum.IntEnum):
    """What the ranks called; frames carry it so that a mismatch can be told."""

    SEND = 1
    BCAST = 2
    SCATTER = 3
    GATHER = 4
    ALLGATHER = 5
    REDUCE = 6
    ALLREDUCE = 7
    BARRIER = 8
    NEIGHBOR_ALLTOALL = 9
    ABORT = 10
    ALLTOALL = 11
    SCAN = 12
    EXSCAN = 13
    REDUCE_SCATTER = 14
    SPLIT = 15
    MOVED = 32  # control, as ABORT is: a rank was started again and has another inbox


class Codec(enum.IntEnum):
    """How the payload of a whole message is packed."""

    RAW = 0
    ZSTD = 1


_OPERATIONS = {int(operation): operation for operation in Operation}
CODECS = {int(codec): codec for codec in Codec}


class Key(NamedTuple):
    """Which message of a gang: the `number`-th of its kind that `source` sent.

    Collectives are numbered in the order in which a communicator calls them; sends (`is_send`)
    for each pair of ranks. No attempt is in it: a twin's frame is the same frame.
    """

    communicator: int
    is_send: bool
    number: int
    source: int


class Frame(NamedTuple):
    """Part `part` of `parts` of one message from `source` to `destinations`, ranks of the gang.

    The `tag` of a collective's frame is its root. A pointer's payload says where in the source's
    object of this operation the messages of its destinations lie (`fsdray.collective.combined`).
    """

    epoch: bytes  # 16 bytes: the gang
    operation: Operation
    codec: Codec
    communicator: int
    number: int
    source: int
    destinations: tuple[int, ...]
    tag: int
    part: int
    parts: int
    payload: Buffer
    incarnation: int = 0  # how often its source was started again, modulo 256; not in the key
    is_pointer: bool = False

    @property
    def key(self) -> Key:
        return Key(self.communicator, self.operation == Operation.SEND, self.number, self.source)


class Corrupted(ValueError):
    """Bytes that are not a whole frame as it was sent."""


def head_size(destinations: int) -> int:
    """Bytes of a frame to so many ranks before its payload."""
    return _HEADER.size + destinations * RANK_SIZE


def overhead(destinations: int) -> int:
    """Bytes of a frame to so many ranks beside its payload."""
    return head_size(destinations) + _TRAILER.size


def pack(frame: Frame) -> bytes:
    """The frame as bytes, its checksum over all that comes before it."""
    return buffers.joined(pack_parts(frame, [frame.payload]))


def pack_parts(frame: Frame, payload: Sequence[Buffer]) -> list[Buffer]:
    """`pack`, without copying a payload that is in several buffers; the frame's own is unused."""
    head = _HEADER.pack(
        _MAGIC,
        VERSION,
        frame.operation,
        frame.codec | _POINTER * frame.is_pointer,
        frame.incarnation,
        frame.epoch,
        frame.communicator,
        frame.number,
        frame.source,
        frame.tag,
        frame.part,
        frame.parts,
        buffers.size(payload),
        len(frame.destinations),
    ) + pack_ranks(frame.destinations)
    mac = bytes(16)
    return [head, *payload, _TRAILER.pack(mac, checksum([head, *payload, mac]))]


def unpack(data: Buffer) -> Frame:
    """The frame in `data`; its payload is a view of it.

    Raises
    ------
    Corrupted
        where the bytes are not what `pack` wrote.
    """
    view = memoryview(data)
    if view.nbytes < _HEADER.size + _TRAILER.size:
        raise Corrupted(f"{view.nbytes} bytes are no frame")
    magic, version, operation, codec, incarnation, epoch, *key, n, ranks = _HEADER.unpack_from(view)
    comm, number, source, tag, part, parts = key
    start = _HEADER.size + ranks * RANK_SIZE
    if magic != _MAGIC or version != VERSION or view.nbytes != start + n + _TRAILER.size:
        raise Corrupted("a frame of another version, or cut short")
    mac, told = _TRAILER.unpack_from(view, start + n)
    if checksum([view[: start + n + len(mac)]]) != told:
        raise Corrupted("a frame whose checksum does not match")
    destinations = unpack_ranks(view, _HEADER.size, ranks)
    return Frame(
        epoch,
        _OPERATIONS[operation],
        CODECS[codec & ~_POINTER],
        comm,
        number,
        source,
        destinations,
        tag,
        part,
        parts,
        view[start : start + n],
        incarnation,
        bool(codec & _POINTER),
    )


def pack_ranks(ranks: Sequence[int]) -> bytes:
    """Ranks as bytes, four each."""
    return struct.pack(f"<{len(ranks)}I", *ranks)


def unpack_ranks(data: Buffer, at: int, count: int) -> tuple[int, ...]:
    """The `count` ranks that lie at `at` of what `pack_ranks` wrote."""
    return struct.unpack_from(f"<{count}I", data, at)


def operation_in(start: Buffer) -> Operation | None:
    """The operation of the frame that starts so; None where too little of it is there."""
    if memoryview(start).nbytes < _HEADER.size:
        return None
    return Operation(_HEADER.unpack_from(start)[2])


def split(payload: Sequence[Buffer], limit: int) -> list[memoryview]:
    """A payload, joined, in pieces of at most `limit` bytes; an empty one is one piece."""
    whole = payload[0] if len(payload) == 1 else buffers.joined(payload)
    view = memoryview(whole).cast("B")
    if view.nbytes <= limit:
        return [view]
    return [view[at : at + limit] for at in range(0, max(1, view.nbytes), limit)]
