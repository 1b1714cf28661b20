"""AWS on this machine for the tests of its backend: an emulator with a stack deployed into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

import fsdray as fsd
from fsdray.backends.aws.deploy import deploy
from fsdray.backends.aws.stack import Stack
from fsdray.settings import Settings, resolve
from fsdray.testing.emulator import Emulator
from tests import leftovers
from tests.backends.aws.actions import check_logged

SLOTS = 20


class Silent:
    """Is told of a deploy, and says nothing."""

    def say(self, text: str) -> None: ...
    def begin(self, what: str, total: int) -> None: ...
    def event(self, event: Any) -> None: ...
    def end(self) -> None: ...


@dataclass(frozen=True)
class Aws:
    """The emulator, and the stack that its environment's settings name."""

    emulator: Emulator
    settings: Settings
    stack: Stack


_running: list[Aws] = []
"""The stacks that are there; the last is the one that the environment names."""


@contextmanager
def deployed(slots: int = SLOTS, **emulator: Any) -> Iterator[Aws]:
    """An emulator with a stack; this process's variables say where it is meanwhile."""
    with Emulator(**emulator) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        settings = resolve({"backend": "aws"}, {})
        done = deploy(settings, {"slots": slots}, Silent(), is_bare=True)
        _running.append(Aws(running, settings, done.stack))
        try:
            yield _running[-1]
            check_logged(running.requests())
        finally:
            _running.pop()


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """After each test that ended its session: no slot leased, no object, no message anywhere."""
    yield
    if _running and not fsd.is_initialized():
        leftovers.check(_running[-1].stack)


@pytest.fixture(scope="session")
def aws() -> Iterator[Aws]:
    """One for all tests of this process."""
    with deployed() as running:
        yield running
