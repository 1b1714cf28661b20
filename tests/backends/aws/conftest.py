"""One deployed stack for all tests of the aws backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fsdray.testing.emulator import Emulator
from tests.deployed import deployed, using


@pytest.fixture(scope="session")
def stack_variables(emulator: Emulator) -> Iterator[dict[str, str]]:
    """The variables with which sessions find a stack of 16 slots that is called ``shared``."""
    with deployed(emulator, "shared", slots=16, memory=(512, 1769)) as variables:
        yield variables


@pytest.fixture
def aws(stack_variables: dict[str, str]) -> Iterator[None]:
    """Within the test, AWS is the emulator, and the stack is that one."""
    with using(stack_variables):
        yield
