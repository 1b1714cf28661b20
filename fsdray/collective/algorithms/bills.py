"""What each algorithm bills: formulas, for messages of one size, of all ranks together.

Publishes, sends, puts and gets are exact. Receives, acknowledgements and misses are those of a
network where every request takes the time that the `Medium` says. Elsewhere there are as many
receives as acknowledgements at least, ten times as many and 15 a rank at most, and as many misses
as `Pace` looks in the time of the wait. Seconds are an estimate.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from fsdray.collective import arrivals, forms, pieces
from fsdray.collective.algorithms.exchanges import to_higher
from fsdray.collective.forms import Sent, Spec
from fsdray.costs.medium import Bill, Medium, together
from fsdray.services import MessageLimits, Pace

WORD = 48  # bytes of what root says to all, and of None: a pickle of few letters


Receiver: TypeAlias = tuple[int, Sequence[tuple[int, int, int]]]
"""So many ranks, each of whom is sent something by so many of which senders, in which of their
parcels."""


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
        receivers: Sequence[Receiver],
        waiting: float = 0.0,
        fellows: int | None = None,
    ) -> Bill:
        """One round.

        Parameters
        ----------
        senders : so many ranks send such parcels each.
        receivers : who is sent what.
        waiting : seconds that the receivers have been looking for it when the round begins.
        fellows : what senders take for how many send to each receiver; by default the most.
        """
        if not any(count and parcels for count, parcels in senders):
            return Bill()
        heard = [(count, sum(many for many, _, _ in sources)) for count, sources in receivers]
        most = max(many for _, many in heard)
        sent = [self.sent(parcels, fellows or most) for _, parcels in senders]
        counts = [_times(each.counts, n) for each, (n, _) in zip(sent, senders, strict=True)]
        counts += [_times(each.fetched, n) for each, (n, _) in zip(sent, senders, strict=True)]
        first = next(each for each in sent if each.counts)
        seconds = (first.up + most * first.down) / self.medium.bandwidth
        if self.channel == "object":
            gone, misses = self._looking(heard, first, waiting)
            counts.append({"miss": misses})
            seconds += gone
        else:
            batches = 0.0
            for count, sources in receivers:
                waves = [
                    wave
                    for many, sender, parcel in sources
                    for wave in sent[sender].waves(parcel, self.medium) * many
                ]
                asked = arrivals.read(waves, self.limits)
                counts.append(_times(asked, count))
                batches = max(batches, asked["receive"])
            messages = sum(count * many for count, many in heard)
            seconds += forms.hop(first, messages, self.medium)
            seconds += self.medium.receive.median * (batches - 1) / arrivals.READERS
        return Bill(together(counts), seconds, 1)

    def posting(self, parcels: Sequence[Spec]) -> float:
        """Seconds until a rank that has sent this looks for what comes next."""
        sent = self.sent(parcels, 1)
        return self.medium.put.median + sent.up / self.medium.bandwidth

    def posted(self, sent: Sent) -> float:
        """Seconds until what was sent is with the services, where nothing holds it up."""
        if not sent.counts:
            return 0.0
        put = self.medium.put.median if sent.counts.get("put") else 0.0
        return put + (self.medium.publish.median if sent.coming else 0.0)

    def _looking(
        self, receivers: Sequence[tuple[int, float]], sent: Sent, waiting: float
    ) -> tuple[float, float]:
        """Seconds until the readers of objects are done, and how often they looked in vain."""
        medium, pace = self.medium, Pace()
        fellows = max(fellows for _, fellows in receivers)
        there = waiting + medium.put.slowest(fellows) + sent.up / medium.bandwidth
        looks = pace.misses(there)
        misses = sum(count * min(many, forms.WINDOW) * looks for count, many in receivers)
        readers = sum(count * many for count, many in receivers)
        # The next is read when any of a window is done: only the last wait for the slowest.
        gone = pace.look(there) - waiting + max(sent.reads) * medium.get.slowest(readers)
        gone += (math.ceil(fellows / forms.WINDOW) - 1) * medium.get.median
        return gone, misses


def one_for_all(here: Setting, payload: int, waiting: float = 0.0) -> Bill:
    """One rank gives all others the same: bcast, and the way down of others."""
    return here.exchange([(1, _same(here, payload))], [(here.size - 1, [(1, 0, 0)])], waiting)


def one_for_each(here: Setting, payload: int, waiting: float = 0.0) -> Bill:
    """One rank gives each other its own: scatter."""
    receivers = [(1, [(1, 0, parcel)]) for parcel in range(here.size - 1)]
    return here.exchange([(1, _each(here, payload))], receivers, waiting)


def to_one(here: Setting, payload: int) -> Bill:
    """All others give to one: gather, reduce, and the way up of others."""
    k = here.size - 1
    return here.exchange([(k, [((0,), payload)])], [(1, [(k, 0, 0)])])


def same_for_all(here: Setting, payload: int, waiting: float = 0.0) -> Bill:
    """Everybody gives all others the same, in one round."""
    k = here.size - 1
    return here.exchange([(k + 1, _same(here, payload))], [(k + 1, [(k, 0, 0)])], waiting)


def each_for_each(here: Setting, payload: int) -> Bill:
    """Everybody gives each other its own, in one round.

    Rank r is the r-th whom those above it send to, and the one before for those below: it matters
    where a sender's last message has a batch of its own, and is sent directly.
    """
    k = here.size - 1
    kinds: Counter[tuple[tuple[int, int, int], ...]] = Counter()
    sent = here.sent(_each(here, payload), k).coming
    odd = [i for i, each in enumerate(sent) if each != sent[0]]
    for rank in {r for i in odd for r in (i, i + 1)}:
        sources = ((k - rank, 0, rank), (rank, 0, rank - 1))
        kinds[tuple(each for each in sources if each[0])] += 1
    kinds[((k, 0, 0),)] += here.size - kinds.total()
    receivers = [(count, sources) for sources, count in kinds.items()]
    return here.exchange([(here.size, _each(here, payload))], receivers)


def upwards(here: Setting, payload: int) -> Bill:
    """Everybody gives all ranks above the same: a scan in one round."""
    size = here.size
    senders = [
        (1, [(ranks, payload) for ranks in to_higher(rank, size).destinations])
        for rank in range(size)
    ]
    receivers = [(1, [(1, source, 0) for source in range(rank)]) for rank in range(1, size)]
    return here.exchange(senders, receivers, fellows=size // 2)


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


def in_pieces(here: Setting, payload: int, *, is_told: bool) -> Bill:
    """A large array's allreduce: each rank reduces a piece of all, and gives it to all.

    Where not everybody hears from everybody else (`is_told`), root says that all have cut theirs,
    and its own piece comes before those of the others, which wait for this.
    """
    k = here.size - 1
    cut, same = payload // here.size + pieces.HEAD, payload // here.size + pieces.PLAIN
    first = each_for_each(here, cut)
    each = k * len(here.sent(_each(here, cut), k).frames(0))
    each += k * len(here.sent(_same(here, same), k).frames(0))
    if not is_told:
        return acknowledged(here, first + same_for_all(here, same), [(here.size, each)])
    word = one_for_all(here, WORD, first.seconds)
    reduced = _same(here, same)
    last = here.exchange(
        [(1, reduced), (k, reduced)],
        [(1, [(k, 1, 0)]), (k, [(1, 0, 0)]), (k, [(k - 1, 1, 0)])],
        fellows=k,
    )
    bill = acknowledged(here, first + word + last, [(1, each), (k, each + 1)])
    if here.channel == "object":
        bill = replace(bill, counts={**bill.counts, "miss": _missed(here, first.seconds, cut)})
    return bill


def _missed(here: Setting, heard: float, cut: int) -> float:
    """Looks in vain at objects of pieces, where root has heard from all after so many seconds.

    The others look for its word alone, once theirs is written, and at their pieces when they have
    it.
    """
    k, pace, put, get = here.size - 1, Pace(), here.medium.put.median, here.medium.get.median
    at_once, many = pace.misses(put), min(k, forms.WINDOW)
    told = heard + put
    reads = here.sent(_each(here, cut), k).reads[-1]
    begin = put + pace.look(heard) + get + reads * get
    root = many * at_once + many * pace.misses(begin + put - told)
    other = pace.misses(heard) + pace.misses(told + put - begin) + (many - 1) * at_once
    return root + k * other


def acknowledged(here: Setting, bill: Bill, receivers: Sequence[tuple[int, int]]) -> Bill:
    """The same bill, for so many ranks who hear so many messages in all rounds together."""
    if here.channel == "object":
        return bill
    most = here.limits.acknowledge
    counted = sum(count * -(-messages // most) for count, messages in receivers)
    return replace(bill, counts={**bill.counts, "acknowledge": counted})


def _same(here: Setting, payload: int) -> list[Spec]:
    return [(tuple(range(1, here.size)), payload)] if here.size > 1 else []


def _each(here: Setting, payload: int) -> list[Spec]:
    return [((rank,), payload) for rank in range(1, here.size)]


def _times(counts: Mapping[str, float], times: float) -> dict[str, float]:
    return {name: amount * times for name, amount in counts.items()}
