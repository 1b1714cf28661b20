"""Named groups: tasks that were not started as a gang meet under a name, and leave together.

They meet through objects whose keys all know: the *charter* (first come, it fixes the group's id,
size and channel), a *place* for each rank (its inbox), and the *verdict* of rank 0 (all places, or
why there is no group). From then on the group is a gang without anybody who watches over it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fsdray import collective, context, failure, loop, session
from fsdray.collective import channels, plain
from fsdray.collective.channels import Channel, Rendezvous
from fsdray.collective.combined import path
from fsdray.collective.communicator import AsyncCommunicator
from fsdray.collective.endpoint import named
from fsdray.collective.envelope import rank_in
from fsdray.collective.frames import Key
from fsdray.collective.mailbox import Mailbox
from fsdray.collective.member import WORLD, child_id
from fsdray.costs.medium import USUAL, Medium
from fsdray.errors import (
    CollectiveError,
    CollectiveTimeout,
    ServiceError,
    SettingsError,
)
from fsdray.gang import Breaker, again
from fsdray.services import Backend, Blob
from fsdray.settings import check_channel

PATIENCE = 900.0
"""Seconds that a group has outside tasks, which have a time limit of their own."""
_LAST_WORDS = 2.0, 0.2  # seconds, and of a task's time: kept for failing with a proper error
_LONGEST_NAME = 200
_FAREWELL = 2**64 - 1  # the number under which a group's last messages have their communicator


@dataclass(frozen=True)
class Terms:
    """What all ranks of a group must agree on."""

    world_size: int
    channel: str

    def __str__(self) -> str:
        return f"world_size={self.world_size}, channel={self.channel!r}"


@dataclass(frozen=True)
class Keys:
    """Where a group's objects are."""

    name: str
    id: str = ""

    @property
    def charter(self) -> str:
        return f"groups/{quote(self.name, safe='')}/charter"

    @property
    def verdict(self) -> str:
        return f"groups/{quote(self.name, safe='')}/{self.id}/verdict"

    def place(self, rank: int) -> str:
        """Where `rank` says that it is there."""
        return f"groups/{quote(self.name, safe='')}/{self.id}/{rank}"


