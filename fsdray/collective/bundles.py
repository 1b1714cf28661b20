"""Messages inside a message: what a rank that passes others' messages on puts together.

A box is one message of somebody for somebody; it is not unpacked on the way.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fsdray.collective.frames import Codec
from fsdray.services import Buffer

_COUNT = struct.Struct("<Q")
_BOX = struct.Struct("<IIIxxxxQQ")  # source, destination, codec, start, end
_ALIGN = 64  # bytes: as in a message of its own
HEAD = _COUNT.size
ENTRY = _BOX.size


@dataclass(frozen=True)
class Box:
    """A message of `source` for `dest`, ranks of a communicator."""

    source: int
    dest: int
    codec: Codec
    payload: Sequence[Buffer]


def pack(boxes: Sequence[Box]) -> list[Buffer]:
    """The payload of a message that holds these."""
    head = [_COUNT.pack(len(boxes))]
    body: list[Buffer] = []
    start = at = HEAD + ENTRY * len(boxes)
    for box in boxes:
        size = sum(memoryview(part).nbytes for part in box.payload)
        start = at + -at % _ALIGN
        head.append(_BOX.pack(box.source, box.dest, box.codec, start, start + size))
        body += (bytes(start - at), *box.payload)
        at = start + size
    return [b"".join(head), *body]


def unpack(payload: Buffer) -> list[Box]:
    """What `pack` put together; messages are views of the payload."""
    view = memoryview(payload)
    (count,) = _COUNT.unpack_from(view)
    boxes = []
    for i in range(count):
        source, dest, codec, start, end = _BOX.unpack_from(view, HEAD + ENTRY * i)
        boxes.append(Box(source, dest, Codec(codec), [view[start:end]]))
    return boxes


def size_of(payloads: Iterable[int]) -> int:
    """Bytes of a bundle of messages of these sizes."""
    sizes = list(payloads)
    at = HEAD + ENTRY * len(sizes)
    for size in sizes:
        at += -at % _ALIGN + size
    return at
