"""Stacks deployed, changed in place, rolled back and removed, in the emulator."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from fsdray.backends.aws.cloudformation import Failed
from fsdray.backends.aws.deploy import deploy, destroy
from fsdray.backends.aws.stack import Stack, read_stack
from fsdray.errors import SettingsError
from fsdray.settings import Settings
from fsdray.testing.emulator import Emulator
from tests.deployed import Heard, made, stacks, using

IMAGE = "000000000000.dkr.ecr.us-east-1.amazonaws.com/functions:1"


@pytest.fixture
def account(emulator: Emulator) -> Iterator[Emulator]:
    """AWS is the emulator, whose account holds no stack of these tests."""
    with using(emulator.environment):
        yield emulator


def run(settings: Settings, heard: Heard | None = None, **changes: Any) -> bool:
    deployed = deploy(settings, changes, heard or Heard(), is_bare=True)
    return deployed.changed


def test_a_stack_is_made_changed_in_place_and_removed(account: Emulator) -> None:
    settings = Settings(stack="cycle")
    heard = Heard()
    assert run(settings, heard, slots=3, memory=(512, 1769), tags={"team": "blue"})
    assert any("Create the stack 'cycle'" in line for line in heard.lines)
    assert any("3 AWS::SQS::Queue" in line for line in heard.lines)
    assert any("Unused it costs $0.000 a month" in line for line in heard.lines)
    names = {each for _, each in made("cycle")}
    assert {"cycle-512", "cycle-1769", "cycle-slot-0002", "cycle-group-0"} <= names
    stack = read_stack(settings)
    assert stack.functions == {512: "cycle-512", 1769: "cycle-1769"}
    assert (stack.slots, stack.bucket) == (3, "cycle-000000000000-us-east-1")
    assert stack.topics == ("arn:aws:sns:us-east-1:000000000000:cycle-group-0",)

    # The same again is nothing to do, also when nothing is given.
    assert not run(settings, slots=3)
    assert not run(settings)

    # Functions with a package do not become functions with an image.
    with pytest.raises(SettingsError, match=r"have a package for code, .* `fsdray destroy` it"):
        run(settings, image=IMAGE)

    # A change is made in place; what was not given stays.
    queue = boto3.client("sqs").get_queue_url(QueueName="cycle-slot-0001")["QueueUrl"]
    boto3.client("sqs").send_message(QueueUrl=queue, MessageBody="still here")
    assert run(settings, slots=4, environment={"GREETING": 'a "quoted" one: {x} # no comment'})
    function = boto3.client("lambda").get_function(FunctionName="cycle-1769")
    variables = function["Configuration"]["Environment"]["Variables"]
    assert variables["GREETING"] == 'a "quoted" one: {x} # no comment'
    assert Stack.load(variables["FSDRAY_STACK_JSON"]) == read_stack(settings)
    assert read_stack(settings).functions == stack.functions
    assert boto3.client("sqs").receive_message(QueueUrl=queue)["Messages"]

    # What is no longer wanted goes; --reset forgets.
    deploy(settings, {"slots": 2}, Heard(), is_reset=True, is_bare=True)
    assert ("queue", "cycle-slot-0002") not in made("cycle")
    assert ("function", "cycle-3008") in made("cycle")

    # Objects of sessions do not hold it back.
    s3 = boto3.client("s3")
    s3.put_object(Bucket=stack.bucket, Key="runs/one/value", Body=b"x")
    s3.create_multipart_upload(Bucket=stack.bucket, Key="runs/one/unfinished")
    assert destroy(settings, Heard())
    assert made("cycle") == set()
    assert stacks("cycle") == []
    assert not destroy(settings, Heard())


def test_a_dry_run_says_what_would_be_done_and_does_nothing(account: Emulator) -> None:
    settings, heard = Settings(stack="thought-of"), Heard()
    deploy(settings, {"slots": 250}, heard, is_dry=True, is_bare=True)
    assert any("250 AWS::SQS::Queue" in line for line in heard.lines)
    assert any("2 AWS::SNS::Topic" in line for line in heard.lines)
    assert made("thought-of") == set()
    assert not destroy(settings, heard, is_dry=True)
    assert any("no stack 'thought-of'" in line for line in heard.lines)


def test_a_first_deploy_that_fails_says_why_and_leaves_nothing(account: Emulator) -> None:
    functions = boto3.client("lambda")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("app.py", "")
    functions.create_function(
        FunctionName="unlucky-512",
        Runtime="python3.11",
        Handler="app.handler",
        Role="arn:aws:iam::000000000000:role/any",
        Code={"ZipFile": file.getvalue()},
    )
    settings = Settings(stack="unlucky")
    try:
        with pytest.raises(Failed, match=r"Function512 \(AWS::Lambda::Function\): .*already exist"):
            run(settings, slots=2, memory=(512,))
        assert made("unlucky") == {("function", "unlucky-512")}
        assert stacks("unlucky") == []
    finally:
        functions.delete_function(FunctionName="unlucky-512")


def test_an_update_that_fails_leaves_what_was(account: Emulator) -> None:
    settings = Settings(stack="steady")
    run(settings, slots=1, memory=(512,))
    before = read_stack(settings)
    try:
        with pytest.raises(Failed, match=r"ROLLBACK_COMPLETE:(.|\n)*Function512 .*Unreserved"):
            run(settings, slots=2, reserved=5000)
        assert read_stack(settings) == before
        assert run(settings, slots=2)
        assert read_stack(settings).slots == 2
    finally:
        destroy(settings, Heard())


def test_a_stack_that_was_half_made_is_made_anew(account: Emulator) -> None:
    client = boto3.client("cloudformation")
    broken = "Resources: {Function: {Type: AWS::Lambda::Function, Properties: {Role: none}}}"
    client.create_stack(StackName="half", TemplateBody=broken)
    settings, heard = Settings(stack="half"), Heard()
    try:
        assert run(settings, heard, slots=1, memory=(512,))
        assert any("it is removed first" in line for line in heard.lines)
        assert read_stack(settings).slots == 1
    finally:
        destroy(settings, Heard())
    assert stacks("half") == []


def test_a_change_set_that_nobody_executed_is_no_stack(account: Emulator) -> None:
    boto3.client("cloudformation").create_change_set(
        StackName="reviewed",
        ChangeSetName="by-hand",
        ChangeSetType="CREATE",
        TemplateBody="Resources: {Topic: {Type: AWS::SNS::Topic}}",
    )
    settings = Settings(stack="reviewed")
    try:
        assert run(settings, slots=1, memory=(512,))
    finally:
        destroy(settings, Heard())


def test_what_cannot_be_is_said_before_anything_is_made(account: Emulator) -> None:
    for stack, changes, said in (
        ("Upper", {}, "stack='Upper'"),
        ("a--b", {}, "stack='a--b'"),
        ("fine", {"slots": 1001}, "slots=1001: give a number from 1 to 1000"),
        ("fine", {"memory": (64,)}, "memory=.*128 to 10240"),
        ("fine", {"python": "3.11", "snapstart": True}, "from Python 3.12 on"),
        ("fine", {"log_days": 8}, "log_days=8"),
        ("fine", {"subnets": ("subnet-1",)}, "security groups"),
        ("fine", {"environment": {"AWS_REGION": "x"}}, "'AWS_REGION' cannot be a variable"),
        ("fine", {"secrets": {"TOKEN": "swordfish"}}, "is no ARN of a secret"),
        ("fine", {"environment": {"LONG": "x" * 5000}}, "a stack keeps 4096"),
    ):
        with pytest.raises(SettingsError, match=said):
            deploy(Settings(stack=stack), changes, Heard())


def test_an_image_is_deployed_as_far_as_the_host_goes_which_runs_none(account: Emulator) -> None:
    settings, heard = Settings(stack="pictured"), Heard()
    with pytest.raises(Failed, match="the local Lambda host runs zip packages only"):
        run(settings, heard, image=IMAGE, slots=1, memory=(512,))
    assert f"  code in the image {IMAGE}" in heard.lines
    assert made("pictured") == set()
