"""The conformance kit on the simulated services, in virtual time."""

from __future__ import annotations

import pytest

from fsdray import testing
from fsdray.backends.simulated import EXPRESS, Faults, Network
from fsdray.testing.message_checks import MessageCheck
from fsdray.testing.object_checks import ObjectCheck
from tests.backends.simulated import Simulated, virtually

ALLOWED = Faults(reorder=0.5, partial=0.2, throttle=0.1, delay=0.1, lateness=0.2)


def name_of(check: MessageCheck | ObjectCheck) -> str:
    return check.__name__


@pytest.mark.parametrize("faults", [Faults(), ALLOWED], ids=["calm", "faulty"])
@pytest.mark.parametrize("check", testing.MESSAGE_CHECKS, ids=name_of)
def test_messages(check: MessageCheck, faults: Faults) -> None:
    async def program(here: Simulated) -> None:
        await check(here.messages)
        assert here.inboxes.left() == {}

    for seed in range(3):
        virtually(program, seed=seed, faults=faults)


@pytest.mark.parametrize("network", [Network(), EXPRESS], ids=["standard", "express"])
@pytest.mark.parametrize("check", testing.OBJECT_CHECKS, ids=name_of)
def test_objects(check: ObjectCheck, network: Network) -> None:
    async def program(here: Simulated) -> None:
        await check(here.objects)
        assert here.store.keys() == []

    virtually(program, network=network)