class NamedGroup:
    """One rank's part of one group, from joining to leaving; used on the loop only.

    Parameters
    ----------
    who : for people: which task this is.
    deadline : the loop's time at which every wait ends.
    """

    def __init__(
        self,
        backend: Backend,
        name: str,
        rank: int,
        terms: Terms,
        deadline: float,
        who: str,
        medium: Medium = USUAL,
    ) -> None:
        check_channel(terms.channel)
        if not 0 < len(name) <= _LONGEST_NAME:
            raise SettingsError(f"name={name!r}: a group's name has 1 to {_LONGEST_NAME} letters")
        if not isinstance(terms.world_size, int) or terms.world_size < 1:
            raise SettingsError(f"world_size={terms.world_size!r}: a group has at least one rank")
        self.name = name
        self.rank = rank_in(rank, terms.world_size, "rank")
        self.size = terms.world_size
        self._backend = backend
        self._terms = terms
        self._deadline = deadline
        self._who = who
        self._medium = medium  # the first rank's, for all
        self._keys = Keys(name)
        self._etag = ""  # of the charter
        self._has_place = False
        self._inboxes: list[str] = []  # that this rank has leased
        self._meeting: Rendezvous | None = None
        self._channel: Channel | None = None
        self.breaker = Breaker(self._announce)
        self.communicator: AsyncCommunicator | None = None
        self.is_over = False

    async def join(self) -> AsyncCommunicator:
        """Meet the others; all of them are there when this returns.

        Raises
        ------
        CollectiveTimeout
            naming the ranks that did not come.
        CollectiveError
            where ranks disagree on the terms, or one is there twice: at once, at all of them.
        """
        try:
            inboxes = await self._meet()
        except BaseException:
            await self._clean(is_broken=True)
            raise
        self._meeting = Rendezvous(
            self._keys.id, self._terms.channel, tuple(inboxes), medium=self._medium
        )
        mailbox = Mailbox(self._meeting.epoch, self.rank, self.breaker.heard)
        self.breaker.listen(lambda error: mailbox.fail(lambda: again(error)))
        self._channel = channels.open_channel(
            self._backend, self._meeting, self.rank, self.size, mailbox
        )
        self.communicator = AsyncCommunicator(
            self.rank, self.size, self._channel, mailbox, self._deadline, self.fail
        )
        self.communicator.on_free(self.leave)
        return self.communicator

    async def leave(self) -> None:
        """Part from the others: when this returns all have called it, and nothing is left."""
        assert self.communicator is not None
        assert self._channel is not None
        assert self._meeting is not None
        self.is_over = True
        number = child_id(WORLD, _FAREWELL, 0)
        last = self.communicator.child(number)
        try:
            if self.rank == 0:
                await asyncio.gather(*(last.recv(source=rank) for rank in range(1, self.size)))
                # From here on the name is free.
                places = [self._keys.place(rank) for rank in range(self.size)]
                await self._backend.objects.delete(
                    [self._keys.charter, self._keys.verdict, *places]
                )
                written = list(self._channel.written)
                await asyncio.gather(*(last.send(None, rank) for rank in range(1, self.size)))
            else:
                await last.send(None, 0)
                await last.recv(source=0)
                goodbye = Key(number, True, 0, 0)  # its one reader removes it
                written = list(self._channel.written)
                if self._terms.channel == "object":
                    written.append(path(self._keys.id, goodbye, self.rank))
            self._has_place = False
        except BaseException:
            await self._end()
            raise
        await self._clean(written)

    async def fail(self, why: BaseException) -> None:
        """This rank will not talk any more: the others fail at once, and the name is free."""
        if not self.is_over:
            self.is_over = True
            encoded = failure.encode(failure.capture(why, self._who))
            self.breaker.trip(((self.rank,), encoded), is_death=True, is_news=True)
            if self.breaker.announcing is not None:
                await asyncio.wait([self.breaker.announcing])
            await self._end()

    # Meeting

    async def _meet(self) -> Sequence[str]:
        """All inboxes, in rank order."""
        group, terms = await self._charter()
        self._keys = Keys(self.name, group)
        if terms != self._terms:
            raise await self._refused(f"{self._title()} has {self._terms}, the others have {terms}")
        if channels.has_inboxes(terms.channel):
            self._inboxes = await self._backend.messages.lease(1)
        place = {"who": self._who, "inboxes": self._inboxes}
        if await self._put(self._keys.place(self.rank), place, if_absent=True) is None:
            first = await self._read(self._keys.place(self.rank))
            whose = f": {first['who']}" if first else ""
            raise await self._refused(f"{self._title()} is there already{whose}")
        self._has_place = True
        verdict = await (self._gather() if self.rank == 0 else self._verdict())
        if "error" in verdict:
            kind = CollectiveTimeout if verdict["is_late"] else CollectiveError
            raise kind(verdict["error"])
        inboxes: list[str] = verdict["inboxes"]
        return inboxes

    async def _charter(self) -> tuple[str, Terms]:
        """The group's id and terms; who comes first writes them."""
        objects, key = self._backend.objects, self._keys.charter
        while True:
            blob = await objects.get(key)
            old = _loaded(blob)
            if blob is None or old is None or old["is_over"]:
                group = secrets.token_hex(16)
                terms = {**vars(self._terms), "medium": self._medium.as_json()}
                new = {"id": group, "is_over": False, "by": self._who, **terms}
                etag = await self._put(
                    key, new, if_absent=blob is None, if_match=blob.etag if blob else None
                )
                if etag is not None:
                    self._etag = etag
                    return group, self._terms
            else:
                self._etag = blob.etag
                self._medium = Medium.from_json(old["medium"])
                return old["id"], Terms(old["world_size"], old["channel"])

    async def _gather(self) -> dict[str, Any]:
        """Rank 0: wait for all others, or for one of them to refuse; the verdict."""
        ranks = range(1, self.size)
        refused = asyncio.ensure_future(self._wait(self._keys.verdict))
        coming = {rank: asyncio.ensure_future(self._wait(self._keys.place(rank))) for rank in ranks}
        everybody = asyncio.gather(*coming.values())
        waits: list[asyncio.Future[Any]] = [everybody, refused]
        try:
            await asyncio.wait(
                waits,
                timeout=max(0.0, self._deadline - asyncio.get_running_loop().time()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if refused.done():
                return refused.result()
            if not everybody.done():
                missing = [rank for rank in ranks if not coming[rank].done()]
                return await self._judge(self._late(missing))
            places = everybody.result()
            inboxes = [*self._inboxes, *(inbox for each in places for inbox in each["inboxes"])]
            return await self._judge({"inboxes": inboxes})
        finally:
            for task in waits:
                task.cancel()
            await asyncio.wait([refused, *coming.values()])

    async def _verdict(self) -> dict[str, Any]:
        """Any other rank: wait for rank 0."""
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._wait(self._keys.verdict)
        except TimeoutError:
            pass  # it is looked at who was missing
        found = [
            await self._read(self._keys.place(rank)) if rank != self.rank else {}
            for rank in range(self.size)
        ]
        return await self._judge(
            self._late([rank for rank in range(self.size) if found[rank] is None])
        )

    def _late(self, missing: Sequence[int]) -> dict[str, Any]:
        who = f"{named(missing)} did not come in time" if missing else "rank 0 did not answer"
        return {"error": f"group {self.name!r} of {self.size}: {who}", "is_late": True}

    async def _refused(self, why: str) -> CollectiveError:
        """Tell those who wait that there will be no group, and why."""
        error = f"group {self.name!r}: {why}"
        verdict = await self._judge({"error": error, "is_late": False})
        return CollectiveError(verdict.get("error", error))

    async def _judge(self, verdict: dict[str, Any]) -> dict[str, Any]:
        """Say how it ends; who says it first is who is believed."""
        if await self._put(self._keys.verdict, verdict, if_absent=True) is None:
            said = await self._read(self._keys.verdict)
            return verdict if said is None else said
        if "error" in verdict:
            await self._free_the_name()
        return verdict

    def _title(self) -> str:
        return f"rank {self.rank} ({self._who})"

    # Leaving

    async def _end(self) -> None:
        """Leave alone: the group is broken."""
        await self._free_the_name()
        assert self._channel is not None
        await self._clean(list(self._channel.written), is_broken=True)

    async def _free_the_name(self) -> None:
        # On condition: another group may have taken the name since.
        await self._put(self._keys.charter, {"is_over": True}, if_match=self._etag)

    async def _clean(self, written: Sequence[str] = (), *, is_broken: bool = False) -> None:
        """Remove what is this rank's own."""
        if self._channel is not None:
            assert self.communicator is not None
            await self.communicator.close()
        if self._inboxes:
            await self._backend.messages.release(self._inboxes, is_broken=is_broken)
            self._inboxes = []
        own = [*written, *([self._keys.place(self.rank)] if self._has_place else ())]
        self._has_place = False
        if own:
            await self._backend.objects.delete(own)

    def _announce(self, why: bytes) -> asyncio.Task[list[str]]:
        return asyncio.create_task(self._tell(why))

    async def _tell(self, why: bytes) -> list[str]:
        """Tell the others; the objects that this wrote, which stay for those who come to look."""
        assert self._meeting is not None
        try:
            return await channels.announce(self._backend, self._meeting, self.rank, self.size, why)
        except ServiceError:
            # Some have gone and given their inboxes back: the others are told one by one.
            await asyncio.gather(
                *(
                    channels.announce(
                        self._backend,
                        Rendezvous(self._meeting.gang, self._meeting.channel, (inbox,)),
                        self.rank,
                        self.size,
                        why,
                    )
                    for inbox in self._meeting.inboxes
                ),
                return_exceptions=True,
            )
            return []

    # Objects

    async def _put(self, key: str, value: Any, **condition: Any) -> str | None:
        return await self._backend.objects.put(key, json.dumps(value).encode(), **condition)

    async def _read(self, key: str) -> dict[str, Any] | None:
        return _loaded(await self._backend.objects.get(key))

    async def _wait(self, key: str) -> dict[str, Any]:
        while (found := _loaded(await self._backend.objects.get(key, wait=PATIENCE))) is None:
            pass  # the deadline is the caller's
        return found


def _loaded(blob: Blob | None) -> dict[str, Any] | None:
    if blob is None:
        return None
    value: dict[str, Any] = json.loads(bytes(blob.data))
    return value


# Of this process

_joined: dict[str, NamedGroup] = {}
_task_deadline: float | None = None


def init_group(
    name: str, rank: int, world_size: int, channel: str | None, timeout: float | None
) -> plain.Communicator:
    """See `fsdray.collective.init_group`."""
    if name in _joined and not _joined[name].is_over:
        raise SettingsError(f"this task is in group {name!r} already: destroy_group({name!r})")
    here = session.current()
    limit = time.monotonic() + PATIENCE if _task_deadline is None else _task_deadline
    if timeout is not None:
        limit = min(limit, time.monotonic() + timeout)
    now = context.get_runtime_context()
    who = "the driver" if now.task_id is None else f"task {now.task_name}, id {now.task_id}"
    terms = Terms(world_size, channel or here.settings.channel)
    medium = here.medium(here.settings.memory)

    async def join() -> NamedGroup:
        collective.by_chance("init_group")  # what a rank that ran before had told it is gone
        group = NamedGroup(here.backend, name, rank, terms, limit, who, medium)
        await group.join()
        return group

    if now.task_id is not None:
        # Those it waits for may need the very place that it has.
        loop.when_long(here.yielded)
    group = loop.run(join())
    _joined[name] = group
    assert group.communicator is not None
    return plain.Communicator(group.communicator)


def destroy_group(name: str) -> None:
    """See `fsdray.collective.destroy_group`."""
    group = _joined.pop(name, None)
    if group is None or group.is_over:
        raise SettingsError(f"this task is in no group {name!r}")
    assert group.communicator is not None
    loop.run(group.communicator.free())


@contextmanager
def ending_with_task(timeout: float) -> Iterator[None]:
    """Around a task's function, which has `timeout` seconds: its groups end with it."""
    global _task_deadline
    before = loop.meanwhile()
    seconds, share = _LAST_WORDS
    _task_deadline = time.monotonic() + timeout - min(seconds, share * timeout)
    try:
        yield
    except BaseException as error:
        # Whatever it is: the others must not wait for this rank.
        why = error
        _part(lambda group: group.fail(why))
        raise
    else:
        # Its value is whole, whatever becomes of the others.
        with suppress(CollectiveError):
            _part(lambda group: group.leave())
    finally:
        _task_deadline = None
        loop.when_long(before)


def _part(how: Callable[[NamedGroup], Coroutine[Any, Any, None]]) -> None:
    groups = [group for group in _joined.values() if not group.is_over]
    _joined.clear()
    if groups:
        loop.run(_part_at_once(how, groups))


async def _part_at_once(
    how: Callable[[NamedGroup], Coroutine[Any, Any, None]], groups: Sequence[NamedGroup]
) -> None:
    # One after the other, tasks that joined in different orders would wait for each other.
    results = await asyncio.gather(*map(how, groups), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
