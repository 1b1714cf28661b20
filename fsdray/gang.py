"""Gangs: starting their ranks as a tree, watching them, and ending them together.

The tree is also the supervision tree: who starts a rank keeps its call open and knows at once how
it ended. A rank that dies breaks the gang: whoever learns of it tells the others through the
channel, gives them a moment to fail by themselves, and stops what is left.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fsdray import failure, wire
from fsdray.collective import channels
from fsdray.collective.channels import Rendezvous
from fsdray.collective.channels.sendlog import Logged, SendLog
from fsdray.collective.communicator import AsyncCommunicator
from fsdray.collective.mailbox import Mailbox
from fsdray.errors import CollectiveError, PlatformError, RankFailed
from fsdray.services import Backend
from fsdray.wire import Call, Gang, Inline, RankReply, Reply, Report

Broken = tuple[tuple[int, ...], bytes]
"""Which ranks failed first, and the encoded failure that is why."""

Live = Callable[[Call], Awaitable[Reply]]
"""Runs one rank's call, as often as need be; its reply."""

_STOP = 1.6  # graces after which a child that has not replied is stopped
_MARGIN = 0.02  # of a parent's time, kept for ending after its children
_LAST_WORDS = 0.05  # of a rank's time, kept for failing with a proper error


def roots(size: int, branching: int) -> range:
    """Ranks that the caller starts itself."""
    return range(min(size, branching))


def children(rank: int, size: int, branching: int) -> range:
    """Ranks that `rank` starts: a heap of `branching` below a root that is no rank."""
    first = branching * (rank + 1)
    return range(min(first, size), min(first + branching, size))


def subtree(rank: int, size: int, branching: int) -> list[int]:
    """`rank` and all ranks that it starts, directly or not."""
    ranks = [rank]
    for at in ranks:
        ranks += children(at, size, branching)
    return ranks


class Breaker:
    """Knows whether this gang is broken; the first to say so is who is believed.

    Parameters
    ----------
    announce : tells the other ranks through the channel.
    """

    def __init__(self, announce: Callable[[bytes], asyncio.Task[list[str]]]) -> None:
        self._announce = announce
        self._listeners: list[Callable[[RankFailed], None]] = []
        self.broken: Broken | None = None  # ranks died: nobody's result is whole
        self.event = asyncio.Event()  # set with `broken`
        self.told: bytes | None = None  # what was announced last
        self.announcing: asyncio.Task[list[str]] | None = None
        self._is_told = False

    @property
    def written(self) -> list[str]:
        """Objects that announcing has written, and that must be removed."""
        told = self.announcing
        if told is None or not told.done() or told.cancelled() or told.exception() is not None:
            return []
        return told.result()

    def listen(self, listener: Callable[[RankFailed], None]) -> None:
        """Call `listener` when the gang breaks."""
        self._listeners.append(listener)

    def trip(self, broken: Broken, *, is_death: bool, is_news: bool) -> None:
        """Ranks are gone: dead, or (not `is_death`) by an exception of the user's code.

        `is_news` says that the others do not know yet.
        """
        if self.broken is not None or (self._is_told and not is_death):
            return
        if is_news:
            self.told = wire_abort(broken, is_death)
            self.announcing = self._announce(self.told)
            # Where telling fails, the others still learn of it through the tree, if later.
            self.announcing.add_done_callback(lambda task: task.cancelled() or task.exception())
        if is_death:
            self.broken = broken
            self.event.set()
        if not self._is_told:
            self._is_told = True
            for listener in self._listeners:
                listener(rank_failed(broken))

    def heard(self, why: bytes) -> None:
        """An abort frame came."""
        ranks, encoded, is_death = wire.decode(why)
        self.trip((ranks, encoded), is_death=is_death, is_news=False)


def wire_abort(broken: Broken, is_death: bool) -> bytes:
    """What an abort frame says."""
    return b"".join(wire.encode((*broken, is_death)))


def rank_failed(broken: Broken) -> RankFailed:
    """The error that the others, and the caller, are given."""
    ranks, encoded = broken
    return RankFailed(ranks, failure.decode(encoded))


