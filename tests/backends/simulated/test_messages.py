"""What simulated inboxes take in time, share in memory, and repeat."""

from __future__ import annotations

import asyncio

import pytest

from fsdray.backends.simulated import Faults, Latency, Network
from fsdray.services import MIB, Message, MessageLimits
from tests.backends.simulated import Simulated, virtually

STEADY = Network(
    deliver=Latency(0.06, 0.06), publish=Latency(0.02, 0.02), receive=Latency(0.01, 0.01)
)


def test_a_delivery_wakes_a_reader_and_a_later_reader_makes_a_round_trip() -> None:
    async def program(here: Simulated) -> None:
        [inbox] = await here.messages.lease(1)
        reader = asyncio.create_task(here.messages.receive(inbox, wait=20))
        await here.messages.publish([Message(b"", (inbox,))])
        assert here.world.now == pytest.approx(0.02, abs=1e-3)
        assert len(await reader) == 1
        assert here.world.now == pytest.approx(0.02, abs=1e-3)  # directly: before it is told
        others = await here.messages.lease(1)
        before = here.world.now
        await here.messages.publish([Message(b"", (inbox, *others))])
        assert len(await here.messages.receive(inbox, wait=20)) == 1
        assert here.world.now - before == pytest.approx(0.06, abs=1e-3)
        await here.messages.publish([Message(b"", (inbox,))])
        await asyncio.sleep(1)
        before = here.world.now
        assert len(await here.messages.receive(inbox, wait=20)) == 1
        assert here.world.now - before == pytest.approx(0.01, abs=1e-4)

    virtually(program, network=STEADY)


def test_bytes_take_their_time_up_and_down() -> None:
    async def program(here: Simulated) -> None:
        inbox, *others = await here.messages.lease(2)
        rate = here.world.node(0).up.rate
        await here.messages.publish([Message(bytes(MIB), (inbox, *others))])
        assert here.world.now == pytest.approx(0.02 + MIB / rate, abs=1e-3)
        await here.messages.receive(inbox, wait=20)
        assert here.world.now == pytest.approx(0.06 + 2 * MIB / rate, abs=1e-3)

    limits = MessageLimits(message=2 * MIB, batch=2 * MIB)
    virtually(program, network=STEADY, limits=limits)


def test_a_multicast_s_bytes_are_kept_once() -> None:
    async def program(here: Simulated) -> None:
        inboxes = await here.messages.lease(100)
        body = b"for all"
        await here.messages.publish([Message(body, tuple(inboxes))])
        for inbox in inboxes:
            [delivery] = await here.messages.receive(inbox, wait=20)
            assert delivery.body is body

    virtually(program)


def test_a_receive_is_billed_when_it_is_given_up() -> None:
    async def program(here: Simulated) -> None:
        [inbox] = await here.messages.lease(1)
        reader = asyncio.create_task(here.messages.receive(inbox, wait=20))
        await asyncio.sleep(1)
        reader.cancel()
        await asyncio.wait([reader])
        assert here.count("receive") == here.count("receive_units") == 1

    virtually(program)


def test_a_lost_acknowledgement_is_a_second_delivery() -> None:
    async def program(here: Simulated) -> None:
        [inbox] = await here.messages.lease(1)
        await here.messages.publish([Message(b"x", (inbox,))])
        first = await here.messages.receive(inbox, wait=20)
        await here.messages.acknowledge(first)
        assert here.inboxes.left() == {inbox: 1}
        assert await here.messages.receive(inbox, wait=20) == []
        second = await here.messages.receive(inbox, wait=20)
        assert [delivery.body for delivery in second] == [b"x"]
        assert here.world.now == pytest.approx(30.06, abs=0.1)  # the visibility time

    virtually(program, network=STEADY, faults=Faults(forget=1))


def test_entries_that_fail_are_published_again_and_billed() -> None:
    async def program(here: Simulated) -> None:
        inboxes = await here.messages.lease(10)
        await here.messages.publish([Message(b"x", (inbox,)) for inbox in inboxes])
        for inbox in inboxes:
            assert len(await here.messages.receive(inbox, wait=20)) == 1
        again = here.events("partial")
        assert again > 0
        assert here.count("publish") == 1 + again

    virtually(program, faults=Faults(partial=0.5))
