"""One rank's end of a gang: its channel, its mailbox, its deadline, which communicators share.

Ranks here are the gang's. What is sent, and what to wait for, is said in
`fsdray.collective.member` and above.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fsdray.collective.channels import Channel, Outgoing
from fsdray.collective.mailbox import Mailbox
from fsdray.errors import CollectiveError, CollectiveTimeout
from fsdray.steps import in_task, is_stepping

T = TypeVar("T")

Abort = Callable[[CollectiveError], Awaitable[None]]
"""Tells all other ranks of the gang that it is over, and why."""


Chance = Callable[[str], None]
"""Told before an operation whose outcome is not the same each time that the rank runs."""


EARLIER = 1.0
"""Seconds, at most, by which a rank that all wait for gives up before they do; an abort reaches
them in a tenth of that."""


async def tell_nobody(_: CollectiveError) -> None:
    """The `Abort` of a rank that stands for itself."""


def never_again(_: str) -> None:
    """The `Chance` of a rank that is not started again by itself."""


@dataclass
class Endpoint:
    """What all communicators of one rank share.

    Parameters
    ----------
    rank : in the gang.
    deadline : the loop's time at which every wait ends.
    """

    rank: int
    channel: Channel
    mailbox: Mailbox
    deadline: float
    abort: Abort = tell_nobody
    chance: Chance = never_again
    sent_bytes: int = 0  # payload of this rank's messages, as packed
    _begun: set[asyncio.Future[Any]] = field(default_factory=set)
    _unposted: set[asyncio.Future[None]] = field(default_factory=set)

    def begin(self, work: Awaitable[T], posted: asyncio.Future[None] | None) -> asyncio.Future[T]:
        """Have `work` go on by itself until the end is closed.

        What it sends goes out even then, if nobody waited for it; `posted` is done by that time.
        """
        begun = asyncio.ensure_future(work)
        self._begun.add(begun)
        begun.add_done_callback(self._begun.discard)
        begun.add_done_callback(seen)
        if posted is not None:
            self._unposted.add(posted)
            posted.add_done_callback(self._unposted.discard)
            begun.add_done_callback(lambda _: mark(posted))
        return begun

    def post(
        self, outgoing: Outgoing, posted: asyncio.Future[None] | None, *, may_linger: bool = False
    ) -> asyncio.Future[None]:
        """Send; `posted` is done afterwards."""
        sent = self.channel.post(outgoing, may_linger=may_linger)
        if posted is not None:
            sent.add_done_callback(lambda _: mark(posted))
        return sent

    async def close(self) -> None:
        """Send what was begun, give up what only waits, and close the channel."""
        self.channel.hurry()
        if self._unposted:
            await asyncio.wait(list(self._unposted))
        begun = list(self._begun)
        for each in begun:
            each.cancel()
        if begun:
            await asyncio.wait(begun)
        await self.channel.close()

    def collect_here(self, missing: Callable[[], int]) -> bool:
        """Take what comes until none is `missing`, for a moment, where this thread may wait for it.

        Whether all is there.

        Raises
        ------
        what the gang is broken by.
        """
        if not is_stepping() or self._begun:  # what was begun goes on on the loop
            return not missing()
        is_there = self.channel.collect_here(missing)
        self.mailbox.check()
        return is_there

    async def within(
        self,
        who: Callable[[], str],
        missing: Callable[[], Sequence[int]],
        sent: asyncio.Future[None] | None = None,
        receiving: Coroutine[Any, Any, None] | None = None,
        *,
        is_early: bool = False,
    ) -> None:
        """Wait for what is being sent, and receive, before the deadline.

        The first error ends the other.

        Parameters
        ----------
        who : the operation and the rank, for the error's text.
        missing : the ranks that are being waited for.
        is_early : whether others wait for this rank meanwhile: it gives up a moment before they do,
            since it knows who is missing, and they do not.
        """
        if sent is not None and sent.done() and receiving is None:
            return sent.result()
        await in_task()
        deadline = self.deadline
        if is_early and deadline < math.inf:
            left = deadline - asyncio.get_running_loop().time()
            deadline -= min(EARLIER, 0.05 * left)
        is_over = False

        def give_up(sending: asyncio.Future[None]) -> None:
            """What is waited for will not come, or not be needed, if sending failed."""
            if not is_over and not sending.cancelled() and sending.exception() is not None:
                scope.reschedule(asyncio.get_running_loop().time())

        try:
            async with asyncio.timeout_at(deadline) as scope:
                if receiving is not None:
                    if sent is not None:
                        sent.add_done_callback(give_up)
                    await receiving
                if sent is not None:
                    await sent
        except TimeoutError as error:
            if sent is not None and sent.done() and (failed := sent.exception()) is not None:
                raise failed from None
            if not scope.expired():
                raise
            ranks = missing()
            what = f"no message came from {named(ranks)}" if ranks else "sending did not end"
            raise CollectiveTimeout(f"{who()}: {what} in time") from error
        finally:
            is_over = True
            if sent is not None:
                sent.cancel()


def mark(posted: asyncio.Future[None] | None) -> None:
    """`posted` is done, if it was not."""
    if posted is not None and not posted.done():
        posted.set_result(None)


def seen(task: asyncio.Future[Any]) -> None:
    """The error of what nobody waits for any more is nobody's."""
    if not task.cancelled():
        task.exception()


def named(ranks: Sequence[int]) -> str:
    """Ranks, for people."""
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
