"""One rank's end of a gang: its channel, its mailbox, its deadline, which communicators share.

Ranks here are the gang's. What is sent, and what to wait for, is said in
`fsdray.collective.member` and above.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from fsdray.collective.channels import Channel
from fsdray.collective.mailbox import Mailbox
from fsdray.errors import CollectiveError, CollectiveTimeout

Abort = Callable[[CollectiveError], Awaitable[None]]
"""Tells all other ranks of the gang that it is over, and why."""


async def tell_nobody(_: CollectiveError) -> None:
    """The `Abort` of a rank that stands for itself."""


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
    sent_bytes: int = 0  # payload of this rank's messages, as packed

    async def within(
        self,
        who: str,
        missing: Callable[[], Sequence[int]],
        *work: Coroutine[Any, Any, None] | None,
    ) -> None:
        """Do all of `work` at once, before the deadline; the first error ends the rest.

        Parameters
        ----------
        who : the operation and the rank, for the error's text.
        missing : the ranks that are being waited for.
        """
        tasks = [asyncio.ensure_future(each) for each in work if each is not None]
        left = self.deadline - asyncio.get_running_loop().time()
        try:
            done, pending = await asyncio.wait(
                tasks, timeout=max(0.0, left), return_when=asyncio.FIRST_EXCEPTION
            )
        finally:
            for task in tasks:
                task.cancel()
        errors = [error for task in done if (error := task.exception()) is not None]
        if errors:
            raise errors[0]
        if pending:
            ranks = missing()
            what = f"no message came from {named(ranks)}" if ranks else "sending did not end"
            raise CollectiveTimeout(f"{who}: {what} in time")


def named(ranks: Sequence[int]) -> str:
    """Ranks, for people."""
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
