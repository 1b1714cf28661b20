"""Receives and sends find each other as MPI says, against a model that looks at all of them."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from fsdray.collective.matching import Matching, Posting


@dataclass(frozen=True)
class Sent:
    source: int
    tag: int
    number: int


SEND = st.tuples(st.just("send"), st.integers(0, 2), st.integers(0, 1))
POST = st.tuples(st.just("post"), st.sampled_from([None, 0, 1, 2]), st.sampled_from([None, 0, 1]))
WITHDRAW = st.tuples(st.just("withdraw"), st.integers(0, 10), st.just(None))


@given(st.lists(st.one_of(SEND, POST, WITHDRAW), max_size=40))
@settings(max_examples=200, print_blob=True)
def test_the_first_receive_gets_the_first_message_that_it_wants(
    steps: list[tuple[str, int | None, int | None]],
) -> None:
    matching: Matching[Sent] = Matching()
    waiting: list[tuple[int | None, int | None, Posting[Sent]]] = []  # the model's
    unasked: list[Sent] = []
    for number, (what, first, second) in enumerate(steps):
        if what == "send":
            assert first is not None
            assert second is not None
            sent = Sent(first, second, number)
            matching.arrive(sent)
            for i, (source, tag, posting) in enumerate(waiting):
                if source in (None, sent.source) and tag in (None, sent.tag):
                    assert posting.letter is sent
                    del waiting[i]
                    break
            else:
                unasked.append(sent)
        elif what == "post":
            wanted = [s for s in unasked if first in (None, s.source) and second in (None, s.tag)]
            assert matching.peek(first, second) is (wanted[0] if wanted else None)
            posting = matching.post(first, second)
            if wanted:
                assert posting.letter is wanted[0]
                unasked.remove(wanted[0])
            else:
                assert posting.letter is None
                waiting.append((first, second, posting))
        elif waiting:
            assert first is not None
            matching.withdraw(waiting.pop(first % len(waiting))[2])
        assert matching.is_waiting == bool(waiting)
        assert all(posting.letter is None for _, _, posting in waiting)


def test_what_a_given_up_receive_had_goes_to_the_next_or_back_to_its_place() -> None:
    matching: Matching[Sent] = Matching()
    letters = [Sent(0, 0, number) for number in range(3)]
    first, second = matching.post(None, None), matching.post(None, 5)
    for letter in letters:
        matching.arrive(letter)
    assert first.letter is letters[0]
    matching.withdraw(first)
    assert first.letter is None
    assert [matching.post(0, 0).letter for _ in range(3)] == letters
    third, fourth = matching.post(None, None), matching.post(None, None)
    last = Sent(1, 0, 9)
    matching.arrive(last)
    matching.withdraw(third)
    assert fourth.letter is last
    matching.withdraw(second)
    matching.withdraw(second)  # twice is once
    assert not matching.is_waiting
