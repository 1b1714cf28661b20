"""Functions killed at any moment: what must be known is known, and nothing runs that may not.

By its seed a round kills one process of a function: when it makes its nth request to a service,
before or after that is done; when it was given a call, before anything of it runs; when it has the
reply, before or after that was posted. Each call that begins says so in a file.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fsdray as fsd
from fsdray.errors import FunctionCrashed, RankFailed
from fsdray.testing.proxy import Fault, FaultProxy, killing
from tests.backends.aws.conftest import Aws, deployed

USUAL = (0, 1, 2, 5, 7)
THOROUGH = sorted(set(range(120)) - set(USUAL))
RANKS, TASKS = 4, 5
KILLED = r"signal 9 \(SIGKILL\)"

# In every function, before anything else: it dies at the nth of a moment that a file asks for.
DYING = """
import itertools, os, signal

if "AWS_LAMBDA_RUNTIME_API" in os.environ:
    from awslambdaric.lambda_runtime_client import LambdaRuntimeClient

    def die_if_told(moment):
        for number in itertools.count():
            try:
                os.close(os.open(f"{ORDERS}/{moment}-{number}", os.O_CREAT | os.O_EXCL))
                break
            except FileExistsError:
                continue
        try:
            os.rename(f"{ORDERS}/die-{moment}-{number}", f"{ORDERS}/died")
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def take(self, take=LambdaRuntimeClient.wait_next_invocation):
        call = take(self)
        die_if_told("given")
        return call

    def post(self, *answer, post=LambdaRuntimeClient.post_invocation_result, **more):
        die_if_told("done")
        post(self, *answer, **more)
        die_if_told("told")

    LambdaRuntimeClient.wait_next_invocation = take
    LambdaRuntimeClient.post_invocation_result = post
