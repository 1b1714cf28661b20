"""What a session leaves behind, however it ends: no directory, no process, no lock."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import fsdray as fsd
from fsdray.backends.local import directory
from fsdray.backends.local.directory import SessionDirectory
from fsdray.errors import ServiceError, SettingsError
from tests.backends.local import small_filesystem
from tests.conftest import directories

SOON = 60  # seconds in which what must end has ended

DRIVER = """
import os, sys
import fsdray as fsd

@fsd.remote
def pids():
    return os.getpid(), os.getppid()

@fsd.remote
def for_ever():
    import threading
    threading.Event().wait()

fsd.init("local", directory=sys.argv[1])
worker, template = fsd.get(pids.remote())
kept = fsd.put(bytes(1_000_000))
running = for_ever.remote()
print(worker, template, flush=True)
sys.stdin.read()
"""


class Driver:
    """A session in a process of its own, to be killed."""

    def __init__(self, base: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(base)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.worker, self.template = map(int, self.process.stdout.readline().split())
        self.pidfds = {pid: os.pidfd_open(pid) for pid in (self.worker, self.template)}

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(SOON)

    def ended(self, pid: int) -> bool:
        """Whether the process ends soon; nobody looks at it meanwhile."""
        poll = select.poll()
        poll.register(self.pidfds[pid], select.POLLIN)
        return bool(poll.poll(SOON * 1000))

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.process.wait(SOON)
        for pidfd in self.pidfds.values():
            os.close(pidfd)


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    driver = Driver(tmp_path)
    yield driver
    driver.close()


@contextmanager
def initialized(**options: object) -> Iterator[None]:
    fsd.init("local", **options)
    try:
        yield
    finally:
        fsd.shutdown()


# Sessions


def test_a_shutdown_removes_the_files() -> None:
    before = directories()
    with initialized():
        [made] = directories() - before
        kept = fsd.put(bytes(1_000_000))
        assert len(list((made / "objects").iterdir())) == 1
        assert len(fsd.get(kept)) == 1_000_000
    assert directories() == before


def test_a_driver_that_ends_without_a_shutdown_leaves_nothing(
    driver: Driver, tmp_path: Path
) -> None:
    assert list(tmp_path.glob("fsdray-*"))
    assert driver.process.stdin is not None
    driver.process.stdin.close()
    assert driver.process.wait(SOON) == 0
    assert driver.ended(driver.worker)
    assert driver.ended(driver.template)
    assert list(tmp_path.iterdir()) == []


def test_a_driver_killed_by_sigkill_leaves_no_process_and_no_directory(
    driver: Driver, tmp_path: Path
) -> None:
    driver.kill()
    assert driver.ended(driver.template), "the template outlived its driver"
    assert driver.ended(driver.worker), "a worker outlived its driver"
    assert list(tmp_path.iterdir()) == []


def test_a_driver_ended_by_sigterm_leaves_no_process_and_no_directory(
    driver: Driver, tmp_path: Path
) -> None:
    driver.process.terminate()
    assert driver.process.wait(SOON) == -signal.SIGTERM
    assert driver.ended(driver.template)
    assert driver.ended(driver.worker)
    assert list(tmp_path.iterdir()) == []


def test_the_next_session_sweeps_what_a_killed_driver_and_template_left(
    driver: Driver, tmp_path: Path
) -> None:
    os.kill(driver.template, signal.SIGKILL)
    driver.kill()
    assert driver.ended(driver.template)
    assert driver.ended(driver.worker), "a worker outlived its driver and its template"
    [left] = tmp_path.iterdir()
    with initialized(directory=str(tmp_path)):
        assert not left.exists()
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_session_whose_template_was_killed_removes_its_files(tmp_path: Path) -> None:
    with initialized(directory=str(tmp_path)):
        template: int = fsd.get(fsd.remote(os.getppid).remote())
        os.kill(template, signal.SIGKILL)
        fsd.put(bytes(1_000_000))
    assert list(tmp_path.iterdir()) == []


def test_a_result_for_which_there_is_no_room_is_an_error_at_the_caller(tmp_path: Path) -> None:
    def large() -> bytes:
        return bytes(6 << 20)

    with (
        small_filesystem(tmp_path, "4m"),
        initialized(directory=str(tmp_path)),
        pytest.raises(ServiceError, match=r"no space left.*fsdray\.init\(directory="),
    ):
        fsd.get(fsd.remote(large).remote())


def test_no_room_for_even_a_directory_is_an_error(tmp_path: Path) -> None:
    with (
        small_filesystem(tmp_path, "4k,nr_inodes=2"),
        pytest.raises(ServiceError, match="cannot make a session directory"),
    ):
        SessionDirectory(tmp_path)


# Directories


def test_a_directory_is_private_and_says_whose_it_is(tmp_path: Path) -> None:
    made = SessionDirectory(tmp_path)
    assert made.path.parent == tmp_path
    assert made.path.stat().st_mode & 0o777 == 0o700
    assert made.path.name.startswith(f"fsdray-{os.getuid()}-{os.getpid()}-")
    made.close()
    assert list(tmp_path.iterdir()) == []


def test_a_living_session_s_directory_is_not_swept(tmp_path: Path) -> None:
    first = SessionDirectory(tmp_path)
    second = SessionDirectory(tmp_path)
    assert first.path.exists()
    assert first.path != second.path
    first.close()
    second.close()


def test_what_is_not_ours_is_not_swept(tmp_path: Path) -> None:
    others = [tmp_path / "fsdray-notes.txt", tmp_path / f"fsdray-{os.getuid()}-mine"]
    others[0].write_text("kept")
    others[1].mkdir()
    SessionDirectory(tmp_path).close()
    assert all(other.exists() for other in others)


def test_an_abandoned_directory_is_swept(tmp_path: Path) -> None:
    abandoned = tmp_path / f"fsdray-{os.getuid()}-1-abcd"
    (abandoned / "objects").mkdir(parents=True)
    (abandoned / "lock").touch()
    SessionDirectory(tmp_path).close()
    assert not abandoned.exists()


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_base_that_is_no_directory_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=f"directory='.*{name}' is not a directory"):
        SessionDirectory(tmp_path / name)


def test_a_session_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    before = directories()
    with pytest.raises(SettingsError, match="is not a directory"):
        fsd.init("local", directory=str(tmp_path / "missing"))
    assert not fsd.is_initialized()
    assert directories() == before


def test_objects_go_to_disk_where_shared_memory_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_filesystem(tmp_path, "1m"):
        monkeypatch.setattr(directory, "SHARED_MEMORY", tmp_path)
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path.parent))
        made = SessionDirectory()
        assert made.path.parent == tmp_path.parent
        made.close()


def test_objects_go_to_disk_where_there_is_no_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "SHARED_MEMORY", tmp_path / "missing")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    made = SessionDirectory()
    assert made.path.parent == tmp_path
    made.close()
