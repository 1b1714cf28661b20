"""The second half of `test_schedules`: files are what the test processes share out."""

from __future__ import annotations

import pytest

from tests.collective.schedules.__main__ import failures
from tests.collective.test_schedules import CHUNK, SCHEDULES, pytestmark

__all__ = ["pytestmark"]


@pytest.mark.parametrize("start", range(SCHEDULES, 2 * SCHEDULES, CHUNK))
def test_every_random_program_comes_to_what_it_means(start: int) -> None:
    assert failures(range(start, start + CHUNK)) == []
