"""Who sends to whom in one round; pure functions of rank and size.

On a store-and-forward medium one publish reaches every rank and one object is read by all, so
collectives are made of these few exchanges, and none is a tree (FACTS, section 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

_KEPT = 64  # a rank has few, which it needs again and again


@dataclass(frozen=True)
class Exchange:
    """One rank's part of one round.

    `destinations` are groups of ranks: one payload goes to each group. `sources` are the ranks
    from whom a message must come before the round is over. `fellows` is how many ranks send to
    each receiver.
    """

    destinations: tuple[tuple[int, ...], ...]
    sources: tuple[int, ...]
    fellows: int = 1


@lru_cache(_KEPT)
def from_root(rank: int, size: int, root: int, *, is_multicast: bool) -> Exchange:
    """Root gives: the same to all at once (bcast), or to each its own (scatter)."""
    if rank != root:
        return Exchange((), (root,))
    others = _others(size, root)
    if is_multicast:
        return Exchange((others,) if others else (), ())
    return Exchange(tuple((other,) for other in others), ())


@lru_cache(_KEPT)
def to_root(rank: int, size: int, root: int) -> Exchange:
    """Root is given one message by each (gather, reduce)."""
    if rank == root:
        return Exchange((), _others(size, root), size - 1)
    return Exchange(((root,),), (), size - 1)


@lru_cache(_KEPT)
def all_to_all(rank: int, size: int) -> Exchange:
    """Everybody gives the same to all others (allgather, a small allreduce, a barrier)."""
    others = _others(size, rank)
    return Exchange((others,) if others else (), others, size - 1)


@lru_cache(_KEPT)
def each_to_each(rank: int, size: int) -> Exchange:
    """Everybody gives each other its own (alltoall, reduce_scatter)."""
    others = _others(size, rank)
    return Exchange(tuple((other,) for other in others), others, size - 1)


@lru_cache(_KEPT)
def to_higher(rank: int, size: int) -> Exchange:
    """Everybody gives the same to all ranks above (a small scan)."""
    above = tuple(range(rank + 1, size))
    return Exchange((above,) if above else (), tuple(range(rank)), size // 2)


def _others(size: int, rank: int) -> tuple[int, ...]:
    return tuple(other for other in range(size) if other != rank)
