"""`Messages` whose requests all go by `Messages.near`: what is checked of the one, of the other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fsdray.services import Delivery, Message, MessageLimits, Messages, NearMessages


class ThroughNear:
    """See the module.

    Parameters
    ----------
    messages : of a backend whose messages are near.
    """

    def __init__(self, messages: Messages) -> None:
        assert messages.near is not None, "these messages are not near"
        self._messages = messages
        self._near = messages.near

    @property
    def limits(self) -> MessageLimits:
        """The limits of the messages behind."""
        return self._messages.limits

    @property
    def near(self) -> NearMessages:
        """The same."""
        return self._near

    async def lease(self, count: int) -> list[str]:
        """See `fsdray.services.Messages.lease`."""
        return await self._messages.lease(count)

    async def release(self, inboxes: Sequence[str], *, is_broken: bool = False) -> None:
        """See `fsdray.services.Messages.release`."""
        await self._messages.release(inboxes, is_broken=is_broken)

    async def publish(self, messages: Sequence[Message]) -> None:
        """At once."""
        self._near.publish(messages)

    async def receive(self, inbox: str, *, wait: float) -> list[Delivery]:
        """What is there, or what there is when it is called within so many seconds."""
        loop = asyncio.get_running_loop()
        end = loop.time() + wait
        while True:
            woken = asyncio.Event()
            deliveries = self._near.receive(inbox, woken.set)
            if deliveries:
                return deliveries
            timer = loop.call_at(end, woken.set)
            try:
                await woken.wait()
            finally:
                timer.cancel()
                self._near.stop(inbox, woken.set)
            if loop.time() >= end:
                return []

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """At once."""
        self._near.acknowledge(deliveries)
