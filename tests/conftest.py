"""What all tests share: a session on the local backend that must leave nothing behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import fsdray as fsd
from fsdray.backends.local.directory import SHARED_MEMORY
from fsdray.testing.emulator import Emulator


def processes() -> set[int]:
    """Processes of this test run that descend from this one, zombies aside."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    found: set[int] = set()
    grew = True
    while grew:
        more = {pid for pid, parent in parents.items() if parent in found | {os.getpid()}}
        grew = not more <= found
        found |= more
    return found


def directories() -> set[Path]:
    """Session directories of this process."""
    return set(SHARED_MEMORY.glob(f"fsdray-{os.getuid()}-{os.getpid()}-*"))


@contextmanager
def clean_session(**settings: Any) -> Iterator[None]:
    """A local session that leaves no process and no directory."""
    before = processes(), directories()
    fsd.init("local", **{"concurrency": 40, **settings})
    yield
    fsd.shutdown()
    assert processes() <= before[0], "a process was left over"
    assert directories() <= before[1], "a session directory was left over"


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    """A session for all tests of a module."""
    with clean_session():
        yield


@pytest.fixture
def own_session() -> Iterator[None]:
    """A session for one test."""
    with clean_session():
        yield


@contextmanager
def two_at_a_time() -> Iterator[None]:
    """Within a test that has a session: another one, in which only two calls may run at once."""
    fsd.shutdown()
    fsd.init("local", concurrency=2)
    try:
        yield
    finally:
        fsd.shutdown()
        fsd.init("local", concurrency=40)


@pytest.fixture(scope="session")
def emulator() -> Iterator[Emulator]:
    """AWS on this machine, for all tests that need it; each has buckets and stacks of its own."""
    with Emulator() as emulator:
        yield emulator
