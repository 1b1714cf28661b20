"""Faults by seed: services that repeat, delay, reorder and damage, within their contracts.

Whatever stands on `fsdray.services` must work as well on these wrappers. What befalls a message
or an object follows from the seed and from the message or key itself, not from when it is asked
for, so that a run that failed fails again with its seed.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fsdray.errors import SettingsError
from fsdray.services import (
    Blob,
    Buffer,
    Delivery,
    Message,
    MessageLimits,
    Messages,
    ObjectLimits,
    Objects,
    Pace,
)

_OURS = "faulty-"  # receipts of deliveries that the service knows nothing of
_LONGEST = 5  # receives that a delivery is held back
_PAUSE = 0.002  # seconds in which others may overtake what is held back


@dataclass
class _Held:
    """A delivery that comes with a later receive; `is_extra` says that nobody needs it."""

    delivery: Delivery
    receives: int
    is_extra: bool


class FaultyMessages:
    """`fsdray.services.Messages` at its worst: at least once, in any order, sometimes damaged.

    Nothing is ever lost: what is held back comes with a later receive, and a damaged copy comes
    beside the intact message, before or after it.

    Parameters
    ----------
    messages : the service that does the work.
    seed : the same seed does the same to the same message.
    duplicate : chance that a delivery comes again, once or twice, also after its acknowledgement.
    delay : chance that a delivery comes with one of the next five receives instead.
    reorder : chance that a receive hands its deliveries out in another order.
    corrupt : chance that a damaged copy of a delivery comes too.
    forget : chance that an acknowledgement is lost, so that the delivery comes again.
    """

    def __init__(
        self,
        messages: Messages,
        seed: int,
        *,
        duplicate: float = 0.2,
        delay: float = 0.2,
        reorder: float = 0.5,
        corrupt: float = 0.1,
        forget: float = 0.1,
    ) -> None:
        self._messages = messages
        self._seed = seed
        self._duplicate = _chance("duplicate", duplicate)
        self._delay = _chance("delay", delay)
        self._reorder = _chance("reorder", reorder)
        self._corrupt = _chance("corrupt", corrupt)
        self._forget = _chance("forget", forget)
        self._held: defaultdict[str, list[_Held]] = defaultdict(list)
        self._seen: Counter[tuple[str, int]] = Counter()  # deliveries, by inbox and checksum
        self._ours = itertools.count()
        self._out: defaultdict[str, dict[str, Delivery]] = defaultdict(dict)

    def __repr__(self) -> str:
        chances = ", ".join(
            f"{name}={getattr(self, f'_{name}')}"
            for name in ("duplicate", "delay", "reorder", "corrupt", "forget")
        )
        return f"FaultyMessages(seed={self._seed}, {chances})"

    @property
    def limits(self) -> MessageLimits:
        """Those of the service that does the work."""
        return self._messages.limits

    @property
    def near(self) -> None:
        """None: what is wrong here takes its time."""

    def unacknowledged(self, inbox: str) -> list[Delivery]:
        """What the inbox handed out, damaged copies too, and nobody has acknowledged."""
        return list(self._out[inbox].values())

    async def lease(self, count: int) -> list[str]:
        """See `fsdray.services.Messages.lease`."""
        return await self._messages.lease(count)

    async def release(self, inboxes: Sequence[str], *, is_broken: bool = False) -> None:
        """See `fsdray.services.Messages.release`."""
        for inbox in inboxes:
            self._held.pop(inbox, None)
            self._out.pop(inbox, None)
        await self._messages.release(inboxes, is_broken=is_broken)

    async def publish(self, messages: Sequence[Message]) -> None:
        """See `fsdray.services.Messages.publish`."""
        await self._messages.publish(messages)

    async def receive(self, inbox: str, *, wait: float) -> list[Delivery]:
        """What is in the inbox, and what the faults make of it."""
        held = self._held[inbox]
        while True:
            is_owed = any(not each.is_extra for each in held)
            pause = min(wait, _PAUSE) if is_owed else wait
            arrived = await self._messages.receive(inbox, wait=pause)
            ready = [each for delivery in arrived for each in self._befall(delivery)]
            for each in held:
                each.receives -= 1
            held += ready
            due = self._take_due(inbox)
            if due or all(each.is_extra for each in held):
                return due

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge, unless that is forgotten: then the deliveries come again."""
        theirs = [each for each in deliveries if not _is_ours(each)]
        for each in deliveries:
            self._out[each.inbox].pop(each.receipt, None)
            draw = self._draw("acknowledge", each.inbox, each.body)
            if draw.random() < self._forget:
                again = each._replace(receipt=self._receipt())
                self._held[each.inbox].append(_Held(again, draw.randint(0, _LONGEST), True))
        if theirs:
            await self._messages.acknowledge(theirs)

    def _befall(self, delivery: Delivery) -> list[_Held]:
        """One delivery as those that come of it, and after how many receives."""
        draw = self._draw("receive", delivery.inbox, delivery.body)
        later = draw.randint(1, _LONGEST) if draw.random() < self._delay else 0
        parts = [_Held(delivery, later, False)]
        if draw.random() < self._duplicate:
            for _ in range(draw.randint(1, 2)):
                again = delivery._replace(receipt=self._receipt())
                parts.append(_Held(again, draw.randint(0, _LONGEST), True))
        if draw.random() < self._corrupt:
            damaged = delivery._replace(receipt=self._receipt(), body=_damaged(delivery.body, draw))
            parts.append(_Held(damaged, draw.randint(0, later), True))
        return parts

    def _take_due(self, inbox: str) -> list[Delivery]:
        """What is to be handed out now, as much of it as one receive may bring."""
        held, limits = self._held[inbox], self.limits
        due = [each for each in held if each.receives <= 0]
        draw = self._draw("order", inbox, b"".join(bytes(each.delivery.body) for each in due))
        if draw.random() < self._reorder:
            draw.shuffle(due)
        taken: list[Delivery] = []
        size = 0
        for each in due[: limits.receive_messages]:
            size += len(each.delivery.body)
            if taken and size > limits.receive:
                break
            held.remove(each)
            taken.append(each.delivery)
            self._out[inbox][each.delivery.receipt] = each.delivery
        return taken

    def _draw(self, what: str, inbox: str, body: Buffer) -> random.Random:
        checksum = zlib.crc32(body)
        nth = self._seen[f"{what} {inbox}", checksum]
        self._seen[f"{what} {inbox}", checksum] += 1
        return random.Random(f"{self._seed} {what} {inbox} {checksum} {nth}")

    def _receipt(self) -> str:
        return f"{_OURS}{next(self._ours)}"


