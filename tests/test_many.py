"""Thousands of tasks from one caller: nothing of them stays behind, and deaths lose none."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
from contextlib import suppress

import pytest

import fsdray as fsd
from tests.conftest import processes

pytestmark = pytest.mark.usefixtures("session")

TASKS = 3000


@fsd.remote
def same(number: int) -> int:
    return number


def blocks() -> int:
    """Pieces of memory that Python has given out, once all that was dropped is freed."""
    gc.collect()
    # What the loop still held of calls before this one, it lets go before this one's value comes.
    assert fsd.get(same.remote(0)) == 0
    gc.collect()
    return sys.getallocatedblocks()


def in_windows() -> None:
    for begin in range(0, TASKS, 500):
        numbers = range(begin, begin + 500)
        assert fsd.get([same.remote(number) for number in numbers]) == list(numbers)


def all_at_once() -> None:
    refs = [same.remote(number) for number in range(TASKS)]
    assert fsd.get(refs) == list(range(TASKS))


@pytest.mark.parametrize("program", [in_windows, all_at_once])
def test_tasks_whose_refs_are_gone_leave_nothing_in_the_caller(program: object) -> None:
    assert callable(program)
    program()  # what is made once is made
    before = blocks()
    program()
    assert blocks() - before < TASKS / 5, "less than a piece of memory for five tasks"


def test_thousands_of_tasks_are_right_while_workers_are_killed() -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)

    @fsd.remote
    def parent() -> int:
        return os.getppid()

    @fsd.remote(max_retries=20)
    def mortal(number: int) -> tuple[int, int]:
        attempt = fsd.get_runtime_context().attempt or 0
        if random.Random(f"{seed}-{number}-{attempt}").random() < 0.02:
            os.kill(os.getpid(), signal.SIGKILL)
        return number, attempt

    template = fsd.get(parent.remote())
    refs = [mortal.remote(number) for number in range(TASKS)]
    for i, _ in enumerate(fsd.as_completed(refs, timeout=200)):
        if i % 50 == 25:  # and some that did nothing to deserve it
            workers = sorted(processes(template))
            if workers:
                with suppress(ProcessLookupError):  # it was faster
                    os.kill(rng.choice(workers), signal.SIGKILL)
    found = fsd.get(refs)
    assert [number for number, _ in found] == list(range(TASKS))
    asked = [ref.receipt().requests["invoke"] for ref in refs]
    assert asked == [attempt for _, attempt in found], "every attempt is counted"
    assert max(asked) > 1
