"""Short calls wait in a worker for their turn: that must never show, in whatever way they end."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import secrets
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdray import loop, session
from fsdray.backends.local.backend import LocalBackend
from fsdray.backends.local.forking import Template
from fsdray.backends.local.pool import ahead, expected
from fsdray.errors import FunctionCrashed
from fsdray.testing.calls import call_function, decode_reply, encode_call
from tests.backends.local import connected

# The policies


@given(seconds=st.floats(1e-7, 100))
def test_only_what_is_over_in_a_millisecond_waits_in_a_busy_worker(seconds: float) -> None:
    assert 0 <= ahead(seconds) <= 16
    assert ahead(seconds) * seconds <= 0.001 + 1e-9
    assert ahead(None) == 0


@given(before=st.floats(1e-6, 100), seconds=st.floats(1e-6, 100))
def test_one_long_call_counts_for_more_than_a_short_one(before: float, seconds: float) -> None:
    after = expected(before, seconds)
    assert min(before, seconds) * (1 - 1e-9) <= after <= max(before, seconds) * (1 + 1e-9)
    if seconds > before:
        assert after == seconds
    assert expected(None, seconds) == seconds


# What the calls run


def run_by_number(prefix: str, number: int, action: str) -> int:
    """Note that it ran, and then do as it is told."""
    objects = session.current().backend.objects
    loop.run(objects.put(f"{prefix}/{number}/{secrets.token_hex(8)}", b"%d" % os.getpid()))
    loop.run(objects.put(f"{prefix}-began/{number}", b""))
    if action == "exit":
        os._exit(3)
    if action == "wait":
        assert loop.run(objects.get(f"{prefix}-go", wait=30)) is not None
    return number


def say(number: int) -> int:
    if number % 3 == 0:
        print(f"odd {number}")
    elif number % 3 == 1:
        sys.stderr.write(f"no end {number}")
    return number


def shout(number: int) -> int:
    print(f"loud {number}", file=sys.stderr)
    return number


async def invoked(backend: LocalBackend, label: str, function: Any, *args: Any) -> Any:
    """A call whose name is `label`: by it the pool knows how long calls take."""
    reply = await backend.functions.invoke(
        encode_call(function, *args), memory=512, timeout=60, label=label
    )
    return decode_reply(reply)


async def warm(backend: LocalBackend, label: str) -> None:
    """Have the pool believe that calls of this name are short."""
    seconds = backend.functions._runner._pool._seconds  # type: ignore[attr-defined]
    for number in range(200):
        await asyncio.gather(*(invoked(backend, label, abs, number) for _ in range(8)))
        if ahead(seconds[label]) > 1:
            return
    pytest.fail("200 times eight calls that do nothing were never short")


async def runs(backend: LocalBackend, prefix: str) -> Counter[int]:
    """How often each number ran."""
    keys = await backend.objects.list(f"{prefix}/")
    return Counter(int(key.split("/")[1]) for key in keys)


# Which worker


def test_a_worker_that_comes_late_is_not_used_before_a_warm_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fork, forks, held = Template.fork, itertools.count(), asyncio.Event()

    async def second_is_late(template: Template, pool: Any) -> Any:
        worker = await fork(template, pool)
        if next(forks):
            await held.wait()
        return worker

    async def run() -> set[int]:
        calls = [asyncio.create_task(invoked(backend, "pid", os.getpid)) for _ in range(2)]
        pids = set(await asyncio.gather(*calls))  # the second waits for no worker of its own
        held.set()
        await asyncio.sleep(0.1)
        assert next(forks) == 2, "both were forked"
        return pids | {await invoked(backend, "pid", os.getpid) for _ in range(10)}

    monkeypatch.setattr(Template, "fork", second_is_late)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    with connected() as backend:
        assert len(loop.run(run())) == 1


# Long after short


def test_calls_do_not_wait_behind_one_that_turns_out_to_be_long() -> None:
    async def run() -> list[int]:
        await warm(backend, "quick")
        long = [invoked(backend, "quick", run_by_number, "a", number, "wait") for number in (0, 1)]
        short = [invoked(backend, "quick", run_by_number, "a", n, "return") for n in range(2, 40)]
        tasks = [asyncio.create_task(call) for call in (*long, *short)]
        # The long ones wait until all that may stand behind them in a worker are over.
        await asyncio.gather(*tasks[2:])
        await backend.objects.put("a-go", b"")
        return await asyncio.gather(*tasks)

    with connected() as backend:
        assert loop.run(run()) == list(range(40))
        assert set(loop.run(runs(backend, "a")).values()) == {1}


def test_a_worker_that_dies_takes_only_the_call_that_it_ran(
    backend: LocalBackend,
) -> None:
    async def run() -> list[Any]:
        await warm(backend, "mortal")
        deadly = (5, 17, 40)
        calls = [
            invoked(backend, "mortal", run_by_number, "b", n, "exit" if n in deadly else "return")
            for n in range(60)
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    outcomes = loop.run(run())
    for number, outcome in enumerate(outcomes):
        if number in (5, 17, 40):
            assert isinstance(outcome, FunctionCrashed)
            assert "mortal" in str(outcome)
        else:
            assert outcome == number
    assert loop.run(runs(backend, "b")) == Counter(range(60)), "none ran twice, none not at all"


def test_a_call_that_is_cancelled_before_its_turn_never_runs(backend: LocalBackend) -> None:
    async def run() -> list[int]:
        await warm(backend, "fickle")
        tasks = [
            asyncio.create_task(invoked(backend, "fickle", run_by_number, "c", number, "wait"))
            for number in range(2)
        ]
        for number in range(2):
            assert await backend.objects.get(f"c-began/{number}", wait=20) is not None
        later = [
            asyncio.create_task(invoked(backend, "fickle", run_by_number, "c", n, "return"))
            for n in range(2, 30)
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task in later[::2]:
            task.cancel()
        await backend.objects.put("c-go", b"")
        await asyncio.wait(later)
        assert all(task.cancelled() for task in later[::2])
        return [await task for task in (*tasks, *later[1::2])]

    values = loop.run(run())
    assert values == [0, 1, *range(3, 30, 2)]
    counted = loop.run(runs(backend, "c"))
    assert all(counted[number] == 1 for number in values)
    assert sum(counted.values()) == len(values), "one that was cancelled ran"


def test_what_quick_calls_print_is_said_to_be_their_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def run(backend: LocalBackend) -> None:
        await warm(backend, "say")
        await warm(backend, "shout")
        await asyncio.gather(
            *(call_function(backend.functions, (say, shout)[n % 2], n) for n in range(300))
        )

    with connected(log_to_caller=True) as backend:
        loop.run(run(backend))
    lines = capsys.readouterr().err.splitlines()
    said = Counter(re.sub(r"\(([a-z]+)[^)]*\)", r"\1:", line) for line in lines)
    expected_lines = [
        f"shout: loud {n}" if n % 2 else f"say: odd {n}" if n % 3 == 0 else f"say: no end {n}"
        for n in range(300)
        if n % 2 or n % 3 < 2
    ]
    assert said == Counter(expected_lines)


@pytest.fixture(name="backend")
def own_backend() -> Any:
    with connected() as backend:
        yield backend
