"""What a rank hands to a channel: one operation's parcels, and how a parcel becomes frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fsdray import buffers
from fsdray.collective.frames import Codec, Frame, Operation, split
from fsdray.services import Buffer


class Parcel(NamedTuple):
    """One payload, of `size` bytes, for one or more ranks."""

    destinations: tuple[int, ...]
    codec: Codec
    payload: Sequence[Buffer]
    size: int

    @classmethod
    def of(cls, destinations: tuple[int, ...], codec: Codec, payload: Sequence[Buffer]) -> Parcel:
        """A parcel with this payload."""
        return cls(destinations, codec, payload, buffers.size(payload))


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
    is_pointer: bool = False,
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
            is_pointer=is_pointer,
        )
        for part, piece in enumerate(pieces)
    ]
