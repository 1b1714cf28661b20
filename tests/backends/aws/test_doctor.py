"""`fsdray doctor` says what is wrong, and what to run about it."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from typing import Any

import boto3
import pytest

from fsdray.backends.aws import border, doctor, orphans
from fsdray.backends.aws.doctor import Finding, Level, Patient
from fsdray.backends.aws.pool import Hold, Pool, dump
from fsdray.cli import main
from tests.backends.aws.conftest import Aws


def patient_of(aws: Aws, name: str | None = None, **fakes: Any) -> Patient:
    """Somebody to look at, with clients of one's own for some services."""
    settings = dataclasses.replace(aws.settings, stack=name or aws.settings.stack)
    fakes = {service.rstrip("_"): fake for service, fake in fakes.items()}
    return Patient(settings, lambda service: fakes.get(service) or client(service))


@functools.cache
def client(service: str) -> Any:
    """A client of the emulator, which takes long to make."""
    return boto3.client(service)


def examined(patient: Patient) -> dict[str, Finding]:
    return {finding.check: finding for finding in doctor.examine(patient)}


class Fake:
    """A client of which some methods are one's own."""

    def __init__(self, service: str, **methods: Callable[..., Any]) -> None:
        self._real = client(service)
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        return self._methods.get(name) or getattr(self._real, name)


def denied(operation: str) -> Callable[..., Any]:
    def call(**_: Any) -> Any:
        from botocore.exceptions import ClientError

        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, operation)

    return call


