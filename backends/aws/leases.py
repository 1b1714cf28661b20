"""One session's slots: leased from the pool, used again by its next gangs, renewed, given back.

A gang's lease is a use of slots under an id of its own, and costs no request while the session
holds enough of them. The rules of the pool itself are in `pool`; where it is kept, in `messages`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random
from typing import Protocol, TypeAlias, TypeVar

from fsdray.backends.aws import pool
from fsdray.backends.aws.pool import Grant, Pool
from fsdray.errors import PlatformError, SettingsError, Throttled

T = TypeVar("T")

EPOCHS = 1 << 32
"""A slot's epoch grows with each lease, and is told modulo this: see `is_later`."""
_USES = 1 << 12  # leases that a session makes of what one grant gave it

KEEP = 20.0
"""Seconds that a session keeps slots it does not use, for its next gang."""
PATIENCE = 90.0
"""Seconds that a gang waits for slots that other sessions hold: longer than they keep unused ones,
and than slots rest that are emptied."""
_MARGIN = 10.0  # seconds before a hold's end from which on it is not relied on
_STEP = 0.25, 5.0  # seconds between looks at a pool that has too few slots: first, longest
_ATTEMPTS = 40  # of one change, others' changes coming first each time

Change: TypeAlias = Callable[[Pool, float], tuple[Pool, T] | None]


class Store(Protocol):
    """Where the pool is kept."""

    async def read(self) -> tuple[str | None, str | None, float]:
        """The object's text and etag, None where there is none, and the store's time (s)."""
        ...

    async def write(self, text: str, etag: str | None) -> bool:
        """Write it if it is still that of `etag` (None: if there is none); whether it was."""
        ...


@dataclass(frozen=True)
class Lease:
    """A gang's slots, in rank order, and their epoch, which the frames for them bear."""

    epoch: int
    slots: tuple[int, ...]


def is_later(epoch: int, other: int) -> bool:
    """Whether of two epochs of one slot the first is the later: of the lease that still holds.

    Numbers go round after 2**31 leases, as serial numbers do (RFC 1982): nothing waits so long.
    """
    return 0 < (epoch - other) % EPOCHS < EPOCHS // 2


