"""Who holds which rank slots of a stack: the rules, as pure functions of one JSON object.

The object is ``pool.json`` in the stack's bucket, changed only on condition that nobody changed it
meanwhile. All times in it are the object store's own (its ``Date`` header), so that no caller's
clock matters. What a session does with its slots is in `leases`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field

from fsdray.errors import ServiceError

KEY = "pool.json"
TERM = 180.0
"""Seconds that a hold lasts unless it is renewed: after that a dead driver's slots are free. The
``Date`` header counts whole seconds, and a renewal may take a few: both are small beside it."""
REST = 65.0
"""Seconds that a purged slot is nobody's: SQS says that a purge takes up to 60 s and may delete
what is sent meanwhile; the rest is for the whole seconds of ``Date``. A long poll that nobody
awaits any more has ended by then as well: it would take a message with it."""

_VERSION = 1


@dataclass(frozen=True)
class Hold:
    """What one session holds.

    Parameters
    ----------
    slots : numbers of rank slots.
    epoch : of its last grant; every epoch is given once, and later ones are larger.
    until : the store's time, in seconds, at which the hold ends unless it is renewed.
    who : for people: user, host and process.
    """

    slots: frozenset[int]
    epoch: int
    until: float
    who: str


@dataclass(frozen=True)
class Pool:
    """The object's contents.

    Parameters
    ----------
    epoch : the largest that was ever given.
    holds : by session.
    resting : slots that are being purged, and until when nobody may use them.
    stale : free slots whose last holder never gave them back: something may wait in them.
    write : made up by whoever wrote this: a write whose answer was lost is known by it.
    """

    epoch: int = 0
    holds: Mapping[str, Hold] = field(default_factory=dict)
    resting: Mapping[int, float] = field(default_factory=dict)
    stale: frozenset[int] = frozenset()
    write: str = ""

    def taken(self) -> frozenset[int]:
        """Slots that nobody else may use now."""
        held = (hold.slots for hold in self.holds.values())
        return frozenset(self.resting).union(*held)


@dataclass(frozen=True)
class Grant:
    """Slots in the order of their inboxes, the epoch they are given under, and which are stale."""

    slots: tuple[int, ...]
    epoch: int
    stale: frozenset[int]


def place(count: int, free: Set[int], slots: int, fanout: int) -> tuple[int, ...] | None:
    """`count` of the `free` slots below `slots`, such that inboxes i and j share a topic if and
    only if ``i // fanout == j // fanout``; None where they do not fit.

    Topic g serves slots ``fanout * g`` and the `fanout` - 1 after it. The last inboxes go where
    they leave the least room, so that whole topics stay free for large gangs.
    """
    topics = -(-slots // fanout)
    members = [
        [slot for slot in range(g * fanout, min(slots, (g + 1) * fanout)) if slot in free]
        for g in range(topics)
    ]
    whole, rest = divmod(count, fanout)
    full = [g for g in range(topics) if len(members[g]) == fanout]
    if len(full) < whole:
        return None
    chosen: list[int] = []
    # The last inboxes may need the only topic that is large enough but not whole, or a whole one.
    for g in full[:whole]:
        chosen += members[g]
    if rest:
        others = [g for g in range(topics) if g not in full[:whole] and len(members[g]) >= rest]
        if not others:
            return None
        best = min(others, key=lambda g: (len(members[g]), g))
        chosen += members[best][:rest]
    return tuple(chosen)


def expire(pool: Pool, now: float) -> Pool:
    """Without the holds and rests that are over."""
    over = {session: hold for session, hold in pool.holds.items() if hold.until <= now}
    return dataclasses.replace(
        pool,
        holds={session: hold for session, hold in pool.holds.items() if session not in over},
        resting={slot: until for slot, until in pool.resting.items() if until > now},
        stale=pool.stale.union(*(hold.slots for hold in over.values())),
    )


def allocate(
    pool: Pool,
    session: str,
    who: str,
    count: int,
    used: Set[int],
    *,
    slots: int,
    fanout: int,
    now: float,
    term: float = TERM,
) -> tuple[Pool, Grant] | None:
    """Grant a session `count` more slots, or None where so many are not free.

    What it holds already counts as free for it, but for the slots that it has in use. Its hold is
    renewed with it.
    """
    pool = expire(pool, now)
    before = pool.holds.get(session)
    kept = before.slots if before else frozenset()
    usable = (frozenset(range(slots)) - pool.taken()) | (kept - used)
    chosen = place(count, usable, slots, fanout)
    if chosen is None:
        return None
    # At least the clock: a pool that was deleted and made anew does not begin again.
    epoch = max(pool.epoch + 1, int(now))
    hold = Hold(kept.union(chosen), epoch, now + term, who)
    stale = pool.stale.intersection(chosen)
    after = dataclasses.replace(
        pool, epoch=epoch, holds={**pool.holds, session: hold}, stale=pool.stale - stale
    )
    return after, Grant(chosen, epoch, stale)


def call_of(session: str, name: str) -> str:
    """Under which name a call of a session holds slots."""
    return f"{session}/{name}"


def holds_below(pool: Pool, session: str) -> dict[str, frozenset[int]]:
    """Slots that calls of a session hold, by the name under which each does."""
    own = call_of(session, "")
    return {name: hold.slots for name, hold in pool.holds.items() if name.startswith(own)}


def renew(pool: Pool, session: str, now: float, term: float = TERM) -> Pool | None:
    """The session goes on holding what it holds; None where its hold is over already."""
    pool = expire(pool, now)
    hold = pool.holds.get(session)
    if hold is None:
        return None
    kept = dataclasses.replace(hold, until=now + term)
    return dataclasses.replace(pool, holds={**pool.holds, session: kept})


def release(
    pool: Pool, session: str, slots: Iterable[int], purged: Set[int], now: float, rest: float = REST
) -> Pool:
    """The session gives slots back; the `purged` ones among them rest first.

    What is not its own (any more) is left as it is.
    """
    pool = expire(pool, now)
    hold = pool.holds.get(session)
    if hold is None:
        return pool
    given = hold.slots.intersection(slots)
    left = hold.slots - given
    holds = {name: each for name, each in pool.holds.items() if name != session}
    if left:
        holds[session] = dataclasses.replace(hold, slots=left)
    resting = {**pool.resting, **dict.fromkeys(given & purged, now + rest)}
    return dataclasses.replace(pool, holds=holds, resting=resting)


def dump(pool: Pool) -> str:
    """The object's text."""
    return json.dumps(
        {
            "v": _VERSION,
            "epoch": pool.epoch,
            "holds": {
                session: {
                    "slots": _ranges(hold.slots),
                    "epoch": hold.epoch,
                    "until": hold.until,
                    "who": hold.who,
                }
                for session, hold in pool.holds.items()
            },
            "resting": {str(slot): until for slot, until in pool.resting.items()},
            "stale": _ranges(pool.stale),
            "write": pool.write,
        }
    )


