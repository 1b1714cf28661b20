"""Who sends to whom in each collective, and the requests that this bills; pure functions.

On a store-and-forward medium one publish reaches every rank and one object is read by all, so
every collective here is one exchange, or two, and none is a tree (FACTS, section 4). How an
exchange becomes requests is the channels' work: the formulas here are what tests hold them to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fsdray.collective.forms import groups
from fsdray.collective.frames import Operation, overhead
from fsdray.services import MessageLimits

ONE_ROUND = 8
"""Up to so many ranks an allreduce is one round in which all send to all: it bills no more than
gather and bcast do on the queue, and takes one latency instead of two (FACTS, section 4)."""


@dataclass(frozen=True)
class Call:
    """A collective as one rank calls it: all that its algorithm is chosen by."""

    operation: Operation
    rank: int
    size: int
    root: int = 0


@dataclass(frozen=True)
class Exchange:
    """One rank's part of one round.

    `destinations` are groups of ranks: one payload goes to each group. `sources` are the ranks
    from whom a message must come before the round is over.
    """

    destinations: tuple[tuple[int, ...], ...]
    sources: tuple[int, ...]


def rounds(call: Call) -> tuple[Exchange, ...]:
    """This rank's part of a collective, one exchange after the other.

    Of two rounds the first goes to rank 0 and the second comes from there. A neighbor_alltoall
    says with each call who its neighbors are, so it is not among these.
    """
    _check_collective(call.operation)
    rank, size, root = call.rank, call.size, call.root
    match call.operation:
        case Operation.BCAST:
            return (from_root(rank, size, root, is_multicast=True),)
        case Operation.SCATTER:
            return (from_root(rank, size, root, is_multicast=False),)
        case Operation.GATHER | Operation.REDUCE:
            return (to_root(rank, size, root),)
        case Operation.ALLGATHER | Operation.SPLIT:
            return (all_to_all(rank, size),)
        case Operation.ALLTOALL | Operation.REDUCE_SCATTER:
            return (each_to_each(rank, size),)
        case Operation.SCAN | Operation.EXSCAN:
            if is_one_round(size):
                return (to_higher(rank, size),)
            return (to_root(rank, size, 0), from_root(rank, size, 0, is_multicast=False))
        case Operation.ALLREDUCE | Operation.BARRIER:
            if is_one_round(size):
                return (all_to_all(rank, size),)
            return (to_root(rank, size, 0), from_root(rank, size, 0, is_multicast=True))
        case _:
            raise ValueError(f"{call.operation.name.lower()} has no rounds of its own")


def from_root(rank: int, size: int, root: int, *, is_multicast: bool) -> Exchange:
    """Root gives: the same to all at once (bcast), or to each its own (scatter)."""
    if rank != root:
        return Exchange((), (root,))
    others = _others(size, root)
    if is_multicast:
        return Exchange((others,) if others else (), ())
    return Exchange(tuple((other,) for other in others), ())


def to_root(rank: int, size: int, root: int) -> Exchange:
    """Root is given one message by each (gather, reduce)."""
    if rank == root:
        return Exchange((), _others(size, root))
    return Exchange(((root,),), ())


def all_to_all(rank: int, size: int) -> Exchange:
    """Everybody gives the same to all others (allgather, a small allreduce, a barrier)."""
    others = _others(size, rank)
    return Exchange((others,) if others else (), others)


def each_to_each(rank: int, size: int) -> Exchange:
    """Everybody gives each other its own (alltoall, reduce_scatter)."""
    others = _others(size, rank)
    return Exchange(tuple((other,) for other in others), others)


def to_higher(rank: int, size: int) -> Exchange:
    """Everybody gives the same to all ranks above (a small scan)."""
    above = tuple(range(rank + 1, size))
    return Exchange((above,) if above else (), tuple(range(rank)))


def is_one_round(size: int) -> bool:
    """Whether an allreduce, barrier or scan of `size` ranks is one round, or two by rank 0."""
    return size <= ONE_ROUND


@dataclass(frozen=True)
class Published:
    """Requests on the queue: publishes, and sends to one inbox alone."""

    publish: int
    send: int

    def __add__(self, other: Published) -> Published:
        return Published(self.publish + other.publish, self.send + other.send)


def published(
    operation: Operation,
    size: int,
    payload: int,
    limits: MessageLimits = MessageLimits(),
    root: int = 0,
) -> Published:
    """Publishes and sends of all ranks together, for payloads of `payload` bytes each.

    Exact for payloads of one size, as tests of the meter show. A neighbor_alltoall is taken as
    one in which everybody has something for everybody else.
    """
    _check_collective(operation)
    if operation == Operation.NEIGHBOR_ALLTOALL:
        operation = Operation.ALLTOALL
    return sum(
        (
            _departure(exchange.destinations, payload, limits)
            for rank in range(size)
            for exchange in rounds(Call(operation, rank, size, root))
        ),
        start=Published(0, 0),
    )


def puts(operation: Operation, size: int) -> int:
    """Objects that all ranks together write on the object channel: one for each that sends."""
    _check_collective(operation)
    if size == 1:
        return 0
    if operation in (Operation.BCAST, Operation.SCATTER):
        return 1
    if operation in (Operation.GATHER, Operation.REDUCE):
        return size - 1
    if operation in _SCANS and is_one_round(size):
        return size - 1
    # All send at once; or all but root do, and root sends what they came to.
    return size


_SCANS = (Operation.SCAN, Operation.EXSCAN)


def _check_collective(operation: Operation) -> None:
    if operation in (Operation.SEND, Operation.ABORT):
        raise ValueError(f"{operation.name.lower()} is no collective")


def _others(size: int, rank: int) -> tuple[int, ...]:
    return tuple(other for other in range(size) if other != rank)


def _departure(
    destinations: Sequence[tuple[int, ...]], payload: int, limits: MessageLimits
) -> Published:
    """What one rank's part of one round goes out as."""
    frames: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    for ranks in destinations:
        for group, some in groups(ranks, limits.fanout):
            frames.setdefault(group, []).extend(
                (size, some) for size in _frames(payload, len(some), limits)
            )
    return sum((_batches(each, limits) for each in frames.values()), start=Published(0, 0))


def _frames(payload: int, destinations: int, limits: MessageLimits) -> list[int]:
    """Billed sizes of the frames of one payload."""
    room = limits.room(destinations) - overhead(destinations)
    full, rest = divmod(payload, room)
    return [limits.message] * full + ([limits.message - room + rest] if rest or not full else [])


def _batches(frames: list[tuple[int, tuple[int, ...]]], limits: MessageLimits) -> Published:
    """What holds frames of these sizes and targets, the largest placed first."""
    batches: list[tuple[int, int, set[tuple[int, ...]]]] = []
    for size, ranks in sorted(frames, key=lambda frame: -frame[0]):
        for i, (used, count, targets) in enumerate(batches):
            if used + size <= limits.batch and count < limits.batch_messages:
                batches[i] = (used + size, count + 1, targets | {ranks})
                break
        else:
            batches.append((size, 1, {ranks}))
    direct = sum(len(targets) == 1 and len(min(targets)) == 1 for _, _, targets in batches)
    return Published(len(batches) - direct, direct)
