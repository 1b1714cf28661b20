"""Gangs on a deployed stack, from the caller to the queues: right answers, and nothing left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import fsdray as fsd
from tests.backends.aws.conftest import Aws
from tests.backends.aws.provision import waiting


@pytest.fixture
def session(aws: Aws) -> Iterator[Aws]:
    fsd.init("aws")
    try:
        yield aws
    finally:
        fsd.shutdown()
    assert waiting(aws.emulator.url, aws.stack) == {}, "something waits in a queue"


@fsd.remote(world_size=3)
def talk(value: int) -> list[Any]:
    comm = fsd.collective.world()
    total = comm.allreduce(value + comm.rank)
    everything = comm.allgather([comm.rank] * 3)
    mine = comm.scatter([b"x" * 10_000 * i for i in range(3)] if comm.rank == 0 else None)
    gathered = comm.gather(len(mine))
    comm.barrier()
    return [total, everything, gathered]


@pytest.mark.parametrize("channel", ["queue", "object", "auto"])
def test_a_gang_talks(session: Aws, channel: str) -> None:
    found = fsd.get(talk.options(channel=channel).remote(7))
    everything = [[rank] * 3 for rank in range(3)]
    assert found == [
        [24, everything, [0, 10_000, 20_000]],
        [24, everything, None],
        [24, everything, None],
    ]
