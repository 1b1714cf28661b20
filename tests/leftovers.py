"""What sessions may leave on AWS's services: leased slots, objects, messages; and that they do not.

It runs after every session of every test, so it is cheap: queues are asked only where slots were
leased since the last look (a pool's epoch tells), and with no more than a request needs.
"""

from __future__ import annotations

import base64
import functools
import http.client
import json
import os
import sys
import time
from collections.abc import Callable, Collection
from typing import Any

import boto3

from fsdray.backends.aws import pool
from fsdray.backends.aws.inboxes import BYTES, unpack
from fsdray.backends.aws.pool import Pool
from fsdray.backends.aws.stack import Stack, read_stack
from fsdray.settings import resolve

PATIENCE = 20.0
"""Seconds that what was told to stop may take: a cancelled call may write something yet."""

_SIGNED = (
    "AWS4-HMAC-SHA256 Credential=local/20260101/us-east-1/sqs/aws4_request"  # an emulator asks
)

_late: list[int] = []  # slots whose late message was forgiven
_looked: dict[tuple[str, str], int] = {}  # epochs of pools, by server and bucket


@functools.cache  # a client takes long to make
def _s3(url: str) -> Any:
    return boto3.client("s3", endpoint_url=url)


def _url() -> str:
    return os.environ["AWS_ENDPOINT_URL"]


def stack_of_environment() -> Stack:
    """The stack that sessions find here."""
    return _stack(_url(), resolve({}).stack)


@functools.cache
def _stack(url: str, name: str) -> Stack:
    return read_stack(resolve({}))


def leases(stack: Stack) -> Pool:
    """Who holds slots, and how often any were leased."""
    s3 = _s3(_url())
    try:
        return pool.parse(s3.get_object(Bucket=stack.bucket, Key=pool.KEY)["Body"].read())
    except s3.exceptions.NoSuchKey:
        return Pool()


def objects(stack: Stack) -> list[str]:
    """Keys of sessions' objects. Marks of calls that died stay, for those that these had made."""
    told = _s3(_url()).list_objects_v2(Bucket=stack.bucket, Prefix="runs/")
    return [each["Key"] for each in told.get("Contents", ()) if "/cancel/" not in each["Key"]]


def messages(stack: Stack, but_of: Collection[int] = ()) -> dict[int, tuple[int, int]]:
    """Messages in the slots' queues: those that wait, and those taken and not deleted."""
    found = {}
    connection = http.client.HTTPConnection(_url().removeprefix("http://"))
    try:
        for slot in set(range(stack.slots)).difference(but_of):
            told = _ask(connection, stack, slot, "GetQueueAttributes", AttributeNames=["All"])
            counts = json.loads(told)["Attributes"]
            number = (
                int(counts["ApproximateNumberOfMessages"]),
                int(counts["ApproximateNumberOfMessagesNotVisible"]),
            )
            if any(number):
                found[slot] = number
    finally:
        connection.close()
    return found


def _ask(
    connection: http.client.HTTPConnection, stack: Stack, slot: int, action: str, **more: Any
) -> bytes:
    headers = {
        "X-Amz-Target": f"AmazonSQS.{action}",
        "Content-Type": "application/x-amz-json-1.0",
        "Authorization": _SIGNED,
    }
    asked = {"QueueUrl": f"{stack.queues}{slot:04}", **more}
    connection.request("POST", "/", json.dumps(asked), headers)
    answer = connection.getresponse()
    told = answer.read()
    assert answer.status == 200, told
    return told


def described(stack: Stack, slots: Collection[int]) -> list[str]:
    """What waits in these slots' queues: to whom it was sent, when, and its first bytes."""
    told = []
    connection = http.client.HTTPConnection(_url().removeprefix("http://"))
    asked = {"AttributeNames": ["All"], "MessageAttributeNames": ["All"], "VisibilityTimeout": 0}
    try:
        for slot in slots:
            got = json.loads(_ask(connection, stack, slot, "ReceiveMessage", **asked))
            for message in got.get("Messages", ()):
                held = message.get("MessageAttributes", {}).get(BYTES, {}).get("BinaryValue")
                body = message["Body"].encode() if held is None else base64.b64decode(held)
                inboxes, body = unpack(body) or ((), body)
                told.append(
                    f"slot {slot}, {message['Attributes']}: {inboxes} {bytes(body)[:500]!r}"
                )
    finally:
        connection.close()
    return told


def check(stack: Stack, but_of: Collection[int] = ()) -> None:
    """Fail if sessions that have ended left anything; `but_of` slots have no queue any more."""
    state = leases(stack)
    assert not state.holds, f"slots are still leased: {dict(state.holds)}"
    _becomes_empty(lambda: objects(stack), "objects were left over")
    if _looked.get((_url(), stack.bucket)) == state.epoch:
        return  # nobody leased anything since: nobody had a queue to write to
    _forgive_late(stack, but_of)
    _becomes_empty(lambda: messages(stack, but_of), "queues have messages (visible, not visible)")
    _looked[_url(), stack.bucket] = state.epoch


def _forgive_late(stack: Stack, but_of: Collection[int]) -> None:
    """Remove one message, once in all tests of a process, that nobody has received.

    Nothing on AWS stops a rank that was given up: on a busy machine it may send once more after its
    gang's queues were emptied (docs/aws.md), and who has the slot next drops that.
    """
    deadline = time.monotonic() + PATIENCE
    while (left := messages(stack, but_of)) and time.monotonic() < deadline:
        time.sleep(0.2)
    if list(left.values()) == [(1, 0)] and not _late:
        (slot,) = left
        _late.append(slot)
        print("a late message was left:", *described(stack, left), file=sys.stderr)
        connection = http.client.HTTPConnection(_url().removeprefix("http://"))
        try:
            _ask(connection, stack, slot, "PurgeQueue")
        finally:
            connection.close()


def _becomes_empty(look: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while (left := look()) and time.monotonic() < deadline:
        time.sleep(0.2)
    some = list(left.items() if isinstance(left, dict) else left)[:5]
    said = described(stack_of_environment(), left) if isinstance(left, dict) else ()
    assert not left, "\n".join((f"{len(left)} {what}, such as {some}", *said))
