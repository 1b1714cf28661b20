"""Sessions on AWS: what users see of them, and what they leave behind."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

import fsdray as fsd
from fsdray import loop
from fsdray.backends.aws import backend as aws_backend
from fsdray.backends.aws import functions
from fsdray.backends.aws.printed import MOST
from fsdray.errors import EnvironmentMismatch, FunctionCrashed, RankFailed, SettingsError
from fsdray.settings import Settings
from tests import leftovers
from tests.backends.aws.conftest import Aws


@pytest.fixture
def session(aws: Aws) -> Iterator[Aws]:
    """A session that leaves nothing in the stack's bucket."""
    fsd.init("aws", memory=512, concurrency=16, channel="object")
    yield aws
    fsd.shutdown()
    assert left(aws) == []


def left(aws: Aws) -> list[str]:
    told = boto3.client("s3").list_objects_v2(Bucket=aws.stack.bucket, Prefix="runs/")
    # Marks of calls that died stay, for those that these had made.
    return [each["Key"] for each in told.get("Contents", ()) if "/cancel/" not in each["Key"]]


@fsd.remote
def speak(*lines: str) -> None:
    for line in lines:
        print(line)


@fsd.remote
def pass_on(line: str) -> None:
    print("before", line)
    fsd.get(speak.remote(line))
    print("after", line)


def lines(shown: str) -> list[tuple[str, str]]:
    """Who said what."""
    found = []
    for line in shown.splitlines():
        who, _, said = line.removeprefix("(").partition(") ")
        found.append((who.partition(" ")[0], said))
    return found


def test_what_a_task_and_its_children_print_comes_with_its_value(
    session: Aws, capfd: pytest.CaptureFixture[str]
) -> None:
    fsd.get(pass_on.remote("me"))
    fsd.shutdown()
    said = lines(capfd.readouterr().err)
    assert said == [("pass_on", "before me"), ("speak", "me"), ("pass_on", "after me")]


def test_of_much_output_the_last_comes_and_the_rest_is_in_the_log(
    session: Aws, capfd: pytest.CaptureFixture[str]
) -> None:
    fsd.get(speak.remote(*(f"{i} {'x' * 1000}" for i in range(200))))
    run = fsd.session.current().backend.session
    fsd.shutdown()
    said = lines(capfd.readouterr().err)
    assert said[0] == ("speak", f"... {200 - len(said) + 1} lines before: fsdray logs {run}")
    assert said[-1][1].startswith("199 ")
    assert MOST - 2000 < sum(len(line) for _, line in said) <= MOST


def test_what_a_task_printed_before_it_died_is_shown(
    session: Aws, capfd: pytest.CaptureFixture[str]
) -> None:
    @fsd.remote(max_retries=0)
    def die() -> None:
        print("farewell", flush=True)
        os._exit(9)

    with pytest.raises(FunctionCrashed, match="status 9") as caught:
        fsd.get(die.remote())
    assert caught.value.log == ("farewell",)
    fsd.shutdown()
    assert lines(capfd.readouterr().err) == [("die", "farewell")]


def test_a_no_op_task_is_one_invoke_and_nothing_else(session: Aws) -> None:
    @fsd.remote
    def nothing() -> None: ...

    fsd.get(nothing.remote())  # the first brings this module with it
    before = fsd.receipt().requests
    asked = len(session.emulator.requests())
    for _ in range(20):
        fsd.get(nothing.remote())
    after = fsd.receipt().requests
    more = {name: after[name] - before.get(name, 0) for name in after}
    assert more.pop("gb_seconds") > 0
    assert {name: number for name, number in more.items() if number} == {"invoke": 20}
    found = [each["operation"] for each in session.emulator.requests()[asked:]]
    logged = [each for each in found if each != "PutLogEvents"]  # the emulator's own
    assert logged == ["Invoke"] * 20


