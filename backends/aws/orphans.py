"""Resources that bear a stack's names and belong to no stack: found, and removed.

A stack's names are fixed (`fsdray.backends.aws.stack`), so that what an interrupted deploy or
destroy, or another hand, left behind can be told by its name alone. Nothing else is ever named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fsdray.backends.aws import border
from fsdray.backends.aws.stack import Stack

Connect = Callable[[str], Any]


@dataclass(frozen=True, order=True)
class Resource:
    """One resource.

    Parameters
    ----------
    kind : ``"queue"``, ``"topic"``, ``"function"``, ``"log group"`` or ``"bucket"``.
    name : as people know it. handle : what AWS wants to be told: the name, an ARN or a URL.
    """

    kind: str
    name: str
    handle: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def found(connect: Connect, stack: str, account: str) -> Iterator[Resource]:
    """All that bears the names of the stack, whether it is there or not."""
    own = re.escape(stack)
    yield from _matching(
        "queue",
        rf"{own}-slot-\d{{4}}",
        _pages(connect("sqs"), "list_queues", "QueueUrls", QueueNamePrefix=f"{stack}-slot-"),
        lambda url: (url.rpartition("/")[2], url),
    )
    yield from _matching(
        "topic",
        rf"{own}-group-\d+",
        _pages(connect("sns"), "list_topics", "Topics"),
        lambda topic: (topic["TopicArn"].rpartition(":")[2], topic["TopicArn"]),
    )
    yield from _matching(
        "function",
        rf"{own}-\d+",
        _pages(connect("lambda"), "list_functions", "Functions"),
        lambda function: (function["FunctionName"], function["FunctionName"]),
    )
    prefix = f"/aws/lambda/{stack}-"
    yield from _matching(
        "log group",
        rf"/aws/lambda/{own}-\d+",
        _pages(connect("logs"), "describe_log_groups", "logGroups", logGroupNamePrefix=prefix),
        lambda group: (group["logGroupName"], group["logGroupName"]),
    )
    with border.crossing("listing the buckets"):
        buckets = connect("s3").list_buckets()["Buckets"]
    yield from _matching(
        "bucket",
        rf"{own}-{account}-[a-z0-9-]+",
        iter(buckets),
        lambda bucket: (bucket["Name"], bucket["Name"]),
    )


def _matching(
    kind: str, pattern: str, items: Iterator[Any], read: Callable[[Any], tuple[str, str]]
) -> Iterator[Resource]:
    for item in items:
        name, handle = read(item)
        if re.fullmatch(pattern, name):
            yield Resource(kind, name, handle)


def _pages(client: Any, operation: str, key: str, **asked: Any) -> Iterator[Any]:
    with border.crossing(f"asking for {operation.replace('_', ' ')}"):
        for page in client.get_paginator(operation).paginate(**asked):
            yield from page.get(key, [])


def expected(stack: Stack) -> set[tuple[str, str]]:
    """Kinds and names of what a stack has."""
    names = [name.partition(":")[0] for name in stack.functions.values()]  # without an alias
    return {
        *(("queue", f"{stack.name}-slot-{slot:04d}") for slot in range(stack.slots)),
        *(("topic", topic.rpartition(":")[2]) for topic in stack.topics),
        *(("function", name) for name in names),
        *(("log group", f"/aws/lambda/{name}") for name in names),
        ("bucket", stack.bucket),
    }


def orphans(resources: Iterator[Resource], stack: Stack | None) -> list[Resource]:
    """Those of the resources that the stack does not have; None: there is no stack."""
    known = set() if stack is None else expected(stack)
    return sorted(each for each in resources if (each.kind, each.name) not in known)


def remove(connect: Connect, resource: Resource) -> None:
    """Delete a resource, a bucket with all that is in it."""
    with border.crossing(f"removing the {resource}"):
        match resource.kind:
            case "queue":
                connect("sqs").delete_queue(QueueUrl=resource.handle)
            case "topic":
                connect("sns").delete_topic(TopicArn=resource.handle)
            case "function":
                connect("lambda").delete_function(FunctionName=resource.handle)
            case "log group":
                connect("logs").delete_log_group(logGroupName=resource.handle)
            case "bucket":
                _remove_bucket(connect("s3"), resource.handle)


def _remove_bucket(client: Any, bucket: str) -> None:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        keys = [{"Key": each["Key"]} for each in page.get("Contents", [])]
        if keys:
            client.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
    client.delete_bucket(Bucket=bucket)
