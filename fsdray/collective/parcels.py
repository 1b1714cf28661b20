"""What a rank hands to a channel: one operation's parcels, and how a parcel becomes frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from fsdray.collective.frames import Codec, Frame, Operation, split
from fsdray.services import Buffer


@dataclass(frozen=True)
class Parcel:
    """One payload for one or more ranks."""

    destinations: tuple[int, ...]
    codec: Codec
    payload: Sequence[Buffer]

    @cached_property
    def size(self) -> int:
        """Bytes of payload."""
        return sum(memoryview(part).nbytes for part in self.payload)


class Outgoing(NamedTuple):
    """All that a rank sends in one operation.

    `fellows` says how many ranks send to each receiver in this exchange.
    """

    operation: Operation
    communicator: int
    number: int
    tag: int
    parcels: Sequence[Parcel]
    fellows: int = 1


def frames(
    epoch: bytes,
    source: int,
    outgoing: Outgoing,
    parcel: Parcel,
    limit: int,
    incarnation: int = 0,
) -> list[Frame]:
    """A parcel's frames, with at most `limit` bytes of payload in each."""
    pieces = split(parcel.payload, limit)
    return [
        Frame(
            epoch=epoch,
            operation=outgoing.operation,
            codec=parcel.codec,
            communicator=outgoing.communicator,
            number=outgoing.number,
            source=source,
            destinations=parcel.destinations,
            tag=outgoing.tag,
            part=part,
            parts=len(pieces),
            payload=piece,
            incarnation=incarnation,
        )
        for part, piece in enumerate(pieces)
    ]
