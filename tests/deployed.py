"""A stack in the emulator, deployed as users do it, for tests that need one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fsdray.backends.aws.cloudformation import Event
from fsdray.backends.aws.deploy import deploy, destroy
from fsdray.settings import resolve
from fsdray.testing.emulator import Emulator


class Heard:
    """What a deploy tells, kept."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.events: list[Event] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def begin(self, what: str, total: int) -> None:
        pass

    def event(self, event: Event) -> None:
        self.events.append(event)

    def end(self) -> None:
        pass


@contextmanager
def using(variables: Mapping[str, str]) -> Iterator[None]:
    """Within, the environment has these too."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def deployed(
    emulator: Emulator, name: str, *, is_bare: bool = True, **options: Any
) -> Iterator[dict[str, str]]:
    """A stack while the context lasts; gives the variables with which sessions find it.

    Parameters
    ----------
    is_bare : as for `fsdray.backends.aws.package.build`.
    """
    variables = emulator.environment | {"FSDRAY_STACK": name}
    with using(variables):
        deploy(resolve({}), options, Heard(), is_bare=is_bare)
    try:
        yield variables
    finally:
        with using(variables):
            destroy(resolve({}), Heard())