"""


@dataclass(frozen=True)
class Deadly:
    aws: Aws
    services: FaultProxy
    orders: Path
    met: list[bool]  # by round, whether somebody died

    def clear(self) -> None:
        self.services.forget()
        for file in self.orders.iterdir():
            file.unlink()

    @property
    def deaths(self) -> int:
        return len(self.services.killed) + (self.orders / "died").exists()


@dataclass(frozen=True)
class Death:
    """When somebody dies: at a moment of the nth call, or at a request of the nth process."""

    moment: str
    number: int
    turn: int = 0

    @classmethod
    def by(cls, rng: random.Random, calls: int) -> Death:
        moment = rng.choice(["given", "done", "told", "before", "after", "before", "after"])
        if moment in ("given", "done", "told"):
            return cls(moment, rng.randrange(calls))
        return cls(moment, rng.randrange(calls), rng.choice([0, 1, 2, 3, 5, 8]))

    def order(self, deadly: Deadly) -> None:
        if self.moment in ("given", "done", "told"):
            (deadly.orders / f"die-{self.moment}-{self.number}").touch()
        else:
            fault = Fault.KILL_BEFORE if self.moment == "before" else Fault.KILL_AFTER
            deadly.services.schedule = killing(1 + self.number, self.turn, fault)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deadly]:
    """A stack whose functions die when they are told to, and reach all services by a proxy."""
    sites, orders = (tmp_path_factory.mktemp(name) for name in ("site", "orders"))
    (sites / "sitecustomize.py").write_text(f"ORDERS = {str(orders)!r}\n{DYING}")
    with FaultProxy(visibility=2, sees_callers=True) as services:
        variables = {"AWS_ENDPOINT_URL": services.url, "PYTHONPATH": str(sites)}
        with (
            deployed(slots=200, environment=variables) as aws,
            pytest.MonkeyPatch.context() as patch,
        ):
            services.target = aws.emulator.environment["AWS_ENDPOINT_URL"]
            patch.setenv("AWS_ENDPOINT_URL", services.url)
            yield Deadly(aws, services, orders, [])


@pytest.fixture(scope="module")
def right() -> bytes:
    """What inference comes to where nobody dies."""
    fsd.init("local")
    try:
        return inferred()
    finally:
        fsd.shutdown()


@pytest.fixture
def deadly(stack: Deadly) -> Iterator[Deadly]:
    stack.clear()
    fsd.init("aws", memory=512, concurrency=16)
    try:
        yield stack
    finally:
        stack.services.schedule = None
        fsd.shutdown()


def begun(file: str, who: int) -> None:
    """Say that a call runs; which attempt, and in which process."""
    attempt = fsd.get_runtime_context().attempt
    with Path(file).open("a") as journal:
        journal.write(f"{who} {attempt} {os.getpid()}\n")


def journal(file: Path) -> list[tuple[int, int, int]]:
    lines = file.read_text().splitlines() if file.exists() else []
    return [(int(who), int(attempt), int(pid)) for who, attempt, pid in map(str.split, lines)]


@fsd.remote
def work(file: str, who: int, given: Any) -> Any:
    begun(file, who)
    return given * who


@fsd.remote(world_size=RANKS, timeout=60)
def talk(file: str, value: int) -> list[Any]:
    comm = fsd.collective.world()
    begun(file, comm.rank)
    found: list[Any] = []
    for step in range(3):
        found.append(comm.allreduce(value + comm.rank + step))
        found.append(comm.alltoall([bytes([comm.rank, to]) * 50 for to in range(comm.size)]))
        found.append(comm.bcast(np.arange(1000) * 0.1 if comm.rank == step else None, root=step))
    return found


def spoken(value: int, rank: int) -> list[Any]:
    found: list[Any] = []
    for step in range(3):
        found.append(RANKS * (value + step) + sum(range(RANKS)))
        found.append([bytes([other, rank]) * 50 for other in range(RANKS)])
        found.append(np.arange(1000) * 0.1)
    return found


def is_same(found: Any, right: Any) -> bool:
    return all(
        each.tobytes() == other.tobytes() if isinstance(other, np.ndarray) else each == other
        for each, other in zip(found, right, strict=True)
    )


def invokes() -> int:
    return int(fsd.receipt().requests["invoke"])


def seeds() -> list[Any]:
    more = [pytest.param(seed, marks=pytest.mark.thorough("of many seeds")) for seed in THOROUGH]
    return [*USUAL, *more]


@pytest.mark.parametrize("seed", seeds())
def test_a_function_is_killed(right: bytes, deadly: Deadly, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    kind = ("queue", "tasks", "object", "inference")[seed % 4]
    retries = rng.choice([0, 2])
    death = Death.by(rng, {"tasks": TASKS, "inference": 2}.get(kind, RANKS))
    print(f"seed {seed}: {kind}, max_retries={retries}, {death}", flush=True)
    death.order(deadly)
    file = tmp_path / "journal"
    if kind == "tasks":
        tasks(deadly, file, retries, death)
    elif kind == "inference":
        infer(deadly, right, retries, death)
    else:
        gang(deadly, file, retries, death, kind)
    deadly.met.append(deadly.deaths > 0)


def tasks(deadly: Deadly, file: Path, retries: int, death: Death) -> None:
    given = fsd.put(np.arange(100_000))  # each call reads it, and writes what it returns
    program = work.options(max_retries=retries)
    refs = [program.remote(str(file), who, given) for who in range(TASKS)]
    fsd.wait(refs, num_returns=TASKS)
    failed = []
    for who, ref in enumerate(refs):
        try:
            found = fsd.get(ref)
        except FunctionCrashed as error:
            failed.append(str(error))
        else:
            assert np.array_equal(found, np.arange(100_000) * who)
    assert all("SIGKILL" in each for each in failed)
    lost = deadly.deaths if death.moment != "told" else 0
    assert len(failed) == (lost if retries == 0 else 0)
    assert invokes() == TASKS + (lost if retries else 0)
    ran = journal(file)
    assert max(Counter((who, attempt) for who, attempt, _ in ran).values()) == 1
    assert len(ran) <= invokes()
    assert {attempt for _, attempt, _ in ran} <= {1, 2 if retries else 1}


def outcome(call: Callable[[], Any]) -> tuple[Any, RankFailed | None]:
    """What a gang comes to, or the error that it ends with."""
    try:
        return call(), None
    except RankFailed as error:
        return None, error


def gang(deadly: Deadly, file: Path, retries: int, death: Death, channel: str) -> None:
    refs = talk.options(channel=channel, max_retries=retries).remote(str(file), 7)
    found, error = outcome(lambda: fsd.get(refs, timeout=100))
    if error is None:
        assert all(is_same(each, spoken(7, rank)) for rank, each in enumerate(found))
        lost = deadly.deaths if death.moment != "told" else 0
        assert retries or not lost
        assert invokes() == RANKS + lost
    else:
        assert (retries, deadly.deaths) == (0, 1)
        assert death.moment != "told"
        for ref in refs:
            with pytest.raises(RankFailed, match=KILLED) as each:
                fsd.get(ref)
            assert isinstance(each.value.cause, FunctionCrashed)
            assert each.value.ranks == error.ranks
        ranks = {pid: rank for rank, _, pid in journal(file)}
        for pid in deadly.services.killed:
            assert error.ranks == [ranks.get(pid, error.ranks[0])]
    ran = Counter((rank, attempt) for rank, attempt, _ in journal(file))
    assert set(ran.values()) <= {1}
    assert sum(ran.values()) <= invokes() <= RANKS + (deadly.deaths if retries else 0)


def infer(deadly: Deadly, right: bytes, retries: int, death: Death) -> None:
    found, error = outcome(lambda: inferred(retries))
    if error is None:
        lost = deadly.deaths if death.moment != "told" else 0
        assert retries or not lost
        assert invokes() == 2 + lost
        assert found == right
    else:
        assert (retries, deadly.deaths) == (0, 1)
        assert isinstance(error.cause, FunctionCrashed)
        assert "SIGKILL" in str(error.cause)
        assert invokes() <= 2


def inferred(retries: int = 0) -> bytes:
    model = fsd.inference.radixnet(1024, layers=3)
    samples = fsd.inference.digits(32, model.inputs)
    answer = fsd.inference.run(
        model, samples, workers=2, channel="queue", partition="block", max_retries=retries
    )
    return bytes(answer.activations.toarray().tobytes())


def test_most_of_the_deaths_were_met(stack: Deadly) -> None:
    # A process that makes few requests lives through one that was to be its last.
    assert 2 * sum(stack.met) > len(stack.met)
