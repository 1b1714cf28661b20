"""What all tests share: the backend they run on, and sessions that must leave nothing behind.

``pytest --backend aws`` runs the tests of the public API on AWS's services as an emulator on this
machine serves them (`tests.on_aws`); without it everything runs, on the local backend. A session
in a test names no backend: ``FSDRAY_BACKEND`` does, also for the programs that a test starts.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import fsdray as fsd
from fsdray.backends.local.directory import SHARED_MEMORY
from fsdray.testing.emulator import Emulator
from tests import on_aws

settings.register_profile("fsdray", deadline=None)  # no test is about how busy a machine is
settings.load_profile("fsdray")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        choices=("local", "aws"),
        default="local",
        help="what the tests of the public API run on; aws is an emulator on this machine",
    )
    parser.addoption(
        "--thorough",
        action="store_true",
        help="also the tests that take minutes",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "local_only(reason): about the local backend, or what no other can be asked"
    )
    config.addinivalue_line("markers", "thorough(reason): runs only where --thorough is given")
    config.addinivalue_line("markers", "on_aws(*ids): the parameters that run with --backend aws")
    config.addinivalue_line("markers", "slow_on_aws: runs there only where --thorough is given")
    on_aws.choose(config)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell has what it starts in the background ignore Ctrl-C: here it is tested.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    here = Path(__file__).parent
    is_idle = on_aws.is_chosen() and on_aws.has_none(collection_path.relative_to(here))
    return True if is_idle else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    is_thorough = config.getoption("--thorough")
    chosen = on_aws.chosen(items, is_thorough) if on_aws.is_chosen() else items
    if not is_thorough:
        chosen = [item for item in chosen if item.get_closest_marker("thorough") is None]
    kept = {id(item) for item in chosen}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = chosen


@pytest.fixture(scope="session", autouse=True)
def _platform() -> Iterator[None]:
    """What sessions need to be there, for as long as there are tests."""
    if on_aws.is_chosen():
        with on_aws.platform():
            yield
    else:
        yield


def processes(ancestor: int | None = None) -> set[int]:
    """Processes that descend from this one, or from an ancestor; zombies aside."""
    ancestor = os.getpid() if ancestor is None else ancestor
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
        more = {pid for pid, parent in parents.items() if parent in found | {ancestor}}
        grew = not more <= found
        found |= more
    return found


def directories() -> set[Path]:
    """Session directories of this process."""
    return set(SHARED_MEMORY.glob(f"fsdray-{os.getuid()}-{os.getpid()}-*"))


@contextmanager
def nothing_left() -> Iterator[None]:
    """Within it sessions come and go, and must leave nothing on their platform."""
    if on_aws.is_chosen():
        yield
        on_aws.check_nothing_left()
        return
    before = processes(), directories()
    yield
    assert processes() <= before[0], "a process was left over"
    assert directories() <= before[1], "a session directory was left over"


@contextmanager
def clean_session(**settings: Any) -> Iterator[None]:
    """A session that leaves nothing: locally no process and no directory."""
    with nothing_left():
        fsd.init(**{"concurrency": on_aws.amount(40, 16), **settings})
        # Each worker imports the test's module: what that imports is imported once for all.
        fsd.session.current().backend.functions.prepare(["pytest", "hypothesis.strategies"])
        yield
        fsd.shutdown()


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
    fsd.init(concurrency=2)
    try:
        yield
    finally:
        fsd.shutdown()
        fsd.init(concurrency=on_aws.amount(40, 16))


@pytest.fixture(scope="session")
def emulator() -> Iterator[Emulator]:
    """AWS on this machine, for all tests that need it; each has buckets and stacks of its own."""
    with Emulator() as emulator:
        yield emulator
