"""How one rank's messages become requests, in frames or as an object, and what each way bills.

Pure functions of sizes and limits: `channels.auto` chooses by them, the formulas of
`fsdray.collective.algorithms` are made of them, and the channels do what is counted here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from fsdray.collective.arrivals import Wave, read
from fsdray.collective.combined import ALIGN, HEAD, SPAN_SIZE, layout
from fsdray.collective.frames import overhead
from fsdray.costs.medium import Bill, Medium, best
from fsdray.services import ADDRESS, ENVELOPE, KIB, MessageLimits, gets, puts, units

Spec: TypeAlias = tuple[tuple[int, ...], int]
"""A parcel as far as billing goes: to whom, and how many bytes of payload."""

_CUTS = (8 * KIB, 32 * KIB, 64 * KIB, 128 * KIB, 256 * KIB)
"""Bytes from which messages are tried as part of an object, where many of many sizes go out."""
WINDOW = 64
"""Objects of one collective that a rank looks for at a time. More would not come sooner, since a
client has no more connections, and each look at an object that is not there yet is billed."""
_FULL = 10  # senders from whom on a receiver's batches are taken to be full


@dataclass(frozen=True)
class Sent:
    """What one rank's part of one exchange comes to.

    Parameters
    ----------
    counts : what the sender asks for.
    coming : what a receiver of each parcel finds in its inbox: billed bytes of the messages that
        come by a send, and of those that come by a publish, which takes longer.
    fetched : what all receivers together ask of the object.
    up, down : bytes that leave the sender, and that come to one receiver.
    is_direct : whether all messages are sent to one inbox, not published.
    reads : gets, one after the other, by which a receiver of each parcel has it from an object.
    """

    counts: dict[str, float]
    coming: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    fetched: dict[str, float]
    up: int
    down: int
    is_direct: bool
    reads: tuple[int, ...] = ()

    def waves(self, parcel: int, medium: Medium) -> list[Wave]:
        """What a receiver of a parcel finds in its inbox, and when after it was sent."""
        if not self.coming:
            return []
        first = medium.put.median if self.fetched else 0.0
        after = first + medium.direct.median, first + medium.deliver.median
        return [(at, some) for at, some in zip(after, self.coming[parcel], strict=True) if some]

    def frames(self, parcel: int) -> tuple[int, ...]:
        """All of these messages."""
        direct, other = self.coming[parcel] if self.coming else ((), ())
        return (*direct, *other)


def groups(ranks: Sequence[int], fanout: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Ranks by the group of inboxes that they are in: one publish reaches `fanout` of them."""
    if (
        ranks
        and ranks[0] // fanout == ranks[-1] // fanout
        and min(ranks) // fanout == max(ranks) // fanout
    ):
        return iter([(ranks[0] // fanout, tuple(ranks))])
    found: dict[int, list[int]] = {}
    for rank in ranks:
        found.setdefault(rank // fanout, []).append(rank)
    return ((group, tuple(some)) for group, some in found.items())


def frame_sizes(payload: int, destinations: int, limits: MessageLimits) -> list[int]:
    """Billed bytes of the frames of one payload to so many."""
    envelope = ENVELOPE + ADDRESS * destinations + overhead(destinations)
    full, rest = divmod(payload, limits.message - envelope)
    return [limits.message] * full + ([envelope + rest] if rest or not full else [])


def published(frames: Sequence[Spec], limits: MessageLimits) -> list[list[int]]:
    """The batches that hold frames of these targets and sizes, the largest placed first.

    Each is given by the places of its frames.
    """
    closed: list[list[int]] = []
    opened: list[tuple[int, list[int]]] = []
    least = min((size for _, size in frames), default=0)
    for place in sorted(range(len(frames)), key=lambda place: -frames[place][1]):
        size = frames[place][1]
        for i, (used, batch) in enumerate(opened):
            if used + size <= limits.batch:
                batch.append(place)
                opened[i] = (used + size, batch)
                break
        else:
            i = len(opened)
            opened.append((size, [place]))
        used, batch = opened[i]
        if len(batch) == limits.batch_messages or used + least > limits.batch:
            closed.append(opened.pop(i)[1])  # nothing more fits
    return [*closed, *(batch for _, batch in opened)]


def mixed(parcels: Sequence[Spec], large: frozenset[int], limits: MessageLimits) -> Sent:
    """Parcels as frames in messages, and the `large` ones as one object with pointers."""
    objects = [parcels[i] for i in sorted(large)]
    by_group: dict[int, list[Spec]] = {}
    owners: dict[int, list[int]] = {}  # whose frame it is; -1: that of no receiver we follow

    def add(ranks: tuple[int, ...], payload: int, owner: int) -> None:
        for group, some in groups(ranks, limits.fanout):
            sizes = frame_sizes(payload, len(some), limits)
            by_group.setdefault(group, []).extend((some, size) for size in sizes)
            owners.setdefault(group, []).extend([owner] * len(sizes))
            owner = -1

    for i, (ranks, payload) in enumerate(parcels):
        if i not in large:
            add(ranks, payload, i)
    counts: dict[str, float] = {}
    fetched: dict[str, float] = {}
    up = down = 0
    pointed: dict[int, int] = {}  # owners of pointers, by group
    if objects:
        placed = layout([(len(ranks), size) for ranks, size in objects])
        spans = [end - start + start % ALIGN for start, end in placed.spans]
        readers = sum(len(ranks) for ranks, _ in objects)
        total = sum(len(ranks) * n for (ranks, _), n in zip(objects, spans, strict=True))
        counts |= {"put": puts(placed.size), "put_bytes": placed.size}
        asked = sum(len(ranks) * gets(n) for (ranks, _), n in zip(objects, spans, strict=True))
        fetched = {"get": asked, "get_bytes": total}
        up = placed.size
        down = total // readers
        for ranks, entries in pointers([ranks for ranks, _ in objects], limits):
            pointed[ranks[0] // limits.fanout] = owner = len(parcels) + len(pointed)
            add(ranks, SPAN_SIZE * entries, owner)
    found: list[tuple[list[int], list[int]]] = [
        ([], []) for _ in range(len(parcels) + len(pointed))
    ]
    is_direct = bool(by_group)
    for group, frames in by_group.items():
        for batch in published(frames, limits):
            targets = {frames[place][0] for place in batch}
            is_send = len(targets) == 1 and len(next(iter(targets))) == 1
            size = sum(frames[place][1] for place in batch)
            name = "send" if is_send else "publish"
            for what, amount in (("", 1), ("_units", units(size)), ("_bytes", size)):
                counts[name + what] = counts.get(name + what, 0.0) + amount
            up += size
            is_direct = is_direct and is_send
            for place in batch:
                owner = owners[group][place]
                if owner >= 0:
                    found[owner][not is_send].append(frames[place][1])
    coming = [(tuple(direct), tuple(other)) for direct, other in found]
    for i in large:
        coming[i] = coming[pointed[parcels[i][0][0] // limits.fanout]]
    down = max(down, max((sum(map(sum, each)) for each in coming), default=0))
    return Sent(counts, tuple(coming[: len(parcels)]), fetched, up, down, is_direct)


def in_object(parcels: Sequence[Spec]) -> Sent:
    """Parcels as one object, whose readers know its key and find their part by its index."""
    if not parcels:
        return Sent({}, (), {}, 0, 0, False)
    placed = layout([(len(ranks), size) for ranks, size in parcels])
    head = min(HEAD, placed.size)
    reads: list[int] = []
    asked = got = 0
    for (ranks, _), (start, end) in zip(parcels, placed.spans, strict=True):
        spans = [head]
        if placed.index > HEAD:
            spans.append(placed.index)
        if end > head:
            spans.append(end - start + start % ALIGN)
        reads.append(len(spans))
        asked += len(ranks) * sum(map(gets, spans))
        got += len(ranks) * sum(spans)
    readers = sum(len(ranks) for ranks, _ in parcels)
    counts = {"put": float(puts(placed.size)), "put_bytes": float(placed.size)}
    fetched = {"get": float(asked), "get_bytes": float(got)}
    return Sent(counts, (), fetched, placed.size, got // max(1, readers), False, tuple(reads))


@lru_cache(maxsize=4096)
def stored(
    parcels: tuple[Spec, ...], fellows: int, ranks: int, medium: Medium, limits: MessageLimits
) -> frozenset[int]:
    """Which of the parcels that a rank sends are to go as an object with pointers: the policy.

    Parameters
    ----------
    fellows : how many ranks send to each receiver; with many of them its receives come back full.
    ranks : how many there are, and wait.
    """
    sizes = sorted({size for _, size in parcels})
    cuts = sizes if len(sizes) <= len(_CUTS) else [sizes[0], *_CUTS]
    ways = {"": frozenset[int]()}
    for cut in cuts:
        some = frozenset(i for i, (_, size) in enumerate(parcels) if size >= cut)
        if some:
            ways[str(cut)] = some
    bills = {}
    for name, some in ways.items():
        bills[name] = _of_one(mixed(parcels, some, limits), parcels, fellows, medium, limits)
    return ways[best(bills, medium, ranks)]


def hop(sent: Sent, messages: int, medium: Medium) -> float:
    """Seconds until the last of so many messages, sent so at once, has come through an inbox."""
    way = medium.direct if sent.is_direct else medium.deliver
    seconds = way.slowest(messages)
    if sent.fetched:
        seconds += medium.put.slowest(messages) + medium.get.slowest(messages)
    return seconds


def pointers(
    destinations: Sequence[tuple[int, ...]], limits: MessageLimits
) -> list[tuple[tuple[int, ...], int]]:
    """The pointers to parcels in an object: to whom each goes, and how many spans it holds.

    One says all to a group of inboxes; where it has several parcels, with a span for each.
    """
    found: dict[int, list[int]] = {}
    for ranks in destinations:
        for rank in ranks:
            found.setdefault(rank // limits.fanout, []).append(rank)
    is_one = len(destinations) == 1
    return [(tuple(some), 1 if is_one else len(some)) for some in found.values()]


def _of_one(
    sent: Sent, parcels: Sequence[Spec], fellows: int, medium: Medium, limits: MessageLimits
) -> Bill:
    """What a sender's part costs, with its share of what the receivers ask for."""
    readers = sum(len(ranks) for ranks, _ in parcels)
    fellows = max(1, fellows)
    share = min(fellows, _FULL)
    counts = dict(sent.counts)
    alike: Counter[tuple[int, ...]] = Counter()
    for i, (ranks, _) in enumerate(parcels):
        alike[sent.frames(i)] += len(ranks)
    for frames, many in alike.items():
        for name, amount in read([(0.0, frames * share)], limits).items():
            counts[name] = counts.get(name, 0.0) + many * amount / share
    for name, amount in sent.fetched.items():
        counts[name] = counts.get(name, 0.0) + amount
    # Of all who send at once each pays its part of the wait.
    seconds = hop(sent, readers, medium) + (sent.up + fellows * sent.down) / medium.bandwidth
    return Bill(counts, seconds / fellows)
