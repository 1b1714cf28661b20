"""The pool's rules: where slots are placed, and what a hold is worth, against a plain model."""

from __future__ import annotations

from collections.abc import Set

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fsdray.backends.aws import pool
from fsdray.backends.aws.pool import Hold, Pool
from fsdray.errors import ServiceError


@given(
    count=st.integers(1, 30),
    slots=st.integers(1, 30),
    fanout=st.integers(1, 9),
    taken=st.sets(st.integers(0, 29)),
)
def test_slots_share_a_topic_where_their_places_say_so(
    count: int, slots: int, fanout: int, taken: Set[int]
) -> None:
    free = set(range(slots)) - taken
    chosen = pool.place(count, free, slots, fanout)
    if chosen is None:
        return
    assert len(set(chosen)) == count
    assert set(chosen) <= free
    for i, mine in enumerate(chosen):
        for j, other in enumerate(chosen):
            assert (mine // fanout == other // fanout) == (i // fanout == j // fanout)


@given(count=st.integers(1, 30), slots=st.integers(1, 30), fanout=st.integers(1, 9))
def test_an_empty_pool_has_room_for_all_that_it_is_as_large_as(
    count: int, slots: int, fanout: int
) -> None:
    chosen = pool.place(count, set(range(slots)), slots, fanout)
    assert (chosen is not None) == (count <= slots)


@given(count=st.integers(1, 8), taken=st.sets(st.integers(0, 23)))
def test_a_small_gang_is_refused_only_if_no_topic_has_room(count: int, taken: Set[int]) -> None:
    free = set(range(24)) - taken
    room = max(len([slot for slot in free if slot // 8 == g]) for g in range(3))
    assert (pool.place(count, free, 24, 8) is not None) == (room >= count)


def test_a_small_gang_goes_where_it_leaves_least_room() -> None:
    free = set(range(8)) | {8, 9, 10}
    assert pool.place(3, free, 16, 8) == (8, 9, 10)


def test_what_is_written_is_read() -> None:
    state = Pool(
        7,
        {"a": Hold(frozenset({0, 1, 2, 9}), 7, 12.5, "me@here (pid 3)")},
        {4: 60.0},
        frozenset({5, 6}),
        "a/1",
    )
    assert pool.parse(pool.dump(state)) == state
    assert pool.parse(pool.dump(Pool())) == Pool()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"v": 1}', "null", '{"v": 1, "epoch": "x"}'])
def test_what_is_no_pool_says_what_to_do(text: str) -> None:
    with pytest.raises(ServiceError, match=r"pool.json cannot be read .*delete it"):
        pool.parse(text)


def test_a_pool_of_another_version_says_so() -> None:
    with pytest.raises(ServiceError, match=r"of version 9.*fsdray deploy"):
        pool.parse('{"v": 9}')


def test_a_pool_that_was_made_anew_does_not_begin_its_epochs_again() -> None:
    first = pool.allocate(Pool(), "a", "a", 1, set(), slots=4, fanout=4, now=1000.0)
    assert first is not None
    again = pool.allocate(Pool(), "b", "b", 1, set(), slots=4, fanout=4, now=1001.0)
    assert again is not None
    assert again[1].epoch > first[1].epoch


SLOTS, FANOUT, TERM, REST = 12, 4, 10.0, 5.0
SESSIONS = st.sampled_from("abc")


class Holders(RuleBasedStateMachine):
    """Sessions that lease, renew, give back and die, beside what each may believe to hold."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool()
        self.now = 100.0
        self.holds: dict[str, set[int]] = {}
        self.used: dict[str, set[int]] = {}
        self.until: dict[str, float] = {}
        self.purged: dict[int, float] = {}
        self.abandoned: set[int] = set()  # slots that were lost with their holder
        self.epochs = [0]

    def end(self) -> None:
        for session, until in list(self.until.items()):
            if until <= self.now:
                self.abandoned |= self.holds.pop(session)
                del self.until[session], self.used[session]

    @rule(seconds=st.floats(0.5, 12))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.end()

    @rule(session=SESSIONS, count=st.integers(1, SLOTS))
    def lease(self, session: str, count: int) -> None:
        used = self.used.get(session, set())
        others = set().union(*(held for name, held in self.holds.items() if name != session))
        resting = {slot for slot, at in self.purged.items() if at + REST > self.now}
        free = set(range(SLOTS)) - others - used - (resting - self.holds.get(session, set()))
        changed = pool.allocate(
            self.pool,
            session,
            session,
            count,
            used,
            slots=SLOTS,
            fanout=FANOUT,
            now=self.now,
            term=TERM,
        )
        if changed is None:
            assert pool.place(count, free, SLOTS, FANOUT) is None
            return
        self.pool, grant = changed
        chosen = set(grant.slots)
        assert chosen <= free
        assert grant.epoch > self.epochs[-1]
        assert grant.stale == self.abandoned & chosen
        self.abandoned -= chosen
        self.epochs.append(grant.epoch)
        self.holds[session] = self.holds.get(session, set()) | chosen
        self.used[session] = used | chosen
        self.until[session] = self.now + TERM

    @rule(session=SESSIONS)
    def renew(self, session: str) -> None:
        after = pool.renew(self.pool, session, self.now, TERM)
        assert (after is not None) == (session in self.holds)
        if after is not None:
            self.pool = after
            self.until[session] = self.now + TERM

    @rule(session=SESSIONS, slots=st.sets(st.integers(0, SLOTS - 1)), is_dirty=st.booleans())
    def give_back(self, session: str, slots: set[int], is_dirty: bool) -> None:
        purged = slots if is_dirty else set()
        self.pool = pool.release(self.pool, session, slots, purged, self.now, REST)
        mine = self.holds.get(session, set()) & slots
        self.purged.update(dict.fromkeys(mine & purged, self.now))
        if mine:
            self.holds[session] -= mine
            self.used[session] -= mine
            if not self.holds[session]:
                del self.holds[session], self.used[session], self.until[session]

    @precondition(lambda self: self.holds)
    @rule(session=SESSIONS)
    def stop_using(self, session: str) -> None:
        if session in self.used:
            self.used[session] = set()

    @invariant()
    def the_pool_says_what_the_model_says(self) -> None:
        seen = pool.expire(self.pool, self.now)
        assert {name: set(hold.slots) for name, hold in seen.holds.items()} == self.holds
        assert pool.parse(pool.dump(self.pool)) == self.pool


TestHolders = Holders.TestCase
