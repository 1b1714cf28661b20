"""The mailbox against a model: each message once, whole, and sends in order."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from fsdray.collective.frames import Codec, Frame, Key, Operation
from fsdray.collective.mailbox import Called, Letter, Mailbox
from fsdray.collective.parcels import Outgoing, Parcel
from fsdray.errors import RankFailed

EPOCH = b"this gang's own."
STALE = b"a gang of before"
RANK = 1


def frame(
    payload: bytes,
    *,
    operation: Operation = Operation.BCAST,
    number: int = 0,
    source: int = 0,
    part: int = 0,
    parts: int = 1,
    tag: int = 0,
    epoch: bytes = EPOCH,
    to: tuple[int, ...] = (RANK,),
    communicator: int = 0,
) -> Frame:
    return Frame(
        epoch,
        operation,
        Codec.RAW,
        communicator,
        number,
        source,
        to,
        tag,
        part,
        parts,
        payload,
    )


def message(parts: int, **more: Any) -> list[Frame]:
    return [frame(f"part {i}, ".encode(), part=i, parts=parts, **more) for i in range(parts)]


def whole(frames: list[Frame]) -> bytes:
    return b"".join(bytes(each.payload) for each in frames)


def taken(mailbox: Mailbox, source: int, tag: int | None) -> Letter | None:
    """The send that such a receive is given at once; it does not stay to wait."""
    posting = mailbox.sends(0).post(source, tag)
    if posting.letter is None:
        mailbox.sends(0).withdraw(posting)
    return posting.letter


class MailboxMachine(RuleBasedStateMachine):
    """Deposits frames in any order and as often as it likes; takes what the model has."""

    frames: Bundle[Frame] = Bundle("frames")

    @initialize()
    def open(self) -> None:
        self.mailbox = Mailbox(EPOCH, RANK)
        self.next_collective: defaultdict[int, int] = defaultdict(int)  # by source
        self.next_send: defaultdict[int, int] = defaultdict(int)
        self.messages: dict[Key, list[Frame]] = {}
        self.came: defaultdict[Key, set[int]] = defaultdict(set)
        self.taken: set[Key] = set()
        self.floor = 0
        self.received: defaultdict[int, int] = defaultdict(int)  # sends taken, by source
        self.out_of_order: defaultdict[int, set[int]] = defaultdict(set)

    @rule(target=frames, source=st.integers(2, 4), parts=st.integers(1, 3), tag=st.integers(0, 1))
    def send(self, source: int, parts: int, tag: int) -> Any:
        number = self.next_send[source]
        self.next_send[source] += 1
        return self._made(
            message(parts, operation=Operation.SEND, number=number, source=source, tag=tag)
        )

    @rule(
        target=frames,
        source=st.integers(2, 4),
        parts=st.integers(1, 3),
        operation=st.sampled_from([Operation.BCAST, Operation.GATHER, Operation.BARRIER]),
    )
    def call(self, source: int, parts: int, operation: Operation) -> Any:
        number = self.next_collective[source]
        self.next_collective[source] += 1
        return self._made(message(parts, operation=operation, number=number, source=source))

    def _made(self, frames: list[Frame]) -> list[Frame]:
        self.messages[frames[0].key] = frames
        return frames

    @rule(some=frames, part=st.integers(0, 2), times=st.integers(1, 3))
    def deposit(self, some: list[Frame], part: int, times: int) -> None:
        one = some[part % len(some)]
        for _ in range(times):
            self.mailbox.deposit(one)
        if one.key.is_send or one.key.number >= self.floor:
            self.came[one.key].add(one.part)

    @rule(some=frames)
    def deposit_backwards(self, some: list[Frame]) -> None:
        for one in reversed(some):
            self.deposit(some, one.part, 1)

    @rule(some=frames)
    def deposit_a_stale_gangs(self, some: list[Frame]) -> None:
        before = self.mailbox.dropped
        for one in some:
            self.mailbox.deposit(
                frame(b"stale", epoch=STALE, number=one.number, source=one.source, parts=one.parts)
            )
        assert self.mailbox.dropped == before + len(some)

    @rule(some=frames)
    def deposit_another_ranks(self, some: list[Frame]) -> None:
        before = self.mailbox.dropped
        for one in some:
            self.mailbox.deposit(
                frame(b"not yours", to=(0, 2), number=one.number, source=one.source)
            )
        assert self.mailbox.dropped == before + len(some)

    @rule(some=frames)
    def take(self, some: list[Frame]) -> None:
        key = some[0].key
        if key.is_send or not self.mailbox.has(key):
            return
        letter = self.mailbox.take(key)
        assert bytes(letter.payload) == whole(some)
        assert (letter.source, letter.operation) == (key.source, some[0].operation)
        self.taken.add(key)

    @rule(source=st.integers(2, 4), tag=st.sampled_from([None, 0, 1]))
    def receive(self, source: int, tag: int | None) -> None:
        letter = taken(self.mailbox, source, tag)
        expected = self._first_send(source, tag)
        if expected is None:
            assert letter is None
            return
        assert letter is not None
        assert bytes(letter.payload) == whole(expected)
        assert letter.tag == expected[0].tag
        self.taken.add(expected[0].key)

    def _first_send(self, source: int, tag: int | None) -> list[Frame] | None:
        for number in range(self._complete_sends(source)):
            key = Key(0, True, number, source)
            frames = self.messages[key]
            if key not in self.taken and tag in (None, frames[0].tag):
                return frames
        return None

    def _complete_sends(self, source: int) -> int:
        """How many of a source's sends are there without a gap before them."""
        number = 0
        while self._is_whole(Key(0, True, number, source)):
            number += 1
        return number

    def _is_whole(self, key: Key) -> bool:
        return key in self.messages and len(self.came[key]) == len(self.messages[key])

    @rule(ahead=st.integers(0, 2))
    def close(self, ahead: int) -> None:
        self.floor += ahead
        self.mailbox.close_below(0, self.floor)
        for key in [key for key in self.came if not key.is_send and key.number < self.floor]:
            del self.came[key]

    @invariant()
    def it_has_what_came_whole_and_was_not_taken(self) -> None:
        for key, frames in getattr(self, "messages", {}).items():
            if not key.is_send:
                is_there = self._is_whole(key) and key not in self.taken
                assert self.mailbox.has(key) == (is_there and key.number >= self.floor)
            assert len(frames) >= len(self.came[key])

    @invariant()
    def it_knows_which_send_is_next(self) -> None:
        for source in getattr(self, "next_send", {}):
            assert self.mailbox.next_send(0, source).number == self._complete_sends(source)


