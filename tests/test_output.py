"""What tasks print is shown in order and live, and holds nothing up."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fsdray.output import Output

SOON = 60

CHATTY = """
import os, sys, time
import fsdray as fsd

@fsd.remote
def chat(count):
    for n in range(count):
        print(n)

@fsd.remote
def partial(gate):
    print("half", end="", flush=True)
    while not os.path.exists(gate):
        time.sleep(0.01)
    print(" whole")
    print("no end", end="")

@fsd.remote(world_size=2)
def gang():
    print("here", file=sys.stderr)
"""


def told(stderr: str, name: str) -> list[str]:
    found = re.findall(rf"^\({re.escape(name)} [0-9a-f]{{4}}-\d+, pid \d+\) (.*)$", stderr, re.M)
    return [str(line) for line in found]


def script(tmp_path: Path, rest: str) -> list[str]:
    path = tmp_path / "script.py"
    path.write_text(CHATTY + rest)
    return [sys.executable, str(path)]


def test_a_hundred_thousand_lines_come_all_and_in_order(tmp_path: Path) -> None:
    command = script(tmp_path, "fsd.get(chat.remote(100_000))\nprint('end', file=sys.stderr)\n")
    done = subprocess.run(command, capture_output=True, text=True, timeout=SOON, check=True)
    assert told(done.stderr, "chat") == [str(n) for n in range(100_000)]
    assert done.stderr.endswith("\nend\n"), "what a task prints comes before its value"


def test_a_line_that_does_not_end_is_shown_while_the_task_goes_on(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    command = script(tmp_path, f"fsd.get(partial.remote({str(gate)!r}))\nfsd.get(chat.remote(1))\n")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        first = run.stderr.readline()
        gate.touch()
        rest = run.stderr.read()
    assert told(first + rest, "partial") == ["half", " whole", "no end"]
    assert told(first + rest, "chat") == ["0"]


def test_ranks_are_named(tmp_path: Path) -> None:
    command = script(tmp_path, "fsd.get(gang.remote())\n")
    done = subprocess.run(command, capture_output=True, text=True, timeout=SOON, check=True)
    assert told(done.stderr, "gang[0]") == ["here"]
    assert told(done.stderr, "gang[1]") == ["here"]


def test_a_stderr_that_nobody_reads_holds_up_no_call(tmp_path: Path) -> None:
    # Without a reader the pipe is full after 64 KB. The task that prints waits, no other does.
    rest = (
        "ref = chat.remote(1_000_000)\n"
        "print([fsd.get(fsd.remote(abs).remote(-n)) for n in range(3)], flush=True)\n"
        "print(fsd.wait([ref], timeout=1)[0], flush=True)\n"
        "fsd.cancel(ref)\n"
    )
    command = script(tmp_path, rest)
    reading, writing = os.pipe()
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=writing, text=True, timeout=SOON, check=True
        )
    finally:
        os.close(writing)
        os.close(reading)
    assert done.stdout == "[0, 1, 2]\n[]\n"


class Slow:
    """A stream whose writes wait for leave."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.leave = threading.Semaphore(0)

    def write(self, text: str) -> None:
        assert self.leave.acquire(timeout=SOON)
        self.written.append(text)

    def flush(self) -> None:
        """Nothing is held back."""


def test_who_gives_more_than_is_taken_is_told_when_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow: Any = Slow()
    monkeypatch.setattr(sys, "stderr", slow)
    output, room = Output(), threading.Event()
    line = "x" * 100_000
    for _ in range(20):
        output.show([line])
    assert output.is_full()
    output.when_room(room.set)
    assert not room.is_set()
    for _ in range(20):
        slow.leave.release()
    assert room.wait(SOON)
    output.flush()
    assert "".join(slow.written) == f"{line}\n" * 20
    assert not output.is_full()
    now = threading.Event()
    output.when_room(now.set)
    assert now.is_set()


def test_a_closed_stderr_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    output = Output()
    for stream in (None, open(os.devnull)):  # noqa: SIM115  # closed below, on purpose
        if stream is not None:
            stream.close()
        monkeypatch.setattr(sys, "stderr", stream)
        output.show(["lost"])
        output.flush()
    monkeypatch.undo()
