"""Recovery: a rank that dies is started again by itself, or all of its gang is.

This is the caller's side, which outlives every rank and so starts them all: what is told to whom
when a rank dies, or ends. What a rank keeps for it is `collective.channels.sendlog`; how a gang is
started and watched is `fsdray.gang`; how often anything runs again is `fsdray.retries`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable

from fsdray import gang, wire
from fsdray.collective import channels
from fsdray.collective.channels import Rendezvous
from fsdray.collective.channels.sendlog import frames_to
from fsdray.errors import PlatformError, SettingsError
from fsdray.gang import GangResult
from fsdray.retries import RetryPolicy, catches_up
from fsdray.services import Backend
from fsdray.wire import Call, Gang, Reply, Report

_TROUBLE = (PlatformError, SettingsError, LookupError, TimeoutError)
"""What may come of leasing an inbox, telling the others, or reading a log that is gone."""

_SOON = 1.0  # seconds in which a lease that was asked for is there, if ever

_PATIENCE = 10.0
"""Seconds for which an inbox is waited for: others may give theirs back. Where all that there are
belong to this very gang none will come, but the gang can start anew in those that it has."""


def recovering(spec: Gang) -> Gang:
    """The gang as it must be to recover: its ranks are started by the caller, each by itself."""
    return dataclasses.replace(spec, branching=spec.size, recovers=True)


async def run(backend: Backend, call: Call, retry: RetryPolicy) -> GangResult:
    """Run a gang, from the caller's side; where `anew` is set, it is to be run again as a whole."""
    assert call.gang is not None
    if not call.gang.recovers:
        return await gang.run(backend, call)
    recovery = Recovery(backend, call, retry)
    try:
        result = await gang.run(backend, call, recovery.breaker, recovery.live)
    finally:
        await recovery.close()
    return dataclasses.replace(result, lost=recovery.lost, anew=recovery.anew)