TestMailboxMachine = MailboxMachine.TestCase
TestMailboxMachine.settings = settings(max_examples=60, stateful_step_count=40, print_blob=True)


def test_parts_in_any_order_make_one_message_that_can_be_written() -> None:
    mailbox = Mailbox(EPOCH, RANK)
    parts = message(3)
    key = parts[0].key
    for i in (2, 0, 2, 0):
        mailbox.deposit(parts[i])
        assert not mailbox.has(key)
    mailbox.deposit(parts[1])
    letter = mailbox.take(key)
    assert bytes(letter.payload) == whole(parts)
    assert not memoryview(letter.payload).readonly


def test_one_part_of_read_only_bytes_is_copied_and_writable_bytes_are_used_in_place() -> None:
    mailbox = Mailbox(EPOCH, RANK)
    mailbox.deposit(frame(b"read only"))
    assert not memoryview(mailbox.take(Key(0, False, 0, 0)).payload).readonly
    place = memoryview(bytearray(b"mine"))
    mailbox.deposit(frame(place, number=1))  # type: ignore[arg-type]
    assert mailbox.take(Key(0, False, 1, 0)).payload is place


def test_what_comes_after_it_was_taken_is_dropped_before_and_after_its_operation_is_over() -> None:
    mailbox = Mailbox(EPOCH, RANK)
    key = Key(0, False, 0, 0)
    mailbox.deposit(frame(b"once"))
    mailbox.take(key)
    mailbox.deposit(frame(b"once"))
    assert not mailbox.has(key)
    mailbox.close_below(0, 1)
    mailbox.deposit(frame(b"once"))
    assert not mailbox.has(key)
    assert mailbox.dropped == 2


def test_communicators_do_not_mix() -> None:
    mailbox = Mailbox(EPOCH, RANK)
    mailbox.deposit(frame(b"one", communicator=1))
    assert not mailbox.has(Key(0, False, 0, 0))
    mailbox.close_below(0, 5)
    assert bytes(mailbox.take(Key(1, False, 0, 0)).payload) == b"one"


