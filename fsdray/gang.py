"""Gangs: starting their ranks as a tree, watching them, and ending them together.

The tree is also the supervision tree: who starts a rank keeps its call open and knows at once how
it ended. A rank that dies breaks the gang: whoever learns of it tells the others through the
channel, gives them a moment to fail by themselves, and stops what is left.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from fsdray import failure, wire
from fsdray.collective import channels
from fsdray.collective.channels import Rendezvous
from fsdray.collective.communicator import AsyncCommunicator
from fsdray.collective.mailbox import Mailbox
from fsdray.errors import CollectiveError, PlatformError, RankFailed
from fsdray.services import Backend
from fsdray.wire import Call, Gang, Inline, RankReply, Reply

Broken = tuple[tuple[int, ...], bytes]
"""Which ranks failed first, and the encoded failure that is why."""

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
            self.announcing = self._announce(wire_abort(broken, is_death))
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
    backend: Backend, call: Call, ranks: Iterable[int], breaker: Breaker, timeout: float
) -> dict[int, RankReply]:
    """Start `ranks` of the call's gang and wait for them; what they came to, by rank.

    Where the gang breaks, the ranks that have not replied after a grace are stopped, and are
    missing from the result.
    """
    clock = asyncio.get_running_loop().time
    deadline: float | None = None  # set when the gang breaks
    calls = [child(call, rank, timeout) for rank in ranks]
    tasks = {asyncio.create_task(_invoke(backend, each)): each for each in calls}
    replies: dict[int, RankReply] = {}
    broke = asyncio.create_task(breaker.event.wait())
    pending = set(tasks)
    try:
        while pending:
            waits: set[asyncio.Task[Any]] = {*pending}
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
    return Rendezvous(gang.id, gang.channel, gang.inboxes, gang.medium)


def breaker_for(backend: Backend, gang: Gang) -> Breaker:
    """A breaker that announces on the gang's channel."""

    def announce(why: bytes) -> asyncio.Task[list[str]]:
        source = max(gang.rank, 0)
        return asyncio.create_task(
            channels.announce(backend, rendezvous(gang), source, gang.size, why)
        )

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
        self.breaker = breaker_for(backend, call.gang)
        mailbox = Mailbox(rendezvous(call.gang).epoch, call.gang.rank, self.breaker.heard)
        self.breaker.listen(lambda error: mailbox.fail(lambda: again(error)))
        self._channel = channels.open_channel(
            backend, rendezvous(call.gang), call.gang.rank, call.gang.size, mailbox
        )
        deadline = asyncio.get_running_loop().time() + timeout * (1 - _LAST_WORDS)
        self.communicator = AsyncCommunicator(
            call.gang.rank, call.gang.size, self._channel, mailbox, deadline, self._abort
        )
        ranks = children(call.gang.rank, call.gang.size, call.gang.branching)
        self._tree = asyncio.create_task(
            supervise(backend, call, ranks, self.breaker, timeout * (1 - _MARGIN))
        )

    async def raised(self, encoded: bytes, is_consequence: bool) -> None:
        """The user's code raised; the others must not wait for this rank."""
        if not is_consequence:
            self.breaker.trip(((self._gang.rank,), encoded), is_death=False, is_news=True)
        if self.breaker.announcing is not None:
            await asyncio.wait([self.breaker.announcing])

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
        own = dataclasses.replace(own, written=(*self._channel.written, *self.breaker.written))
        return Reply({self._gang.rank: own, **replies}, self.breaker.broken)

    async def last_reply(self) -> Reply:
        """Return when the gang is broken and its grace is over: what to reply with then.

        It is for a rank whose user code goes on computing, which nothing can interrupt.
        """
        await self.breaker.event.wait()
        await asyncio.sleep(self._call.settings.grace)
        return Reply({}, self.breaker.broken)


@dataclass
class GangResult:
    """What a whole gang came to."""

    ranks: dict[int, RankReply] = field(default_factory=dict)
    broken: Broken | None = None


async def run(backend: Backend, call: Call) -> GangResult:
    """Run a gang from the caller's side; `call.gang` has rank -1."""
    assert call.gang is not None
    breaker = breaker_for(backend, call.gang)
    ranks = roots(call.gang.size, call.gang.branching)
    replies = await supervise(backend, call, ranks, breaker, call.timeout)
    broken = breaker.broken
    if broken is None and len(replies) < call.gang.size:
        lost = tuple(sorted(set(range(call.gang.size)) - set(replies)))
        error = CollectiveError("their replies were lost with the rank that started them")
        broken = (lost, failure.encode(failure.capture(error, call.name)))
    return GangResult(replies, broken)


async def _invoke(backend: Backend, call: Call) -> Reply:
    assert call.gang is not None
    data = await backend.functions.invoke(
        wire.dump(call),
        memory=call.memory,
        timeout=call.timeout,
        label=call.label,
    )
    reply = wire.load_reply(data)
    if call.gang.rank not in reply.ranks and reply.broken is None:
        # The call could not even be decoded: its one failure is all that came back.
        (refused,) = reply.ranks[0].values
        assert isinstance(refused, Inline)
        raise failure.decode(refused.data)
    return reply


def _settle(
    call: Call, task: asyncio.Task[Reply], replies: dict[int, RankReply], breaker: Breaker
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
