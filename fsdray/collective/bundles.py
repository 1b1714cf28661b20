"""Messages inside a message: what a rank that passes others' messages on puts together.

A box is one message of somebody for somebody; it is not unpacked on the way.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fsdray import buffers
from fsdray.collective.frames import CODECS, Codec
from fsdray.services import Buffer

_COUNT = struct.Struct("<Q")
_BOX = struct.Struct("<III?xxxQQ")  # source, destination, codec, whether it is a note, start, end
_ALIGN = 64  # bytes: as in a message of its own
HEAD = _COUNT.size
ENTRY = _BOX.size


class Box(NamedTuple):
    """A message of `source` for `dest`, ranks of a communicator.

    Where it `is_note`, the message itself comes straight from its source.
    """

    source: int
    dest: int
    codec: Codec
    payload: Sequence[Buffer]
    is_note: bool = False

    @property
    def size(self) -> int:
        """Bytes of the message."""
        return buffers.size(self.payload)

    def as_note(self) -> Box:
        """What goes in the place of a message that goes straight."""
        return Box(self.source, self.dest, self.codec, (), is_note=True)


def pack(boxes: Sequence[Box]) -> list[Buffer]:
    """The payload of a message that holds these."""
    head = [_COUNT.pack(len(boxes))]
    body: list[Buffer] = []
    start = at = HEAD + ENTRY * len(boxes)
    for box in boxes:
        size = box.size
        start = at + -at % _ALIGN
        head.append(_BOX.pack(box.source, box.dest, box.codec, box.is_note, start, start + size))
        body += (bytes(start - at), *box.payload)
        at = start + size
    return [b"".join(head), *body]


def unpack(payload: Buffer) -> list[Box]:
    """What `pack` put together; messages are views of the payload."""
    view = memoryview(payload)
    (count,) = _COUNT.unpack_from(view)
    boxes = []
    for i in range(count):
        source, dest, codec, is_note, start, end = _BOX.unpack_from(view, HEAD + ENTRY * i)
        boxes.append(Box(source, dest, CODECS[codec], [view[start:end]], is_note))
    return boxes


def size_of(payloads: Iterable[int]) -> int:
    """Bytes of a bundle of messages of these sizes."""
    sizes = list(payloads)
    at = HEAD + ENTRY * len(sizes)
    for size in sizes:
        at += -at % _ALIGN + size
    return at
