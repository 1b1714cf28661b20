"""The rules that all backends share: billed units, the pace of looking, limits."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdray.errors import SettingsError
from fsdray.services import BILLING_UNIT, FunctionLimits, Pace, units

seconds = st.floats(0, 60)
paces = st.builds(
    Pace,
    first=st.floats(0.001, 1),
    factor=st.floats(1, 4),
    ceiling=st.floats(1, 10),
)


@pytest.mark.parametrize(
    ("payload", "billed"),
    [
        (0, 1),
        (1, 1),
        (BILLING_UNIT - 1, 1),
        (BILLING_UNIT, 1),
        (BILLING_UNIT + 1, 2),
        (4 * BILLING_UNIT, 4),
        (4 * BILLING_UNIT + 1, 5),
    ],
)
def test_a_request_is_billed_as_one_for_each_64_kb_begun(payload: int, billed: int) -> None:
    assert units(payload) == billed


@given(st.integers(1, 1 << 40))
def test_billed_units_hold_the_payload_and_not_one_unit_more(payload: int) -> None:
    assert (units(payload) - 1) * BILLING_UNIT < payload <= units(payload) * BILLING_UNIT


def test_a_key_that_is_there_at_once_costs_no_miss() -> None:
    assert Pace().misses(0) == 0


@given(paces)
def test_the_first_look_is_at_once(pace: Pace) -> None:
    assert pace.misses(pace.first / 2) == 1
    assert pace.misses(pace.first) == 1
    assert pace.misses(pace.first * 1.001) == 2


@given(paces, seconds, seconds)
def test_who_waits_longer_misses_no_less(pace: Pace, one: float, other: float) -> None:
    assert pace.misses(min(one, other)) <= pace.misses(max(one, other))


@given(paces, st.floats(0.001, 100))
def test_misses_lie_between_the_slowest_and_the_fastest_pace(pace: Pace, waited: float) -> None:
    misses = pace.misses(waited)
    # One look more or less where thousands of waits add up to almost the time waited.
    assert misses >= waited / max(pace.first, pace.ceiling) - 1
    assert misses <= waited / min(pace.first, pace.ceiling) + 2


@given(paces)
def test_the_looks_are_at_the_times_that_first_factor_and_ceiling_say(pace: Pace) -> None:
    at, step, times = 0.0, pace.first, []
    for _ in range(20):
        times.append(at)
        at += step
        step = min(step * pace.factor, pace.ceiling)
    for number, (this, following) in enumerate(pairwise(times)):
        assert pace.misses((this + following) / 2) == number + 1


@given(pace=paces, waited=seconds)
def test_a_key_is_found_by_the_first_look_after_it_came(pace: Pace, waited: float) -> None:
    found = pace.look(waited)
    assert waited <= found <= waited + max(pace.first, pace.ceiling)
    assert pace.look(found) == found
    assert pace.misses(found) == pace.misses(waited)


def test_a_second_of_waiting_at_the_default_pace_misses_eight_times() -> None:
    # 0, 25, 62, 119, 203, 330, 520 and 804 ms: sums of 25 ms · 1.5^k.
    assert Pace().misses(1.0) == 8


@pytest.mark.parametrize("memory", [128, 1769, 10_240])
@pytest.mark.parametrize("timeout", [0.001, 1, 900])
def test_what_lambda_allows_is_accepted(memory: int, timeout: float) -> None:
    FunctionLimits().check(memory, timeout)


@pytest.mark.parametrize("memory", [-1, 0, 127, 10_241])
def test_memory_beyond_the_limits_is_refused_with_the_choice(memory: int) -> None:
    with pytest.raises(SettingsError, match=f"memory={memory} MB: choose between 128 and 10240"):
        FunctionLimits().check(memory, 1)


@pytest.mark.parametrize("timeout", [-1, 0, 900.001, float("inf"), float("nan")])
def test_a_timeout_beyond_the_limits_is_refused_with_the_choice(timeout: float) -> None:
    with pytest.raises(SettingsError, match=r"timeout=.* s: choose above 0 and up to 900"):
        FunctionLimits().check(128, timeout)
