"""The rest of ten thousand schedules (`test_schedules`), which another core may run."""

from __future__ import annotations

import pytest

from tests.collective.schedules.__main__ import failures
from tests.collective.test_schedules import CHUNK, SCHEDULES, collected
from tests.collective.test_schedules import pytestmark as warnings

__all__ = ["collected"]

pytestmark = warnings


@pytest.mark.parametrize("start", range(SCHEDULES, 10_000, CHUNK))
def test_every_random_program_comes_to_what_it_means(start: int) -> None:
    assert failures(range(start, start + CHUNK)) == []