def test_a_call_that_begins_late_looks_first_and_counts_it(
    session: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    @fsd.remote
    def nothing() -> None: ...

    fsd.get(nothing.remote())  # the first brings this module with it
    before = fsd.receipt().requests
    monkeypatch.setattr(functions.time, "time", lambda: 0.0)
    fsd.get(nothing.remote())
    after = fsd.receipt().requests
    more = {name: after[name] - before.get(name, 0) for name in after if name != "gb_seconds"}
    assert {name: number for name, number in more.items() if number} == {"invoke": 1, "miss": 1}


def test_a_gang_costs_what_it_costs_on_this_machine(session: Aws) -> None:
    @fsd.remote(world_size=5)
    def total(value: int) -> int:
        comm = fsd.collective.world()
        return int(comm.allreduce(value + comm.rank)) + int(comm.bcast(1 if comm.rank == 0 else 0))

    exact = ("invoke", "put", "publish", "send")
    found = []
    for backend in ("aws", "local"):
        fsd.shutdown()
        fsd.init(backend, memory=512, concurrency=16, channel="object")
        assert fsd.get(total.remote(3)) == [26] * 5
        counts = fsd.receipt().requests
        found.append({name: counts.get(name, 0) for name in exact})
    assert found[0] == found[1]


def test_a_rank_that_computes_on_is_answered_for_when_its_gang_breaks(session: Aws) -> None:
    @fsd.remote(world_size=3, max_retries=0, timeout=60)
    def torn() -> None:
        rank = fsd.collective.world().rank
        if rank == 1:
            fsd.collective.world().barrier()
        elif rank == 2:
            os._exit(3)
        threading.Event().wait()

    with pytest.raises(RankFailed, match="status 3") as caught:
        fsd.get(torn.remote())
    assert caught.value.ranks == [2]


def test_two_sessions_share_a_stack_and_see_nothing_of_each_other(
    session: Aws, tmp_path: Path
) -> None:
    script = tmp_path / "other.py"
    script.write_text(
        "import fsdray as fsd\n"
        "fsd.init('aws', memory=512)\n"
        "big = fsd.put(b'theirs' * 100_000)\n"
        "fsd.remote(lambda data: print(data[:6].decode())).remote(big)\n"
        "assert fsd.get(fsd.remote(len).remote(big)) == 600_000\n"
        "print('ready', flush=True)\n"
        "input()\n"
        "assert fsd.get(big)[:6] == b'theirs'\n"
    )
    other = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdin is not None
    assert other.stdout is not None
    mine = fsd.put(b"mine" * 100_000)
    assert other.stdout.readline() == "ready\n"
    assert fsd.get(fsd.remote(len).remote(mine)) == 400_000
    runs = {key.split("/")[1] for key in left(session)}
    assert len(runs) == 2
    fsd.shutdown()
    assert {key.split("/")[1] for key in left(session)} < runs, "a session's objects are left"
    other.communicate("\n")
    assert other.returncode == 0


def test_a_stack_of_another_kind_is_refused(aws: Aws) -> None:
    aws_backend.check(aws.stack)
    for field, value, says in (
        ("version", "0.0.1", "fsdray 0.0.1"),
        ("python", "3.9", "Python 3.9"),
    ):
        other = dataclasses.replace(aws.stack, **{field: value})  # type: ignore[arg-type]
        with pytest.raises(EnvironmentMismatch, match=f"{says}.*fsdray deploy"):
            aws_backend.check(other)


def connect(**settings: Any) -> None:
    async def program() -> None:
        backend = await aws_backend.connect(
            Settings(backend="aws", **settings), lambda name, amount: None
        )
        await backend.close()

    loop.run(program())


def test_a_stack_that_is_not_there_says_how_to_make_it(aws: Aws) -> None:
    with pytest.raises(SettingsError, match="'nobody' in us-east-1: run `fsdray deploy --stack n"):
        connect(stack="nobody")


def test_without_credentials_or_region_it_says_what_to_run(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="AWS_PROFILE"):
        connect(profile="nobody")
    with monkeypatch.context() as without:
        without.delenv("AWS_ACCESS_KEY_ID")
        without.delenv("AWS_SECRET_ACCESS_KEY")
        without.delenv("AWS_SESSION_TOKEN")
        with pytest.raises(SettingsError, match="aws configure"):
            connect()
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(SettingsError, match="FSDRAY_REGION"):
        connect()


def test_what_a_dead_call_had_started_ends(session: Aws, tmp_path: Path) -> None:
    pid = tmp_path / "pid"

    @fsd.remote
    def endless() -> None:
        (tmp_path / "new").write_text(str(os.getpid()))
        (tmp_path / "new").rename(pid)
        while True:
            threading.Event().wait(1)

    @fsd.remote(max_retries=0)
    def mortal() -> None:
        endless.remote()
        while not pid.exists():
            threading.Event().wait(0.05)
        os._exit(3)

    with pytest.raises(FunctionCrashed, match="status 3"):
        fsd.get(mortal.remote())
    started = Path(f"/proc/{pid.read_text()}")
    deadline = time.monotonic() + 60
    while started.exists() and time.monotonic() < deadline:
        threading.Event().wait(0.1)
    assert not started.exists(), "nobody told it that its caller died"


def test_slots_that_a_dead_call_had_leased_are_given_back(session: Aws) -> None:
    @fsd.remote(timeout=20, max_retries=0)
    def mortal(rank: int) -> None:
        fsd.collective.init_group("mortal", rank, 2, channel="queue")
        os._exit(3)

    for ref in [mortal.remote(rank) for rank in range(2)]:
        with pytest.raises(FunctionCrashed, match="status 3"):
            fsd.get(ref)
    assert len(leftovers.leases(session.stack).holds) == 2
    fsd.shutdown()
    state = leftovers.leases(session.stack)
    assert not state.holds
    assert len(state.resting) >= 2