def parse(text: str | bytes) -> Pool:
    """The object's contents.

    Raises
    ------
    ServiceError
        where it is not what fsdray of this version writes.
    """
    try:
        told = json.loads(text)
        if told["v"] != _VERSION:
            raise ServiceError(
                f"{KEY} is of version {told['v']}, this fsdray knows {_VERSION}: install the "
                "fsdray that deployed the stack, or run fsdray deploy"
            )
        return Pool(
            epoch=int(told["epoch"]),
            holds={
                str(session): Hold(
                    _slots(hold["slots"]), int(hold["epoch"]), float(hold["until"]), hold["who"]
                )
                for session, hold in told["holds"].items()
            },
            resting={int(slot): float(until) for slot, until in told["resting"].items()},
            stale=_slots(told["stale"]),
            write=str(told["write"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServiceError(
            f"{KEY} cannot be read ({type(error).__name__}: {error}): when no session runs, "
            "delete it from the stack's bucket; the next session makes a new one"
        ) from error


def _ranges(slots: Iterable[int]) -> list[list[int]]:
    """Numbers as [first, last] pairs."""
    found: list[list[int]] = []
    for slot in sorted(slots):
        if found and found[-1][1] == slot - 1:
            found[-1][1] = slot
        else:
            found.append([slot, slot])
    return found


def _slots(ranges: Iterable[tuple[int, int]]) -> frozenset[int]:
    return frozenset(slot for first, last in ranges for slot in range(first, last + 1))
