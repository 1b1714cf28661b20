"""What each algorithm bills: formulas, for messages of one size, of all ranks together.

Requests that senders make (publishes, sends, puts) are exact. Receives, acknowledgements, gets and
misses are those of a network where every request takes the time that the `Medium` says; elsewhere
a receive may bring fewer messages, and a wait may be longer. Seconds are an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fsdray.collective import bundles, forms, pieces
from fsdray.collective.algorithms.exchanges import to_higher
from fsdray.collective.algorithms.grid import grid
from fsdray.collective.forms import Sent, Spec
from fsdray.costs.medium import Bill, Medium, together
from fsdray.services import MessageLimits, Pace

WORD = 48  # bytes of what root says to all, and of None: a pickle of few letters


@dataclass(frozen=True)
class Setting:
    """What a formula is for: so many ranks, on a channel, with these prices and limits."""

    channel: str
    size: int
    medium: Medium
    limits: MessageLimits

    def sent(self, parcels: Sequence[Spec], fellows: int) -> Sent:
        """What one rank's parcels come to on this channel."""
        if self.channel == "object":
            return forms.in_object(parcels)
        large: frozenset[int] = frozenset()
        if self.channel == "auto":
            large = forms.stored(tuple(parcels), fellows, self.size, self.medium, self.limits)
        return forms.mixed(parcels, large, self.limits)

    def exchange(
        self,
        senders: Sequence[tuple[int, Sequence[Spec]]],
        receivers: Sequence[tuple[int, int]],
        waiting: float = 0.0,
        fellows: int | None = None,
    ) -> Bill:
        """One round.

        Parameters
        ----------
        senders : so many ranks send such parcels each.
        receivers : so many ranks are sent something by so many others each.
        waiting : seconds that the receivers have been looking for it when the round begins.
        fellows : what senders take for how many send to each receiver; by default the most.
        """
        senders = [(count, parcels) for count, parcels in senders if count and parcels]
        if not senders:
            return Bill()
        most = max(many for _, many in receivers)
        sent = [(count, self.sent(parcels, fellows or most)) for count, parcels in senders]
        counts = [_times(each.counts, count) for count, each in sent]
        counts += [_times(each.fetched, count) for count, each in sent]
        first = sent[0][1]
        seconds = (first.up + most * first.down) / self.medium.bandwidth
        if self.channel == "object":
            gone, misses = self._looking(receivers, first, waiting)
            counts.append({"miss": misses})
            seconds += gone
        else:
            for count, many in receivers:
                counts.append(_times(forms.received(first.frames * many, self.limits), count))
            messages = sum(count * many for count, many in receivers)
            seconds += forms.hop(first, messages, self.medium)
            batches = forms.received(first.frames * most, self.limits)["receive"]
            seconds += self.medium.receive.median * (batches - 1) / forms.READERS
        return Bill(together(counts), seconds, 1)

    def posting(self, parcels: Sequence[Spec]) -> float:
        """Seconds until a rank that has sent this looks for what comes next."""
        sent = self.sent(parcels, 1)
        return self.medium.put.median + sent.up / self.medium.bandwidth

    def _looking(
        self, receivers: Sequence[tuple[int, int]], sent: Sent, waiting: float
    ) -> tuple[float, float]:
        """Seconds until the readers of objects are done, and how often they looked in vain."""
        medium, pace = self.medium, Pace()
        fellows = max(fellows for _, fellows in receivers)
        there = waiting + medium.put.slowest(fellows) + sent.up / medium.bandwidth
        looks = pace.misses(there)
        misses = sum(count * min(many, forms.WINDOW) * looks for count, many in receivers)
        readers = sum(count * many for count, many in receivers)
        reads = sent.fetched["get"] * len(receivers) / max(1, readers)
        laps = math.ceil(fellows / forms.WINDOW) - 1 + (2 if reads > 1 else 1)
        gone = pace.look(there) - waiting + laps * medium.get.slowest(readers)
        return gone, misses


def one_for_all(here: Setting, payload: int, waiting: float = 0.0) -> Bill:
    """One rank gives all others the same: bcast, and the way down of others."""
    k = here.size - 1
    return here.exchange([(1, _same(here, payload))], [(k, 1)], waiting)


def one_for_each(here: Setting, payload: int, waiting: float = 0.0) -> Bill:
    """One rank gives each other its own: scatter."""
    k = here.size - 1
    return here.exchange([(1, _each(here, payload))], [(k, 1)], waiting)


