"""What an inbox is on AWS, and how a message names those that it goes to.

An inbox is a rank slot under the epoch of one lease. A message's bytes are a binary attribute that
begins with the slots and epochs of its inboxes, since the slot's queue outlives the lease: who
reads knows by it what is not, or no longer, for him.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from fsdray.errors import ServiceError
from fsdray.services import Buffer

TEXT = "-"
"""What SNS and SQS have for a body: they want one, of at least one character."""
BYTES, TARGETS = "b", "to"
"""The attributes of a message: its bytes, and the slots that it goes to, by which topics filter."""

_COUNT = struct.Struct(">H")
_TARGET = struct.Struct(">HI")
_NAME = re.compile(r"(\d{4})-([0-9a-f]{8})")


class Inbox(NamedTuple):
    """A slot, and the epoch of one lease of it."""

    slot: int
    epoch: int

    def __str__(self) -> str:
        return f"{self.slot:04}-{self.epoch:08x}"


def inbox_of(name: str) -> Inbox:
    """The inbox of a name.

    Raises
    ------
    ServiceError
        it is none of this backend's.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ServiceError(f"no inbox is called {name!r}")
    return Inbox(int(match[1]), int(match[2], 16))


def pack(body: Buffer, inboxes: Sequence[Inbox]) -> bytes:
    """A message's bytes as they travel."""
    heads = (_TARGET.pack(*inbox) for inbox in inboxes)
    return b"".join((_COUNT.pack(len(inboxes)), *heads, body))


def unpack(data: Buffer) -> tuple[list[Inbox], memoryview] | None:
    """Whom a message is for, and its body; None for what is no message of ours."""
    view = memoryview(data)
    if len(view) < _COUNT.size:
        return None
    (count,) = _COUNT.unpack_from(view)
    start = _COUNT.size + count * _TARGET.size
    if len(view) < start:
        return None
    heads = view[_COUNT.size : start]
    return [Inbox(*each) for each in _TARGET.iter_unpack(heads)], view[start:]


def attributes(body: Buffer, inboxes: Sequence[Inbox]) -> dict[str, Any]:
    """A message's attributes, as SNS and SQS take them."""
    slots = json.dumps([f"{inbox.slot:04}" for inbox in inboxes], separators=(",", ":"))
    return {
        BYTES: {"DataType": "Binary", "BinaryValue": pack(body, inboxes)},
        TARGETS: {"DataType": "String.Array", "StringValue": slots},
    }
