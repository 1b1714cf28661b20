"""Large bodies lie in files until the last of their receivers has acknowledged them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fsdray.backends.local.bodies import LARGE, Bodies
from fsdray.backends.local.messages import Inboxes, LocalMessages
from fsdray.costs.meter import Meter
from fsdray.errors import ServiceError
from fsdray.services import Message, MessageLimits
from tests.collective import noise

BODY = bytes(noise(LARGE))


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_large_body_is_one_file_until_all_have_acknowledged_it(tmp_path: Path) -> None:
    async def use() -> None:
        first, second = await messages.lease(2)
        await messages.publish([Message(BODY, (first, second)), Message(b"small", (first,))])
        assert len(files(tmp_path)) == 1
        taken = await messages.receive(first, wait=1)
        assert [bytes(each.body) for each in taken] == [BODY, b"small"]
        assert taken[0].billed == Message(BODY, (first, second)).billed
        await messages.acknowledge(taken)
        (other,) = await messages.receive(second, wait=1)
        assert len(files(tmp_path)) == 1
        await messages.acknowledge([other])
        await messages.acknowledge([other])  # again, which changes nothing
        assert files(tmp_path) == []
        assert bytes(other.body) == BODY  # who has it keeps it

    messages = made(tmp_path)
    asyncio.run(use())


def test_released_inboxes_and_refused_messages_leave_none(tmp_path: Path) -> None:
    async def use() -> None:
        (inbox,) = await messages.lease(1)
        await messages.publish([Message(BODY, (inbox,))])
        await messages.publish([Message(BODY, (inbox,))])
        await messages.receive(inbox, wait=1)
        await messages.release([inbox])
        assert files(tmp_path) == []
        with pytest.raises(ServiceError, match="leased"):
            await messages.publish([Message(BODY, (inbox,))])
        assert files(tmp_path) == []

    messages = made(tmp_path)
    asyncio.run(use())


def test_where_there_is_no_room_bodies_go_the_other_way(tmp_path: Path) -> None:
    bodies = Bodies(tmp_path / "missing")
    assert bodies.put(BODY) == BODY


def made(directory: Path) -> LocalMessages:
    limits, bodies = MessageLimits(), Bodies(directory)
    return LocalMessages(Inboxes(limits, bodies), Meter().add, limits, bodies)
