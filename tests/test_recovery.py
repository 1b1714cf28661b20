"""Ranks that are killed run again, alone or all of them, and the gang comes to the same bits."""

from __future__ import annotations

import random
import threading
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest

import fsdray as fsd
from fsdray import inference, loop, session, wire
from fsdray.errors import FunctionCrashed, OutOfMemory, RankFailed, SettingsError, TaskCancelled
from fsdray.inference import batch
from tests import mortal, on_aws

pytestmark = pytest.mark.usefixtures("session")

SOME = ("queue", "object", "auto")


def invocations() -> int:
    return int(fsd.receipt().requests["invoke"])


def leftovers() -> list[str]:
    """Objects of gangs; values and arguments go by themselves, marks of calls that died stay."""
    keys = loop.run(session.current().backend.objects.list(""))
    others = ("values/", "functions/", "modules/", "cancel/")
    return [key for key in keys if not key.startswith(others)]


def plain(value: Any) -> Any:
    return b"".join(wire.encode(value))


@pytest.mark.parametrize("channel", SOME)
def test_ranks_killed_at_any_operation_run_again_alone(channel: str) -> None:
    program = fsd.remote(world_size=4, channel=channel, max_retries=2, timeout=60)(mortal.works)
    whole = [got for got, _ in fsd.get(program.remote(9, {}))]
    for seed in range(3 if on_aws.is_chosen() else 12):
        rng = random.Random(seed)
        deaths: dict[tuple[int, int], int] = {}
        for _ in range(rng.choice([1, 1, 2, 3])):
            rank = rng.randrange(4)
            attempt = 1 + sum(victim == rank for victim, _ in deaths)
            if attempt <= 2:
                deaths[rank, attempt] = rng.randrange(10)
        print(f"seed {seed}: {deaths}")
        before = invocations()
        found = fsd.get(program.remote(9, deaths), timeout=60)
        assert plain([got for got, _ in found]) == plain(whole)
        times = Counter(rank for rank, _ in deaths)
        assert [attempt for _, attempt in found] == [1 + times[rank] for rank in range(4)]
        assert invocations() - before == 4 + len(deaths)
        assert leftovers() == []


@pytest.mark.parametrize("channel", SOME)
@pytest.mark.on_aws("queue")
def test_a_rank_that_dies_too_often_breaks_its_gang(channel: str) -> None:
    program = fsd.remote(world_size=3, channel=channel, max_retries=1)(mortal.works)
    with pytest.raises(RankFailed) as raised:
        fsd.get(program.remote(6, {(1, 1): 3, (1, 2): 5}), timeout=60)
    assert raised.value.ranks == [1]
    assert isinstance(raised.value.cause, FunctionCrashed)
    assert leftovers() == []
    before = invocations()
    with pytest.raises(RankFailed):  # as ever, where nothing was said
        fsd.get(program.options(max_retries=0).remote(6, {(1, 1): 3}), timeout=60)
    assert invocations() - before == 3


@pytest.mark.parametrize("channel", SOME)
@pytest.mark.on_aws("queue")
def test_a_rank_that_took_what_came_first_takes_its_gang_with_it(channel: str) -> None:
    first_come = fsd.remote(world_size=3, channel=channel, max_retries=1)(mortal.first_come)

    before = invocations()
    values = fsd.get(first_come.remote(0), timeout=60)
    assert values == [([1, 2], 2), (None, 2), (None, 2)]
    assert invocations() - before == 3 + 1 + 3
    before = invocations()
    values = fsd.get(first_come.remote(1), timeout=60)  # it took nothing: it runs again alone
    assert values == [([1, 2], 1), (None, 2), (None, 1)]
    assert invocations() - before == 4
    assert leftovers() == []


def test_a_named_group_is_not_repeated_alone() -> None:
    meets = fsd.remote(world_size=2, max_retries=1)(mortal.meets)

    assert fsd.get(meets.remote(), timeout=60) == [(2, 2), (2, 2)]


def test_large_values_and_arguments_of_one_who_died_are_there_when_it_runs_again() -> None:
    large = fsd.remote(world_size=3, max_retries=1)(mortal.large)

    given = [np.random.default_rng(rank).standard_normal(60_000) for rank in range(3)]
    values = fsd.get(large.remote(fsd.per_rank(given)), timeout=60)
    for value in values:
        assert value.tobytes() == np.concatenate(given).tobytes()
    del value, values
    assert leftovers() == []


def test_what_used_up_its_memory_is_not_tried_again() -> None:
    greedy = fsd.remote(world_size=2, memory=256, max_retries=3)(mortal.greedy)

    before = invocations()
    with pytest.raises(RankFailed) as raised:
        fsd.get(greedy.remote(), timeout=60)
    assert isinstance(raised.value.cause, OutOfMemory)
    assert invocations() - before == 2


@pytest.mark.parametrize("channel", SOME)
@pytest.mark.slow_on_aws
def test_a_gang_whose_ranks_die_for_ever_can_be_cancelled(channel: str) -> None:
    doomed = fsd.remote(world_size=3, channel=channel, max_retries=-1)(mortal.doomed)

    refs = doomed.remote()
    before = invocations()
    seen = threading.Event()
    while invocations() < before + 8:  # it is being started again all the time
        seen.wait(0.01)
    fsd.cancel(refs[0])
    with pytest.raises(TaskCancelled):
        fsd.get(refs, timeout=60)
    loop.run(session.current().flush())
    assert leftovers() == []


@pytest.mark.slow_on_aws
def test_the_gang_of_a_task_that_is_killed_ends_with_it() -> None:

    outer = fsd.remote(max_retries=1)(mortal.outer)

    assert fsd.get(outer.remote(), timeout=60) == [1, 2, 1]


@pytest.mark.parametrize("channel", SOME)
@pytest.mark.slow_on_aws
def test_a_worker_that_dies_in_mid_run_catches_up(
    channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, samples = inference.radixnet(1024, 12), inference.digits(40, 1024)

    def run(victim: int, layer: int) -> inference.Answer:
        monkeypatch.setattr(batch, "rank_program", partial(mortal.mortal_rank, victim, layer))
        return inference.run(
            *(model, samples),
            workers=4,
            channel=channel,
            partition="block",
            record=True,
            max_retries=1,
        )

    whole = run(-1, 0)
    assert whole.relaunched == 0
    for victim, layer in ((0, 0), (2, 5), (3, 11)):
        answer = run(victim, layer)
        assert answer.relaunched == 1
        assert answer.receipt.requests["invoke"] == 5
        for one, other in zip(answer.layers, whole.layers, strict=True):
            assert one.toarray().tobytes() == other.toarray().tobytes()
    with pytest.raises(SettingsError, match="max_retries"):
        inference.run(model, samples, workers=2, max_retries=-3)
