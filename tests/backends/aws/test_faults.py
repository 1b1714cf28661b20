"""What networks and AWS do wrong, done by a proxy: right results or clear errors, nothing twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fsdray as fsd
from fsdray.errors import FsdrayError, FunctionCrashed, PlatformError, RankFailed
from fsdray.testing.proxy import Asked, Fault, FaultProxy, Schedule, rarely, seeded
from fsdray.testing.proxy.schedule import FITTING
from tests.backends.aws.conftest import Aws, deployed

thorough = pytest.mark.thorough("its sessions wait out what is done to them")
NETWORK = {
    Fault.THROTTLE: 0.03,
    Fault.UNAVAILABLE: 0.03,
    Fault.INTERNAL: 0.02,
    Fault.CUT_BEFORE: 0.02,
    Fault.CUT_AFTER: 0.02,
    Fault.CUT_MIDWAY: 0.02,
    Fault.SLOW: 0.03,
    Fault.PARTIAL: 0.2,
    Fault.TWICE: 0.1,
    Fault.LATE: 0.05,
}


REFUSED = (Fault.THROTTLE, Fault.UNAVAILABLE, Fault.INTERNAL, Fault.EXPIRED, Fault.CUT_BEFORE)


@dataclass(frozen=True)
class Faulty:
    aws: Aws
    services: FaultProxy
    functions: FaultProxy


@pytest.fixture(scope="module")
def behind() -> Iterator[Faulty]:
    """A stack whose callers and functions see all services through proxies."""
    with FaultProxy(visibility=2) as services, FaultProxy() as functions:
        variables = {
            "AWS_ENDPOINT_URL": services.url,
            "AWS_ENDPOINT_URL_LAMBDA": functions.url,
        }
        # Slots rest for a minute after what befell them: enough for all tests.
        with (
            deployed(slots=150, environment=variables) as aws,
            pytest.MonkeyPatch.context() as patch,
        ):
            services.target = aws.emulator.environment["AWS_ENDPOINT_URL"]
            functions.target = aws.emulator.environment["AWS_ENDPOINT_URL_LAMBDA"]
            for name, value in variables.items():
                patch.setenv(name, value)
            yield Faulty(aws, services, functions)


@pytest.fixture
def faulty(behind: Faulty) -> Iterator[Faulty]:
    """A session, at whose end nothing is left, whatever befell it."""
    for proxy in (behind.services, behind.functions):
        proxy.forget()
    fsd.init("aws", memory=512, concurrency=16)
    try:
        yield behind
    finally:
        for proxy in (behind.services, behind.functions):
            proxy.schedule = None
        fsd.shutdown()  # and what is left then is looked for after each test


@fsd.remote
def note(file: str, number: int) -> int:
    with Path(file).open("a") as journal:
        journal.write(f"{number}\n")
    return number * number


def runs(file: Path) -> Counter[int]:
    return Counter(map(int, file.read_text().split())) if file.exists() else Counter()


@fsd.remote(world_size=4)
def talk(value: int) -> list[Any]:
    comm = fsd.collective.world()
    found: list[Any] = []
    for step in range(2):
        found.append(comm.allreduce(value + comm.rank + step))
        found.append(comm.allgather((comm.rank, step)))
        found.append(comm.alltoall([bytes([comm.rank, to]) * 500 for to in range(comm.size)]))
        found.append(comm.bcast(np.arange(20_000) if comm.rank == step else None, root=step).sum())
    comm.barrier()
    return found


def spoken(value: int, rank: int) -> list[Any]:
    found: list[Any] = []
    for step in range(2):
        found.append(4 * (value + step) + 6)
        found.append([(other, step) for other in range(4)])
        found.append([bytes([other, rank]) * 500 for other in range(4)])
        found.append(sum(range(20_000)))
    return found


def burst(*faults: Fault, numbers: range = range(2, 6)) -> Schedule:
    """Of each operation these requests, one fault after the other; a client tries five times."""

    def choose(asked: Asked) -> Fault | None:
        fitting = [each for each in faults if FITTING.get(each, lambda _: True)(asked.operation)]
        if asked.number not in numbers or not fitting:
            return None
        return fitting[(asked.number - numbers.start) % len(fitting)]

    return choose


KINDS = {
    "some": (Fault.THROTTLE, Fault.CUT_AFTER, Fault.INTERNAL, Fault.CUT_MIDWAY),
    "refusals": (Fault.THROTTLE, Fault.UNAVAILABLE, Fault.INTERNAL),
    "cuts": (Fault.CUT_BEFORE, Fault.CUT_AFTER, Fault.CUT_MIDWAY),
    "deliveries": (Fault.LATE, Fault.PARTIAL, Fault.TWICE, Fault.SLOW),
}
SLOW = ("some", "refusals", "cuts")  # since clients wait between their tries
BURSTS = [
    *(
        pytest.param("queue", faults, id=kind, marks=thorough if kind in SLOW else ())
        for kind, faults in KINDS.items()
    ),
    *(
        pytest.param(channel, (fault,), id=f"{fault.name}-{channel}", marks=thorough)
        for channel in ("queue", "object")
        for fault in NETWORK
    ),
]


def invokes(faulty: Faulty) -> int:
    """Calls that reached Lambda."""
    refused = sum(faulty.functions.done[fault, "Invoke"] for fault in REFUSED)
    return faulty.functions.asked["lambda", "Invoke"] - refused


@pytest.mark.parametrize(("channel", "faults"), BURSTS)
def test_a_gang_talks_right_through_a_burst_of(
    faulty: Faulty, channel: str, faults: tuple[Fault, ...]
) -> None:
    # Clients wait longer and longer between their tries: in the usual run the next one succeeds.
    numbers = range(2, 12, 3) if faults == KINDS["some"] else range(2, 6)
    faulty.services.schedule = burst(*faults, numbers=numbers)
    if Fault.THROTTLE in faults:
        faulty.functions.schedule = burst(Fault.THROTTLE)
    found = fsd.get(talk.options(channel=channel, timeout=60, max_retries=0).remote(3))
    assert found == [spoken(3, rank) for rank in range(4)]
    assert invokes(faulty) == 4
    fsd.shutdown()  # where objects are deleted
    befell = {fault for fault, _ in faulty.services.done}
    of_messages = {Fault.LATE, Fault.PARTIAL, Fault.TWICE}
    assert befell >= set(faults) - (set() if channel == "queue" else of_messages)


def test_of_a_batch_of_objects_a_part_is_not_deleted_at_once(faulty: Faulty) -> None:
    faulty.services.schedule = rarely(Fault.PARTIAL, "DeleteObjects", range(2))
    refs = [fsd.put(np.full(200_000, number)) for number in range(4)]
    fsd.shutdown()
    assert faulty.services.done[Fault.PARTIAL, "DeleteObjects"] == 2
    del refs


def test_refused_calls_run_once(faulty: Faulty, tmp_path: Path) -> None:
    faulty.functions.schedule = burst(Fault.THROTTLE, numbers=range(1, 6))
    file = tmp_path / "journal"
    refs = [note.options(max_retries=0).remote(str(file), i) for i in range(4)]
    assert fsd.get(refs) == [i * i for i in range(4)]
    assert faulty.functions.done[Fault.THROTTLE, "Invoke"] == 5
    assert runs(file) == dict.fromkeys(range(4), 1)


@pytest.mark.parametrize(
    "fault",
    [Fault.CUT_BEFORE, Fault.CUT_AFTER, Fault.CUT_MIDWAY, Fault.UNAVAILABLE, Fault.INTERNAL],
)
def test_a_call_whose_end_is_not_known_runs_again_only_if_it_may(
    faulty: Faulty, tmp_path: Path, fault: Fault
) -> None:
    once, again = tmp_path / "once", tmp_path / "again"
    faulty.functions.schedule = rarely(fault, "Invoke", (0, 1))
    before = 0 if fault in (Fault.CUT_BEFORE, Fault.UNAVAILABLE, Fault.INTERNAL) else 1
    with pytest.raises(PlatformError, match="not sent again") as caught:
        fsd.get(note.options(max_retries=0).remote(str(once), 3))
    assert isinstance(caught.value, FunctionCrashed)
    assert runs(once)[3] == before
    assert fsd.get(note.options(max_retries=1).remote(str(again), 4)) == 16
    assert runs(again)[4] == before + 1


@thorough
@pytest.mark.parametrize(("channel", "seed"), [("queue", 1), ("object", 3)])
def test_a_gang_talks_right_whatever_its_services_do(
    faulty: Faulty, channel: str, seed: int
) -> None:
    faulty.services.schedule = seeded(seed, NETWORK)
    found = fsd.get(talk.options(channel=channel, timeout=120).remote(seed))
    assert found == [spoken(seed, rank) for rank in range(4)]
    befell = {fault for fault, _ in faulty.services.done}
    assert len(befell) >= 4, befell


@thorough
def test_an_inference_run_has_the_same_bits_whatever_its_services_do(faulty: Faulty) -> None:
    model = fsd.inference.radixnet(1024, layers=3)
    samples = fsd.inference.digits(32, model.inputs)
    faulty.services.schedule = seeded(5, NETWORK)
    answer = fsd.inference.run(model, samples, workers=2, channel="queue")
    faulty.services.schedule = None
    fsd.shutdown()
    fsd.init("local")
    right = fsd.inference.run(model, samples, workers=2, channel="queue")
    fsd.shutdown()
    fsd.init("aws")
    assert np.array_equal(answer.activations.toarray(), right.activations.toarray())
    assert list(answer.categories) == list(right.categories)


def test_a_rank_whose_answer_is_cut_breaks_its_gang(faulty: Faulty) -> None:
    faulty.functions.schedule = rarely(Fault.CUT_MIDWAY, "Invoke", (2,))
    with pytest.raises(RankFailed, match="not known"):
        fsd.get(talk.options(channel="queue", max_retries=0, timeout=60).remote(1))


@pytest.mark.parametrize(
    ("operation", "first"), [("Invoke", 2), ("PutObject", 1), ("PublishBatch", 3)]
)
def test_credentials_that_expire_in_the_midst_say_what_to_do(
    faulty: Faulty, operation: str, first: int
) -> None:
    for proxy in (faulty.services, faulty.functions):
        proxy.schedule = rarely(Fault.EXPIRED, operation, range(first, 10_000))
    # The driver puts what is large; the ranks publish.
    given = np.arange(200_000) if operation == "PutObject" else 1
    with pytest.raises(
        FsdrayError, match="credentials have expired: to sign in again, run `aws"
    ) as caught:
        fsd.get(talk.options(channel="queue", max_retries=0, timeout=20).remote(given))
    print(caught.value)
    assert invokes(faulty) <= 4
    for proxy in (faulty.services, faulty.functions):
        proxy.schedule = None
    # With new ones the session goes on.
    assert fsd.get(talk.options(channel="queue").remote(5))[0] == spoken(5, 0)