class Recovery:
    """What the caller of one gang does so that its ranks may die."""

    def __init__(self, backend: Backend, call: Call, retry: RetryPolicy) -> None:
        assert call.gang is not None
        self._backend = backend
        self._retry = retry
        self._size = call.gang.size
        self._meeting = gang.rendezvous(call.gang)
        self._clock = asyncio.get_running_loop().time
        self._deadline = self._clock() + call.timeout
        self._reports: dict[int, Report] = {}  # of ranks that have ended
        self._leasing: set[asyncio.Future[list[str]]] = set()
        self.breaker = gang.breaker_for(backend, call.gang, lambda: self._meeting)
        self.lost = 0  # ranks that were started again
        self.anew: int | None = None

    async def live(self, call: Call) -> Reply:
        """Run one rank until it ends, however often it dies.

        Raises
        ------
        PlatformError
            where it may not run again, or not alone; then `anew` is set.
        """
        while True:
            began = self._clock()
            try:
                reply = await gang.invoke(self._backend, call)
            except PlatformError as error:
                call = await self._again(call, error, self._clock() - began)
                continue
            report = reply.report
            if report is None:
                return reply  # the gang is broken
            if report.chance is not None:
                raise self._start_anew(call.attempt, _Unrepeatable(call, report.chance))
            try:
                await self._ended(call, report)
            except _TROUBLE as error:
                raise self._start_anew(call.attempt + 1, _Lost(call, error)) from error
            return reply

    async def close(self) -> None:
        """Give back what was leased; the gang is over."""
        if not self._leasing:
            return
        done, pending = await asyncio.wait(self._leasing, timeout=_SOON)
        for lease in pending:  # there is none to be had
            lease.cancel()
        inboxes = [name for lease in done if lease.exception() is None for name in lease.result()]
        if inboxes:
            await self._backend.messages.release(inboxes, is_broken=True)

    # Inside

    async def _again(self, call: Call, error: PlatformError, took: float) -> Call:
        """The call that takes the place of one that died after `took` seconds."""
        left = self._deadline - self._clock()
        is_over = self.breaker.broken is not None
        if is_over or not self._retry.after_platform(error, call.attempt):
            raise error
        if not catches_up(took, left):
            raise self._start_anew(call.attempt + 1, error)
        try:
            again = await self._moved(call, left)
        except _TROUBLE as trouble:
            raise self._start_anew(call.attempt + 1, error) from trouble
        if self.breaker.broken is not None:
            raise error
        self.lost += 1
        return again

    async def _moved(self, call: Call, left: float) -> Call:
        """Give a rank that died another place, and tell all who have sent it something."""
        assert call.gang is not None
        rank, before = call.gang.rank, self._meeting
        inbox = await self._lease() if before.inboxes else None
        # From here to the making of the call nothing is awaited: other ranks may move as well.
        before = self._meeting
        incarnation = before.moved.get(rank, 0) + 1
        self._meeting = meeting = before.with_moved(rank, incarnation, inbox)
        spec = dataclasses.replace(call.gang, inboxes=meeting.inboxes, moved=meeting.moved)
        again = dataclasses.replace(call, attempt=call.attempt + 1, timeout=left, gang=spec)
        if inbox is not None:
            await self._tell(rank, incarnation, inbox, before)
            await self._resend(list(self._reports), rank, inbox)
            if self.breaker.told is not None:
                place = dataclasses.replace(meeting, inboxes=(inbox,), moved={})
                await channels.announce(self._backend, place, rank, self._size, self.breaker.told)
        return again

    async def _tell(self, rank: int, incarnation: int, inbox: str, before: Rendezvous) -> None:
        """Tell those who still run that a rank has moved; they send it again what they had sent.

        The place that it had `before` is told too: who was given up may be running all the same.
        """
        living = [each for each in range(self._size) if each not in self._reports]
        what = b"".join(wire.encode((rank, incarnation, inbox)))
        await channels.tell_moved(self._backend, before, rank, living, what)

    async def _ended(self, call: Call, report: Report) -> None:
        """A rank has ended; those that were started again may need what it had sent them."""
        assert call.gang is not None
        rank = call.gang.rank
        self._reports[rank] = report
        if report.raised is not None:
            self.breaker.trip(((rank,), report.raised), is_death=False, is_news=True)
        for other, incarnation in self._meeting.moved.items():
            inbox = self._meeting.inboxes[other] if self._meeting.inboxes else None
            knows = report.moved.get(other, 0) >= incarnation
            if inbox is not None and other not in self._reports and not knows:
                await self._resend([rank], other, inbox)

    async def _resend(self, sources: Iterable[int], rank: int, inbox: str) -> None:
        """Send again what ranks that have ended had sent to `rank`."""
        small: list[bytes] = []
        for source in sources:
            logged = self._reports[source].logged
            async for bodies in frames_to(self._backend.objects, logged, rank):
                small += bodies
                if sum(map(len, small)) > self._backend.messages.limits.batch:
                    await channels.send_again(self._backend, small, inbox)
                    small = []
        if small:
            await channels.send_again(self._backend, small, inbox)

    async def _lease(self) -> str:
        # Whoever is stopped meanwhile must not lose what was leased.
        lease = asyncio.ensure_future(self._backend.messages.lease(1))
        self._leasing.add(lease)
        async with asyncio.timeout(_PATIENCE):
            (inbox,) = await asyncio.shield(lease)
        return inbox

    def _start_anew(self, attempt: int, error: PlatformError) -> PlatformError:
        """The error that ends the gang's ranks, which then start as `attempt`."""
        if self.breaker.broken is None:
            self.anew = max(attempt, self.anew or 0)
        return error


class _Unrepeatable(PlatformError):
    """A rank that was started again came to what it cannot repeat."""

    def __init__(self, call: Call, what: str) -> None:
        super().__init__(
            f"{call.label} was started again alone and came to {what}, which need not go as it "
            "did before: the whole gang starts anew"
        )


class _Lost(PlatformError):
    """What a rank had sent cannot be sent again."""

    def __init__(self, call: Call, error: BaseException) -> None:
        super().__init__(f"what {call.label} had sent is lost: {error}")
