"""Tests of what is special to the local backend, and the conformance kit run on it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

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


@contextmanager
def small_filesystem(path: Path, size: str) -> Iterator[None]:
    """A tmpfs of `size` at `path`; the test is skipped where none can be mounted."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, f"size={size}".encode()) != 0:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        yield
    finally:
        assert libc.umount2(os.fsencode(path), 2) == 0  # MNT_DETACH: maps may still be open
