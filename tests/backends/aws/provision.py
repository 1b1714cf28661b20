"""Topics, queues and a bucket as a stack has them, made by hand: small, on any server, at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3

from fsdray.backends.aws.stack import Stack
from fsdray.settings import resolve
from fsdray.testing.emulator.packages import installed

REGION = "us-east-1"
MOTO = "moto[s3]==5.2.5\nflask\nflask-cors"  # as test_moto.py has it: installed once
_SERVER = """
import base64, sys
sys.path.insert(0, sys.argv[1])
from moto.sqs.models import SQSBackend
plain = SQSBackend.send_message
def send_message(self, queue_name, message_body, message_attributes=None, **more):
    # What crosses from SNS raw has its binary attributes as base64 still.
    for value in (message_attributes or {}).values():
        if isinstance(value.get("BinaryValue"), str):
            value["BinaryValue"] = base64.b64decode(value["BinaryValue"])
    return plain(self, queue_name, message_body, message_attributes=message_attributes, **more)
SQSBackend.send_message = send_message
from werkzeug.serving import make_server
from moto.server import DomainDispatcherApplication, create_backend_app
server = make_server(
    "127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True
)
print(server.port, flush=True)
server.serve_forever()
"""


def control(service: str, url: str) -> Any:
    """A client that blocks, for what tests do to a server."""
    return boto3.client(
        service,
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id="local",
        aws_secret_access_key="local",
    )


@contextmanager
def moto() -> Iterator[str]:
    """moto's server in a process of its own; its URL."""
    packages = installed(resolve({}).cache_directory, MOTO)
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _SERVER, str(packages)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


def provision(url: str, name: str, *, slots: int, fanout: int, visibility: int) -> Stack:
    """A stack without functions; `fanout` slots share a topic."""
    s3, sqs, sns = (control(service, url) for service in ("s3", "sqs", "sns"))
    s3.create_bucket(Bucket=name)
    topics = [
        sns.create_topic(Name=f"{name}-group-{group}")["TopicArn"]
        for group in range(-(-slots // fanout))
    ]
    account = topics[0].split(":")[4]
    prefix = ""
    for slot in range(slots):
        queue = f"{name}-slot-{slot:04}"
        arn = f"arn:aws:sqs:{REGION}:{account}:{queue}"
        admits = {
            "Effect": "Allow",
            "Principal": {"Service": "sns.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": arn,
            "Condition": {"ArnEquals": {"aws:SourceArn": topics[slot // fanout]}},
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [admits]})
        made = sqs.create_queue(
            QueueName=queue, Attributes={"VisibilityTimeout": str(visibility), "Policy": policy}
        )
        prefix = made["QueueUrl"][:-4]
        sns.subscribe(
            TopicArn=topics[slot // fanout],
            Protocol="sqs",
            Endpoint=arn,
            Attributes={
                "RawMessageDelivery": "true",
                "FilterPolicy": json.dumps({"to": [f"{slot:04}"]}),
            },
        )
    return Stack(
        name=name,
        version="",
        region=REGION,
        account=account,
        python="",
        architecture="",
        bucket=name,
        functions={},
        topics=tuple(topics),
        queues=prefix,
        slots=slots,
    )


def waiting(url: str, stack: Stack) -> dict[int, int]:
    """Messages in the queues, those that somebody has taken and not deleted among them."""
    sqs = control("sqs", url)
    found = {}
    for slot in range(stack.slots):
        told = sqs.get_queue_attributes(
            QueueUrl=f"{stack.queues}{slot:04}", AttributeNames=["All"]
        )["Attributes"]
        found[slot] = int(told["ApproximateNumberOfMessages"]) + int(
            told["ApproximateNumberOfMessagesNotVisible"]
        )
    return {slot: count for slot, count in found.items() if count}
