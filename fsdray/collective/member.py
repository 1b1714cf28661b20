"""A rank of a communicator: its numbers, and one exchange of messages with the others.

This is the ground that point-to-point (`p2p`) and collectives (`communicator`) stand on: encode,
number, post, wait, and see that the others called the same. Which ranks exchange is given.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from hashlib import blake2b
from typing import Any, SupportsIndex, TypeVar

from fsdray import buffers, wire
from fsdray.collective import codec
from fsdray.collective.algorithms import Exchange
from fsdray.collective.channels import SendsNothing
from fsdray.collective.endpoint import Endpoint
from fsdray.collective.envelope import rank_in
from fsdray.collective.frames import Key, Operation
from fsdray.collective.mailbox import Called, Letter
from fsdray.collective.parcels import Outgoing, Parcel
from fsdray.collective.requests import AsyncRequest
from fsdray.collective.tail import Tail, is_ours
from fsdray.errors import CollectiveError, MismatchedCollective

T = TypeVar("T")

WORLD = 0
"""The id of the communicator of all ranks of a gang."""


class Member:
    """See the module; `AsyncCommunicator` is the whole."""

    rank: int
    size: int

    def _begin(self, end: Endpoint, number: int, members: Sequence[int], rank: int) -> None:
        """Become rank `rank` of communicator `number`, whose ranks are these of the gang."""
        self._end = end
        self._id = number
        self._members = members
        self.rank = rank
        self.size = len(members)
        self._numbers = itertools.count()
        self._active: set[int] = set()
        self._posted: asyncio.Future[None] | None = None  # of what is being begun
        self._is_free = False
        self._choices: dict[Any, Any] = {}
        self._last: tuple[Operation, int] | None = None  # the last call, and its largest message

    @property
    def sent_bytes(self) -> int:
        """Bytes of payload that this rank has sent to others so far, as packed."""
        return self._end.sent_bytes

    async def compute(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function that takes its time, beside the loop."""
        return await asyncio.to_thread(function, *args)

    # For the classes above

    async def _finish(self, function: Callable[..., Any], *args: Any) -> Any:
        """`compute`, as the last thing that an operation does."""
        if is_ours.get():
            return Tail(function, *args)
        return await self.compute(function, *args)

    def _exchange(
        self,
        operation: Operation,
        pattern: Exchange,
        given: Sequence[Any],
        *,
        root: int = 0,
        number: int | None = None,
    ) -> Coroutine[Any, Any, dict[int, Any]]:
        """One round: `given` has a value for each group of destinations; what came, by source.

        Its place in the order of operations is that of this call, not of the await.
        """
        self._check_open()
        parcels = [
            self._parcel(ranks, value)
            for ranks, value in zip(pattern.destinations, given, strict=True)
        ]
        # Numbered last: what cannot be encoded has not taken part, and may be given again.
        number = self._number() if number is None else number
        self._note(operation, parcels)
        outgoing = Outgoing(operation, self._id, number, root, parcels, pattern.fellows)
        return self._do_exchange(outgoing, pattern.sources, self._posted)

    def _parcel(self, ranks: Sequence[int], value: Any) -> Parcel:
        packing, payload = codec.encode(wire.encode(value), self.size)
        if self._posted is not None:
            # Its owner may change it before it is sent.
            payload = [b"".join(payload)]
        return Parcel.of(tuple(self._members[rank] for rank in ranks), packing, payload)

    def _note(self, operation: Operation, parcels: Sequence[Parcel]) -> None:
        """What a round sends is counted, and kept for `explain`."""
        largest = 0
        for parcel in parcels:
            self._end.sent_bytes += parcel.size
            largest = max(largest, parcel.size)
        if parcels or self._last is None or self._last[0] != operation:
            self._last = operation, largest

    def _begun(self, call: Callable[[], Awaitable[T]]) -> asyncio.Future[T]:
        """Begin an operation, which goes on by itself; what it is given may be changed at once."""
        posted = self._posted = asyncio.get_running_loop().create_future()
        try:
            work = call()
        finally:
            self._posted = None
        return self._end.begin(work, posted)

    def _request(self, call: Callable[[], Awaitable[Any]]) -> AsyncRequest:
        """Begin a collective."""
        return AsyncRequest(self._begun(call), chance=self._end.chance)

    def _number(self) -> int:
        number = next(self._numbers)
        self._active.add(number)
        return number

    def _rank(self, rank: SupportsIndex, what: str) -> int:
        return rank_in(rank, self.size, what)

    def _who(self, what: str) -> str:
        return f"{what} at rank {self.rank} of {self.size}"

    def _check_open(self) -> None:
        if self._is_free:
            raise CollectiveError("this communicator was freed")

    # Inside

    async def _do_exchange(
        self, outgoing: Outgoing, sources: Sequence[int], posted: asyncio.Future[None] | None
    ) -> dict[int, Any]:
        try:
            letters = await self._swap(outgoing, sources, posted)
            stranger = self._end.mailbox.unasked(self._id, outgoing.number)
            if stranger is not None:
                called = Called(outgoing.operation, outgoing.tag)
                self._check_same(called, stranger, is_asked=False)
        finally:
            self._over(outgoing.number)
        return {source: opened(letter) for source, letter in letters.items()}

    def _is_awaited(self, operation: Operation) -> bool:
        """Whether the others wait for this rank while it waits for them."""
        return False

    def _over(self, *numbers: int) -> None:
        """These rounds are over: what still comes of them is dropped."""
        self._active -= set(numbers)
        floor = min(self._active, default=max(numbers) + 1)
        self._end.mailbox.close_below(self._id, floor)

    async def _swap(
        self,
        outgoing: Outgoing,
        sources: Sequence[int],
        posted: asyncio.Future[None] | None = None,
        before: int | None = None,
    ) -> dict[int, Letter]:
        """Send, and take what these ranks send in the same round.

        `before` is the number of the round before, in which this rank was to hear of nobody: what
        came of it all the same must be of the same operation.
        """
        number = outgoing.number
        called = Called(outgoing.operation, outgoing.tag)
        mailbox = self._end.mailbox
        keys = {source: Key(self._id, False, number, self._members[source]) for source in sources}
        mailbox.check()
        if outgoing.parcels and self._end.channel.is_leaving:
            # A send that began just before goes alone, whatever has come meanwhile: what travels
            # together must not depend on that.
            await asyncio.sleep(0)
        sent = self._end.post(outgoing, posted) if outgoing.parcels else None
        if sent is not None and sent.done():
            sent = sent.result()  # it raises what went wrong
        is_there = not keys or self._end.collect_here(
            lambda: len(keys) - sum(map(mailbox.has, keys.values()))
        )
        if is_there and keys:
            self._missing(called, list(keys.values()), before)
        if not is_there or sent is not None:
            await self._end.within(
                lambda: self._who(outgoing.operation.name.lower()),
                lambda: [source for source, key in keys.items() if not mailbox.has(key)],
                sent,
                None if is_there else self._collect(called, list(keys.values()), before),
                is_early=bool(sources) and self._is_awaited(outgoing.operation),
            )
        return {source: mailbox.take(key) for source, key in keys.items()}

    async def _collect(
        self, called: Called, keys: Sequence[Key], before: int | None = None
    ) -> None:
        """Wait until all are there; the first that is of another operation ends the wait."""
        while missing := self._missing(called, keys, before):
            try:
                await self._arrival_of(missing, before, called)
            except SendsNothing as error:
                source = self._members.index(error.source)
                raise MismatchedCollective(
                    f"rank {self.rank} called {called.operation.name.lower()} where rank {source} "
                    f"called {error.called}, which sends nothing to rank {self.rank}"
                ) from error

    def _missing(self, called: Called, keys: Sequence[Key], before: int | None) -> list[Key]:
        """Which are not there; raises where one that is, is of another operation."""
        mailbox = self._end.mailbox
        for key in keys:
            self._check_same(called, key)
        if before is not None:
            stranger = mailbox.others(self._id, before, called)
            if stranger is not None:
                self._check_same(called, stranger)
        return [key for key in keys if not mailbox.has(key)]

    async def _arrival_of(self, missing: Sequence[Key], before: int | None, called: Called) -> None:
        """Wait for one of these; where nobody would be told of it, look what rank 0 did before."""
        channel = self._end.channel
        if before is None or channel.name != "object":
            await channel.collect(missing, called)
            return
        theirs = Key(self._id, False, before, self._members[0])

        async def collect() -> None:
            # This runs a turn of the loop later: what has come by then is not waited for.
            if not any(self._end.mailbox.has(key) for key in missing):
                await channel.collect(missing)

        tasks: list[asyncio.Future[None]] = [
            asyncio.ensure_future(collect()),
            asyncio.ensure_future(channel.strays(theirs, called.operation)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()

    def _check_same(self, mine: Called, key: Key, *, is_asked: bool = True) -> None:
        theirs = self._end.mailbox.called(key)
        if theirs is None or (theirs == mine and is_asked):
            return
        source = self._members.index(key.source)
        ours, others = mine.operation.name.lower(), theirs.operation.name.lower()
        if ours == others and mine.root != theirs.root:
            ours, others = f"{ours} with root={mine.root}", f"{others} with root={theirs.root}"
        elif ours == others:
            others += f", which sends to rank {self.rank}, who did not expect it"
        raise MismatchedCollective(
            f"rank {self.rank} called {ours} where rank {source} called {others}"
        )


def opened(letter: Letter) -> Any:
    """A message's value."""
    return wire.decode(codec.decode(letter.codec, letter.payload))


def copied(value: Any) -> Any:
    """This rank's own contribution as the others would receive it: nobody shares it."""
    if wire.is_simple(value):
        return value.copy(order="A")
    return wire.decode(buffers.own(wire.encode(value)))


def child_id(parent: int, number: int, color: int) -> int:
    """The id of the communicator that operation `number` of `parent` made for `color`.

    All its ranks know it without a word; 64 bits of a hash, so that two communicators of one
    rank have one id by chance once in 10^19 pairs.
    """
    name = struct.pack("<QQq", parent, number, color)
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "little")
