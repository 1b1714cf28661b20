"""Local functions: every kind of death, the limits, the template's own death, and the bill."""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import select
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

import pytest

from fsdray import loop, output, session
from fsdray.backends.local.backend import LocalBackend
from fsdray.costs.meter import Meter
from fsdray.errors import FunctionCrashed, FunctionTimeout, OutOfMemory, SettingsError
from fsdray.services import MIB
from fsdray.testing.calls import call_function, decode_reply, encode_call
from tests.backends.local import connected


@pytest.fixture(name="backend", scope="module")
def shared_backend() -> Iterator[LocalBackend]:
    with connected() as backend:
        yield backend


# What the calls run


def spin() -> NoReturn:
    while True:
        pass


def leave(status: int | None) -> NoReturn:
    print("leaving")
    sys.exit(status)


def say_pid_and_wait(key: str) -> None:
    objects = session.current().backend.objects
    loop.run(objects.put(key, b"%d" % os.getpid()))
    threading.Event().wait()


def say_started_and_wait_for(started: str, go: str) -> str:
    objects = session.current().backend.objects
    loop.run(objects.put(started, b""))
    loop.run(objects.get(go, wait=30))
    return started


def read_all(key: str) -> int:
    blob = loop.run(session.current().backend.objects.get(key))
    assert blob is not None
    return sum(blob.data[::4096])


def call_another(depth: int) -> int:
    if depth == 0:
        return os.getpid()
    functions = session.current().backend.functions
    with functions.yielded():
        reply = loop.run(
            functions.invoke(encode_call(call_another, depth - 1), memory=256, timeout=30)
        )
    return int(decode_reply(reply))


def speak() -> None:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    print("without an end", end="")


async def waiting_pid(backend: LocalBackend, key: str) -> int:
    blob = await backend.objects.get(key, wait=20)
    assert blob is not None
    return int(bytes(blob.data))


