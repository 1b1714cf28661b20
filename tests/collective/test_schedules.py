"""Thousands of random programs under random faults: right to the bit, no hang, nothing left."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.collective import CHANNELS
from tests.collective.schedules import programs
from tests.collective.schedules.__main__ import failures
from tests.collective.schedules.check import problems, run, schedule_of
from tests.collective.schedules.model import Receipt, meaning, messages, wrong_receipts
from tests.collective.schedules.programs import Line, Step

SCHEDULES = 5_000  # and the rest of ten thousand in test_schedules_more, beside it
CHUNK = 500

# A rank that fails does not await what it had called to await it together with something later.
pytestmark = pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited:RuntimeWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What such ranks leave goes here, and not in a later test, which would be told of it."""
    yield
    gc.collect()


@pytest.mark.parametrize("start", range(0, SCHEDULES, CHUNK))
def test_every_random_program_comes_to_what_it_means(start: int) -> None:
    assert failures(range(start, start + CHUNK)) == []


@given(draw=st.randoms(use_true_random=False))
@settings(max_examples=60, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
def test_and_hypothesis_finds_no_other(draw: random.Random) -> None:
    schedule = programs.schedule(draw, CHANNELS)
    note(repr(schedule))
    assert problems(schedule) == []


def test_a_seed_repeats_its_schedule_event_by_event() -> None:
    for seed in range(40):
        schedule = schedule_of(seed)
        assert repr(schedule) == repr(schedule_of(seed))
        (first, _), (second, _) = run(schedule, trace=True), run(schedule, trace=True)
        assert first.trace.digest() == second.trace.digest()


def test_the_model_says_what_is_wrong_with_what_a_rank_received() -> None:
    lines = [Line(0, 1, tag, 5, False, "send", "recv") for tag in (0, 1, 0)]
    first, other, last = messages(Step("traffic", lines=tuple(lines)), 0, 2)

    def receipt(sent: object, tag: int | None = None) -> Receipt:
        return Receipt(0, tag, sent.value(), (0, sent.tag))  # type: ignore[attr-defined]

    def wrong(*receipts: Receipt) -> list[str]:
        return list(wrong_receipts(1, [first, other, last], receipts))

    assert wrong(receipt(first), receipt(other), receipt(last)) == []
    assert wrong(receipt(other, tag=1), receipt(first), receipt(last)) == []
    assert wrong(receipt(other), receipt(first), receipt(last)) == ["message 1 overtook message 0"]
    assert wrong(receipt(first, 0), receipt(last, 0)) == ["messages [1] were not received"]
    assert "message 0 was received twice" in wrong(receipt(first), receipt(first), receipt(last))
    assert wrong(receipt(first, 1), receipt(other), receipt(last)) == [
        "receive 0 does not want message 0"
    ]


def test_programs_cover_what_there_is() -> None:
    schedules = [schedule_of(seed) for seed in range(1000)]
    steps = [step for schedule in schedules for step in schedule.steps]
    assert {step.what for step in steps} == {
        *programs.COLLECTIVES,
        *("traffic", "split", "dup", "free", "wait"),
    }
    assert {schedule.size for schedule in schedules} == set(range(1, 13))
    assert {schedule.channel for schedule in schedules} == set(CHANNELS)
    fates = {schedule.fate.what for schedule in schedules if schedule.fate is not None}
    assert fates == {"dies", "raises", "strays", "aborts", "is absent"}
    assert len({name for schedule in schedules for name in schedule.faults}) == 10
    assert any(len(meaning(schedule).traffic) > 1 for schedule in schedules)
