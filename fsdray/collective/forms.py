"""How one rank's messages become requests, in frames or as an object, and what each way bills.

Pure functions of sizes and limits: `channels.auto` chooses by them, the formulas of
`fsdray.collective.algorithms` are made of them, and the channels do what is counted here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from fsdray.collective.combined import ALIGN, HEAD, SPAN_SIZE, layout
from fsdray.collective.frames import overhead
from fsdray.costs.medium import Bill, Medium, best
from fsdray.services import ADDRESS, ENVELOPE, KIB, MessageLimits, units

Spec: TypeAlias = tuple[tuple[int, ...], int]
"""A parcel as far as billing goes: to whom, and how many bytes of payload."""

_CUTS = (8 * KIB, 32 * KIB, 64 * KIB, 128 * KIB, 256 * KIB)
"""Bytes from which messages are tried as part of an object, where many of many sizes go out."""
WINDOW = 64
"""Objects of one collective that a rank looks for at a time. More would not come sooner, since a
client has no more connections, and each look at an object that is not there yet is billed."""
READERS = 16
"""Receives that a rank has under way where each one before came back full: one takes some 8 ms, and
brings 10 messages at most, so that the last of 4,095 ranks would be heard after 3 seconds."""
_FULL = 10  # senders from whom on a receiver's batches are taken to be full


@dataclass(frozen=True)
class Sent:
    """What one rank's part of one exchange comes to.

    Parameters
    ----------
    counts : what the sender asks for.
    frames : billed bytes of the messages that each receiver finds in its inbox.
    fetched : what all receivers together ask of the object.
    up, down : bytes that leave the sender, and that come to one receiver.
    is_direct : whether all messages are sent to one inbox, not published.
    """

    counts: dict[str, float]
    frames: tuple[int, ...]
    fetched: dict[str, float]
    up: int
    down: int
    is_direct: bool


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


def published(frames: Sequence[tuple[int, tuple[int, ...]]], limits: MessageLimits) -> list[Sent]:
    """The batches that hold frames of these sizes and targets, the largest placed first."""
    closed: list[tuple[int, int, set[tuple[int, ...]]]] = []
    opened: list[tuple[int, int, set[tuple[int, ...]]]] = []
    least = min((size for size, _ in frames), default=0)
    for size, ranks in sorted(frames, key=lambda frame: -frame[0]):
        for i, (used, count, targets) in enumerate(opened):
            if used + size <= limits.batch:
                targets.add(ranks)
                opened[i] = (used + size, count + 1, targets)
                break
        else:
            i = len(opened)
            opened.append((size, 1, {ranks}))
        used, count, _ = opened[i]
        if count == limits.batch_messages or used + least > limits.batch:  # nothing more fits
            closed.append(opened.pop(i))
    return [_call(size, targets) for size, _, targets in (*closed, *opened)]


def mixed(parcels: Sequence[Spec], large: frozenset[int], limits: MessageLimits) -> Sent:
    """Parcels as frames in messages, and the `large` ones as one object with pointers."""
    inline = [parcel for i, parcel in enumerate(parcels) if i not in large]
    objects = [parcels[i] for i in sorted(large)]
    by_group: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    first: list[int] = []

    def add(ranks: tuple[int, ...], payload: int) -> None:
        for group, some in groups(ranks, limits.fanout):
            sizes = frame_sizes(payload, len(some), limits)
            by_group.setdefault(group, []).extend((size, some) for size in sizes)
            if not first:
                first.extend(sizes)

    for ranks, payload in inline:
        add(ranks, payload)
    down = sum(first)
    counts: dict[str, float] = {}
    fetched: dict[str, float] = {}
    up = 0
    if objects:
        placed = layout([(len(ranks), size) for ranks, size in objects])
        spans = [end - start + start % ALIGN for start, end in placed.spans]
        readers = sum(len(ranks) for ranks, _ in objects)
        total = sum(len(ranks) * n for (ranks, _), n in zip(objects, spans, strict=True))
        counts |= {"put": 1, "put_bytes": placed.size}
        fetched = {"get": readers, "get_bytes": total}
        up = placed.size
        down = max(down, total // readers)
        for ranks, entries in pointers([ranks for ranks, _ in objects], limits):
            add(ranks, SPAN_SIZE * entries)
    calls = [call for frames in by_group.values() for call in published(frames, limits)]
    for call in calls:
        for name, amount in call.counts.items():
            counts[name] = counts.get(name, 0.0) + amount
    up += sum(call.up for call in calls)
    direct = bool(calls) and all(call.is_direct for call in calls)
    return Sent(counts, tuple(first), fetched, up, down, direct)


def in_object(parcels: Sequence[Spec]) -> Sent:
    """Parcels as one object, whose readers know its key and find their part by its index."""
    if not parcels:
        return Sent({}, (), {}, 0, 0, False)
    placed = layout([(len(ranks), size) for ranks, size in parcels])
    head = min(HEAD, placed.size)
    gets, got = 0, 0
    for (ranks, _), (start, end) in zip(parcels, placed.spans, strict=True):
        more = end > head
        gets += len(ranks) * (1 + more + (placed.index > HEAD))
        got += len(ranks) * (head + more * (end - start + start % ALIGN))
        got += len(ranks) * (placed.index > HEAD) * placed.index
    counts = {"put": 1.0, "put_bytes": float(placed.size)}
    fetched = {"get": float(gets), "get_bytes": float(got)}
    readers = sum(len(ranks) for ranks, _ in parcels)
    return Sent(counts, (), fetched, placed.size, got // max(1, readers), False)


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


def received(frames: Sequence[int], limits: MessageLimits) -> dict[str, float]:
    """What a reader asks for who finds these messages in its inbox, all at once, in this order."""
    receives, paid, at = 0, 0, 0
    while at < len(frames):
        size, first = frames[at], at
        at += 1
        while (
            at < len(frames)
            and at - first < limits.receive_messages
            and size + frames[at] <= limits.receive
        ):
            size += frames[at]
            at += 1
        receives += 1
        paid += units(size)
    return {
        "receive": receives,
        "receive_units": paid,
        "acknowledge": -(-len(frames) // limits.acknowledge),
    }


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


def _call(size: int, targets: set[tuple[int, ...]]) -> Sent:
    direct = len(targets) == 1 and len(next(iter(targets))) == 1
    name = "send" if direct else "publish"
    counts = {name: 1.0, f"{name}_units": float(units(size)), f"{name}_bytes": float(size)}
    return Sent(counts, (), {}, size, 0, direct)


def _of_one(
    sent: Sent, parcels: Sequence[Spec], fellows: int, medium: Medium, limits: MessageLimits
) -> Bill:
    """What a sender's part costs, with its share of what the receivers ask for."""
    readers = sum(len(ranks) for ranks, _ in parcels)
    fellows = max(1, fellows)
    share = min(fellows, _FULL)
    taken = received(sent.frames * share, limits)
    counts = dict(sent.counts)
    for name, amount in taken.items():
        counts[name] = counts.get(name, 0.0) + readers * amount / share
    for name, amount in sent.fetched.items():
        counts[name] = counts.get(name, 0.0) + amount
    # Of all who send at once each pays its part of the wait.
    seconds = hop(sent, readers, medium) + (sent.up + fellows * sent.down) / medium.bandwidth
    return Bill(counts, seconds / fellows)
