"""Channels: how a communicator's messages move, and the gang's meeting place on each.

A channel batches, splits, multicasts and acknowledges; what arrives it deposits in the mailbox.
`queue` moves frames through messages, `object` through objects (see
`fsdray.collective.combined`), `auto` each message
the way that suits it. To add a channel, add a module here with a `Channel` and name it in
`open_channel`, `prepare`, `announce` and `clear`.
"""

from __future__ import annotations

import asyncio
import secrets
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from fsdray.collective.channels import object as object_channel
from fsdray.collective.channels import queue as queue_channel
from fsdray.collective.channels.auto import AutoChannel
from fsdray.collective.channels.sendlog import SendLog
from fsdray.collective.combined import SendsNothing, prefix
from fsdray.collective.frames import Codec, Frame, Key, Operation
from fsdray.collective.mailbox import Called, Mailbox
from fsdray.collective.parcels import Outgoing
from fsdray.costs.medium import USUAL, Medium
from fsdray.services import Backend, MessageLimits

__all__ = [
    "Channel",
    "Outgoing",
    "Rendezvous",
    "SendsNothing",
    "announce",
    "clear",
    "has_inboxes",
    "open_channel",
    "prepare",
]


class Channel(Protocol):
    """Moves the frames of one rank.

    Guarantees: what `post` returns is done when the services have accepted all; after `collect`
    returned, the mailbox holds at least one of the keys' messages that it did not hold before.
    """

    @property
    def name(self) -> str:
        """As users choose it."""
        ...

    @property
    def medium(self) -> Medium:
        """What algorithms are chosen by."""
        ...

    @property
    def limits(self) -> MessageLimits:
        """What messages are split by."""
        ...

    @property
    def is_leaving(self) -> bool:
        """Whether a send is about to go, in this turn of the loop."""
        ...

    @property
    def written(self) -> Sequence[str]:
        """Objects that this rank wrote and that must be removed when the gang has ended."""
        ...

    def post(self, outgoing: Outgoing, *, may_linger: bool = False) -> asyncio.Future[None]:
        """Send one operation's parcels; one that may linger may wait a moment for company.

        What it is given is read when this is called or by the time that the future is done.
        """
        ...

    def hurry(self) -> None:
        """Somebody waits: what lingers is to go now."""
        ...

    async def collect(self, keys: Sequence[Key], called: Called | None = None) -> None:
        """Wait until something new has come for one of `keys`, none of which is held yet.

        With `called` they are of one collective, and it may wait for all of them, but not beyond
        a message that says that another was called.
        """
        ...

    def collect_here(self, missing: Callable[[], int]) -> bool:
        """Take what comes until none is `missing`, for a moment, in this thread, which may wait.

        Whether none is. A channel whose messages are not near, or that has more to do meanwhile,
        takes nothing.
        """
        ...

    def move(self, rank: int, incarnation: int, inbox: str) -> None:
        """A rank was started again, for the `incarnation`-th time, and has another inbox."""
        ...

    async def strays(self, key: Key, operation: Operation) -> None:
        """Raise `SendsNothing` when there is a message of another operation; else never return.

        It is for a message that nobody expects, on a channel where nobody would be told of it.
        """
        ...

    async def close(self) -> None:
        """Finish what is under way, such as acknowledgements."""
        ...


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of one gang meet: its id (32 hex digits, new for each gang) and inboxes.

    `moved` says how often ranks were started again, of those that were: each has an inbox that
    was leased by itself. `recovers` says whether any may be.
    """

    gang: str
    channel: str
    inboxes: tuple[str, ...]
    moved: Mapping[int, int] = field(default_factory=dict)
    recovers: bool = False
    medium: Medium = USUAL

    @property
    def epoch(self) -> bytes:
        return bytes.fromhex(self.gang)

    @property
    def has_inboxes(self) -> bool:
        """Whether ranks receive through inboxes."""
        return has_inboxes(self.channel)

    def with_moved(self, rank: int, incarnation: int, inbox: str | None) -> Rendezvous:
        """The same, with another inbox of a rank where the channel has any."""
        inboxes = list(self.inboxes)
        if inbox is not None:
            inboxes[rank] = inbox
        return replace(self, inboxes=tuple(inboxes), moved={**self.moved, rank: incarnation})


def has_inboxes(channel: str) -> bool:
    """Whether the ranks of a gang on this channel have an inbox each."""
    return channel != "object"


async def prepare(backend: Backend, channel: str, size: int, medium: Medium = USUAL) -> Rendezvous:
    """A meeting place for a new gang of `size` ranks; `clear` gives it back."""
    inboxes = tuple(await backend.messages.lease(size)) if has_inboxes(channel) else ()
    return Rendezvous(secrets.token_hex(16), channel, inboxes, medium=medium)


def open_channel(
    backend: Backend,
    rendezvous: Rendezvous,
    rank: int,
    size: int,
    mailbox: Mailbox,
    log: SendLog | None = None,
) -> Channel:
    """The channel of one rank; `log` is to keep what it sends, where objects do not."""
    if rendezvous.channel == "auto":
        return AutoChannel(
            backend.messages,
            backend.objects,
            rendezvous.gang,
            rendezvous.epoch,
            rank,
            rendezvous.inboxes,
            mailbox,
            rendezvous.medium,
            rendezvous.moved,
            log,
        )
    if rendezvous.channel == "queue":
        return queue_channel.QueueChannel(
            backend.messages,
            rendezvous.epoch,
            rank,
            rendezvous.inboxes,
            mailbox,
            rendezvous.moved,
            log,
            rendezvous.medium,
        )
    return object_channel.ObjectChannel(
        backend.objects,
        rendezvous.gang,
        rendezvous.epoch,
        rank,
        size,
        mailbox,
        rendezvous.medium,
    )


async def announce(
    backend: Backend, rendezvous: Rendezvous, source: int, size: int, why: bytes
) -> list[str]:
    """Tell every rank that the gang is broken; `why` goes to each rank's mailbox as it is.

    Returns the objects that this wrote, for `clear`.
    """
    frame = _control(rendezvous, Operation.ABORT, source, range(size), why)
    if rendezvous.has_inboxes:
        inboxes = rendezvous.inboxes
        await queue_channel.announce(
            backend.messages, inboxes, rendezvous.moved, frame, range(len(inboxes))
        )
        return []
    await object_channel.announce(backend.objects, rendezvous.gang, frame)
    return [object_channel.abort_key(rendezvous.gang)]


async def tell_moved(
    backend: Backend, rendezvous: Rendezvous, rank: int, ranks: Sequence[int], what: bytes
) -> None:
    """Tell `ranks` that `rank` has another inbox; `what` goes to their mailboxes as it is."""
    frame = _control(rendezvous, Operation.MOVED, rank, ranks, what)
    await queue_channel.announce(
        backend.messages, rendezvous.inboxes, rendezvous.moved, frame, ranks
    )


async def send_again(backend: Backend, bodies: Sequence[bytes], inbox: str) -> None:
    """Send frames of a log to one inbox."""
    await queue_channel.send(backend.messages, bodies, inbox)


async def clear(
    backend: Backend, rendezvous: Rendezvous, written: Sequence[str], is_broken: bool
) -> None:
    """Leave nothing of a gang behind: its inboxes, and the objects that its ranks wrote.

    Only the objects of a gang that lost ranks (`is_broken`) are looked for by listing, which is
    billed: its dead ranks cannot say what they wrote.
    """
    if rendezvous.has_inboxes:
        await backend.messages.release(rendezvous.inboxes, is_broken=is_broken)
    if rendezvous.channel == "queue" and not rendezvous.recovers:
        return
    if is_broken:
        await backend.objects.delete(await backend.objects.list(prefix(rendezvous.gang)))
    elif written:
        await backend.objects.delete(written)


def log_prefix(rendezvous: Rendezvous, rank: int, incarnation: int) -> str:
    """Where the objects lie that are too much of a send log for a rank's memory."""
    return f"{prefix(rendezvous.gang)}log/{rank}-{incarnation}-"


def _control(
    rendezvous: Rendezvous, operation: Operation, source: int, ranks: Sequence[int], payload: bytes
) -> Frame:
    return Frame(
        epoch=rendezvous.epoch,
        operation=operation,
        codec=Codec.RAW,
        communicator=0,
        number=zlib.crc32(payload),  # parts of two announcements of one rank do not mix
        source=source,
        destinations=tuple(ranks),
        tag=0,
        part=0,
        parts=1,
        payload=payload,
    )
