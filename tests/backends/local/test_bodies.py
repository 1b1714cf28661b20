"""Large bodies lie in files, each of which has the next when all have acknowledged the last."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from fsdray.backends.local.bodies import KEPT, LARGE, Bodies, Shared
from fsdray.backends.local.messages import Inboxes, LocalMessages
from fsdray.costs.meter import Meter
from fsdray.errors import ServiceError
from fsdray.services import Message, MessageLimits
from tests.collective import noise

BODY = bytes(noise(LARGE))
OTHER = bytes(noise(LARGE + 7))


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
        (before,) = files(tmp_path)
        await messages.acknowledge([other])
        await messages.acknowledge([other])  # again, which changes nothing
        await messages.publish([Message(b"small", (first,))])
        for _ in range(3):  # whose publisher hears only afterwards that the first is free
            await messages.publish([Message(OTHER, (first,))])
        assert len(files(tmp_path)) == 3
        assert before in files(tmp_path)
        assert bytes(other.body) == BODY  # who has it keeps it

    messages = made(tmp_path)
    asyncio.run(use())


def test_files_of_released_inboxes_and_of_refused_messages_are_used_again(tmp_path: Path) -> None:
    async def use() -> None:
        (inbox,) = await messages.lease(1)
        await messages.publish([Message(BODY, (inbox,))])
        await messages.publish([Message(BODY, (inbox,))])
        await messages.receive(inbox, wait=1)
        await messages.release([inbox])
        assert len(files(tmp_path)) == 2
        for _ in range(5):
            with pytest.raises(ServiceError, match="leased"):
                await messages.publish([Message(BODY, (inbox,))])
        assert len(files(tmp_path)) == 3, "what was refused is written again"

    messages = made(tmp_path)
    asyncio.run(use())


def test_where_there_is_no_room_bodies_go_the_other_way(tmp_path: Path) -> None:
    bodies = Bodies(tmp_path / "missing")
    assert bodies.put(BODY) == BODY


def test_no_more_files_wait_than_are_kept(tmp_path: Path) -> None:
    async def use() -> None:
        (inbox,) = await messages.lease(1)
        for _ in range(5):
            await messages.publish([Message(BODY, (inbox,))] * 2)
        for _ in range(10 * KEPT):
            await messages.publish([Message(BODY, (inbox,))])
        assert len(files(tmp_path)) == 10 * KEPT + 10
        while taken := await messages.receive(inbox, wait=0):
            await messages.acknowledge(taken)
        assert len(files(tmp_path)) == KEPT
        # From now on each hears of the file of the one before.
        for _ in range(3 * KEPT):
            await messages.publish([Message(OTHER, (inbox,))])
            taken = await messages.receive(inbox, wait=1)
            assert [each.body for each in taken] == [OTHER]
            await messages.acknowledge(taken)
        assert len(files(tmp_path)) <= KEPT + 1

    messages = made(tmp_path)
    asyncio.run(use())


def test_a_body_that_was_written_over_is_not_there(tmp_path: Path) -> None:
    bodies = Bodies(tmp_path)
    first = bodies.put(BODY)
    assert isinstance(first, Shared)
    bodies.spare([first.name])
    second = bodies.put(OTHER)
    assert isinstance(second, Shared)
    assert second.name == first.name
    assert bodies.get(first) is None
    assert bodies.get(second) == OTHER
    (tmp_path / second.name).unlink()
    assert bodies.get(second) is None


def test_a_process_with_the_number_of_one_that_ended_writes_nothing_over(tmp_path: Path) -> None:
    before, after = Bodies(tmp_path), Bodies(tmp_path)  # this process is both
    kept = before.put(BODY)
    assert after.get(after.put(OTHER)) == OTHER
    assert after.get(kept) == BODY


def test_what_a_process_would_write_again_goes_with_it(tmp_path: Path) -> None:
    driver, publisher = Bodies(tmp_path), Bodies(tmp_path)
    kept = [publisher.put(BODY) for _ in range(3)]
    assert driver.came(kept) == []
    driver.drop(kept[0])
    more = publisher.put(BODY)
    (free,) = driver.came([more])
    publisher.spare([free])
    driver.drop(kept[1])
    driver.ended(os.getpid())
    assert len(files(tmp_path)) == 2, "what somebody may still receive is there"
    assert driver.get(kept[2]) == BODY
    driver.drop(kept[2])
    driver.drop(more)
    assert files(tmp_path) == []


def made(directory: Path) -> LocalMessages:
    limits, bodies = MessageLimits(), Bodies(directory)
    return LocalMessages(Inboxes(limits, bodies), Meter().add, limits, bodies)
