"""fsdray answers what a real MPI answered; `benchmarks/oracle.py` asks both anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fsdray as fsd
from tests import oracle
from tests.collective import CHANNELS, services
from tests.oracle import under_fsdray
from tests.oracle.programs import PROGRAMS

RECORDED = json.loads((Path(oracle.__file__).parent / "answers.json").read_text())

on_both_channels = pytest.mark.parametrize("channel", CHANNELS)


def differences(size: int, found: list[dict[str, str]]) -> dict[str, object]:
    """What differs, by program and rank: what MPI said, and what we say."""
    said = RECORDED["answers"][str(size)]
    return {
        f"{name}, rank {rank}": (said[name][rank], found[rank][name])
        for name in said
        for rank in range(size)
        if said[name][rank] != found[rank][name]
    }


def test_what_is_recorded_is_of_these_programs() -> None:
    assert [int(size) for size in RECORDED["answers"]] == list(oracle.SIZES)
    for said in RECORDED["answers"].values():
        assert list(said) == list(PROGRAMS)


@on_both_channels
@pytest.mark.parametrize("size", oracle.SIZES)
def test_every_program_answers_as_on_a_real_mpi(channel: str, size: int) -> None:
    with services() as here:
        found = under_fsdray.on_threads(here, channel, size)
        assert differences(size, found) == {}
        assert here.files.list("") == []


@on_both_channels
@pytest.mark.on_aws("queue")
def test_every_program_answers_the_same_in_a_gang_of_tasks(channel: str) -> None:
    fsd.init(concurrency=8)
    try:
        task = fsd.remote(world_size=3, channel=channel)(under_fsdray.as_task)
        assert differences(3, fsd.get(task.remote())) == {}
    finally:
        fsd.shutdown()
