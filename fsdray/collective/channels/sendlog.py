"""What a rank keeps of its own sends, so that a rank that is started again can be sent them again.

A log is kept in memory, and in objects what is too much for that. When its rank has finished, it
travels to the caller with the rank's reply. Who asks for it is told in `fsdray.recovery`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fsdray import wire
from fsdray.services import KIB, MIB, Objects

SPILL = 32 * MIB
"""Bytes that a log keeps in memory; more goes to one object. A put costs 5 µ$, publishing as much
cost 256 (prices: FACTS, section 3)."""

INLINE = 64 * KIB
"""Bytes that travel with a reply: by the price of data that leaves the cloud, 0.09 $/GB (AWS's
price page for EC2, 2026-11), that much costs what a put does."""


@dataclass(frozen=True)
class Sent:
    """A frame as it was sent, and the ranks that it was for."""

    destinations: tuple[int, ...]
    body: bytes


@dataclass(frozen=True)
class Logged:
    """All that a rank has sent: frames, and before them those that lie in objects."""

    sent: tuple[Sent, ...] = ()
    segments: tuple[str, ...] = ()


class SendLog:
    """The log of one rank; used on the loop only.

    Parameters
    ----------
    prefix : of its objects; another one for each time that the rank was started.
    """

    def __init__(
        self, objects: Objects, prefix: str, spill: int = SPILL, inline: int = INLINE
    ) -> None:
        self._objects = objects
        self._prefix = prefix
        self._spill = spill
        self._inline = inline
        self._sent: list[Sent] = []
        self._size = 0
        self._segments: list[str] = []
        self._lock = asyncio.Lock()

    def add(self, destinations: tuple[int, ...], body: bytes) -> None:
        """Note a frame; to be called before it is sent."""
        self._sent.append(Sent(destinations, body))
        self._size += len(body)

    @property
    def is_full(self) -> bool:
        """Whether it is too much for memory."""
        return self._size > self._spill

    async def relieve(self) -> None:
        """Move what is too much for memory to objects."""
        if self.is_full:
            async with self._lock:
                await self._store()

    async def to(self, rank: int) -> AsyncIterator[list[bytes]]:
        """The frames that were for `rank`, as they were sent, in lists of a bounded size."""
        async with self._lock:
            logged = Logged(tuple(self._sent), tuple(self._segments))
        async for bodies in frames_to(self._objects, logged, rank):
            yield bodies

    async def finished(self) -> Logged:
        """The whole log, small enough to travel with a reply; nothing more will be sent."""
        async with self._lock:
            if self._size > self._inline:
                await self._store()
            return Logged(tuple(self._sent), tuple(self._segments))

    async def _store(self) -> None:
        if not self._sent:
            return  # another one has stored it
        key = f"{self._prefix}{len(self._segments)}"
        count, size = len(self._sent), self._size
        await self._objects.put(key, wire.encode(self._sent[:count]))
        # What was sent meanwhile stays.
        self._segments.append(key)
        self._sent = self._sent[count:]
        self._size -= size


async def frames_to(objects: Objects, logged: Logged, rank: int) -> AsyncIterator[list[bytes]]:
    """The frames of a log that were for `rank`.

    Raises
    ------
    LookupError
        where a part of the log is no longer there.
    """
    for key in logged.segments:
        blob = await objects.get(key)
        if blob is None:
            raise LookupError(f"the send log {key!r} is no longer kept")
        some: list[Sent] = await asyncio.to_thread(wire.decode, blob.data)
        yield [bytes(each.body) for each in some if rank in each.destinations]
    yield [each.body for each in logged.sent if rank in each.destinations]
