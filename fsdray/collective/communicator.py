"""The communicator: mpi4py's lower-case object API over a channel and a mailbox.

`AsyncCommunicator` is the real one: coroutines on the loop. `Communicator` is the plain façade
that tasks use. Who sends to whom is in `algorithms`; how bytes move, in `channels`.
"""

from __future__ import annotations

import asyncio
import itertools
import operator
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, SupportsIndex, TypeVar

from fsdray import loop, wire
from fsdray.collective import algorithms, codec
from fsdray.collective.algorithms import Exchange
from fsdray.collective.channels import Channel, Outgoing
from fsdray.collective.frames import Key, Operation
from fsdray.collective.mailbox import Letter, Mailbox
from fsdray.collective.ops import SUM, Op, fold
from fsdray.collective.parcels import Parcel
from fsdray.errors import CollectiveTimeout, MismatchedCollective, SettingsError

T = TypeVar("T")

ANY_SOURCE = -1
ANY_TAG = -1
MAX_TAG = 2**31 - 1  # what MPI libraries give at most (MPI_TAG_UB)


class AsyncCommunicator:
    """What the ranks of a group talk through, in coroutines.

    Collectives and sends take their place in the order of operations when they are *called*, not
    when they are awaited, so an operation may be started, other work done, and its result awaited
    later; a `recv` takes it when it is first awaited. All ranks must call the same collectives in
    the same order.

    Parameters
    ----------
    rank, size : this rank, and how many there are.
    deadline : the loop's time at which every wait ends with `CollectiveTimeout`.
    """

    def __init__(
        self, rank: int, size: int, channel: Channel, mailbox: Mailbox, deadline: float
    ) -> None:
        self.rank = rank
        self.size = size
        self._channel = channel
        self._mailbox = mailbox
        self._deadline = deadline
        self.sent_bytes = 0  # payload of this rank's messages, as packed
        self._id = 0
        self._numbers = itertools.count()
        self._active: set[int] = set()
        self._sent: defaultdict[int, itertools.count[int]] = defaultdict(itertools.count)

    # Point to point

    def send(self, obj: Any, dest: int, tag: int = 0) -> Awaitable[None]:
        """Send `obj` to rank `dest`; it may be changed once this has returned.

        Raises
        ------
        SettingsError
            where `dest` is no rank, `tag` is no tag, or `obj` cannot be pickled.
        """
        dest = self._rank(dest, "dest")
        tag = _tag(tag)
        parcel = Parcel((dest,), *codec.encode(wire.encode(obj)))
        if dest != self.rank:
            self.sent_bytes += wire.size(parcel.payload)
        # Numbered last: a number that is never sent would hold up all that come after it.
        return self._send(dest, tag, next(self._sent[dest]), parcel)

    def recv(self, source: int = ANY_SOURCE, tag: int = ANY_TAG) -> Awaitable[Any]:
        """The next message of `source` with `tag`; two ranks' messages do not overtake.

        Of several that wait at once, the one that was awaited first is served first.
        """
        sources = range(self.size)
        if source != ANY_SOURCE:
            source = self._rank(source, "source")
            sources = range(source, source + 1)
        return self._recv(sources, None if tag == ANY_TAG else _tag(tag))

    # Collectives

    def bcast(self, obj: Any, root: int = 0) -> Awaitable[Any]:
        """Root's `obj` at every rank; root too is given a copy, which it may write."""
        root = self._rank(root, "root")
        pattern = algorithms.from_root(self.rank, self.size, root, is_multicast=True)
        own = _copy(obj) if self.rank == root else None
        exchange = self._exchange(Operation.BCAST, pattern, [obj] * len(pattern.destinations))
        return self._then(exchange, lambda got: own if self.rank == root else got[root])

    def scatter(self, sendobj: Sequence[Any] | None, root: int = 0) -> Awaitable[Any]:
        """Of root's sequence, one object a rank, the one of this rank."""
        root = self._rank(root, "root")
        pattern = algorithms.from_root(self.rank, self.size, root, is_multicast=False)
        own: Any = None
        given: list[Any] = []
        if self.rank == root:
            values = list(sendobj if sendobj is not None else ())
            if len(values) != self.size:
                raise SettingsError(
                    f"scatter takes one object a rank: {self.size}, not {len(values)}"
                )
            own = _copy(values[root])
            given = [values[ranks[0]] for ranks in pattern.destinations]
        exchange = self._exchange(Operation.SCATTER, pattern, given)
        return self._then(exchange, lambda got: own if self.rank == root else got[root])

    def gather(self, sendobj: Any, root: int = 0) -> Awaitable[list[Any] | None]:
        """At root the objects of all ranks, in their order; None elsewhere."""
        root = self._rank(root, "root")
        pattern = algorithms.to_root(self.rank, self.size, root)
        own = _copy(sendobj) if self.rank == root else None
        exchange = self._exchange(Operation.GATHER, pattern, [sendobj] * len(pattern.destinations))
        return self._then(
            exchange, lambda got: self._in_order(got, own) if self.rank == root else None
        )

    def allgather(self, sendobj: Any) -> Awaitable[list[Any]]:
        """The objects of all ranks, in their order."""
        pattern = algorithms.all_to_all(self.rank, self.size)
        own = _copy(sendobj)
        exchange = self._exchange(
            Operation.ALLGATHER, pattern, [sendobj] * len(pattern.destinations)
        )
        return self._then(exchange, lambda got: self._in_order(got, own))

    def reduce(self, sendobj: Any, op: Op = SUM, root: int = 0) -> Awaitable[Any]:
        """At root all ranks' objects, reduced in rank order; None elsewhere."""
        root = self._rank(root, "root")
        pattern = algorithms.to_root(self.rank, self.size, root)
        own = _copy(sendobj) if self.rank == root else None
        exchange = self._exchange(Operation.REDUCE, pattern, [sendobj] * len(pattern.destinations))
        return self._reduced(exchange, op, own) if self.rank == root else exchange_none(exchange)

    def allreduce(self, sendobj: Any, op: Op = SUM) -> Awaitable[Any]:
        """All ranks' objects, reduced in rank order, at every rank: the same bits at each."""
        own = _copy(sendobj)
        if algorithms.is_one_round(self.size):
            pattern = algorithms.all_to_all(self.rank, self.size)
            given = [sendobj] * len(pattern.destinations)
            return self._reduced(self._exchange(Operation.ALLREDUCE, pattern, given), op, own)
        up = algorithms.to_root(self.rank, self.size, 0)
        gathered = self._exchange(Operation.ALLREDUCE, up, [sendobj] * len(up.destinations))
        down = self._number()
        return self._reduced_at_root(gathered, down, op, own)

    def barrier(self) -> Awaitable[None]:
        """Return once every rank has called this."""
        if algorithms.is_one_round(self.size):
            pattern = algorithms.all_to_all(self.rank, self.size)
            given = [None] * len(pattern.destinations)
            return exchange_none(self._exchange(Operation.BARRIER, pattern, given))
        up = algorithms.to_root(self.rank, self.size, 0)
        gathered = self._exchange(Operation.BARRIER, up, [None] * len(up.destinations))
        return self._barrier_down(gathered, self._number())

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
        own = {self.rank: _copy(sends[self.rank])} if self.rank in sends else {}
        exchange = self._exchange(
            Operation.NEIGHBOR_ALLTOALL, pattern, [sends[rank] for rank in others]
        )
        return self._then(exchange, lambda got: {s: (own | got)[s] for s in wanted})

    async def compute(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function that takes its time, beside the loop."""
        return await asyncio.to_thread(function, *args)

    async def close(self) -> None:
        """Finish what is under way."""
        await self._channel.close()

    # Inside

    def _exchange(
        self,
        operation: Operation,
        pattern: Exchange,
        given: Sequence[Any],
        number: int | None = None,
    ) -> Coroutine[Any, Any, dict[int, Any]]:
        """One round: `given` has a value for each group of destinations."""
        parcels = [
            Parcel(ranks, *codec.encode(wire.encode(value)))
            for ranks, value in zip(pattern.destinations, given, strict=True)
        ]
        # Numbered last: what cannot be encoded has not taken part, and may be given again.
        number = self._number() if number is None else number
        self.sent_bytes += sum(wire.size(parcel.payload) for parcel in parcels)
        outgoing = Outgoing(operation, self._id, number, 0, parcels)
        return self._do_exchange(outgoing, pattern.sources)

    async def _do_exchange(self, outgoing: Outgoing, sources: Sequence[int]) -> dict[int, Any]:
        number, operation = outgoing.number, outgoing.operation
        keys = {source: Key(self._id, False, number, source) for source in sources}
        try:
            self._mailbox.check()
            await self._within(
                operation.name.lower(),
                lambda: [s for s, key in keys.items() if not self._mailbox.has(key)],
                self._channel.post(outgoing) if outgoing.parcels else None,
                self._collect(operation, list(keys.values())),
            )
            letters = [self._mailbox.take(key) for key in keys.values()]
        finally:
            self._active.discard(number)
            self._mailbox.close_below(self._id, min(self._active, default=number + 1))
        return {letter.source: _open(letter) for letter in letters}

    async def _collect(self, operation: Operation, keys: Sequence[Key]) -> None:
        """Wait until all are there; the first that is of another operation ends the wait."""
        missing = keys
        while True:
            for key in missing:
                self._check_same(operation, key)
            missing = [key for key in missing if not self._mailbox.has(key)]
            if not missing:
                return
            try:
                await self._channel.collect(missing)
            except MismatchedCollective as error:
                what = operation.name.lower()
                raise MismatchedCollective(
                    f"rank {self.rank} called {what} where {error}"
                ) from error

    async def _within(
        self,
        what: str,
        missing: Callable[[], list[int]],
        *work: Coroutine[Any, Any, None] | None,
    ) -> None:
        """Do all of `work` at once, before the deadline; the first error ends the rest."""
        tasks = [asyncio.ensure_future(each) for each in work if each is not None]
        left = self._deadline - asyncio.get_running_loop().time()
        try:
            done, pending = await asyncio.wait(
                tasks, timeout=max(0.0, left), return_when=asyncio.FIRST_EXCEPTION
            )
        finally:
            for task in tasks:
                task.cancel()
        errors = [error for task in done if (error := task.exception()) is not None]
        if errors:
            raise errors[0]
        if pending:
            ranks = missing()
            who = f"no message came from {_ranks(ranks)}" if ranks else "sending did not end"
            raise CollectiveTimeout(f"{what} at rank {self.rank} of {self.size}: {who} in time")

    async def _then(
        self, exchange: Coroutine[Any, Any, dict[int, Any]], result: Callable[[dict[int, Any]], T]
    ) -> T:
        return result(await exchange)

    async def _reduced(
        self, exchange: Coroutine[Any, Any, dict[int, Any]], op: Op, own: Any
    ) -> Any:
        return await self.compute(fold, op, self._in_order(await exchange, own))

    async def _reduced_at_root(
        self, gathered: Coroutine[Any, Any, dict[int, Any]], down: int, op: Op, own: Any
    ) -> Any:
        values = await gathered
        result = None
        if self.rank == 0:
            result = await self.compute(fold, op, self._in_order(values, own))
        pattern = algorithms.from_root(self.rank, self.size, 0, is_multicast=True)
        got = await self._exchange(
            Operation.ALLREDUCE, pattern, [result] * len(pattern.destinations), down
        )
        return result if self.rank == 0 else got[0]

    async def _barrier_down(self, gathered: Coroutine[Any, Any, dict[int, Any]], down: int) -> None:
        await gathered
        pattern = algorithms.from_root(self.rank, self.size, 0, is_multicast=True)
        await self._exchange(Operation.BARRIER, pattern, [None] * len(pattern.destinations), down)

    async def _send(self, dest: int, tag: int, number: int, parcel: Parcel) -> None:
        self._mailbox.check()
        outgoing = Outgoing(Operation.SEND, self._id, number, tag, [parcel])
        if dest == self.rank:
            self._mailbox.keep_own(outgoing)
            return
        await self._within("send", list, self._channel.post(outgoing))

    async def _recv(self, sources: Sequence[int], tag: int | None) -> Any:
        while True:
            letter = self._mailbox.match(self._id, sources, tag)
            if letter is not None:
                return _open(letter)
            self._mailbox.check()
            keys = [self._mailbox.next_send(self._id, source) for source in sources]
            await self._within("recv", lambda: list(sources), self._collect_send(keys))

    async def _collect_send(self, keys: Sequence[Key]) -> None:
        """Wait for one of `keys`, the next send of each source."""
        if keys != [self._mailbox.next_send(self._id, key.source) for key in keys]:
            return  # another operation's reading has brought it since
        await self._channel.collect([key for key in keys if key.source != self.rank])

    def _number(self) -> int:
        number = next(self._numbers)
        self._active.add(number)
        return number

    def _in_order(self, got: dict[int, Any], own: Any) -> list[Any]:
        return [own if rank == self.rank else got[rank] for rank in range(self.size)]

    def _rank(self, rank: SupportsIndex, what: str) -> int:
        """A rank as a plain int, from whatever counts as one, such as NumPy's integers."""
        if not isinstance(rank, SupportsIndex) or not 0 <= operator.index(rank) < self.size:
            raise SettingsError(f"{what}={rank!r}: ranks go from 0 to {self.size - 1}")
        return operator.index(rank)

    def _check_same(self, operation: Operation, key: Key) -> None:
        theirs = self._mailbox.operation(key)
        if theirs is not None and theirs != operation:
            raise MismatchedCollective(
                f"rank {self.rank} called {operation.name.lower()} where rank {key.source} "
                f"called {theirs.name.lower()}"
            )


async def exchange_none(exchange: Coroutine[Any, Any, Any]) -> None:
    """Await an exchange whose values nobody wants."""
    await exchange


class Communicator:
    """What the ranks of a group talk through: `AsyncCommunicator` for code that is not async.

    Names, arguments, defaults and results are those of mpi4py's lower-case methods, except
    `neighbor_alltoall`, which takes its topology with each call.
    """

    def __init__(self, inner: AsyncCommunicator) -> None:
        self._inner = inner

    @property
    def rank(self) -> int:
        """This rank, from 0."""
        return self._inner.rank

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return self._inner.size

    def Get_rank(self) -> int:  # noqa: N802  mpi4py's name
        """`rank`."""
        return self.rank

    def Get_size(self) -> int:  # noqa: N802  mpi4py's name
        """`size`."""
        return self.size

    def send(self, obj: Any, dest: int, tag: int = 0) -> None:
        """See `AsyncCommunicator.send`."""
        self._run(lambda: self._inner.send(obj, dest, tag))

    def recv(self, source: int = ANY_SOURCE, tag: int = ANY_TAG) -> Any:
        """See `AsyncCommunicator.recv`."""
        return self._run(lambda: self._inner.recv(source, tag))

    def bcast(self, obj: Any, root: int = 0) -> Any:
        """See `AsyncCommunicator.bcast`."""
        return self._run(lambda: self._inner.bcast(obj, root))

    def scatter(self, sendobj: Sequence[Any] | None, root: int = 0) -> Any:
        """See `AsyncCommunicator.scatter`."""
        return self._run(lambda: self._inner.scatter(sendobj, root))

    def gather(self, sendobj: Any, root: int = 0) -> list[Any] | None:
        """See `AsyncCommunicator.gather`."""
        return self._run(lambda: self._inner.gather(sendobj, root))

    def allgather(self, sendobj: Any) -> list[Any]:
        """See `AsyncCommunicator.allgather`."""
        return self._run(lambda: self._inner.allgather(sendobj))

    def reduce(self, sendobj: Any, op: Op = SUM, root: int = 0) -> Any:
        """See `AsyncCommunicator.reduce`."""
        return self._run(lambda: self._inner.reduce(sendobj, op, root))

    def allreduce(self, sendobj: Any, op: Op = SUM) -> Any:
        """See `AsyncCommunicator.allreduce`."""
        return self._run(lambda: self._inner.allreduce(sendobj, op))

    def barrier(self) -> None:
        """See `AsyncCommunicator.barrier`."""
        self._run(lambda: self._inner.barrier())

    def neighbor_alltoall(self, sends: Mapping[int, Any], sources: Iterable[int]) -> dict[int, Any]:
        """See `AsyncCommunicator.neighbor_alltoall`."""
        return self._run(lambda: self._inner.neighbor_alltoall(sends, sources))

    def __getattr__(self, name: str) -> Any:
        lower = name.lower()
        if name != lower and hasattr(AsyncCommunicator, lower):
            raise AttributeError(
                f"{name}() takes buffers in mpi4py; here use {lower}(), which takes any object "
                "and sends arrays as buffers"
            )
        raise AttributeError(f"a communicator has no {name!r}")

    def __repr__(self) -> str:
        return f"<Communicator rank {self.rank} of {self.size}>"

    def _run(self, operation: Callable[[], Awaitable[T]]) -> T:
        async def on_loop() -> T:
            return await operation()

        return loop.run(on_loop())


def _open(letter: Letter) -> Any:
    return wire.decode(codec.decode(letter.codec, letter.payload))


def _tag(tag: SupportsIndex) -> int:
    if not isinstance(tag, SupportsIndex) or not 0 <= operator.index(tag) <= MAX_TAG:
        raise SettingsError(f"tag={tag!r}: a tag is a whole number from 0 to {MAX_TAG}")
    return operator.index(tag)


def _copy(value: Any) -> Any:
    """This rank's own contribution as the others would receive it: nobody shares it."""
    return wire.decode(bytearray().join(wire.encode(value)))


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
