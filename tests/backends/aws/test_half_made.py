"""A deploy that is killed on its way: what is there is told, and a deploy or a destroy ends it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

import fsdray as fsd
from fsdray.backends.aws.cloudformation import CloudFormation, Failed
from fsdray.backends.aws.deploy import deploy, destroy
from fsdray.backends.aws.stack import read_stack
from fsdray.cli import main
from fsdray.errors import SettingsError
from fsdray.settings import resolve
from fsdray.testing.emulator import Emulator
from fsdray.testing.proxy import Asked, Fault, FaultProxy, Schedule
from tests.deployed import Heard, made, stacks, using

DEPLOY = """
import json, sys
from fsdray.backends.aws.deploy import deploy
from fsdray.backends.aws.deploy_commands import screen
from fsdray.settings import resolve

with screen(sys.stdout) as shown:
    deploy(resolve({}), json.loads(sys.argv[1]), shown, is_bare=True)
"""
SMALL: dict[str, Any] = {"slots": 2, "memory": (512,)}
BEFORE, AFTER = Fault.KILL_BEFORE, Fault.KILL_AFTER
thorough = pytest.mark.thorough("each point takes seconds")


@pytest.fixture(scope="module")
def proxy(emulator: Emulator) -> Iterator[FaultProxy]:
    """All services but Lambda, by way of which deploys are killed."""
    with FaultProxy(emulator.url, sees_callers=True) as running:
        yield running


@pytest.fixture
def name(emulator: Emulator, proxy: FaultProxy, request: pytest.FixtureRequest) -> Iterator[str]:
    """A stack's name, which nothing bears at the test's beginning and at its end."""
    proxy.forget()
    stack = f"half-{abs(hash(request.node.name)) % 10**8}"
    variables = {"AWS_ENDPOINT_URL": proxy.url, "FSDRAY_STACK": stack}
    with using(emulator.environment | variables):
        yield stack
        proxy.schedule = None
        fsd.shutdown()
        destroy(resolve({}), Heard())
        assert made(stack) == set()
        assert stacks(stack) == []


def at(operation: str, number: int, fault: Fault) -> Schedule:
    """Kills who asks for this the nth time."""

    def choose(asked: Asked) -> Fault | None:
        return fault if (asked.operation, asked.number) == (operation, number) else None

    return choose


def killed(proxy: FaultProxy, schedule: Schedule, options: dict[str, Any]) -> None:
    """Deploy in a process of its own, which is killed there."""
    proxy.forget()
    proxy.schedule = schedule
    deploying = subprocess.run(
        [sys.executable, "-c", DEPLOY, json.dumps(options)], capture_output=True, text=True
    )
    proxy.schedule = None
    assert deploying.returncode == -9, deploying.stderr
    assert len(proxy.killed) == 1


def told(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """What `fsdray doctor` says."""
    capsys.readouterr()
    status = main(["doctor"])
    return status, capsys.readouterr().out


def settled(name: str) -> str:
    """The stack's status once CloudFormation has done what it was told; "" where there is none."""
    stack = CloudFormation(boto3.client("cloudformation"), name, lambda event: None)
    found = stack.describe()
    if found is None or found["StackStatus"] == "REVIEW_IN_PROGRESS":
        return "" if found is None else "REVIEW_IN_PROGRESS"
    return stack.wait()


FIRST = [
    pytest.param("CreateChangeSet", 0, BEFORE, id="nothing is asked for yet", marks=thorough),
    pytest.param("CreateChangeSet", 0, AFTER, id="asked for, and not begun"),
    pytest.param("ExecuteChangeSet", 0, AFTER, id="the bucket is being made", marks=thorough),
    pytest.param("PutObject", 0, BEFORE, id="the bucket is there", marks=thorough),
    pytest.param("PutObject", 1, AFTER, id="a part of the code is there", marks=thorough),
    pytest.param("CreateChangeSet", 1, AFTER, id="the code is there", marks=thorough),
    pytest.param("ExecuteChangeSet", 1, AFTER, id="all the rest is being made"),
]


