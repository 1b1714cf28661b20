"""A stack in the emulator, deployed as users do it, for tests that need one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import boto3

from fsdray.backends.aws.cloudformation import Event
from fsdray.backends.aws.deploy import deploy, destroy
from fsdray.settings import resolve
from fsdray.testing.emulator import Emulator


class Heard:
    """What a deploy tells, kept."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.events: list[Event] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def begin(self, what: str, total: int) -> None:
        pass

    def event(self, event: Event) -> None:
        self.events.append(event)

    def end(self) -> None:
        pass


@contextmanager
def using(variables: Mapping[str, str]) -> Iterator[None]:
    """Within, the environment has these too."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def deployed(
    emulator: Emulator, name: str, *, is_bare: bool = True, **options: Any
) -> Iterator[dict[str, str]]:
    """A stack while the context lasts; gives the variables with which sessions find it.

    Parameters
    ----------
    is_bare : as for `fsdray.backends.aws.package.build`.
    """
    variables = emulator.environment | {"FSDRAY_STACK": name}
    with using(variables):
        deploy(resolve({}), options, Heard(), is_bare=is_bare)
    try:
        yield variables
    finally:
        with using(variables):
            destroy(resolve({}), Heard())


def made(name: str) -> set[tuple[str, str]]:
    """All resources of a stack's names that the services know of, whoever made them."""
    clients = {s: boto3.client(s) for s in ("sqs", "sns", "lambda", "logs", "s3", "iam")}
    queues = clients["sqs"].list_queues(QueueNamePrefix=f"{name}-", MaxResults=1000)
    topics = clients["sns"].list_topics()["Topics"]
    functions = clients["lambda"].list_functions()["Functions"]
    groups = clients["logs"].describe_log_groups(logGroupNamePrefix=f"/aws/lambda/{name}-")
    found = {
        *(("queue", url.rpartition("/")[2]) for url in queues.get("QueueUrls", [])),
        *(("topic", topic["TopicArn"].rpartition(":")[2]) for topic in topics),
        *(("function", each["FunctionName"]) for each in functions),
        *(("logs", each["logGroupName"]) for each in groups["logGroups"]),
        *(("bucket", each["Name"]) for each in clients["s3"].list_buckets()["Buckets"]),
        *(("role", each["RoleName"]) for each in clients["iam"].list_roles()["Roles"]),
    }
    return {(kind, each) for kind, each in found if each.rpartition("/")[2].startswith(f"{name}-")}


def stacks(name: str) -> list[str]:
    """The names of all stacks that are there and begin with a name."""
    told = boto3.client("cloudformation").describe_stacks()["Stacks"]
    return [each["StackName"] for each in told if each["StackName"].startswith(name)]
