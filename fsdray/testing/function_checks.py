"""Checks of `fsdray.services.Functions`, one for each guarantee.

A check uses inboxes, keys and calls of its own and leaves none behind. Services may deliver twice
and in any order, and so the checks allow it. What is special to one backend is in its own tests.
Their calls meet through an object store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from fsdray.errors import (
    FunctionCrashed,
    FunctionTimeout,
    OutOfMemory,
    PlatformError,
)
from fsdray.services import (
    Functions,
    Objects,
)
from fsdray.testing import calls
from fsdray.testing.expect import (
    MOMENT,
    PATIENCE,
    SOON,
    Late,
    own_prefix,
    refused,
    some_bytes,
    tried_again,
)

FunctionCheck: TypeAlias = Callable[[Functions, Objects], Coroutine[Any, Any, None]]


async def check_functions(functions: Functions, objects: Objects) -> None:
    """Run all of `FUNCTION_CHECKS`; `STOP_CHECKS` are for platforms that can stop a call."""
    for check in FUNCTION_CHECKS:
        await check(functions, objects)


async def a_call_replies_with_its_value(functions: Functions, objects: Objects) -> None:
    value = {"numbers": list(range(1000)), "text": "ß" * 1000, "bytes": some_bytes(100_000)}
    assert await calls.call_function(functions, calls.same, value) == value, (
        "a reply held another value"
    )


async def what_a_call_raises_is_a_reply(functions: Functions, objects: Objects) -> None:
    try:
        value = await calls.call_function(functions, calls.raise_key_error, "nobody")
    except KeyError as error:
        raised = error.args
    else:
        raise AssertionError(f"a function that raised replied with {value!r}")
    assert raised == ("nobody",), f"the user's own error came back with {raised}"


async def calls_run_at_one_time(functions: Functions, objects: Objects) -> None:
    count = min(4, functions.limits.concurrency)
    async with own_prefix(objects) as prefix:
        environments = await asyncio.gather(
            *(calls.call_function(functions, calls.meet, prefix, i, count) for i in range(count))
        )
    assert None not in environments, f"of {count} calls not all ran at one time"
    assert len(set(environments)) == count, "two calls ran in one environment at one time"


async def environments_are_reused(functions: Functions, objects: Objects) -> None:
    found = {await calls.call_function(functions, calls.environment) for _ in range(6)}
    assert len(found) < 6, f"6 calls in turn had {len(found)} environments"


async def a_payload_as_large_as_the_limit_is_run(functions: Functions, objects: Objects) -> None:
    room = functions.limits.payload - len(calls.encode_call(calls.length, b""))
    fill = bytes(room - 1000)
    assert await calls.call_function(functions, calls.length, fill) == len(fill)


async def a_payload_beyond_the_limit_is_refused(functions: Functions, objects: Objects) -> None:
    large = bytes(functions.limits.payload + 1)
    await refused(
        functions.invoke(large, memory=calls.MEMORY, timeout=calls.TIMEOUT), "too large a payload"
    )
    await refused(
        functions.invoke(memoryview(large), memory=calls.MEMORY, timeout=calls.TIMEOUT),
        "too large a view",
    )


async def memory_and_time_beyond_the_limits_are_refused(
    functions: Functions, objects: Objects
) -> None:
    least, most = functions.limits.memory
    payload = calls.encode_call(calls.environment)
    for memory in (0, -1, least - 1, most + 1):
        await refused(
            functions.invoke(payload, memory=memory, timeout=calls.TIMEOUT), f"memory={memory}"
        )
    for timeout in (0, -1, functions.limits.timeout + 1, float("nan")):
        await refused(
            functions.invoke(payload, memory=calls.MEMORY, timeout=timeout), f"timeout={timeout}"
        )


async def an_exit_is_a_crash_with_the_last_log_lines(
    functions: Functions, objects: Objects
) -> None:
    error = await _death(functions, FunctionCrashed, calls.leave, 3)
    assert "3" in str(error), f"the error does not say exit status 3: {error}"
    _assert_logged(error)


async def a_signal_is_a_crash_with_the_last_log_lines(
    functions: Functions, objects: Objects
) -> None:
    error = await _death(functions, FunctionCrashed, calls.raise_signal)
    _assert_logged(error)


async def the_memory_limit_is_kept(functions: Functions, objects: Objects) -> None:
    memory = max(256, functions.limits.memory[0])
    error = await _death(functions, OutOfMemory, calls.eat, 2 * memory, memory=memory)
    assert str(memory) in str(error), f"the error does not say the limit of {memory} MB: {error}"
    _assert_logged(error)


async def the_time_limit_is_kept(functions: Functions, objects: Objects) -> None:
    began = time.monotonic()
    error = await _death(functions, FunctionTimeout, calls.hang, timeout=1)
    took = time.monotonic() - began
    assert took < PATIENCE / 2, f"a call with timeout=1 was ended after {took:.1f} s"
    assert "1 s" in str(error), f"the error does not say the limit of 1 s: {error}"
    _assert_logged(error)


async def a_death_leaves_other_calls_alone(functions: Functions, objects: Objects) -> None:
    async with own_prefix(objects) as prefix:
        neighbour = asyncio.create_task(calls.call_function(functions, calls.until, prefix))
        started = await objects.get(prefix + "started", wait=PATIENCE)
        assert started is not None, "a call did not start"
        await _death(functions, FunctionCrashed, calls.leave, 1)
        await objects.put(prefix + "go", b"")
        assert await neighbour == prefix, "a call did not survive the death of another"
        assert await calls.call_function(functions, calls.same, "next") == "next"


async def a_gang_waits_until_it_can_be_whole(functions: Functions, objects: Objects) -> None:
    everything = functions.limits.concurrency
    entered = asyncio.Event()

    async def enter() -> None:
        async with functions.admitted(1):
            entered.set()

    async with functions.admitted(everything):
        waiting = asyncio.create_task(enter())
        await asyncio.wait({waiting}, timeout=MOMENT)
        assert not entered.is_set(), f"{everything} + 1 calls were admitted of {everything}"
    await asyncio.wait_for(waiting, PATIENCE)
    assert entered.is_set()


async def a_gang_that_ended_in_an_error_makes_room(functions: Functions, objects: Objects) -> None:
    everything = functions.limits.concurrency
    for _ in range(2):
        try:
            async with asyncio.timeout(PATIENCE), functions.admitted(everything):
                raise KeyError("in the gang")
        except KeyError:
            continue


async def a_gang_that_gave_up_is_not_in_the_way(functions: Functions, objects: Objects) -> None:
    everything = functions.limits.concurrency

    async def enter(count: int) -> None:
        async with functions.admitted(count):
            pass

    async with functions.admitted(everything - 1):
        large = asyncio.create_task(enter(everything))
        small = asyncio.create_task(enter(1))
        await asyncio.wait({large}, timeout=MOMENT)
        assert not large.done(), "a gang was admitted that cannot be whole yet"
        large.cancel()
        done, _ = await asyncio.wait({small}, timeout=PATIENCE)
        assert done, "a gang that would fit still waits behind one that was cancelled"
    await small


async def a_gang_that_never_can_be_whole_is_refused(functions: Functions, objects: Objects) -> None:
    async def enter() -> None:
        async with functions.admitted(functions.limits.concurrency + 1):
            raise AssertionError("a gang larger than the concurrency was admitted")

    await refused(enter(), "a gang larger than the concurrency")


async def a_hint_that_fails_does_no_harm(functions: Functions, objects: Objects) -> None:
    functions.prepare(["string", "no_such_module_at_all", "string:no_such_function"])
    assert await calls.call_function(functions, calls.same, 1) == 1


# Stopping, for platforms that can


@tried_again
async def a_cancelled_call_stops(functions: Functions, objects: Objects) -> None:
    async with own_prefix(objects) as prefix:
        call = asyncio.create_task(calls.call_function(functions, calls.until, prefix))
        started = await objects.get(prefix + "started", wait=PATIENCE)
        assert started is not None, "a call did not start"
        call.cancel()
        await asyncio.wait({call}, timeout=PATIENCE)
        assert call.cancelled(), "a cancelled invoke did not end"
        await asyncio.sleep(MOMENT)  # who stops it may be another process
        await objects.put(prefix + "go", b"")
        if await objects.get(prefix + "after", wait=SOON) is not None:
            raise Late("a cancelled call ran on")
        assert await calls.call_function(functions, calls.same, "next") == "next"


async def calls_cancelled_before_they_start_free_their_place(
    functions: Functions, objects: Objects
) -> None:
    for turns in range(8):
        call = asyncio.create_task(calls.call_function(functions, calls.same, turns))
        for _ in range(turns):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call}, timeout=PATIENCE)
        assert call.done(), f"an invoke cancelled after {turns} turns did not end"
    count = min(4, functions.limits.concurrency)
    async with own_prefix(objects) as prefix:
        environments = await asyncio.gather(
            *(calls.call_function(functions, calls.meet, prefix, i, count) for i in range(count))
        )
    assert None not in environments, "cancelled calls still hold the concurrency of others"


async def _death(
    functions: Functions,
    kind: type[PlatformError],
    function: Callable[..., Any],
    *args: Any,
    memory: int = calls.MEMORY,
    timeout: float = calls.TIMEOUT,
) -> PlatformError:
    """The error of a call that must die in this way."""
    try:
        value = await calls.call_function(
            functions, function, *args, memory=memory, timeout=timeout
        )
    except PlatformError as error:
        told = error
    else:
        raise AssertionError(f"a call that must end in {kind.__name__} replied {value!r}")
    assert type(told) is kind, f"expected {kind.__name__}, got {told!r}"
    return told


def _assert_logged(error: PlatformError) -> None:
    """The last lines of `calls.write_log` came along, in the order in which they were written."""
    lines = [line.strip() for line in error.log]
    assert "the last line" in lines, f"the last log line did not come along: {lines}"
    tail = [x for x in lines if x.startswith(("out", "err"))]
    written = [f"{stream} {line}" for line in range(15) for stream in ("out", "err")]
    assert tail, f"only the very last log line came along: {lines}"
    assert tail == written[-len(tail) :], f"the log lines came in another order: {lines}"


FUNCTION_CHECKS: tuple[FunctionCheck, ...] = (
    a_call_replies_with_its_value,
    what_a_call_raises_is_a_reply,
    calls_run_at_one_time,
    environments_are_reused,
    a_payload_as_large_as_the_limit_is_run,
    a_payload_beyond_the_limit_is_refused,
    memory_and_time_beyond_the_limits_are_refused,
    an_exit_is_a_crash_with_the_last_log_lines,
    a_signal_is_a_crash_with_the_last_log_lines,
    the_memory_limit_is_kept,
    the_time_limit_is_kept,
    a_death_leaves_other_calls_alone,
    a_gang_waits_until_it_can_be_whole,
    a_gang_that_ended_in_an_error_makes_room,
    a_gang_that_gave_up_is_not_in_the_way,
    a_gang_that_never_can_be_whole_is_refused,
    a_hint_that_fails_does_no_harm,
)

STOP_CHECKS: tuple[FunctionCheck, ...] = (
    a_cancelled_call_stops,
    calls_cancelled_before_they_start_free_their_place,
)
