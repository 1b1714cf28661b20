"""Simulated functions: the part of the kit that needs no plain code, and how calls take time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from fsdray.backends.simulated import Environments, Latency, Network, SimulatedFunctions
from fsdray.errors import FunctionCrashed, FunctionTimeout
from fsdray.services import FunctionLimits
from fsdray.testing import function_checks
from fsdray.testing.function_checks import FunctionCheck
from tests.backends.simulated import Simulated, virtually

CHECKS = (
    function_checks.a_payload_beyond_the_limit_is_refused,
    function_checks.memory_and_time_beyond_the_limits_are_refused,
    function_checks.a_gang_waits_until_it_can_be_whole,
    function_checks.a_gang_that_ended_in_an_error_makes_room,
    function_checks.a_gang_that_gave_up_is_not_in_the_way,
    function_checks.a_gang_that_never_can_be_whole_is_refused,
)
STEADY = Network(
    invoke=Latency(0.015, 0.015), cold=Latency(0.085, 0.085), notice=Latency(0.02, 0.02)
)


async def echo(payload: bytes) -> bytes:
    await asyncio.sleep(1)
    return payload[::-1]


async def hang(payload: bytes) -> bytes:
    await asyncio.Event().wait()
    return b""


async def crash(payload: bytes) -> bytes:
    await asyncio.sleep(1)
    raise FunctionCrashed("it died")


def functions_of(
    here: Simulated, handler: Callable[[bytes], Awaitable[bytes]], concurrency: int = 4
) -> SimulatedFunctions:
    environments = Environments(FunctionLimits(concurrency=concurrency), handler)
    return SimulatedFunctions(here.world, here.world.node(-1), environments)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_functions(check: FunctionCheck) -> None:
    async def program(here: Simulated) -> None:
        await check(functions_of(here, echo), here.objects)

    virtually(program)


def test_the_first_call_is_cold_and_the_next_is_warm_and_both_are_billed() -> None:
    async def program(here: Simulated) -> None:
        functions = functions_of(here, echo)
        assert await functions.invoke(b"abc", memory=2048, timeout=10) == b"cba"
        assert here.world.now == pytest.approx(0.1 + 1, abs=1e-3)
        before = here.world.now
        await functions.invoke(b"abc", memory=2048, timeout=10)
        assert here.world.now - before == pytest.approx(0.015 + 1, abs=1e-3)
        assert here.count("invoke") == 2
        assert here.count("gb_seconds") == pytest.approx(4.0, abs=0.01)

    virtually(program, network=STEADY)


def test_calls_beyond_the_concurrency_wait() -> None:
    async def program(here: Simulated) -> None:
        functions = functions_of(here, echo, concurrency=2)
        calls = (functions.invoke(b"", memory=128, timeout=10) for _ in range(4))
        await asyncio.gather(*calls)
        assert here.world.now == pytest.approx(0.1 + 1 + 0.015 + 1, abs=1e-2)

    virtually(program, network=STEADY)


def test_deaths_and_timeouts_are_told_with_a_moment_s_delay_and_end_their_environment() -> None:
    async def program(here: Simulated) -> None:
        with pytest.raises(FunctionTimeout, match="5 s"):
            await functions_of(here, hang).invoke(b"", memory=128, timeout=5)
        assert here.world.now == pytest.approx(0.1 + 5 + 0.02, abs=1e-3)
        functions = functions_of(here, crash)
        for _ in range(2):
            before = here.world.now
            with pytest.raises(FunctionCrashed):
                await functions.invoke(b"", memory=128, timeout=5)
            assert here.world.now - before == pytest.approx(0.1 + 1 + 0.02, abs=1e-3)

    virtually(program, network=STEADY)


def test_a_call_that_is_given_up_stops_and_makes_room() -> None:
    async def program(here: Simulated) -> None:
        functions = functions_of(here, hang, concurrency=1)
        call = asyncio.create_task(functions.invoke(b"", memory=128, timeout=100))
        await asyncio.sleep(1)
        call.cancel()
        await asyncio.wait([call])
        with pytest.raises(FunctionTimeout):
            await functions.invoke(b"", memory=128, timeout=1)
        assert here.world.now < 3

    virtually(program, network=STEADY)