def test_what_nobody_asked_for_is_not_kept_once_its_operation_is_over() -> None:
    mailbox = Mailbox(EPOCH, RANK)
    mailbox.deposit(frame(b"nobody waits for this"))
    mailbox.deposit(message(2, number=1)[0])
    mailbox.deposit(frame(b"a send stays", operation=Operation.SEND))
    mailbox.close_below(0, 2)
    assert not mailbox.has(Key(0, False, 0, 0))
    mailbox.deposit(message(2, number=1)[1])
    assert not mailbox.has(Key(0, False, 1, 0))
    assert taken(mailbox, 0, None) is not None


def test_the_operation_of_a_message_is_known_from_its_first_part() -> None:
    mailbox = Mailbox(EPOCH, RANK)
    parts = message(2, operation=Operation.SCATTER, tag=3)
    assert mailbox.called(parts[0].key) is None
    for part in parts:
        mailbox.deposit(part)
        assert mailbox.called(part.key) == Called(Operation.SCATTER, root=3)


def test_what_a_rank_sends_to_itself_takes_its_turn() -> None:
    mailbox = Mailbox(EPOCH, RANK)
    for number, text in ((1, b"second"), (0, b"first")):
        parcel = Parcel.of((RANK,), Codec.RAW, [text[:2], text[2:]])
        mailbox.keep_own(Outgoing(Operation.SEND, 0, number, 7, [parcel]))
    got = [taken(mailbox, RANK, 7) for _ in range(2)]
    assert [bytes(letter.payload) for letter in got if letter] == [b"first", b"second"]
    assert taken(mailbox, RANK, None) is None


def test_a_waiter_is_woken_by_a_whole_message_and_not_by_a_part() -> None:
    async def wait() -> None:
        mailbox = Mailbox(EPOCH, RANK)
        waiters = [mailbox.changed(), mailbox.changed()]
        first, second = message(2)
        mailbox.deposit(first)
        assert not any(waiter.done() for waiter in waiters)
        mailbox.deposit(second)
        assert all(waiter.done() for waiter in waiters)
        assert not mailbox.changed().done()

    asyncio.run(wait())


def test_a_failure_wakes_each_waiter_with_an_error_of_its_own() -> None:
    async def wait() -> None:
        mailbox = Mailbox(EPOCH, RANK)
        mailbox.check()
        waiters = [mailbox.changed(), mailbox.changed()]
        mailbox.fail(lambda: RankFailed([3]))
        waiters.append(mailbox.changed())
        errors = [waiter.exception() for waiter in waiters]
        assert all(isinstance(error, RankFailed) for error in errors)
        assert len({id(error) for error in errors}) == 3
        with pytest.raises(RankFailed):
            mailbox.check()

    asyncio.run(wait())


def test_what_came_before_a_failure_can_still_be_taken() -> None:
    mailbox = Mailbox(EPOCH, RANK)
    mailbox.deposit(frame(b"in time", operation=Operation.SEND))
    mailbox.fail(lambda: RankFailed([3]))
    letter = taken(mailbox, 0, None)
    assert letter is not None
    assert bytes(letter.payload) == b"in time"


def test_an_abort_is_heard_at_any_time_unless_it_is_another_gangs() -> None:
    heard: list[bytes] = []
    mailbox = Mailbox(EPOCH, RANK, heard.append)
    mailbox.deposit(frame(b"theirs", operation=Operation.ABORT, epoch=STALE))
    assert heard == []
    mailbox.deposit(frame(b"early", operation=Operation.ABORT))
    mailbox.close_below(0, 10)
    mailbox.deposit(frame(b"late", operation=Operation.ABORT, source=5))
    assert heard == [b"early", b"late"]


def test_an_abort_may_come_in_parts_beside_another() -> None:
    heard: list[bytes] = []
    mailbox = Mailbox(EPOCH, RANK, heard.append)
    long = message(3, operation=Operation.ABORT, number=77)
    for each in (long[2], frame(b"short", operation=Operation.ABORT), long[0], long[2], long[1]):
        mailbox.deposit(each)
    assert heard == [b"short", whole(long)]