async def supervise(
    call: Call, ranks: Iterable[int], breaker: Breaker, timeout: float, live: Live
) -> dict[int, RankReply]:
    """Start `ranks` of the call's gang and wait for them; what they came to, by rank.

    Where the gang breaks, the ranks that have not replied after a grace are stopped, and are
    missing from the result.
    """
    clock = asyncio.get_running_loop().time
    deadline: float | None = None  # set when the gang breaks
    calls = [child(call, rank, timeout) for rank in ranks]
    tasks = {asyncio.ensure_future(live(each)): each for each in calls}
    replies: dict[int, RankReply] = {}
    broke = asyncio.create_task(breaker.event.wait())
    pending = set(tasks)
    try:
        while pending:
            waits: set[asyncio.Future[Any]] = {*pending}
            done, _ = await asyncio.wait(
                waits if broke.done() else {*waits, broke},
                timeout=None if deadline is None else max(0.0, deadline - clock()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not done:
                break
            if broke.done() and deadline is None:
                deadline = clock() + call.settings.grace * _STOP
            for task in pending & done:
                pending.discard(task)
                _settle(tasks[task], task, replies, breaker)
    finally:
        broke.cancel()
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
    if breaker.announcing is not None:
        await asyncio.wait([breaker.announcing])
    return replies


def child(call: Call, rank: int, timeout: float) -> Call:
    """The call of one rank, with what its subtree needs; it must end before `timeout`."""
    assert call.gang is not None
    tree = subtree(rank, call.gang.size, call.gang.branching)
    given = {r: call.gang.given[r] for r in tree if r in call.gang.given}
    gang = dataclasses.replace(call.gang, rank=rank, given=given)
    return dataclasses.replace(call, gang=gang, timeout=timeout)


def rendezvous(gang: Gang) -> Rendezvous:
    """Where the gang meets."""
    return Rendezvous(gang.id, gang.channel, gang.inboxes, gang.moved, gang.recovers, gang.medium)


def breaker_for(backend: Backend, gang: Gang, meeting: Callable[[], Rendezvous]) -> Breaker:
    """A breaker that announces on the gang's channel, as the meeting is at that time."""

    def announce(why: bytes) -> asyncio.Task[list[str]]:
        source = max(gang.rank, 0)
        return asyncio.create_task(channels.announce(backend, meeting(), source, gang.size, why))

    return Breaker(announce)


class Rank:
    """One rank's life in its worker: it starts its children, talks, and replies for them too.

    Parameters
    ----------
    call : this rank's. timeout : seconds that it has.
    """

    def __init__(self, backend: Backend, call: Call, timeout: float) -> None:
        assert call.gang is not None
        self._backend = backend
        self._call = call
        self._gang = call.gang
        self._timeout = timeout
        self._meeting = rendezvous(call.gang)
        self._incarnation = call.gang.moved.get(call.gang.rank, 0)
        self._raised: bytes | None = None
        self._by_chance: str | None = None
        self._is_over = asyncio.Event()  # there is no use in going on
        self.breaker = breaker_for(backend, call.gang, lambda: self._meeting)
        self._mailbox = mailbox = Mailbox(
            self._meeting.epoch, call.gang.rank, self.breaker.heard, self._moved
        )
        self.breaker.listen(lambda error: mailbox.fail(lambda: again(error)))
        # Objects stay until the gang has ended, and need no log.
        is_logged = call.gang.recovers and call.gang.channel != "object"
        self._log = self._new_log() if is_logged else None
        self._channel = channels.open_channel(
            backend, self._meeting, call.gang.rank, call.gang.size, mailbox, self._log
        )
        deadline = asyncio.get_running_loop().time() + timeout * (1 - _LAST_WORDS)
        self.communicator = AsyncCommunicator(
            call.gang.rank,
            call.gang.size,
            self._channel,
            mailbox,
            deadline,
            self._abort,
            self._chance,
        )
        ranks = children(call.gang.rank, call.gang.size, call.gang.branching)
        self._tree = asyncio.create_task(
            supervise(call, ranks, self.breaker, timeout * (1 - _MARGIN), partial(invoke, backend))
        )

    async def raised(self, encoded: bytes, is_consequence: bool) -> None:
        """The user's code raised; the others must not wait for this rank."""
        if self._gang.recovers:
            # The caller tells them: it alone knows whether this process still stands for the rank.
            self._raised = None if is_consequence else encoded
            return
        if not is_consequence:
            self.breaker.trip(((self._gang.rank,), encoded), is_death=False, is_news=True)
        told = self.breaker.announcing
        if told is not None:
            await asyncio.wait([told])
            if not is_consequence and told.exception() is not None:
                # Nobody heard of it, and would wait: only the tree can tell, and it tells deaths.
                self.breaker.trip(((self._gang.rank,), encoded), is_death=True, is_news=False)

    async def _abort(self, why: CollectiveError) -> None:
        """The user's code ends the gang, as a death would."""
        encoded = failure.encode(failure.capture(why, self._call.name, self._call.whereabouts()))
        self.breaker.trip(((self._gang.rank,), encoded), is_death=True, is_news=True)
        if self.breaker.announcing is not None:
            await asyncio.wait([self.breaker.announcing])

    async def reply(self, own: RankReply) -> Reply:
        """This rank's outcome with its children's, once all are there."""
        await self.communicator.close()
        replies = await self._tree
        written = [*self._channel.written, *self.breaker.written]
        report = None
        if self._gang.recovers:
            logged = Logged() if self._log is None else await self._log.finished()
            written += logged.segments
            report = self._report(logged)
        own = dataclasses.replace(own, written=tuple(written))
        return Reply({self._gang.rank: own, **replies}, self.breaker.broken, report)

    async def last_reply(self) -> Reply:
        """Return when the gang is broken and its grace is over: what to reply with then.

        It is for a rank whose user code goes on computing, which nothing can interrupt.
        """
        broken = asyncio.create_task(self.breaker.event.wait())
        anew = asyncio.create_task(self._is_over.wait())
        try:
            await asyncio.wait([broken, anew], return_when=asyncio.FIRST_COMPLETED)
        finally:
            broken.cancel()
            anew.cancel()
        if self._by_chance is not None:
            return Reply({}, report=self._report(Logged()))
        await asyncio.sleep(self._call.settings.grace)
        return Reply({}, self.breaker.broken)

    def _new_log(self) -> SendLog:
        prefix = channels.log_prefix(self._meeting, self._gang.rank, self._incarnation)
        return SendLog(self._backend.objects, prefix)

    def _report(self, logged: Logged) -> Report:
        return Report(logged, self._meeting.moved, self._raised, self._by_chance)

    def _moved(self, what: bytes) -> None:
        """A rank was started again: the others' messages for it go to another inbox."""
        rank, incarnation, inbox = wire.decode(what)
        if rank == self._gang.rank:
            if incarnation > self._incarnation:
                why = CollectiveError("it was given up, and started again elsewhere")
                self._mailbox.fail(lambda: RankFailed([rank], why))
        elif incarnation > self._meeting.moved.get(rank, 0):
            self._meeting = self._meeting.with_moved(rank, incarnation, inbox)
            self._channel.move(rank, incarnation, inbox)

    def _chance(self, what: str) -> None:
        """What a rank that was started again cannot do: what it did before may be known to others.

        It may not have come so far before, which nobody can tell; so the gang starts anew.
        """
        if self._incarnation:
            self._by_chance = what
            self._is_over.set()
            why = CollectiveError(f"{what} cannot be repeated by one rank: the gang starts anew")
            raise RankFailed([self._gang.rank], why)


@dataclass
class GangResult:
    """What a whole gang came to."""

    ranks: dict[int, RankReply] = field(default_factory=dict)
    broken: Broken | None = None
    written: list[str] = field(default_factory=list)  # by the caller
    lost: int = 0  # ranks that died and were started again
    anew: int | None = None  # the attempt as which all of it is to start anew


async def run(
    backend: Backend, call: Call, breaker: Breaker | None = None, live: Live | None = None
) -> GangResult:
    """Run a gang from the caller's side; `call.gang` has rank -1."""
    assert call.gang is not None
    if breaker is None:
        meeting = rendezvous(call.gang)
        breaker = breaker_for(backend, call.gang, lambda: meeting)
    ranks = roots(call.gang.size, call.gang.branching)
    live = live or partial(invoke, backend)
    replies = await supervise(call, ranks, breaker, call.timeout, live)
    broken = breaker.broken
    if broken is None and len(replies) < call.gang.size:
        lost = tuple(sorted(set(range(call.gang.size)) - set(replies)))
        error = CollectiveError("their replies were lost with the rank that started them")
        broken = (lost, failure.encode(failure.capture(error, call.name)))
    return GangResult(replies, broken, breaker.written)


async def invoke(backend: Backend, call: Call) -> Reply:
    """Run one rank's call."""
    assert call.gang is not None
    data = await backend.functions.invoke(
        wire.dump(call),
        memory=call.memory,
        timeout=call.timeout,
        label=call.label,
    )
    reply = wire.load_reply(data)
    if call.gang.rank not in reply.ranks and reply.broken is None and reply.report is None:
        # The call could not even be decoded: its one failure is all that came back.
        (refused,) = reply.ranks[0].values
        assert isinstance(refused, Inline)
        raise failure.decode(refused.data)
    return reply


def _settle(
    call: Call, task: asyncio.Future[Reply], replies: dict[int, RankReply], breaker: Breaker
) -> None:
    """Take what a child's call came to."""
    error = task.exception()
    if error is None:
        reply = task.result()
        replies.update(reply.ranks)
        if reply.broken is not None:
            breaker.trip(reply.broken, is_death=True, is_news=False)
    elif isinstance(error, PlatformError):
        assert call.gang is not None
        rank = call.gang.rank
        # Where the caller's own code stood when a call broke is no news to the user.
        told = error.with_traceback(None)
        encoded = failure.encode(failure.capture(told, f"rank {rank}", call.whereabouts()))
        breaker.trip(((rank,), encoded), is_death=True, is_news=True)
    else:
        raise error


def again(error: RankFailed) -> RankFailed:
    """The same error for another waiter: a raised exception collects the traceback of each."""
    return RankFailed(error.ranks, error.cause)
