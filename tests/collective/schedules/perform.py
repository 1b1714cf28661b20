"""A random program as one rank runs it, on a communicator of fsdray's."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from fsdray import collective
from fsdray.collective import (
    ANY_SOURCE,
    ANY_TAG,
    UNDEFINED,
    AsyncCommunicator,
    AsyncRequest,
    Status,
)
from fsdray.testing import compute
from tests.collective.schedules.model import (
    Part,
    Receipt,
    Sent,
    edges,
    given,
    messages,
    parts_of,
    wanted,
)
from tests.collective.schedules.programs import COLLECTIVES, REDUCING, ROOTED, Schedule, Step
from tests.collective.schedules.values import OWN, canon, spoil


class Raised(Exception):
    """What a rank raises whose fate it is."""


@dataclass
class Found:
    """What one rank came to, as far as it came: results by step, receipts by step."""

    results: dict[int, Any] = field(default_factory=dict)
    receipts: dict[int, list[Receipt]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    strayed: bool = False
    is_whole: bool = False


@dataclass
class _Comm:
    """A communicator and who is in it; None where this rank is not."""

    inner: AsyncCommunicator | None
    parts: list[Part]
    part: Part

    @property
    def place(self) -> int:
        assert self.inner is not None
        return self.inner.rank


class Performer:
    """One rank."""

    def __init__(self, schedule: Schedule, found: Found) -> None:
        self._schedule = schedule
        self._found = found
        self._under_way: list[tuple[int, AsyncRequest]] = []
        self._together: list[tuple[int, Awaitable[Any]]] = []

    async def run(self, world: AsyncCommunicator) -> None:
        """Take all steps."""
        rank, fate = world.rank, self._schedule.fate
        everybody = tuple(range(world.size))
        comms = [_Comm(world, [everybody], everybody)]
        self._order = random.Random(rank)
        is_mine = fate is not None and fate.rank == rank
        for at, step in enumerate(self._schedule.steps):
            if is_mine and fate is not None and fate.at % len(self._schedule.steps) == at:
                if fate.what == "raises":
                    raise Raised(f"rank {rank} before step {at}")
                if fate.what == "aborts":
                    await world.abort(3)
                self._found.strayed = fate.what == "strays"
            if step.pause is not None and step.pause[0] == rank:
                await compute(step.pause[1])
            if not (step.what in COLLECTIVES and step.style == "together"):
                await self._finish_together()
            which = step.which % len(comms)
            await self._take(at, step, comms, which, self._found.strayed)
        await self._finish_together()
        await self._wait()
        self._found.is_whole = True

    async def _take(
        self, at: int, step: Step, comms: list[_Comm], which: int, strays: bool
    ) -> None:
        comm = comms[which]
        rank = comms[0].place
        match step.what:
            case "wait":
                await self._wait()
            case "dup":
                inner = None if comm.inner is None else await comm.inner.dup()
                comms.append(_Comm(inner, comm.parts, comm.part))
            case "split":
                inner = None
                if comm.inner is not None:
                    inner = await comm.inner.split(step.colors[rank], step.keys[rank])
                parts = parts_of(step, comm.parts)
                mine = next((part for part in parts if rank in part), ())
                is_right = not mine
                if inner is not None:
                    is_right = (inner.size, inner.rank) == (len(mine), mine.index(rank))
                if not is_right:
                    self._found.wrong.append(f"step {at}: {inner!r} is not {mine}")
                comms.append(_Comm(inner, parts, mine))
            case "free":
                if which:
                    await self._wait()
                    if comm.inner is not None:
                        await comm.inner.free()
                    del comms[which]
            case "traffic":
                if comm.inner is not None:
                    await self._talk(at, step, comm.inner)
            case _:
                if comm.inner is not None:
                    await self._collective(at, step, comm, strays)

    # Collectives

    async def _collective(self, at: int, step: Step, comm: _Comm, strays: bool) -> None:
        assert comm.inner is not None
        value = given(step, comm.part, comm.place)
        before = canon(value) if step.what in REDUCING else None
        prefix = "i" if step.style == "begin" else ""
        if strays and self._schedule.fate is not None and not self._has_passed(at):
            what = "allgather" if step.what == "barrier" else "barrier"
            call = getattr(comm.inner, prefix + what)
            begun = call(1) if what == "allgather" else call()
        else:
            begun = getattr(comm.inner, prefix + step.what)(*_arguments(step, comm, value))
        if step.style == "begin":
            spoil(value)
            self._under_way.append((at, begun))
        elif step.style == "together":
            self._together.append((at, begun))
        else:
            self._keep(at, await begun)
            if before is not None and canon(value) != before:
                self._found.wrong.append(f"step {at}: what this rank gave was changed")
            spoil(value)

    def _has_passed(self, at: int) -> bool:
        fate = self._schedule.fate
        assert fate is not None
        return fate.at % len(self._schedule.steps) != at

    async def _finish_together(self) -> None:
        together, self._together = self._together, []
        if together:
            for (at, _), result in zip(
                together, await asyncio.gather(*(each for _, each in together)), strict=True
            ):
                self._keep(at, result)

    async def _wait(self) -> None:
        self._order.shuffle(self._under_way)
        under_way, self._under_way = self._under_way, []
        for at, request in under_way:
            result = await request
            if at >= 0:
                self._keep(at, result)

    def _keep(self, at: int, result: Any) -> None:
        self._found.results[at] = canon(result)
        spoil(result)  # it is this rank's own: nobody else is to see it

    # Point to point

    async def _talk(self, at: int, step: Step, comm: AsyncCommunicator) -> None:
        every = messages(step, at, comm.size)
        sends = [sent for sent in every if sent.source == comm.rank]
        receives = [sent for sent in every if sent.dest == comm.rank]
        self._order.shuffle(receives)
        # Those that name whom they want are first: those that do not leave them nothing.
        receives.sort(key=lambda sent: None in wanted(step, sent))
        receipts: list[Receipt | None] = [None] * len(receives)
        posted: list[tuple[int, AsyncRequest]] = []
        left = []
        for nth, sent in enumerate(receives):
            source, tag = wanted(step, sent)
            if sent.line.received == "posted" and None not in (source, tag):
                posted.append((nth, comm.irecv(**_asked(source, tag))))
            else:
                left.append((nth, sent))
        # The order in which receives were posted is what counts.
        places = [nth for nth, _ in posted]
        if sends:
            await self._send(step, comm, sends, left, receipts, posted, places)
        for nth, sent in left:
            places.append(nth)
            await self._receive(comm, nth, wanted(step, sent), sent.line.received, receipts, posted)
        await self._complete(step, receives, receipts, posted)
        self._found.receipts[at] = [receipt for nth in places if (receipt := receipts[nth])]
        if step.wild == "both":
            # What comes next on this communicator is not to be taken by those who take anything.
            await comm.barrier()

    async def _send(
        self,
        step: Step,
        comm: AsyncCommunicator,
        sends: list[Sent],
        left: list[tuple[int, Sent]],
        receipts: list[Receipt | None],
        posted: list[tuple[int, AsyncRequest]],
        places: list[int],
    ) -> None:
        for sent in sends:
            value = sent.value()
            how = sent.line.sent
            if how == "sendrecv" and sent is sends[-1] and left:
                # The last send only: a partner who waits for another one would wait for ever.
                nth, first = left.pop(0)
                places.append(nth)
                status = Status()
                source, tag = wanted(step, first)
                got = await comm.sendrecv(
                    value,
                    sent.dest,
                    sent.tag,
                    source=ANY_SOURCE if source is None else source,
                    recvtag=ANY_TAG if tag is None else tag,
                    status=status,
                )
                receipts[nth] = Receipt(source, tag, got, (status.source, status.tag))
            elif how == "isend":
                request = comm.isend(value, sent.dest, tag=sent.tag)
                if step.waited == "each":
                    self._under_way.append((-1, request))
                else:
                    posted.append((-1, request))
            else:
                await comm.send(value, dest=sent.dest, tag=sent.tag)
            spoil(value)

    async def _receive(
        self,
        comm: AsyncCommunicator,
        nth: int,
        want: tuple[int | None, int | None],
        how: str,
        receipts: list[Receipt | None],
        posted: list[tuple[int, AsyncRequest]],
    ) -> None:
        status, asked = Status(), _asked(*want)
        if how in ("irecv", "posted"):
            posted.append((nth, comm.irecv(**asked)))
            return
        if how == "cancel":
            request = comm.irecv(**asked)
            if nth % 2:
                await asyncio.sleep(0.05)
            request.cancel()
            got = await request.wait(status)
            if not status.cancelled:
                receipts[nth] = Receipt(*want, got, (status.source, status.tag))
                return
        seen = Status()
        if how == "probe":
            await comm.probe(**asked, status=seen)
        elif how == "iprobe":
            while not await comm.iprobe(**asked, status=seen):  # noqa: ASYNC110  the user's loop
                await asyncio.sleep(0.5)
        if how in ("probe", "iprobe"):
            asked = {"source": seen.source, "tag": seen.tag}
        got = await comm.recv(**asked, status=status)
        if how in ("probe", "iprobe") and (seen.source, seen.tag) != (status.source, status.tag):
            self._found.wrong.append(f"{how} saw {seen}, the receive got {status}")
        receipts[nth] = Receipt(*want, got, (status.source, status.tag))

    async def _complete(
        self,
        step: Step,
        receives: list[Sent],
        receipts: list[Receipt | None],
        posted: list[tuple[int, AsyncRequest]],
    ) -> None:
        """Wait for what was begun, in the way that the step says."""
        if not posted:
            return
        self._order.shuffle(posted)
        requests = [request for _, request in posted]

        def keep(place: int, got: Any, status: Status) -> None:
            nth = posted[place][0]
            if nth >= 0:
                want = wanted(step, receives[nth])
                receipts[nth] = Receipt(*want, got, (status.source, status.tag))
            elif got is not None:
                self._found.wrong.append(f"a send came to {got!r}")

        await WAITS[step.waited](requests, keep)
        if any(requests) or any(not receipt for receipt in receipts):
            self._found.wrong.append(f"{step.waited} left something undone")


Keep = Callable[[int, Any, Status], None]


async def _each(requests: list[AsyncRequest], keep: Keep) -> None:
    for place, request in enumerate(requests):
        status = Status()
        keep(place, await request.wait(status), status)


async def _waitall(requests: list[AsyncRequest], keep: Keep) -> None:
    statuses: list[Status] = []
    for place, got in enumerate(await AsyncRequest.waitall(requests, statuses)):
        keep(place, got, statuses[place])


async def _waitany(requests: list[AsyncRequest], keep: Keep) -> None:
    while True:
        status = Status()
        place, got = await AsyncRequest.waitany(requests, status)
        if place == UNDEFINED:
            return
        keep(place, got, status)


async def _waitsome(requests: list[AsyncRequest], keep: Keep) -> None:
    while True:
        statuses: list[Status] = []
        places, values = await AsyncRequest.waitsome(requests, statuses)
        if places is None or values is None:
            return
        for nth, place in enumerate(places):
            keep(place, values[nth], statuses[nth])


async def _testall(requests: list[AsyncRequest], keep: Keep) -> None:
    while True:
        statuses: list[Status] = []
        are_done, values = await AsyncRequest.testall(requests, statuses)
        if are_done:
            for place, got in enumerate(values or ()):
                keep(place, got, statuses[place])
            return
        await asyncio.sleep(0.5)


async def _testany(requests: list[AsyncRequest], keep: Keep) -> None:
    while True:
        status = Status()
        place, is_done, got = await AsyncRequest.testany(requests, status)
        if place != UNDEFINED:
            keep(place, got, status)
        elif is_done:
            return
        else:
            await asyncio.sleep(0.5)


async def _testsome(requests: list[AsyncRequest], keep: Keep) -> None:
    while True:
        statuses: list[Status] = []
        places, values = await AsyncRequest.testsome(requests, statuses)
        if places is None or values is None:
            return
        for nth, place in enumerate(places):
            keep(place, values[nth], statuses[nth])
        if not places:
            await asyncio.sleep(0.5)


WAITS = {
    "each": _each,
    "waitall": _waitall,
    "waitany": _waitany,
    "waitsome": _waitsome,
    "testall": _testall,
    "testany": _testany,
    "testsome": _testsome,
}


def _asked(source: int | None, tag: int | None) -> dict[str, Any]:
    return {
        "source": ANY_SOURCE if source is None else source,
        "tag": ANY_TAG if tag is None else tag,
    }


def _arguments(step: Step, comm: _Comm, value: Any) -> tuple[Any, ...]:
    root = (step.root % len(comm.part),) if step.what in ROOTED else ()
    match step.what:
        case "barrier":
            return ()
        case "neighbor_alltoall":
            return value, [s for s, d in edges(step, len(comm.part)) if d == comm.place]
    op = (OWN.get(step.op) or getattr(collective, step.op),) if step.what in REDUCING else ()
    return (value, *op, *root)