def awake() -> float:
    """Seconds that go on while this machine sleeps: others' clocks do, and a hold ends by them."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Leases:
    """See the module.

    Parameters
    ----------
    store : where the pool is.
    slots : how many the stack has. fanout : how many of them one topic serves.
    session : its id. who : for people: user, host and process.
    purge : empties the queues of slots that something may wait in.
    keep, term, patience, rest : seconds; see `KEEP`, `pool.TERM`, `PATIENCE`, `pool.REST`.
    stack : the stack's name, for errors.
    clock, chance : seconds, and what waits are jittered by; tests have their own.
    """

    def __init__(
        self,
        store: Store,
        *,
        slots: int,
        fanout: int,
        session: str,
        who: str,
        purge: Callable[[Sequence[int]], Awaitable[None]],
        keep: float = KEEP,
        term: float = pool.TERM,
        patience: float = PATIENCE,
        rest: float = pool.REST,
        stack: str = "fsdray",
        clock: Callable[[], float] = awake,
        chance: Random | None = None,
    ) -> None:
        self._store = store
        self._slots = slots
        self._fanout = fanout
        self._session = session
        self._who = who
        self._purge = purge
        self._keep = keep
        self._term = term
        self._patience = patience
        self._rest = rest
        self._stack = stack
        self._clock = clock
        self._chance = chance or Random()
        self._epoch = 0
        self._use = _USES  # the next lease's; none before the first grant
        self._grants: set[int] = set()  # their epochs, as leases tell them
        self._until = 0.0  # this machine's time up to which the hold is sure
        self._busy: dict[int, int] = {}  # the epochs of slots in use
        self._idle: dict[int, float] = {}  # since when
        self._leaving: set[int] = set()  # being given back
        self._dirty: set[int] = set()  # to be emptied before that
        self._purged: set[int] = set()  # emptied, and not given back yet
        self._turn = asyncio.Lock()  # one lease after the other: large gangs must not starve
        self._changing = asyncio.Lock()
        self._freed = asyncio.Event()
        self._news = asyncio.Event()  # the keeper has to look again
        self._keeper: asyncio.Task[None] | None = None
        self._giving = asyncio.Lock()
        self._may_hold = False  # whether the pool may name this session
        self._renew_at = 0.0

    @property
    def held(self) -> int:
        """Slots that this session holds, used or not."""
        return len(self._busy) + len(self._idle) + len(self._leaving)

    async def lease(self, count: int) -> Lease:
        """Slots for a gang.

        Raises
        ------
        SettingsError
            for more than the stack has; nothing was asked for.
        Throttled
            where others did not give enough back in time.
        """
        if count > self._slots:
            raise SettingsError(
                f"{count} inboxes are asked for, and the stack {self._stack!r} has {self._slots}: "
                f"run fsdray deploy --slots {count}, or start fewer ranks"
            )
        async with self._turn:
            self._freed.clear()
            chosen = self._own(count)
            if chosen is None:
                chosen = await self._granted(count)
            for slot in chosen:
                self._idle.pop(slot, None)
            self._leaving.difference_update(chosen)  # it had begun to leave while it was granted
            epoch = (self._epoch * _USES + self._use) % EPOCHS
            self._busy.update(dict.fromkeys(chosen, epoch))
            self._use += 1
            self._look_after()
            return Lease(epoch, chosen)

    def holds(self, slot: int, epoch: int) -> bool:
        """Whether this session leased the slot under this epoch, and has not released it."""
        return self._busy.get(slot) == epoch

    def made(self, epoch: int) -> bool:
        """Whether a lease under this epoch was this session's."""
        return epoch // _USES in self._grants

    async def release(self, slots: Sequence[tuple[int, int]], dirty: Set[int]) -> None:
        """Take back slots, each with its epoch.

        In the queues of the `dirty` ones something may wait, or a poll that nobody awaits: they
        are emptied and given back at once, and rest. The others are kept for a while.
        A slot that was lost meanwhile, and leased again, has another epoch.
        """
        mine = {slot for slot, epoch in slots if self.holds(slot, epoch)}
        self._dirty |= mine & dirty
        for slot in mine:
            del self._busy[slot]
        self._leaving |= mine & self._dirty
        self._idle.update(dict.fromkeys(mine - self._dirty, self._clock()))
        self._freed.set()
        self._news.set()
        if self._keep <= 0:
            await self._give_back()

    async def close(self) -> None:
        """Give everything back."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        self._dirty.update(self._busy)  # a gang still used them
        self._leaving.update(self._busy)
        self._busy.clear()
        if self._may_hold:
            await self._give_back(everything=True)

    async def give_back_for_the_dead(self) -> None:
        """Give back what calls of this session hold that ended without doing so."""
        text, _, _ = await self._store.read()
        if text is None:
            return
        holds = pool.holds_below(pool.parse(text), self._session)
        slots = frozenset[int]().union(*holds.values())
        if not slots:
            return
        await self._purge(sorted(slots))

        def release(state: Pool, now: float) -> tuple[Pool, None]:
            for call, held in holds.items():
                state = pool.release(state, call, held, held, now, self._rest)
            return state, None

        await self._change(release)

    # Leasing

    def _own(self, count: int) -> tuple[int, ...] | None:
        """Slots that this session holds already."""
        if self._clock() > self._until - _MARGIN or self._use >= _USES:
            return None
        return pool.place(count, self._idle.keys(), self._slots, self._fanout)

    async def _granted(self, count: int) -> tuple[int, ...]:
        """Slots out of the pool, waiting a while for those of others."""
        step, longest = _STEP
        deadline = self._clock() + self._patience
        while True:
            asked = self._clock()
            grant, seen = await self._change(lambda state, now: self._allocate(state, count, now))
            self._agree(seen)
            if grant is not None:
                self._epoch, self._use = grant.epoch, 0
                self._grants.add(grant.epoch % (EPOCHS // _USES))
                self._hold_until(asked + self._term)
                self._dirty |= grant.stale
                return grant.slots
            if self._busy:
                deadline = self._clock() + self._patience  # those will come back
            if self._clock() >= deadline:
                raise Throttled(self._too_few(count, seen))
            with suppress(TimeoutError):  # another look, then
                async with asyncio.timeout(step * (0.5 + self._chance.random())):
                    await self._freed.wait()
            self._freed.clear()
            own = self._own(count)
            if own is not None:
                return own
            step = min(2 * step, longest)

    def _allocate(self, state: Pool, count: int, now: float) -> tuple[Pool, Grant] | None:
        self._may_hold = True
        used = self._leaving.union(self._busy)
        return pool.allocate(
            state,
            self._session,
            self._who,
            count,
            used,
            slots=self._slots,
            fanout=self._fanout,
            now=now,
            term=self._term,
        )

    def _too_few(self, count: int, seen: Pool) -> str:
        holders = ", ".join(
            f"{len(hold.slots)} by {hold.who}"
            for session, hold in seen.holds.items()
            if session != self._session
        )
        resting = f"; {len(seen.resting)} are being emptied" if seen.resting else ""
        return (
            f"{count} inboxes were not free within {self._patience:g} s: of the {self._slots} "
            f"slots of the stack {self._stack!r}, others hold "
            f"{holders or 'none'}{resting}. Try again "
            f"when they have ended, or run fsdray deploy --slots {2 * max(count, self._slots)}"
        )

    async def _change(self, change: Change[T]) -> tuple[T | None, Pool]:
        """Apply `change` to the pool as it is, however often others change it meanwhile.

        Returns what it made (None: it changed nothing) and the pool as it was seen last.
        """
        async with self._changing:
            mine: tuple[Pool, T] | None = None  # what was written, and refused
            for attempt in range(_ATTEMPTS):
                text, etag, now = await self._store.read()
                state = Pool() if text is None else pool.parse(text)
                if mine is not None and state.write == mine[0].write:
                    # Not refused: its answer was lost, and the client sent it again.
                    return mine[1], mine[0]
                changed = change(state, now)
                if changed is None:
                    return None, pool.expire(state, now)
                after, made = changed
                if after == state:
                    return made, after
                written = f"{self._session}/{self._chance.getrandbits(48):x}"
                mine = replace(after, write=written), made
                if await self._store.write(pool.dump(mine[0]), etag):
                    return made, mine[0]
                await asyncio.sleep(self._chance.random() * min(1.0, 0.02 * 2**attempt))
        raise Throttled(
            f"the pool of the stack {self._stack!r} was changed by others {_ATTEMPTS} times in a "
            "row: too many sessions start or end at this moment; try again"
        )

    def _agree(self, seen: Pool) -> None:
        """Take over what the pool says that this session holds.

        It is less than this session knew if it was gone for longer than its hold; it is more if
        the answer to a change was lost.
        """
        hold = seen.holds.get(self._session)
        kept = hold.slots if hold else frozenset()
        now = self._clock()
        self._busy = {slot: epoch for slot, epoch in self._busy.items() if slot in kept}
        self._leaving &= kept
        self._dirty &= kept
        unused = kept - self._leaving - self._busy.keys()
        self._idle = {slot: self._idle.get(slot, now) for slot in unused}

    # Keeping and giving back

    def _hold_until(self, until: float) -> None:
        self._until = until
        self._renew_at = until - self._term * 2 / 3

    def _look_after(self) -> None:
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._look())
        self._news.set()

    async def _look(self) -> None:
        """Renew the hold while there is one, and give back what was not used for a while."""
        pause = 0.0
        while self.held:
            self._news.clear()
            now = self._clock()
            unused = now if self._leaving else min(self._idle.values(), default=now) + self._keep
            is_due = bool(self._leaving or self._idle)
            due = min(unused, self._renew_at) if is_due else self._renew_at
            due = max(due, pause)
            try:
                if due > now:
                    with suppress(TimeoutError):  # it is time
                        async with asyncio.timeout(due - now):
                            await self._news.wait()
                elif self._renew_at <= now:
                    await self._renew()
                else:
                    await self._give_back()
            except PlatformError:
                # It is tried again; what cannot be given back ends with the hold.
                pause = now + self._term / 12

    async def _renew(self) -> None:
        asked = self._clock()

        def renew(state: Pool, now: float) -> tuple[Pool, None] | None:
            after = pool.renew(state, self._session, now, self._term)
            return None if after is None else (after, None)

        _, seen = await self._change(renew)
        self._agree(seen)
        self._hold_until(asked + self._term)

    async def _give_back(self, *, everything: bool = False) -> None:
        """Give slots back that were not used for a while, or all that are not used now."""
        async with self._giving:
            now = self._clock()
            for slot, since in list(self._idle.items()):
                if everything or since + self._keep <= now:
                    del self._idle[slot]
                    self._leaving.add(slot)
            if not self._leaving and not everything:
                return
            if self._leaving & self._dirty and self._clock() > self._until - _MARGIN:
                await self._renew()  # what was lost meanwhile is not ours to empty
            unclean = self._leaving & self._dirty
            if unclean:
                await self._purge(sorted(unclean))
                self._dirty -= unclean
                self._purged |= unclean
            leaving, purged = frozenset(self._leaving), frozenset(self._purged)

            def give(state: Pool, now: float) -> tuple[Pool, frozenset[int]]:
                # A lease that was under way may have some of them.
                given = leaving & (self._leaving - self._dirty)
                named = range(self._slots) if everything else given
                return pool.release(state, self._session, named, purged, now, self._rest), given

            given, _ = await self._change(give)
            self._leaving -= given or frozenset()
            self._purged -= purged
            self._may_hold = self.held > 0