def has_ended(pidfd: int) -> bool:
    """Whether the process ends within five seconds."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    ended = bool(poll.poll(5000))
    os.close(pidfd)
    return ended


# Deaths


def test_a_call_that_never_gives_way_is_ended_at_its_time_limit(backend: LocalBackend) -> None:
    with pytest.raises(FunctionTimeout, match=r"spin ran longer than its timeout of 0.3 s"):
        loop.run(call_function(backend.functions, spin, timeout=0.3))


@pytest.mark.parametrize(("status", "said"), [(3, 3), (0, 0), (None, 0)])
def test_sys_exit_is_a_crash_with_its_status(
    backend: LocalBackend, status: int | None, said: int
) -> None:
    with pytest.raises(FunctionCrashed, match=r"leave \(pid \d+\) exited with status") as caught:
        loop.run(call_function(backend.functions, leave, status))
    assert "leaving" in caught.value.log
    assert f"exited with status {said} before it replied" in str(caught.value)


def test_a_process_killed_from_outside_is_a_crash_that_names_the_signal(
    backend: LocalBackend,
) -> None:
    async def run() -> None:
        call = asyncio.create_task(call_function(backend.functions, say_pid_and_wait, "killed"))
        os.kill(await waiting_pid(backend, "killed"), signal.SIGKILL)
        await call

    with pytest.raises(FunctionCrashed, match=r"killed by signal 9 \(SIGKILL\)"):
        loop.run(run())


def test_a_dead_idle_worker_is_never_given_a_call(backend: LocalBackend) -> None:
    async def run() -> int:
        pid: int = await call_function(backend.functions, os.getpid)
        pidfd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        assert await asyncio.to_thread(has_ended, pidfd)
        later: int = await call_function(backend.functions, os.getpid)
        return later - pid

    assert loop.run(run()) != 0


def test_mapped_objects_are_not_the_call_s_own_memory(backend: LocalBackend) -> None:
    loop.run(backend.objects.put("large", b"\x01" * (200 * MIB)))
    total = loop.run(call_function(backend.functions, read_all, "large", memory=160))
    loop.run(backend.objects.delete(["large"]))
    assert total == 200 * MIB // 4096


def test_a_call_that_is_over_its_memory_says_how_to_raise_it(backend: LocalBackend) -> None:
    async def run() -> None:
        await call_function(backend.functions, hoard, memory=150, timeout=20)

    with pytest.raises(OutOfMemory, match=r"hoard used \d+ MB, more than .* 150 MB.*memory=MB"):
        loop.run(run())


def hoard() -> None:
    held = b"x" * (300 * MIB)
    threading.Event().wait()
    print(len(held))


# Concurrency


def test_no_more_calls_run_than_the_concurrency_allows() -> None:
    async def run() -> list[str]:
        calls = [
            asyncio.create_task(
                call_function(
                    backend.functions, say_started_and_wait_for, f"started-{i}", f"go-{i}"
                )
            )
            for i in range(3)
        ]
        for i in range(2):
            assert await backend.objects.get(f"started-{i}", wait=20) is not None
        assert await backend.objects.get("started-2", wait=0.3) is None, "three calls of two ran"
        await backend.objects.put("go-0", b"")
        assert await backend.objects.get("started-2", wait=20) is not None
        for i in (1, 2):
            await backend.objects.put(f"go-{i}", b"")
        return [await call for call in calls]

    with connected(concurrency=2) as backend:
        assert loop.run(run()) == ["started-0", "started-1", "started-2"]


def test_calls_that_wait_for_calls_give_their_place_to_them() -> None:
    with connected(concurrency=1) as backend:
        pid = loop.run(call_function(backend.functions, call_another, 4, timeout=30))
    assert pid > 0


def test_hundreds_of_workers_may_be_asked_for_while_the_template_is_busy() -> None:
    async def run() -> list[int]:
        template = await template_pid(backend)
        os.kill(template, signal.SIGSTOP)
        calls = [
            asyncio.create_task(call_function(backend.functions, os.getpid)) for _ in range(300)
        ]
        await asyncio.wait(calls, timeout=0.3)
        os.kill(template, signal.SIGCONT)
        return [await call for call in calls]

    with connected(concurrency=300) as backend:
        assert len(loop.run(run())) == 300


# The template


async def template_pid(backend: LocalBackend) -> int:
    """The process that forks the workers is the parent of any of them."""
    pid: int = await call_function(backend.functions, os.getppid)
    return pid


async def kill(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert await asyncio.to_thread(has_ended, pidfd)


def test_calls_work_again_after_the_template_died() -> None:
    async def run() -> None:
        await kill(await template_pid(backend))
        calls = [
            call_function(backend.functions, say_started_and_wait_for, f"started-{i}", "go")
            for i in range(4)
        ]
        running = [asyncio.create_task(call) for call in calls]
        for i in range(4):
            assert await backend.objects.get(f"started-{i}", wait=20) is not None
        await backend.objects.put("go", b"")
        assert len(await asyncio.gather(*running)) == 4

    with connected() as backend:
        loop.run(run())


def test_a_worker_that_outlived_its_template_may_still_crash() -> None:
    async def run() -> None:
        call = asyncio.create_task(call_function(backend.functions, say_pid_and_wait, "pid"))
        pid = await waiting_pid(backend, "pid")
        await kill(await template_pid(backend))
        # Four at once need new workers, and so another template.
        started = [
            asyncio.create_task(
                call_function(backend.functions, say_started_and_wait_for, f"started-{i}", "go")
            )
            for i in range(4)
        ]
        for i in range(4):
            assert await backend.objects.get(f"started-{i}", wait=20) is not None
        await kill(pid)
        with pytest.raises(FunctionCrashed, match="say_pid_and_wait"):
            await asyncio.wait_for(call, 10)
        await backend.objects.put("go", b"")
        await asyncio.gather(*started)

    with connected() as backend:
        loop.run(run())


def test_closing_ends_workers_whose_template_died() -> None:
    async def run() -> int:
        call = asyncio.create_task(call_function(backend.functions, say_pid_and_wait, "pid"))
        pidfd = os.pidfd_open(await waiting_pid(backend, "pid"))
        await kill(await template_pid(backend))
        call.cancel()
        return pidfd

    async def idle() -> int:
        pid: int = await call_function(backend.functions, os.getpid)
        pidfd = os.pidfd_open(pid)
        await kill(await template_pid(backend))
        return pidfd

    for scene in (run, idle):
        with connected() as backend:
            pidfd = loop.run(scene())
        assert has_ended(pidfd), f"{scene.__name__}: a worker outlived its session"


# The log and the bill


def test_what_a_call_prints_appears_at_the_driver_with_its_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with connected(log_to_caller=True) as backend:
        loop.run(call_function(backend.functions, speak))
        output.flush()
    out, err = capsys.readouterr()
    assert out == "", "the driver's stdout is the user's own"
    said = [line.partition(") ")[2] for line in err.splitlines() if line.startswith("(speak, pid ")]
    assert said == ["to stdout", "to stderr", "without an end"]


def test_a_call_is_billed_by_its_memory_and_whole_milliseconds() -> None:
    meter = Meter()
    with connected(meter) as backend:
        loop.run(call_function(backend.functions, os.getpid, memory=512))
    counts = meter.counts()
    assert set(counts) == {"invoke", "gb_seconds"}
    assert counts["invoke"] == 1
    milliseconds = counts["gb_seconds"] * 2 * 1000
    assert milliseconds >= 1
    assert milliseconds == pytest.approx(round(milliseconds))


def test_a_call_that_dies_is_billed_for_what_it_ran() -> None:
    meter = Meter()
    with connected(meter) as backend, pytest.raises(FunctionTimeout):
        loop.run(call_function(backend.functions, spin, memory=1024, timeout=0.25))
    counts = meter.counts()
    assert counts["invoke"] == 1
    assert 0.25 <= counts["gb_seconds"] < 5


def test_a_cancelled_call_is_billed_for_what_it_ran() -> None:
    async def run() -> None:
        call = asyncio.create_task(
            call_function(backend.functions, say_pid_and_wait, "pid", memory=1024)
        )
        await waiting_pid(backend, "pid")
        call.cancel()
        await asyncio.wait({call})

    meter = Meter()
    with connected(meter) as backend:
        loop.run(run())
    assert meter.counts()["gb_seconds"] > 0


def test_what_is_refused_is_not_billed() -> None:
    meter = Meter()
    with connected(meter) as backend:
        for memory, timeout in ((1, 1.0), (512, 0.0)):
            with pytest.raises(SettingsError):
                loop.run(
                    call_function(backend.functions, os.getpid, memory=memory, timeout=timeout)
                )
    assert meter.counts() == {}


def faults(times: int, size: int) -> int:
    """Pages that were taken anew while four times so much was taken, used and freed so often."""

    def touch() -> None:
        several = [bytearray(size) for _ in range(4)]
        for each in several:
            each[::4096] = bytes(size // 4096)

    touch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        touch()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its allocator is told what to keep")
def test_a_worker_keeps_what_large_messages_free(backend: LocalBackend) -> None:
    size = 8 * MIB
    taken = loop.run(call_function(backend.functions, faults, 20, size))
    assert taken < 2 * 4 * size // 4096
