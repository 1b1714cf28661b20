"""The communicator: mpi4py's lower-case object API, in coroutines, over a channel and a mailbox.

Here are the collectives, and the communicators made from one (`split`, `dup`); messages between
two ranks are in `p2p`, and both stand on `member`. Who sends to whom is in `algorithms`. The plain
façade that tasks use is `plain.Communicator`.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, NoReturn, Self, SupportsIndex, TypeVar

from fsdray.collective.algorithms import Exchange, all_to_all, from_root, to_higher, to_root
from fsdray.collective.channels import Channel
from fsdray.collective.endpoint import Abort, Chance, Endpoint, never_again, tell_nobody
from fsdray.collective.envelope import UNDEFINED, is_number, rank_in
from fsdray.collective.frames import Operation
from fsdray.collective.mailbox import Mailbox
from fsdray.collective.member import WORLD, child_id, copied
from fsdray.collective.ops import SUM, Op, fold, is_plain_array, is_quick
from fsdray.collective.relay import Relays
from fsdray.collective.requests import AsyncRequest
from fsdray.errors import CollectiveError, RankFailed, SettingsError
from fsdray.steps import in_task

T = TypeVar("T")

MAX_COLOR = 2**31  # as in MPI, whose colors are C's int


class AsyncCommunicator(Relays):
    """What the ranks of a group talk through, in coroutines.

    Collectives and sends take their place in the order of operations when they are *called*, not
    when they are awaited, so an operation may be started, other work done, and its result awaited
    later; a `recv` takes it when it is first awaited. All ranks must call the same collectives in
    the same order. Arguments are checked when an operation is called: where that raises, nothing
    has been sent, and it may be called again.

    Parameters
    ----------
    rank, size : this rank, and how many there are.
    deadline : the loop's time at which every wait ends with `CollectiveTimeout`.
    abort : tells all other ranks that the gang is over.
    chance : told of what would not be the same if this rank ran again.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        channel: Channel,
        mailbox: Mailbox,
        deadline: float,
        abort: Abort = tell_nobody,
        chance: Chance = never_again,
    ) -> None:
        self._farewell: Callable[[], Awaitable[None]] | None = None
        end = Endpoint(rank, channel, mailbox, deadline, abort, chance)
        self._begin(end, WORLD, range(size), rank)

    # Root gives or is given

    def bcast(self, obj: Any, root: int = 0) -> Awaitable[Any]:
        """Root's `obj` at every rank; root too is given a copy, which it may write."""
        root = self._rank(root, "root")
        own = self._copy(obj) if self.rank == root else None
        exchange = self._same_to_all(Operation.BCAST, obj, root)
        return _then(exchange, lambda got: own() if own else got[root])

    def scatter(self, sendobj: Sequence[Any] | None, root: int = 0) -> Awaitable[Any]:
        """Of root's sequence, one object a rank, the one of this rank."""
        root = self._rank(root, "root")
        is_root = self.rank == root
        values = self._one_a_rank("scatter", sendobj) if is_root else []
        own = self._copy(values[root]) if is_root else None
        exchange = self._own_to_each(Operation.SCATTER, values, root)
        return _then(exchange, lambda got: own() if own else got[root])

    def gather(self, sendobj: Any, root: int = 0) -> Awaitable[list[Any] | None]:
        """At root the objects of all ranks, in their order; None elsewhere."""
        root = self._rank(root, "root")
        own = self._copy(sendobj) if self.rank == root else None
        exchange = self._same_to_all(Operation.GATHER, sendobj, root)
        return _then(exchange, lambda got: self._in_order(got, own()) if own else None)

    def reduce(self, sendobj: Any, op: Op = SUM, root: int = 0) -> Awaitable[Any]:
        """At root all ranks' objects, reduced in rank order; None elsewhere."""
        root = self._rank(root, "root")
        op = _callable(op)
        own = self._own(sendobj, op) if self.rank == root else None
        exchange = self._same_to_all(Operation.REDUCE, sendobj, root)
        return self._reduced(exchange, op, own) if self.rank == root else _then(exchange, _nothing)

    # Everybody gives and is given

    def allgather(self, sendobj: Any) -> Awaitable[list[Any]]:
        """The objects of all ranks, in their order."""
        own = self._copy(sendobj)
        exchange = self._same_from_all(Operation.ALLGATHER, sendobj)
        return _then(exchange, lambda got: self._in_order(got, own()))

    def alltoall(self, sendobj: Sequence[Any]) -> Awaitable[list[Any]]:
        """Of everybody's sequence, one object a rank, those for this rank, in rank order."""
        values = self._one_a_rank("alltoall", sendobj)
        own = self._copy(values[self.rank])
        exchange = self._own_from_all(Operation.ALLTOALL, values)
        return _then(exchange, lambda got: self._in_order(got, own()))

    def allreduce(self, sendobj: Any, op: Op = SUM) -> Awaitable[Any]:
        """All ranks' objects, reduced in rank order, at every rank: the same bits at each."""
        return self._reduced_for_all(sendobj, _callable(op))

    def reduce_scatter(self, sendobj: Sequence[Any], op: Op = SUM) -> Awaitable[Any]:
        """Of everybody's sequence, one object a rank, those for this rank, reduced in rank order.

        It is MPI's ``Reduce_scatter_block`` for objects.
        """
        op = _callable(op)
        values = self._one_a_rank("reduce_scatter", sendobj)
        own = self._own(values[self.rank], op)
        return self._reduced(self._own_from_all(Operation.REDUCE_SCATTER, values), op, own)

    def scan(self, sendobj: Any, op: Op = SUM) -> Awaitable[Any]:
        """The objects of the ranks up to this one, reduced in rank order."""
        return self._scan(Operation.SCAN, sendobj, op)

    def exscan(self, sendobj: Any, op: Op = SUM) -> Awaitable[Any]:
        """The objects of the ranks before this one, reduced in rank order; None at rank 0."""
        return self._scan(Operation.EXSCAN, sendobj, op)

    def barrier(self) -> Awaitable[None]:
        """Return once every rank has called this."""
        first, *second = self._rounds(Operation.BARRIER)
        exchange = self._exchange(Operation.BARRIER, first, [None] * len(first.destinations))
        if not second:
            return _then(exchange, _nothing)
        return self._barrier_down(exchange, self._number())

    def neighbor_alltoall(
        self, sends: Mapping[int, Any], sources: Iterable[int]
    ) -> Awaitable[dict[int, Any]]:
        """Give each rank of `sends` its value; return what each of `sources` gave.

        The topology is said anew with each call: rank r must name s in `sources` exactly where
        s has r in `sends`. A rank may send to itself.
        """
        sends = {self._rank(rank, "a neighbor"): value for rank, value in sends.items()}
        wanted = tuple(sorted({self._rank(rank, "a neighbor") for rank in sources}))
        if (self.rank in sends) != (self.rank in wanted):
            raise SettingsError("a rank that sends to itself must be among its own sources")
        others = sorted(rank for rank in sends if rank != self.rank)
        pattern = Exchange(
            tuple((rank,) for rank in others), tuple(s for s in wanted if s != self.rank)
        )
        own = {self.rank: copied(sends[self.rank])} if self.rank in sends else {}
        exchange = self._exchange(
            Operation.NEIGHBOR_ALLTOALL, pattern, [sends[rank] for rank in others]
        )
        return _then(exchange, lambda got: {s: (own | got)[s] for s in wanted})

    # The same, begun and waited for later

    def ibcast(self, obj: Any, root: int = 0) -> AsyncRequest:
        """Begin a `bcast`; like all that begin, what is given may be changed at once."""
        return self._request(lambda: self.bcast(obj, root))

    def iscatter(self, sendobj: Sequence[Any] | None, root: int = 0) -> AsyncRequest:
        """Begin a `scatter`."""
        return self._request(lambda: self.scatter(sendobj, root))

    def igather(self, sendobj: Any, root: int = 0) -> AsyncRequest:
        """Begin a `gather`."""
        return self._request(lambda: self.gather(sendobj, root))

    def ireduce(self, sendobj: Any, op: Op = SUM, root: int = 0) -> AsyncRequest:
        """Begin a `reduce`."""
        return self._request(lambda: self.reduce(sendobj, op, root))

    def iallgather(self, sendobj: Any) -> AsyncRequest:
        """Begin an `allgather`."""
        return self._request(lambda: self.allgather(sendobj))

    def ialltoall(self, sendobj: Sequence[Any]) -> AsyncRequest:
        """Begin an `alltoall`."""
        return self._request(lambda: self.alltoall(sendobj))

    def iallreduce(self, sendobj: Any, op: Op = SUM) -> AsyncRequest:
        """Begin an `allreduce`."""
        return self._request(lambda: self.allreduce(sendobj, op))

    def ireduce_scatter(self, sendobj: Sequence[Any], op: Op = SUM) -> AsyncRequest:
        """Begin a `reduce_scatter`."""
        return self._request(lambda: self.reduce_scatter(sendobj, op))

    def iscan(self, sendobj: Any, op: Op = SUM) -> AsyncRequest:
        """Begin a `scan`."""
        return self._request(lambda: self.scan(sendobj, op))

    def iexscan(self, sendobj: Any, op: Op = SUM) -> AsyncRequest:
        """Begin an `exscan`."""
        return self._request(lambda: self.exscan(sendobj, op))

    def ibarrier(self) -> AsyncRequest:
        """Begin a `barrier`."""
        return self._request(self.barrier)

    def ineighbor_alltoall(self, sends: Mapping[int, Any], sources: Iterable[int]) -> AsyncRequest:
        """Begin a `neighbor_alltoall`."""
        return self._request(lambda: self.neighbor_alltoall(sends, sources))

    # Other communicators

    def split(self, color: int | None = 0, key: int = 0) -> Awaitable[Self | None]:
        """A communicator of the ranks that gave the same color, ordered by key, then by rank.

        None where `color` is None (or `UNDEFINED`). All ranks must call it.
        """
        chosen = None if color is None or is_number(color, UNDEFINED) else _color(color)
        if not isinstance(key, SupportsIndex):
            raise SettingsError(f"key={key!r}: a key is a whole number")
        place = key.__index__()
        number = self._number()
        exchange = self._same_from_all(Operation.SPLIT, (chosen, place), number)
        return _then(
            exchange, lambda got: self._part(number, self._in_order(got, (chosen, place)), chosen)
        )

    def dup(self) -> Awaitable[Self]:
        """A communicator of the same ranks, whose messages do not mix with this one's.

        All ranks must call it. It sends nothing.
        """
        self._check_open()
        number = self._number()
        self._active.discard(number)
        return _given(self.child(child_id(self._id, number, 0)))

    async def free(self) -> None:
        """This rank needs the communicator no more; what came for it is dropped.

        Of a named group (`init_group`) all ranks leave together.

        Raises
        ------
        SettingsError
            for a gang's own, which lasts as long as the gang.
        CollectiveError
            while a collective or a receive is under way.
        """
        await in_task()
        self._check_open()
        if self._active or self._end.mailbox.sends(self._id).is_waiting:
            raise CollectiveError("operations of this communicator are under way: wait for them")
        if self._id == WORLD and self._farewell is None:
            raise SettingsError("the communicator of a gang lasts as long as the gang")
        self._stop_probes()
        if self._farewell is not None:
            await self._farewell()
        self._is_free = True
        self._end.mailbox.forget(self._id)

    async def abort(self, errorcode: int = 0) -> NoReturn:
        """End the whole gang, whatever its other ranks are doing.

        Raises
        ------
        RankFailed
            here, in all ranks that wait, and in the caller; it says which rank called this.
        """
        await in_task()
        rank = self._end.rank
        why = CollectiveError(f"rank {rank} called abort({errorcode})")
        await self._end.abort(why)
        raise RankFailed([rank], why)

    def by_chance(self, what: str) -> None:
        """This rank is about to do what would not be the same if it ran again."""
        self._end.chance(what)

    def on_free(self, farewell: Callable[[], Awaitable[None]]) -> None:
        """Have `free` do this: how a named group's ranks part."""
        self._farewell = farewell

    def child(self, number: int) -> Self:
        """A communicator of the same ranks under an id that all of them know."""
        return self._child(number, self._members, self.rank)

    async def close(self) -> None:
        """Finish what is under way."""
        await self._end.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} rank {self.rank} of {self.size}>"

    # Inside

    def _rounds(self, operation: Operation, root: int = 0) -> tuple[Exchange, ...]:
        """This rank's part of those that are one exchange, or one to rank 0 and one from there."""
        rank, size = self.rank, self.size
        match operation:
            case Operation.BCAST | Operation.SCATTER:
                is_multicast = operation == Operation.BCAST
                return (from_root(rank, size, root, is_multicast=is_multicast),)
            case Operation.GATHER | Operation.REDUCE:
                return (to_root(rank, size, root),)
            case _:
                is_multicast = operation == Operation.BARRIER
                if self.is_one_round(operation):
                    return ((all_to_all if is_multicast else to_higher)(rank, size),)
                down = from_root(rank, size, 0, is_multicast=is_multicast)
                return (to_root(rank, size, 0), down)

    def _same_to_all(
        self, operation: Operation, value: Any, root: int = 0
    ) -> Coroutine[Any, Any, dict[int, Any]]:
        (pattern,) = self._rounds(operation, root)
        given = [value] * len(pattern.destinations)
        return self._exchange(operation, pattern, given, root=root)

    def _own_to_each(
        self, operation: Operation, values: Sequence[Any], root: int = 0
    ) -> Coroutine[Any, Any, dict[int, Any]]:
        (pattern,) = self._rounds(operation, root)
        given = [values[rank] for (rank,) in pattern.destinations]
        return self._exchange(operation, pattern, given, root=root)

    def _copy(self, value: Any) -> Callable[[], Any]:
        """Makes this rank's own contribution as the others receive it, when all else has come.

        What may change until then, or may fail to be copied, is copied at once.
        """
        if self._posted is None and is_plain_array(value):
            return lambda: copied(value)
        own = copied(value)
        return lambda: own

    def _one_a_rank(self, what: str, sendobj: Sequence[Any] | None) -> list[Any]:
        values = list(sendobj if sendobj is not None else ())
        if len(values) != self.size:
            raise SettingsError(f"{what} takes one object a rank: {self.size}, not {len(values)}")
        return values

    async def _reduced(
        self, exchange: Coroutine[Any, Any, dict[int, Any]], op: Op, own: Any
    ) -> Any:
        values = self._in_order(await exchange, own)
        if is_quick(op, values):
            return fold(op, values, self.rank)
        return await self._finish(fold, op, values, self.rank)

    def _scan(self, operation: Operation, sendobj: Any, op: Op) -> Awaitable[Any]:
        op = _callable(op)
        own = copied(sendobj)
        first, *second = self._rounds(operation)
        exchange = self._exchange(operation, first, [sendobj] * len(first.destinations))
        is_inclusive = operation == Operation.SCAN
        if not second:
            return self._scanned(exchange, op, [own] if is_inclusive else [])
        return self._scanned_at_root(exchange, self._number(), operation, op, own)

    async def _scanned(
        self, exchange: Coroutine[Any, Any, dict[int, Any]], op: Op, own: list[Any]
    ) -> Any:
        got = await exchange
        values = [got[rank] for rank in range(self.rank)] + own
        return await self._finish(fold, op, values) if values else None

    async def _scanned_at_root(
        self,
        gathered: Coroutine[Any, Any, dict[int, Any]],
        down: int,
        operation: Operation,
        op: Op,
        own: Any,
    ) -> Any:
        values = await gathered
        results: list[Any] = []
        if self.rank == 0:
            results = await self.compute(_prefixes, op, self._in_order(values, own))
            if operation == Operation.EXSCAN:
                results = [None, *results[:-1]]
        pattern = self._rounds(operation)[1]
        given = [results[rank] for (rank,) in pattern.destinations]
        got = await self._exchange(operation, pattern, given, number=down)
        return results[0] if self.rank == 0 else got[0]

    async def _barrier_down(self, gathered: Coroutine[Any, Any, dict[int, Any]], down: int) -> None:
        await gathered
        pattern = self._rounds(Operation.BARRIER)[1]
        given = [None] * len(pattern.destinations)
        await self._exchange(Operation.BARRIER, pattern, given, number=down)

    def _part(
        self, number: int, choices: Sequence[tuple[int | None, int]], color: int | None
    ) -> Self | None:
        """The communicator of this rank's color."""
        if color is None:
            return None
        ranks = sorted(
            (rank for rank in range(self.size) if choices[rank][0] == color),
            key=lambda rank: (choices[rank][1], rank),
        )
        members = tuple(self._members[rank] for rank in ranks)
        return self._child(child_id(self._id, number, color), members, ranks.index(self.rank))

    def _child(self, number: int, members: Sequence[int], rank: int) -> Self:
        child = copy.copy(self)  # of the same class, with what a subclass added
        child._farewell = None
        child._begin(self._end, number, members, rank)
        return child


async def _then(
    exchange: Coroutine[Any, Any, dict[int, Any]], result: Callable[[dict[int, Any]], T]
) -> T:
    return result(await exchange)


async def _given(value: T) -> T:
    return value


def _nothing(_: dict[int, Any]) -> None:
    """The result of what has none."""


def _prefixes(op: Op, values: list[Any]) -> list[Any]:
    """`fold` of the first value, of the first two, and so on, each a copy: `op` may write."""
    folded = values[0]
    results = [copied(folded)]
    for value in values[1:]:
        folded = op(folded, value)
        results.append(copied(folded))
    return results


def _callable(op: Op) -> Op:
    if not callable(op):
        raise SettingsError(f"op={op!r}: an operation is a callable of two values, such as SUM")
    return op


def _color(color: SupportsIndex) -> int:
    try:
        return rank_in(color, MAX_COLOR, "color")
    except SettingsError:
        raise SettingsError(
            f"color={color!r}: a color is a whole number from 0, or None for no communicator"
        ) from None
