"""What simulated objects take in time, and how often a reader that waits has looked."""

from __future__ import annotations

import asyncio

import pytest

from fsdray.backends.simulated import Faults, Latency, Network
from fsdray.collective import AsyncCommunicator
from fsdray.collective.channels.object import WINDOW
from fsdray.services import MIB, Pace
from fsdray.testing import compute, simulate
from tests.backends.simulated import Simulated, virtually

STEADY = Network(put=Latency(0.04, 0.04), get=Latency(0.03, 0.03))


def test_a_put_and_a_get_take_their_latency_and_their_bytes() -> None:
    async def program(here: Simulated) -> None:
        rate = here.world.node(0).up.rate
        await here.objects.put("key", bytes(10 * MIB))
        assert here.world.now == pytest.approx(0.04 + 10 * MIB / rate, abs=1e-3)
        before = here.world.now
        await here.objects.get("key", range=(0, MIB))
        assert here.world.now - before == pytest.approx(0.03 + MIB / rate, abs=1e-3)

    virtually(program, network=STEADY)


def test_who_waits_finds_the_key_with_the_next_look_and_is_billed_those_before() -> None:
    async def program(here: Simulated) -> None:
        pace = Pace(first=1.0, factor=2.0, ceiling=100.0)  # looks at 0, 1, 3, 7, 15
        reader = asyncio.create_task(here.objects.get("key", wait=900, pace=pace))
        await asyncio.sleep(5)
        await here.objects.put("key", b"here")
        assert await reader is not None
        assert here.world.now == pytest.approx(7.03, abs=1e-3)
        assert (here.count("miss"), here.count("get")) == (3, 1)

    virtually(program, network=STEADY)


def test_a_wait_that_ends_in_vain_is_billed_its_looks() -> None:
    async def program(here: Simulated) -> None:
        assert await here.objects.get("never", wait=10) is None
        assert here.world.now == 10
        assert here.count("miss") == Pace().misses(10)

    virtually(program)


def test_requests_beyond_the_rate_of_a_prefix_wait() -> None:
    async def program(here: Simulated) -> None:
        await asyncio.gather(*(here.objects.put(f"{i}", b"") for i in range(50)))
        assert here.world.now == pytest.approx(50 / 10 + 0.04)

    virtually(program, network=Network(put=Latency(0.04, 0.04), put_rate=10))


def test_a_twin_that_wrote_first_wins() -> None:
    async def program(here: Simulated) -> None:
        assert await here.objects.put("key", b"x", if_absent=True) is None
        blob = await here.objects.get("key")
        assert blob is not None
        assert bytes(blob.data) == b"x"

    virtually(program, faults=Faults(twin=1))


def test_a_rank_looks_for_a_window_of_objects_at_a_time() -> None:
    async def late(comm: AsyncCommunicator) -> None:
        if comm.rank:
            await compute(1.0)
        await comm.gather(comm.rank)

    counts = simulate(late, WINDOW + 37, channel="object", network=STEADY).counts
    assert counts["get"] == WINDOW + 36
    assert counts["miss"] <= WINDOW * Pace().misses(1.1) + Pace().misses(1.1)  # and for an abort