@pytest.mark.parametrize(("operation", "number", "fault"), FIRST)
def test_a_first_deploy_that_was_killed(
    name: str,
    proxy: FaultProxy,
    operation: str,
    number: int,
    fault: Fault,
    capsys: pytest.CaptureFixture[str],
) -> None:
    killed(proxy, at(operation, number, fault), SMALL)
    told(capsys)  # CloudFormation may be at work yet
    if settled(name) != "UPDATE_COMPLETE":
        with pytest.raises(SettingsError, match=rf"run `fsdray deploy --stack {name}`"):
            fsd.init("aws")
        status, said = told(capsys)
        assert status == 1
        assert f"-> `fsdray deploy --stack {name}`" in said
        assert said.count("error  ") == 1, said
    deploy(resolve({}), SMALL, Heard(), is_bare=True)
    assert read_stack(resolve({})).slots == 2
    status, said = told(capsys)
    assert status == 0, said
    assert "warning" not in said, said
    fsd.init("aws", memory=512)
    assert fsd.get(fsd.remote(len).remote("four")) == 4


@pytest.mark.parametrize(("operation", "number", "fault"), FIRST)
@thorough
def test_what_it_left_is_destroyed(
    name: str, proxy: FaultProxy, operation: str, number: int, fault: Fault
) -> None:
    killed(proxy, at(operation, number, fault), SMALL)
    destroy(resolve({}), Heard())
    assert made(name) == set()
    assert stacks(name) == []


@pytest.mark.parametrize(
    ("operation", "number", "fault"),
    [
        pytest.param("PutObject", 0, AFTER, id="a part of the templates", marks=thorough),
        pytest.param("CreateChangeSet", 0, AFTER, id="asked for, and not begun", marks=thorough),
        pytest.param("ExecuteChangeSet", 0, AFTER, id="in the midst", marks=thorough),
    ],
)
def test_an_update_that_was_killed(
    name: str,
    proxy: FaultProxy,
    operation: str,
    number: int,
    fault: Fault,
    capsys: pytest.CaptureFixture[str],
) -> None:
    deploy(resolve({}), SMALL, Heard(), is_bare=True)
    killed(proxy, at(operation, number, fault), SMALL | {"slots": 3})
    assert read_stack(resolve({})).slots in (2, 3)  # what was there goes on
    assert settled(name).endswith("_COMPLETE")
    status, said = told(capsys)
    assert status == 0, said
    deploy(resolve({}), {"slots": 3}, Heard(), is_bare=True)
    assert read_stack(resolve({})).slots == 3
    status, said = told(capsys)
    assert "3 rank slots" in said
    assert (status, "warning" in said) == (0, False), said


def test_cloudformation_fails_and_nobody_is_there_to_hear_it(
    name: str, proxy: FaultProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("app.py", "")
    functions = boto3.client("lambda")
    functions.create_function(
        FunctionName=f"{name}-512",  # so CloudFormation cannot make its own
        Runtime="python3.11",
        Handler="app.handler",
        Role="arn:aws:iam::000000000000:role/any",
        Code={"ZipFile": file.getvalue()},
    )
    try:
        killed(proxy, at("ExecuteChangeSet", 1, AFTER), SMALL)
        assert settled(name) == "UPDATE_ROLLBACK_COMPLETE"
        status, said = told(capsys)
        assert status == 1
        assert "its deploy did not come to its end: Function512: " in said
        assert "already exist" in said
        assert f"-> `fsdray deploy --stack {name}`" in said
        with pytest.raises(Failed, match=r"Function512 .*already exist"):
            deploy(resolve({}), SMALL, Heard(), is_bare=True)
    finally:
        functions.delete_function(FunctionName=f"{name}-512")
    deploy(resolve({}), SMALL, Heard(), is_bare=True)
    assert told(capsys)[0] == 0
