"""What the exchanges bill in which ranks pass on what others sent: the grid, and root's combiner.

A large value does not go by way of others: they pass a note on, and it goes straight to whom it is
for. Its sender decides this alone, by its size (`passes_grid`, `passes_root`), so that
ranks need not know each other's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from fsdray.collective import arrivals, bundles
from fsdray.collective.algorithms import bills
from fsdray.collective.algorithms.bills import Receiver, Setting
from fsdray.collective.algorithms.grid import Grid, grid
from fsdray.collective.arrivals import Wave
from fsdray.collective.forms import Sent, Spec
from fsdray.costs.medium import Bill, best, together
from fsdray.services import KIB, Pace

EXACT = 64
"""Ranks up to which a grid's receives and misses are added up rank by rank; beyond, one rank of
each kind stands for all, so that they are an estimate."""
_TRIED = [KIB << i for i in range(2, 12)]  # bytes from which values may go straight: to 2 MiB


def combined(here: Setting, payload: int, straight: bool | None = None) -> Bill:
    """An allgather through root, who gives all together to all.

    What goes straight is given to all at once, root among them; who says whose that is. Where its
    word comes before all has been read, a rank needs one receive less than is said here.
    """
    if straight is None:
        straight = passes_root(here, payload)
    if not straight:
        return bills.up_and_down(here, payload, bundles.size_of([payload] * here.size))
    k = here.size - 1
    value = [(tuple(range(1, here.size)), payload)]
    notes = [(tuple(range(1, here.size)), bundles.size_of([payload] + [0] * k))]
    # Root hears of all others, and they of all but root, which says so.
    up = here.exchange([(k, value)], [(1, [(k, 0, 0)]), (k, [(k - 1, 0, 0)])])
    down = here.exchange([(1, notes)], [(k, [(1, 0, 0)])], up.seconds)
    if here.channel == "object":  # what root has told of is there
        looked = bills.up_and_down(here, payload, notes[0][1]).count("miss")
        return replace(up + down, counts={**(up + down).counts, "miss": looked})
    each = [len(here.sent(parcels, k).frames(0)) for parcels in (value, notes)]
    return bills.acknowledged(here, up + down, [(1, k * each[0]), (k, (k - 1) * each[0] + each[1])])


def in_grid(here: Setting, payload: int) -> Bill:
    """Everybody gives each other its own, by way of one other rank: two rounds of bundles.

    Where ranks have more to read than one receive brings, they go on one after the other, and what
    they send comes so: receives are then an estimate, 30 % too low to 10 % too high in simulation.
    """
    straight = passes_grid(here, payload)
    bill = _by_kinds(here, payload, straight)
    if here.size > EXACT:
        return bill
    return replace(bill, counts=_by_ranks(here, payload, straight))


def passes_root(here: Setting, size: int) -> bool:
    """Whether a value of so many bytes of an allgather through root goes to all at once."""
    return size >= _TRIED[0] and size >= _to_all(here)


def passes_grid(here: Setting, size: int) -> bool:
    """Whether a value of so many bytes does not go by a third rank of the grid."""
    return size >= _TRIED[0] and size >= _in_grid(here)


@lru_cache(maxsize=256)
def _to_all(here: Setting) -> float:
    return _least(here, lambda size, straight: combined(here, size, straight))


@lru_cache(maxsize=256)
def _in_grid(here: Setting) -> float:
    return _least(here, lambda size, straight: _by_kinds(here, size, straight))


def _least(here: Setting, bill: Callable[[int, bool], Bill]) -> float:
    """The first size that is tried of which values had better go straight; infinite without one."""
    if here.size < 3:
        return math.inf
    low, high = 0, len(_TRIED)
    while low < high:
        half = (low + high) // 2
        both = {str(way): bill(_TRIED[half], way) for way in (False, True)}
        if best(both, here.medium, here.size) == str(True):
            high = half
        else:
            low = half + 1
    return _TRIED[low] if low < len(_TRIED) else math.inf


def _parcels(by: Grid, rank: int, payload: int, straight: bool, is_first: bool) -> list[Spec]:
    """What a rank sends in a round: its bundles, then what goes straight."""
    level = by.first(rank) if is_first else by.second(rank)
    found: list[Spec] = []
    for (dest,) in level.destinations:
        # A bundle has its receiver's own message in the first round, its sender's in the second.
        own = dest if is_first else rank
        held = by.held(rank, dest, is_first)
        sizes = [payload if each == own or not straight else 0 for each in held]
        found.append(((dest,), bundles.size_of(sizes)))
    if straight and is_first:
        found += [((dest,), payload) for dest in by.strangers(rank)]
    return found


def _by_kinds(here: Setting, payload: int, straight: bool) -> Bill:
    by = grid(here.size)
    bill = Bill()
    for is_first in (True, False):
        senders: list[tuple[int, list[Spec]]] = []
        receivers: list[Receiver] = []
        fellows = 0
        for kind, (rank, count) in enumerate(by.kinds()):
            parcels = _parcels(by, rank, payload, straight, is_first)
            senders.append((count, parcels))
            sources = len((by.first if is_first else by.second)(rank).sources)
            fellows = max(fellows, sources)
            found = [(sources, kind if parcels else 0, 0)] if sources else []
            if is_first and straight and here.channel != "object":
                found += [(len(by.strangers(rank)), kind, len(parcels) - 1)]
            receivers.append((count, [each for each in found if each[0]]))
        bill = bill + here.exchange(senders, receivers, fellows=fellows)
    if straight and here.channel == "object":  # read in the end, when it is there
        some = len(by.strangers(0))
        reading = here.medium.get.slowest(some) + some * payload / here.medium.bandwidth
        bill = replace(bill, seconds=bill.seconds + reading)
    return bill


def _by_ranks(here: Setting, payload: int, straight: bool) -> dict[str, float]:
    """What all ask for, where each begins its second round when it has done its first."""
    by, medium, pace = grid(here.size), here.medium, Pace()
    known: dict[tuple[int, tuple[Spec, ...]], Sent] = {}
    starts = [0.0] * here.size
    inboxes: list[list[Wave]] = [[] for _ in starts]
    counts: list[dict[str, float]] = []
    for is_first in (True, False):
        levels = [(by.first if is_first else by.second)(rank) for rank in range(here.size)]
        sent, places = [], []
        for rank, level in enumerate(levels):
            parcels = tuple(_parcels(by, rank, payload, straight, is_first))
            key = level.fellows, parcels
            if key not in known:
                known[key] = here.sent(parcels, level.fellows)
            sent.append(known[key])
            places.append({dest: i for i, ((dest,), _) in enumerate(parcels)})
            counts += [sent[rank].counts, sent[rank].fetched]
        ends = []
        for rank, level in enumerate(levels):
            begin = starts[rank]
            end = begin + here.posted(sent[rank])
            if here.channel == "object":
                for source in level.sources:
                    gone = starts[source] + medium.put.median - begin
                    counts.append({"miss": pace.misses(gone)})
                    reads = sent[source].reads[places[source][rank]]
                    end = max(end, begin + pace.look(gone) + reads * medium.get.median)
            else:
                heard = [
                    ((starts[source] + at, frames), source in level.sources)
                    for source, mine in enumerate(places)
                    if rank in mine
                    for at, frames in sent[source].waves(mine[rank], medium)
                ]
                inboxes[rank] += [wave for wave, _ in heard]
                is_fetched = any(sent[source].fetched for source in level.sources)
                done = arrivals.through(heard, here.limits, medium)
                end = max(end, done + medium.get.median * is_fetched)
            ends.append(end)
        starts = ends
    if here.channel != "object":
        counts += [arrivals.read(waves, here.limits) for waves in inboxes]
    return together(counts)