def test_a_stack_that_was_just_deployed_is_well(
    aws: Aws, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == said.count("ok      ") >= 12
    assert f"{aws.stack.slots} rank slots" in said
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["level"] == "ok"
    assert {each["level"] for each in told["findings"]} == {"ok"}


def test_without_credentials_nothing_else_is_asked(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("error   credentials")
    assert "-> run `aws configure`" in said
    assert said.count("\n") == 2


def test_a_clock_that_is_wrong(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    for seconds, level in ((0, Level.OK), (120, Level.WARNING), (-600, Level.ERROR)):
        answer = client("sts").get_caller_identity()
        patient = patient_of(aws, sts=Fake("sts", get_caller_identity=lambda answer=answer: answer))
        monkeypatch.setattr(doctor.time, "time", lambda seconds=seconds: real() + seconds)
        found = {each.check: each for each in doctor.credentials(patient)}["clock"]
        assert found.level is level
        assert (found.fix is None) == (level is Level.OK)


def test_code_that_is_an_image_is_named(aws: Aws) -> None:
    image = "000000000000.dkr.ecr.us-east-1.amazonaws.com/functions:1"
    patient = patient_of(aws)
    patient.stack = dataclasses.replace(aws.stack, image=image)
    assert [(each.level, each.text) for each in doctor.code(patient)] == [
        (Level.OK, f"the image {image}")
    ]


def test_a_stack_that_is_not_there_and_what_is_left_of_it(aws: Aws) -> None:
    sqs, sns = client("sqs"), client("sns")
    sqs.create_queue(QueueName="gone-slot-0003")
    sqs.create_queue(QueueName="gone-slot-three")  # of somebody else
    sns.create_topic(Name="gone-group-0")
    patient = patient_of(aws, "gone")
    found = examined(patient)
    assert found["stack"].level is Level.ERROR
    assert found["stack"].fix == "`fsdray deploy --stack gone`"
    assert found["leftovers"].level is Level.WARNING
    assert found["leftovers"].text == "of no stack: queue gone-slot-0003, topic gone-group-0"
    assert found["leftovers"].fix == "`fsdray doctor --stack gone --fix`"
    removed = [finding.text for finding in doctor.remedy(patient)]
    assert removed == ["queue gone-slot-0003", "topic gone-group-0"]
    assert list(orphans.found(patient.connect, "gone", aws.stack.account)) == []
    assert sqs.list_queues(QueueNamePrefix="gone-")["QueueUrls"][0].endswith("three")


def test_dry_run_says_what_fix_would_do(aws: Aws, capsys: pytest.CaptureFixture[str]) -> None:
    sqs = client("sqs")
    url = sqs.create_queue(QueueName="dry-slot-0000")["QueueUrl"]
    assert main(["doctor", "--stack", "dry", "--fix", "--dry-run"]) == 1
    assert "--fix would remove the queue dry-slot-0000" in capsys.readouterr().out
    assert sqs.get_queue_attributes(QueueUrl=url)
    assert main(["doctor", "--stack", "dry", "--fix"]) == 1
    assert "queue dry-slot-0000" in capsys.readouterr().out
    assert not sqs.list_queues(QueueNamePrefix="dry-").get("QueueUrls")


def test_a_bucket_of_no_stack_is_removed_with_what_is_in_it(aws: Aws) -> None:
    s3 = client("s3")
    name = f"left-{aws.stack.account}-us-east-1"
    s3.create_bucket(Bucket=name)
    s3.put_object(Bucket=name, Key="code/old.zip", Body=b"x")
    patient = patient_of(aws, "left")
    assert examined(patient)["leftovers"].text == f"of no stack: bucket {name}"
    assert [finding.level for finding in doctor.remedy(patient)] == [Level.OK]
    assert name not in [each["Name"] for each in s3.list_buckets()["Buckets"]]


@pytest.mark.parametrize(
    ("status", "fix"),
    [
        ("ROLLBACK_COMPLETE", "`fsdray destroy --stack fsdray`, then `fsdray deploy`"),
        ("UPDATE_ROLLBACK_FAILED", "continue-update-rollback"),
        ("UPDATE_ROLLBACK_COMPLETE", "`fsdray deploy`"),
    ],
)
def test_a_stack_that_is_half_made(aws: Aws, status: str, fix: str) -> None:
    events = [
        {"LogicalResourceId": "fsdray", "ResourceStatus": "ROLLBACK_COMPLETE"},
        {
            "LogicalResourceId": "Role",
            "ResourceStatus": "CREATE_FAILED",
            "ResourceStatusReason": "not allowed to iam:CreateRole",
        },
        {"LogicalResourceId": "fsdray", "ResourceStatus": "CREATE_IN_PROGRESS"},
        {
            "LogicalResourceId": "Role",
            "ResourceStatus": "CREATE_FAILED",
            "ResourceStatusReason": "of an earlier time",
        },
    ]
    cloudformation = Fake(
        "cloudformation",
        describe_stacks=lambda **_: {"Stacks": [{"StackStatus": status}]},
        get_paginator=lambda _: Fake(
            "cloudformation", paginate=lambda **_: [{"StackEvents": events}]
        ),
    )
    found = examined(patient_of(aws, cloudformation=cloudformation))["stack"]
    assert found.level is Level.ERROR
    assert "Role: not allowed to iam:CreateRole" in found.text
    assert fix in (found.fix or "")


def test_a_stack_of_another_fsdray_or_python(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    other = dataclasses.replace(aws.stack, version="99.0", python="3.99")
    monkeypatch.setattr(doctor, "read_stack", lambda _: other)
    found = examined(patient_of(aws))
    assert found["version"].level is found["Python"].level is Level.ERROR
    assert "`fsdray deploy`, or `pip install fsdray==99.0`" in (found["version"].fix or "")


def test_code_functions_and_queues_that_are_missing(
    aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = dataclasses.replace(aws.stack, slots=aws.stack.slots + 2)
    monkeypatch.setattr(doctor, "read_stack", lambda _: more)
    pending = {"State": "Pending", "LastUpdateStatus": "InProgress", "StateReason": "being made"}
    found = examined(
        patient_of(
            aws,
            s3=Fake("s3", list_objects_v2=lambda **_: {}),
            lambda_=Fake("lambda", get_function_configuration=lambda **_: pending),
        )
    )
    assert found["code"].level is Level.ERROR
    assert "is Pending, InProgress being made" in found["functions"].text
    assert found["slots"].text == f"2 of {more.slots} queues and 2 subscriptions are missing"


def test_a_new_account_runs_few_calls(aws: Aws) -> None:
    limits = {"ConcurrentExecutions": 10, "UnreservedConcurrentExecutions": 10}
    lambda_ = Fake("lambda", get_account_settings=lambda: {"AccountLimit": limits})
    found = examined(patient_of(aws, lambda_=lambda_))["quota"]
    assert found.level is Level.WARNING
    assert "Service Quotas" in (found.fix or "")


def test_permissions_are_asked_by_action(aws: Aws) -> None:
    asked: list[str] = []

    def simulate(PolicySourceArn: str, ActionNames: list[str], ResourceArns: list[str]) -> Any:  # noqa: N803 - boto3's names
        assert PolicySourceArn == "arn:aws:iam::000000000000:user/ada"
        asked.extend(ActionNames)
        return {
            "EvaluationResults": [
                {
                    "EvalActionName": name,
                    "EvalDecision": "implicitDeny" if name == "sns:Publish" else "allowed",
                }
                for name in ActionNames
            ]
        }

    def whose() -> Any:
        told = client("sts").get_caller_identity()
        return told | {"Arn": "arn:aws:iam::000000000000:user/ada"}

    ada = Fake("sts", get_caller_identity=whose)
    iam = Fake("iam", simulate_principal_policy=simulate)
    found = examined(patient_of(aws, sts=ada, iam=iam))["permissions"]
    assert found.level is Level.ERROR
    assert "sns:Publish on arn:aws:sns" in found.text
    assert "`fsdray policy user`" in (found.fix or "")
    assert {"lambda:InvokeFunction", "s3:GetObject", "sqs:ReceiveMessage"} <= set(asked)

    shut = Fake("iam", simulate_principal_policy=denied("SimulatePrincipalPolicy"))
    found = examined(patient_of(aws, sts=ada, iam=shut))["permissions"]
    assert found.level is Level.WARNING


def test_what_may_not_be_asked_is_no_error(aws: Aws) -> None:
    shut = Fake("sqs", get_paginator=lambda _: Fake("sqs", paginate=denied("ListQueues")))
    found = examined(patient_of(aws, sqs=shut))
    assert found["slots"].level is Level.WARNING
    assert doctor.worst(list(found.values())) is Level.WARNING


def test_leases_say_who_holds_slots(aws: Aws) -> None:
    s3 = client("s3")
    now = time.time()
    half = frozenset(range(aws.stack.slots // 2))
    holds = {
        "a": Hold(half, 1, now + 100, "ada@here:1"),
        "b": Hold(frozenset(range(aws.stack.slots)) - half, 2, now - 100, "bob@there:2"),
    }
    try:
        s3.put_object(Bucket=aws.stack.bucket, Key="pool.json", Body=dump(Pool(2, holds)))
        found = [each for each in doctor.examine(patient_of(aws)) if each.check == "leases"]
        assert "by bob@there:2: not renewed" in found[0].text
        free = aws.stack.slots - len(half)
        assert found[1].text == f"{len(half)} by ada@here:1; {free} of {aws.stack.slots} free"
        all_of_them = {"a": Hold(frozenset(range(aws.stack.slots)), 1, now + 100, "ada@here:1")}
        s3.put_object(Bucket=aws.stack.bucket, Key="pool.json", Body=dump(Pool(2, all_of_them)))
        full = examined(patient_of(aws))["leases"]
        assert full.level is Level.WARNING
        assert "--slots" in (full.fix or "")
    finally:
        s3.delete_object(Bucket=aws.stack.bucket, Key="pool.json")


def test_errors_of_aws_are_findings(aws: Aws) -> None:
    def broken(**_: Any) -> Any:
        with border.crossing("reading"):
            raise ConnectionResetError("cut")

    found = examined(patient_of(aws, lambda_=Fake("lambda", get_account_settings=broken)))
    assert found["quota"].level is Level.ERROR


def test_a_finding_for_a_terminal_has_its_fix_below() -> None:
    finding = doctor.error("stack", "there is none", "`fsdray deploy`")
    assert doctor.shown(finding, False).splitlines() == [
        "error   stack        there is none",
        "                     -> `fsdray deploy`",
    ]
    assert "\x1b[31merror" in doctor.shown(finding, True)
