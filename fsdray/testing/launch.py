"""Simulated gangs that start as a tree of functions and are supervised as real ones are.

The tree, the supervision and the replies are `fsdray.gang`'s own; what a function runs is a
coroutine. `fsdray.testing.simulation` has everything else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fsdray import failure, gang, recovery, wire
from fsdray.backends.simulated.functions import Environments
from fsdray.backends.simulated.world import World
from fsdray.collective.channels import Rendezvous
from fsdray.collective.communicator import AsyncCommunicator
from fsdray.errors import FunctionCrashed, RankFailed
from fsdray.gang import GangResult
from fsdray.retries import RetryPolicy
from fsdray.services import Backend, FunctionLimits
from fsdray.settings import Settings
from fsdray.wire import Call, Gang, Inline, RankReply

Outcome = tuple[bool, Any]
"""Whether a rank returned, and what; or the exception that it raised."""

Member = Callable[[int, AsyncCommunicator], Awaitable[Outcome]]
"""Runs the program as one rank."""


class Launch:
    """The functions of one gang.

    Parameters
    ----------
    member : runs one rank's program, and keeps what it came to.
    backend_of : what a rank reaches.
    """

    def __init__(
        self,
        world: World,
        size: int,
        member: Member,
        backend_of: Callable[[int], Backend],
    ) -> None:
        self._world = world
        self._member = member
        self._backend_of = backend_of
        # All may run at once, and those of a dead parent still do when they are started again.
        limits = FunctionLimits(concurrency=max(2 * size, FunctionLimits().concurrency))
        self.environments = Environments(limits, self._serve)
        self._deaths: dict[int, asyncio.Future[None]] = {}
        self._zombies: list[asyncio.Task[bytes]] = []

    async def run(
        self,
        backend: Backend,
        name: str,
        meeting: Rendezvous,
        size: int,
        branching: int,
        memory: int,
        timeout: float,
        retry: RetryPolicy,
        attempt: int,
    ) -> GangResult:
        """Run the gang, once, as its caller."""
        spec = Gang(
            id=meeting.gang,
            rank=-1,
            size=size,
            branching=branching,
            channel=meeting.channel,
            inboxes=meeting.inboxes,
            given={},
            medium=meeting.medium,
        )
        call = Call(
            task="simulated-0",
            name=name,
            function=Inline(b""),
            arguments=Inline(b""),
            holes={},
            returns=(),
            unpack=False,
            memory=memory,
            timeout=timeout,
            settings=Settings(branching=branching, channel=meeting.channel),
            gang=recovery.recovering(spec) if retry.max_retries else spec,
            attempt=attempt,
        )
        async with backend.functions.admitted(size):
            try:
                return await recovery.run(backend, call, retry)
            finally:
                for zombie in self._zombies:
                    zombie.cancel()

    def died(self, rank: int) -> None:
        """The environment of a rank is gone."""
        death = self._deaths.get(rank)
        if death is not None and not death.done():
            death.set_result(None)

    async def _serve(self, payload: bytes) -> bytes:
        call = wire.load_call(payload)
        assert call.gang is not None
        number = call.gang.rank
        if number in self._world.faults.absent:
            await self._world.loop.create_future()
        world = self._world
        if number in self._deaths:
            world.renew(number)  # it is started again, in another environment
        node = world.node(number)
        death = self._deaths[number] = world.loop.create_future()
        if node.is_dead:
            death.set_result(None)
        life = asyncio.create_task(self._live(call, number))
        try:
            await asyncio.wait([life, death], return_when=asyncio.FIRST_COMPLETED)
            if death.done():
                raise FunctionCrashed(f"rank {number} died, as the schedule of faults says")
            return life.result()
        finally:
            if death.done() and not node.is_dead:
                self._zombies.append(life)
            elif not life.done():  # it died, or was stopped: neither asks for anything more
                node.is_dead = True
                life.cancel()

    async def _live(self, call: Call, number: int) -> bytes:
        """What `fsdray.worker` does for a rank, with a coroutine in place of plain code."""
        rank = gang.Rank(self._backend_of(number), call, call.timeout)
        ended = asyncio.create_task(rank.last_reply())
        work = asyncio.ensure_future(self._member(number, rank.communicator))
        try:
            await asyncio.wait([work, ended], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return wire.dump(ended.result())
            returned, value = work.result()
            own = RankReply((Inline(b""),))
            if not returned:
                encoded = failure.encode(failure.capture(value, call.name, call.whereabouts()))
                await rank.raised(encoded, isinstance(value, RankFailed))
                own = RankReply((Inline(encoded, failed=True),))
            return wire.dump(await rank.reply(own))
        finally:
            ended.cancel()
            work.cancel()