class FaultyObjects:
    """`fsdray.services.Objects` with twins, who put what is put once more, and slow requests.

    Parameters
    ----------
    objects : the service that does the work.
    seed : the same seed does the same to the same key.
    twin : chance that a put was already done by a twin (or, unconditional, is done again after).
    slow : chance that a put or get takes up to `pause` seconds more.
    """

    def __init__(
        self,
        objects: Objects,
        seed: int,
        *,
        twin: float = 0.3,
        slow: float = 0.3,
        pause: float = 0.005,
    ) -> None:
        self._objects = objects
        self._seed = seed
        self._twin = _chance("twin", twin)
        self._slow = _chance("slow", slow)
        self._pause = pause
        self._seen: Counter[str] = Counter()

    def __repr__(self) -> str:
        return (
            f"FaultyObjects(seed={self._seed}, twin={self._twin}, slow={self._slow}, "
            f"pause={self._pause})"
        )

    @property
    def limits(self) -> ObjectLimits:
        """Those of the service that does the work."""
        return self._objects.limits

    async def put(
        self,
        key: str,
        data: Buffer | Sequence[Buffer],
        *,
        if_absent: bool = False,
        if_match: str | None = None,
        is_attached: bool = False,
    ) -> str | None:
        """Write an object; where a twin came first, ``if_absent`` finds it written."""
        draw = self._draw("put", key)
        has_twin = draw.random() < self._twin and if_match is None
        await self._dawdle(draw)
        if has_twin:
            await self._objects.put(key, data, if_absent=if_absent, is_attached=is_attached)
            await self._dawdle(draw)
        return await self._objects.put(
            key, data, if_absent=if_absent, if_match=if_match, is_attached=is_attached
        )

    async def get(
        self,
        key: str,
        *,
        range: tuple[int, int] | None = None,  # noqa: A002 - S3's own word
        wait: float | None = None,
        pace: Pace = Pace(),
    ) -> Blob | None:
        """Read an object, perhaps late; what has been put is always seen."""
        draw = self._draw("get", key)
        await self._dawdle(draw)
        blob = await self._objects.get(key, range=range, wait=wait, pace=pace)
        await self._dawdle(draw)
        return blob

    async def list(self, prefix: str) -> list[str]:
        """See `fsdray.services.Objects.list`."""
        return await self._objects.list(prefix)

    async def delete(self, keys: Sequence[str]) -> None:
        """See `fsdray.services.Objects.delete`."""
        await self._objects.delete(keys)

    async def _dawdle(self, draw: random.Random) -> None:
        if draw.random() < self._slow:
            await asyncio.sleep(draw.uniform(0, self._pause))

    def _draw(self, what: str, key: str) -> random.Random:
        name = f"{self._seed} {what} {key}"
        self._seen[name] += 1
        return random.Random(f"{name} {self._seen[name]}")


def _is_ours(delivery: Delivery) -> bool:
    return delivery.receipt.startswith(_OURS)


def _damaged(body: Buffer, draw: random.Random) -> bytes:
    """A copy with one bit flipped, or its end missing."""
    data = bytearray(body)
    if not data or draw.random() < 0.3:
        return bytes(data[: draw.randrange(len(data))]) if data else b"?"
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def _chance(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise SettingsError(f"{name}={value!r}: a chance is between 0 and 1")
    return value
