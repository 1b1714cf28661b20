"""Running a random program on the simulated backend, judging it, and making it smaller."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterator
from typing import Any

from fsdray import gang
from fsdray.errors import (
    CollectiveError,
    CollectiveTimeout,
    FsdrayError,
    FunctionCrashed,
    MismatchedCollective,
    RankFailed,
    ServiceError,
)
from fsdray.services import MessageLimits
from fsdray.testing import Death, Faults, simulate
from fsdray.testing.simulation import Simulation
from tests.collective import CHANNELS
from tests.collective.schedules import programs
from tests.collective.schedules.model import meaning, wrong_receipts
from tests.collective.schedules.perform import Found, Performer, Raised
from tests.collective.schedules.programs import Schedule

LONG = 100_000.0  # virtual seconds: longer than any program takes, whatever goes wrong
SHORT = 3000.0  # for programs that are to end by their deadline


def schedule_of(seed: int) -> Schedule:
    """The schedule that a number stands for."""
    return programs.schedule(random.Random(seed), CHANNELS)


def run(schedule: Schedule, trace: bool = False) -> tuple[Simulation[None], list[Found]]:
    """Run it; what came of it, and what each rank found."""
    found = [Found() for _ in range(schedule.size)]

    async def program(comm: object) -> None:
        mine = found[comm.rank] = Found()  # type: ignore[attr-defined]
        await Performer(schedule, mine).run(comm)  # type: ignore[arg-type]

    fate = schedule.fate
    deaths: tuple[Death, ...] = ()
    absent = frozenset[int]()
    if fate is not None and fate.what == "dies":
        deaths = (Death(fate.rank, request=fate.at + 1),)
    if fate is not None and fate.what == "is absent":
        absent = frozenset((fate.rank,))
    ends_late = fate is None or fate.what not in ("is absent", "strays")
    result = simulate(
        program,
        schedule.size,
        channel=schedule.channel,
        seed=schedule.seed,
        faults=Faults(**schedule.faults, slow=schedule.slow, deaths=deaths, absent=absent),
        deadline=LONG if ends_late else SHORT,
        branching=schedule.branching if not absent else None,
        max_retries=schedule.retries if schedule.branching and not absent else 0,
        prefer=schedule.prefer,
        message_limits=MessageLimits(
            message=schedule.message,
            batch=schedule.message,
            fanout=schedule.fanout,
            visibility=schedule.visibility,
        ),
        trace=trace,
        raises=False,
    )
    return result, found


def problems(schedule: Schedule) -> list[str]:
    """What is wrong with how a schedule ran; nothing, if all is right."""
    try:
        result, found = run(schedule)
    except Exception as error:  # whatever comes out is a finding
        return [f"the simulation ended in {error!r}"]
    return [*_wrong_values(schedule, found), *_wrong_ends(schedule, result, found)]


def _wrong_values(schedule: Schedule, found: list[Found]) -> Iterator[str]:
    """Bits that are not those meant, however far the program came."""
    meant = meaning(schedule)
    fate = schedule.fate
    for rank, mine in enumerate(found):
        for text in mine.wrong:
            yield f"rank {rank}: {text}"
        strayed = fate.at % len(schedule.steps) if fate is not None and mine.strayed else None
        for at, value in mine.results.items():
            if at != strayed and value != meant.results[rank].get(at, "nothing"):
                was = str(meant.results[rank].get(at))
                yield f"rank {rank}, step {at}: {str(value)[:300]} is not {was[:300]}"
        for at, receipts in mine.receipts.items():
            place, sent = meant.traffic[rank, at]
            for text in wrong_receipts(place, sent, receipts):
                yield f"rank {rank}, step {at}: {text}"
        if mine.is_whole:
            missing = set(meant.results[rank]) - set(mine.results) - {strayed}
            missing |= {at for whom, at in meant.traffic if whom == rank} - set(mine.receipts)
            if missing:
                yield f"rank {rank}: steps {sorted(missing)} came to nothing"


def _wrong_ends(schedule: Schedule, result: Simulation[None], found: list[Found]) -> Iterator[str]:
    """Ranks that should have ended otherwise, and what was left behind."""
    fate, errors = schedule.fate, result.errors
    has_met = fate is not None and any(_is_met(fate, error) for error in errors.items())
    # Whose parent died may start when all is over, or never.
    orphans: set[int] = set()
    if has_met and fate is not None and fate.what == "dies" and schedule.branching is not None:
        orphans = {*gang.subtree(fate.rank, schedule.size, schedule.branching)} - {fate.rank}
    is_mended = fate is not None and fate.what == "dies" and schedule.branching and schedule.retries
    if fate is None or is_mended or (fate.what != "strays" and not has_met):
        for rank, error in errors.items():
            yield f"rank {rank} ended in {error!r}"
    else:
        for rank, error in errors.items():
            if rank in orphans and isinstance(error, ServiceError):
                continue  # it started when its gang had ended, and its inbox was given back
            yield from _wrong_error(fate, rank, error)
        if fate.what == "is absent" and not any(
            re.search(rf"\b{fate.rank}\b", str(error)) for error in errors.values()
        ):
            yield f"nobody says that rank {fate.rank} is missing: {errors}"
    for rank, mine in enumerate(found):
        is_absent = fate is not None and fate.what == "is absent" and fate.rank == rank
        if rank in orphans or is_absent:
            continue
        if rank not in errors and not mine.is_whole:
            yield f"rank {rank} neither finished nor failed"
    objects = [name for name in result.left if not name.startswith("inbox-")]
    # Orphans of a dead rank may write after the caller has cleaned up.
    has_orphans = schedule.branching is not None and fate is not None
    if objects and not has_orphans:
        yield f"objects are left: {objects}"
    if not schedule.faults and not errors and fate is None and result.left:
        yield f"messages are left: {result.left}"


def _is_met(fate: programs.Fate, ended: tuple[int, BaseException]) -> bool:
    rank, error = ended
    match fate.what:
        case "dies" if isinstance(error, RankFailed):
            # It may have returned, and died while it waited for the ranks that it had started.
            return list(error.ranks) == [fate.rank] and isinstance(error.cause, FunctionCrashed)
        case "dies":
            return rank == fate.rank and isinstance(error, FunctionCrashed)
        case "raises":
            return rank == fate.rank and isinstance(error, Raised)
        case "aborts":
            return rank == fate.rank and isinstance(error, RankFailed | CollectiveError)
        case "is absent":
            return isinstance(error, CollectiveTimeout)
    return isinstance(error, MismatchedCollective | CollectiveTimeout)


def _wrong_error(fate: programs.Fate, rank: int, error: BaseException) -> Iterator[str]:
    """An error that does not say what happened."""
    if _is_met(fate, (rank, error)):
        return
    if not isinstance(error, RankFailed):
        yield f"rank {rank} ended in {error!r}, as rank {fate.rank} {fate.what}"
    elif fate.what in ("dies", "raises", "aborts") and list(error.ranks) != [fate.rank]:
        yield f"rank {rank} was told of {error.ranks}, not of rank {fate.rank}: {error!r}"
    elif fate.what == "raises" and not isinstance(error.__cause__ or error.cause, Raised):
        yield f"rank {rank} was told {error!r}, which does not say what was raised"
    elif not isinstance(error, FsdrayError):
        yield f"rank {rank} ended in {error!r}"


def smaller(schedule: Schedule) -> Schedule:
    """A schedule that fails too, and fails no more once anything more is left out of it."""
    current, shrinks = schedule, True
    while shrinks:
        shrinks = False
        for candidate in _simpler(current):
            if problems(candidate):
                current, shrinks = candidate, True
                break
    return current


def _simpler(schedule: Schedule) -> Iterator[Schedule]:
    steps = schedule.steps
    for at in range(len(steps)):
        if len(steps) > 1:
            yield dataclasses.replace(schedule, steps=steps[:at] + steps[at + 1 :])
    for name in schedule.faults:
        left = {key: chance for key, chance in schedule.faults.items() if key != name}
        yield dataclasses.replace(schedule, faults=left)
    simple: dict[str, Any] = {"slow": {}, "fate": None, "branching": None, "retries": 0}
    simple |= {"visibility": 30.0, "fanout": 200, "message": 4096}
    for name, value in simple.items():
        if getattr(schedule, name) != value:
            yield dataclasses.replace(schedule, **{name: value})
    for at, step in enumerate(steps):
        plain = {"size": 0, "pause": None, "which": 0, "style": "call", "root": 0}
        changes: list[tuple[str, Any]] = list(plain.items())
        changes += [("lines", step.lines[:i] + step.lines[i + 1 :]) for i in range(len(step.lines))]
        for name, value in changes:
            if getattr(step, name) != value:
                changed = dataclasses.replace(step, **{name: value})
                yield dataclasses.replace(schedule, steps=(*steps[:at], changed, *steps[at + 1 :]))
