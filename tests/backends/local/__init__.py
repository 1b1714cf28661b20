"""Tests of what is special to the local backend, and the conformance kit run on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsdray import loop
from fsdray.backends.local import connect
from fsdray.backends.local.backend import LocalBackend
from fsdray.costs.meter import Meter
from fsdray.services import MessageLimits
from fsdray.settings import Settings
from tests.conftest import directories, processes


@contextmanager
def connected(
    meter: Meter | None = None,
    *,
    message_limits: MessageLimits = MessageLimits(visibility=0.2),
    **settings: Any,
) -> Iterator[LocalBackend]:
    """A local backend of one's own, which must leave nothing behind.

    `meter` counts what this process asks of it.
    """
    before = processes(), directories()
    count = (meter or Meter()).add
    chosen = Settings(**{"concurrency": 8, "log_to_caller": False, **settings})
    backend = loop.run(connect(chosen, count, message_limits=message_limits))
    try:
        yield backend
    finally:
        loop.run(backend.close())
    assert processes() <= before[0], "a process was left over"
    assert directories() <= before[1], "a session directory was left over"