def to_one(here: Setting, payload: int) -> Bill:
    """All others give to one: gather, reduce, and the way up of others."""
    k = here.size - 1
    return here.exchange([(k, [((0,), payload)])], [(1, k)])


def same_for_all(here: Setting, payload: int, waiting: float = 0.0) -> Bill:
    """Everybody gives all others the same, in one round."""
    k = here.size - 1
    return here.exchange([(here.size, _same(here, payload))], [(here.size, k)], waiting)


def each_for_each(here: Setting, payload: int) -> Bill:
    """Everybody gives each other its own, in one round."""
    k = here.size - 1
    return here.exchange([(here.size, _each(here, payload))], [(here.size, k)])


def upwards(here: Setting, payload: int) -> Bill:
    """Everybody gives all ranks above the same: a scan in one round."""
    size = here.size
    sending = [
        (1, [(ranks, payload)]) for r in range(size) for ranks in to_higher(r, size).destinations
    ]
    receiving = [(1, rank) for rank in range(1, size - 1)]
    if here.channel == "object":
        receiving.append((1, size - 1))
    else:  # the last rank is sent one message directly, which comes before the others
        receiving += [(1, 1), (1, size - 2)]
    bill = here.exchange(sending, receiving, fellows=size // 2)
    return _acknowledged(here, bill, payload, [(1, rank) for rank in range(1, size)], size // 2)


def up_and_down(here: Setting, payload: int, down: int | None = None) -> Bill:
    """Through root: all give to it, and it gives all the same."""
    gathered = to_one(here, payload)
    waiting = gathered.seconds - here.posting([((0,), payload)])
    return gathered + one_for_all(here, payload if down is None else down, waiting)


def up_and_scattered(here: Setting, payload: int) -> Bill:
    """Through root: all give to it, and it gives each its own."""
    gathered = to_one(here, payload)
    waiting = gathered.seconds - here.posting([((0,), payload)])
    return gathered + one_for_each(here, payload, waiting)


def combined(here: Setting, payload: int) -> Bill:
    """An allgather through root, who gives all together to all."""
    return up_and_down(here, payload, bundles.size_of([payload] * here.size))


def in_grid(here: Setting, payload: int) -> Bill:
    """Everybody gives each other its own, by way of one other rank: two rounds of bundles."""
    by = grid(here.size)
    bill = Bill()
    both: list[list[tuple[int, int]]] = []
    payload_of_bundle = 0
    for is_first in (True, False):
        level = by.first if is_first else by.second
        senders, receivers = [], []
        for rank, count in by.kinds():
            exchange = level(rank)
            held = [by.held(rank, dest, is_first) for (dest,) in exchange.destinations]
            parcels = [((i,), bundles.size_of([payload] * n)) for i, n in enumerate(held)]
            senders.append((count, parcels))
            receivers.append((count, len(exchange.sources)))
        bill = bill + here.exchange(senders, receivers)
        both.append(receivers)
        payload_of_bundle = next((parcels[0][1] for _, parcels in senders if parcels), 0)
    held_in_all = [(count, a + b) for (count, a), (_, b) in zip(*both, strict=True)]
    return _acknowledged(here, bill, payload_of_bundle, held_in_all, by.width - 1)


def in_pieces(here: Setting, payload: int, *, is_told: bool) -> Bill:
    """A large array's allreduce: each rank reduces a piece of all, and gives it to all.

    Where not everybody hears from everybody else (`is_told`), root says that all have cut theirs.
    """
    piece = payload // here.size + pieces.HEAD
    bill = each_for_each(here, piece)
    if is_told:
        bill = bill + one_for_all(here, WORD)
    return bill + same_for_all(here, piece)


def _acknowledged(
    here: Setting, bill: Bill, payload: int, receivers: Sequence[tuple[int, int]], fellows: int
) -> Bill:
    """The same bill, for ranks who acknowledge so many messages of all rounds together."""
    if here.channel == "object":
        return bill
    frames = len(here.sent([((1,), payload)], fellows).frames)
    most = here.limits.acknowledge
    acknowledged = sum(count * -(-messages * frames // most) for count, messages in receivers)
    return replace(bill, counts={**bill.counts, "acknowledge": acknowledged})


def _same(here: Setting, payload: int) -> list[Spec]:
    return [(tuple(range(1, here.size)), payload)] if here.size > 1 else []


def _each(here: Setting, payload: int) -> list[Spec]:
    return [((rank,), payload) for rank in range(1, here.size)]


def _times(counts: Mapping[str, float], times: float) -> dict[str, float]:
    return {name: amount * times for name, amount in counts.items()}
