"""Point to point: send, receive, probe, and the same without blocking; mpi4py's names.

Which receive gets which message is in `matching`; sends are numbered for each pair of ranks, so
that they are taken in their order however they travel.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from fsdray import buffers
from fsdray.collective.endpoint import Endpoint, seen
from fsdray.collective.envelope import (
    ANY_SOURCE,
    ANY_TAG,
    PROC_NULL,
    Status,
    check_buffer,
    is_number,
    status_of,
    tag_in,
)
from fsdray.collective.frames import Operation
from fsdray.collective.mailbox import Letter
from fsdray.collective.matching import Posting
from fsdray.collective.member import Member, opened
from fsdray.collective.parcels import Outgoing
from fsdray.collective.requests import GLANCE, AsyncRequest

FIRST_LOOK = 0.05
"""Seconds that the first `iprobe` gives the reading, which it starts, to bring what is there: a
receive takes some 16 ms (FACTS, section 3). Later ones look at what the reading has brought."""


class PointToPoint(Member):
    """Messages between two ranks; see `AsyncCommunicator`, which is the whole."""

    def _begin(self, end: Endpoint, number: int, members: Sequence[int], rank: int) -> None:
        super()._begin(end, number, members, rank)
        self._sent: defaultdict[int, itertools.count[int]] = defaultdict(itertools.count)
        self._probes: dict[tuple[int | None, int | None], asyncio.Future[Letter]] = {}

    def send(self, obj: Any, dest: int, tag: int = 0) -> Awaitable[None]:
        """Send `obj` to rank `dest`; once this is done it may be changed.

        It takes its place among this rank's messages to `dest` when it is called.

        Raises
        ------
        SettingsError
            where `dest` is no rank, `tag` is no tag, or `obj` cannot be pickled.
        """
        return self._send(obj, dest, tag)

    def isend(self, obj: Any, dest: int, tag: int = 0) -> AsyncRequest:
        """Begin to send; `obj` may be changed at once.

        Sends that begin close to one another travel together, which bills less.
        """
        sending = self._begun(lambda: self._send(obj, dest, tag, may_linger=True))
        return AsyncRequest(
            sending,
            None,
            self._end.channel.hurry,
            give_up=lambda: False,
            chance=self._end.chance,
        )

    def recv(
        self,
        buf: Any = None,
        source: int = ANY_SOURCE,
        tag: int = ANY_TAG,
        status: Status | None = None,
    ) -> Awaitable[Any]:
        """The first message of `source` with `tag` that nobody has taken.

        Two ranks' messages do not overtake. Of several receives the one that was awaited first
        is served first.

        Parameters
        ----------
        buf : mpi4py's buffer; it is not needed and not used.
        source, tag : what is wanted; any, where not said.
        status : is filled in.
        """
        wanted = self._wanted(buf, source, tag)
        return self._recv(*wanted, status)

    def irecv(self, buf: Any = None, source: int = ANY_SOURCE, tag: int = ANY_TAG) -> AsyncRequest:
        """Begin to receive: this takes its place among the receives now."""
        source_, tag_ = self._wanted(buf, source, tag)
        status = Status()
        if source_ == PROC_NULL:
            nothing = asyncio.ensure_future(self._recv(source_, tag_, status))
            return AsyncRequest(nothing, status, give_up=lambda: False, chance=self._end.chance)
        sends = self._end.mailbox.sends(self._id)
        posting = sends.post(source_, tag_)
        received = self._end.begin(self._take(posting, status), None)

        def give_up() -> bool:
            if posting.letter is not None:
                return False
            # Here and not in `_take`, which may not have begun.
            sends.withdraw(posting)
            received.cancel()
            return True

        return AsyncRequest(
            asyncio.ensure_future(_unless_cancelled(received)),
            status,
            give_up=give_up,
            chance=self._end.chance,
        )

    def sendrecv(
        self,
        sendobj: Any,
        dest: int,
        sendtag: int = 0,
        recvbuf: Any = None,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
        status: Status | None = None,
    ) -> Awaitable[Any]:
        """Send and receive at once, so that partners who both do so do not wait in a circle."""
        wanted = self._wanted(recvbuf, source, recvtag)
        sending = self._send(sendobj, dest, sendtag)
        return self._both(sending, self._recv(*wanted, status))

    async def probe(
        self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None
    ) -> Literal[True]:
        """Wait until there is a message that such a receive would take."""
        source_, tag_ = self._wanted(None, source, tag)
        self._end.chance("probe")
        _fill(status, PROC_NULL, ANY_TAG)
        if source_ != PROC_NULL:
            self._found(await self._look(source_, tag_), status)
        return True

    async def iprobe(
        self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None
    ) -> bool:
        """Whether there is a message that such a receive would take.

        The first call starts reading, which goes on until it finds one; a loop around this bills
        no more than a `probe` does.
        """
        source_, tag_ = self._wanted(None, source, tag)
        self._end.chance("iprobe")
        _fill(status, PROC_NULL, ANY_TAG)
        if source_ == PROC_NULL:
            return True
        letter = self._end.mailbox.sends(self._id).peek(source_, tag_)
        if letter is None:
            looking = self._probes.get((source_, tag_))
            is_new = looking is None
            if looking is None:
                looking = self._end.begin(self._look(source_, tag_), None)
                self._probes[source_, tag_] = looking
            await asyncio.wait([looking], timeout=FIRST_LOOK if is_new else GLANCE)
            if looking.done():
                del self._probes[source_, tag_]
                looking.result()
            letter = self._end.mailbox.sends(self._id).peek(source_, tag_)
        if letter is not None:
            self._found(letter, status)
        return letter is not None

    # Inside

    def _send(self, obj: Any, dest: int, tag: int, *, may_linger: bool = False) -> Awaitable[None]:
        self._check_open()
        tag = tag_in(tag)
        if is_number(dest, PROC_NULL):
            return _nothing()
        dest = self._rank(dest, "dest")
        parcel = self._parcel((dest,), obj)
        if dest != self.rank:
            self._end.sent_bytes += buffers.size(parcel.payload)
        # Numbered last: a number that is never sent would hold up all that come after it.
        outgoing = Outgoing(Operation.SEND, self._id, next(self._sent[dest]), tag, [parcel])
        return self._do_send(outgoing, dest, self._posted, may_linger)

    async def _do_send(
        self,
        outgoing: Outgoing,
        dest: int,
        posted: asyncio.Future[None] | None,
        may_linger: bool,
    ) -> None:
        self._end.mailbox.check()
        if dest == self.rank:
            self._end.mailbox.keep_own(outgoing)
            return
        posting = self._end.post(outgoing, posted, may_linger=may_linger)
        await self._end.within(lambda: self._who("send"), list, posting)

    def _wanted(self, buf: Any, source: int, tag: int) -> tuple[int | None, int | None]:
        """Whom and what a receive wants: a rank of the gang and a tag; None for any."""
        self._check_open()
        check_buffer(buf, "source")
        wanted = None if is_number(tag, ANY_TAG) else tag_in(tag)
        if is_number(source, ANY_SOURCE):
            if self.size > 1:
                self._end.chance("a receive from ANY_SOURCE")
            return None, wanted
        if is_number(source, PROC_NULL):
            return PROC_NULL, wanted
        return self._members[self._rank(source, "source")], wanted

    async def _recv(self, source: int | None, tag: int | None, status: Status | None) -> Any:
        if source == PROC_NULL:
            _fill(status, PROC_NULL, ANY_TAG)
            return None
        return await self._take(self._end.mailbox.sends(self._id).post(source, tag), status)

    async def _take(self, posting: Posting[Letter], status: Status | None) -> Any:
        """Wait for what a receive is given."""
        try:
            if posting.letter is None:
                await self._arrival("recv", posting.source, lambda: posting.letter is not None)
        except BaseException:
            # Who waits has given up, or the gang broke; nobody's message is lost by it.
            self._end.mailbox.sends(self._id).withdraw(posting)
            raise
        assert posting.letter is not None
        self._found(posting.letter, status)
        return opened(posting.letter)

    async def _look(self, source: int | None, tag: int | None) -> Letter:
        """Wait until there is such a message, and leave it there."""
        sends = self._end.mailbox.sends(self._id)
        while (letter := sends.peek(source, tag)) is None:
            await self._arrival("probe", source, lambda: sends.peek(source, tag) is not None)
        return letter

    async def _arrival(self, what: str, source: int | None, is_there: Callable[[], bool]) -> None:
        """Wait until sends of `source` (None: of anybody) have come such that `is_there`."""
        mailbox, channel = self._end.mailbox, self._end.channel
        sources = self._members if source is None else (source,)

        async def collect() -> None:
            while not is_there():
                mailbox.check()
                others = [each for each in sources if each != self._end.rank]
                await channel.collect([mailbox.next_send(self._id, each) for each in others])

        if self._end.collect_here(lambda: not is_there()):
            return
        missing = range(self.size) if source is None else (self._members.index(source),)
        await self._end.within(lambda: self._who(what), lambda: missing, receiving=collect())

    async def _both(self, sending: Awaitable[None], receiving: Awaitable[Any]) -> Any:
        receive = asyncio.ensure_future(receiving)
        receive.add_done_callback(seen)
        try:
            await sending
            return await receive
        finally:
            receive.cancel()

    def _found(self, letter: Letter, status: Status | None) -> None:
        if status is not None:
            _fill(status, self._members.index(letter.source), letter.tag)

    def _stop_probes(self) -> None:
        for looking in self._probes.values():
            looking.cancel()
        self._probes.clear()


def _fill(status: Status | None, source: int, tag: int) -> None:
    if status is not None:
        status.fill(status_of(source, tag))


async def _nothing() -> None:
    """What is sent to nobody."""


async def _unless_cancelled(received: asyncio.Future[Any]) -> Any:
    """What was received; None where the receive was given up."""
    await asyncio.wait([received])
    return None if received.cancelled() else received.result()
