"""What the conformance checks share: what is late is looked at again, what is wrong is not."""

from __future__ import annotations

import asyncio

import pytest

from fsdray.testing.expect import Late, in_time, tried_again


def outcomes(*takes: float) -> tuple[list[float], Exception | None]:
    """What is left of the times that a check takes, and what the check raised."""
    left = list(takes)

    @tried_again
    async def check(service: str) -> None:
        assert service == "of the caller"
        in_time(left.pop(0), 1.0, "it came")

    try:
        asyncio.run(check("of the caller"))
    except Exception as error:
        return left, error
    return left, None


def test_a_check_that_is_late_by_chance_passes() -> None:
    assert outcomes(0.5, 9) == ([9], None)
    assert outcomes(1.5, 3, 0.5) == ([], None)


def test_one_that_is_late_three_times_fails_and_says_by_how_much() -> None:
    left, error = outcomes(2, 3, 1, 0.5)
    assert left == [0.5]
    assert isinstance(error, Late)
    assert str(error) == "it came after 1.00 s"


def test_one_that_is_wrong_fails_at_once() -> None:
    calls = []

    @tried_again
    async def check(service: str) -> None:
        calls.append(service)
        raise AssertionError("wrong")

    with pytest.raises(AssertionError, match="wrong"):
        asyncio.run(check("any"))
    assert calls == ["any"]
