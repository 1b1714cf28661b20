"""Gangs on a deployed stack, from the caller to the queues: right answers, and nothing left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fsdray as fsd
from fsdray.errors import RankFailed, SettingsError
from tests.backends.aws.bill import billed, same_names
from tests.backends.aws.conftest import Aws


@pytest.fixture
def session(aws: Aws) -> Iterator[Aws]:
    fsd.init("aws")
    try:
        yield aws
    finally:
        fsd.shutdown()  # and what is left then is looked for after each test


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


@pytest.mark.parametrize("channel", ["queue", "object"])
def test_the_meter_says_what_the_emulators_own_log_says(session: Aws, channel: str) -> None:
    fsd.get(talk.options(channel=channel).remote(0))  # brings this module
    before, asked = fsd.receipt().requests, len(session.emulator.requests())
    fsd.get([ref for i in range(2) for ref in talk.options(channel=channel).remote(i)])
    fsd.get(talk.options(channel=channel).remote(3))
    after = fsd.receipt().requests
    logged = billed(session.emulator.requests()[asked:])
    counted = same_names({name: after[name] - before.get(name, 0) for name in after}, logged)
    assert counted == logged
    assert counted["invoke"] == 9
    if channel == "queue":
        assert counted["publish"] > 0
        assert counted["send"] > 0


def test_what_a_gang_asks_for_is_what_it_asks_for_on_this_machine(session: Aws) -> None:
    exact = ("invoke", "put", "publish", "publish_bytes", "send", "send_bytes", "send_units")
    found = []
    for backend in ("aws", "local"):
        fsd.shutdown()
        fsd.init(backend)
        fsd.get(talk.options(channel="queue").remote(1))
        counts = fsd.receipt().requests
        found.append({name: counts.get(name, 0) for name in exact})
    fsd.shutdown()
    assert found[0] == found[1]
    fsd.init("aws")


def test_a_broken_gang_leaves_nothing(session: Aws) -> None:
    @fsd.remote(world_size=3, max_retries=0, channel="queue")
    def torn() -> None:
        comm = fsd.collective.world()
        comm.send("never received", (comm.rank + 1) % 3)
        if comm.rank == 2:
            os._exit(3)
        comm.barrier()

    with pytest.raises(RankFailed):
        fsd.get(torn.remote())


def test_what_a_gang_did_not_receive_is_gone_with_it(session: Aws) -> None:
    @fsd.remote(world_size=2, channel="queue")
    def careless() -> None:
        comm = fsd.collective.world()
        comm.send(b"unwanted", 1 - comm.rank)

    fsd.get(careless.remote())


def test_a_gang_within_a_gang_gives_its_slots_back_at_once(session: Aws) -> None:
    @fsd.remote
    def outer() -> Any:
        return fsd.get(talk.options(channel="queue").remote(1))

    assert fsd.get(outer.remote())[0][0] == 6


def test_a_gang_larger_than_the_stack_is_refused_before_anything_is_asked(session: Aws) -> None:
    asked = len(session.emulator.requests())
    with pytest.raises(SettingsError, match=r"there are 20\. .* fsdray deploy --slots 21"):
        talk.options(world_size=21, channel="queue").remote(1)
    assert [each["operation"] for each in session.emulator.requests()[asked:]] == []


@pytest.mark.thorough("an inference run on the emulator takes half a minute a channel")
@pytest.mark.parametrize("channel", ["queue", "object"])
def test_the_meter_of_an_inference_run_is_the_emulators_own_log(session: Aws, channel: str) -> None:
    model = fsd.inference.radixnet(1024, layers=3)
    samples = fsd.inference.digits(16, model.inputs)
    before, asked = fsd.receipt().requests, len(session.emulator.requests())
    fsd.inference.run(model, samples, workers=3, channel=channel)
    after = fsd.receipt().requests
    logged = billed(session.emulator.requests()[asked:])
    counted = same_names({name: after[name] - before.get(name, 0) for name in after}, logged)
    for each in (counted, logged):
        each.pop("delete", None)  # free, and goes on behind
    assert counted == logged


class Held:
    """Arrives in a function only once somebody opens the other end of a pipe."""

    def __init__(self, pipe: str) -> None:
        self._pipe = pipe

    def __reduce__(self) -> Any:
        return Path.read_text, (Path(self._pipe),)


def test_what_a_rank_sends_after_its_gang_broke_is_gone_too(session: Aws, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    @fsd.remote(world_size=2, max_retries=0, channel="queue")
    def late(held: Any) -> None:
        comm = fsd.collective.world()
        if comm.rank == 0:
            os._exit(3)
        comm.send("to nobody", 0)

    refs = late.remote(fsd.per_rank(["", Held(str(pipe))]))
    with pytest.raises(RankFailed):
        fsd.get(refs)
    # The rank was given up; before it finds that out it begins.
    pipe.write_text("now")
