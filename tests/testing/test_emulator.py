"""The emulator: AWS's clients reach all services, each request is written down, nothing is left."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, WaiterError

from fsdray.errors import ServiceError, SettingsError
from fsdray.testing.emulator import Emulator, packages
from tests.conftest import processes

TEMPLATE = """
Parameters:
  Key: {Type: String}
  Memory: {Type: Number, Default: "128"}
Resources:
  Function:
    Type: AWS::Lambda::Function
    Properties:
      FunctionName: !Sub "${AWS::StackName}-function"
      Runtime: python3.11
      Handler: app.handler
      MemorySize: !Ref Memory
      Timeout: 5
      Role: !Sub "arn:aws:iam::${AWS::AccountId}:role/any"
      Code: {S3Bucket: emulated-code, S3Key: !Ref Key}
      Environment: {Variables: {SAID: !Ref AWS::StackName}}
      RecursiveLoop: Allow
      Tags: [{Key: made-by, Value: a test}]
  Version:
    Type: AWS::Lambda::Version
    Properties: {FunctionName: !Ref Function, Description: !Ref Key}
  Alias:
    Type: AWS::Lambda::Alias
    Properties:
      FunctionName: !Ref Function
      FunctionVersion: !GetAtt Version.Version
      Name: live
  Once:
    Type: AWS::Lambda::EventInvokeConfig
    Properties: {FunctionName: !Ref Function, Qualifier: $LATEST, MaximumRetryAttempts: 0}
Outputs:
  Arn: {Value: !GetAtt Function.Arn}
"""


def client(emulator: Emulator, service: str) -> Any:
    """A client of the emulator, whatever the environment of the tests says."""
    where = emulator.environment
    is_lambda = service == "lambda"
    return boto3.client(
        service,
        endpoint_url=where["AWS_ENDPOINT_URL_LAMBDA" if is_lambda else "AWS_ENDPOINT_URL"],
        region_name=where["AWS_REGION"],
        aws_access_key_id=where["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=where["AWS_SECRET_ACCESS_KEY"],
        config=Config(retries={"total_max_attempts": 1}),
    )


def code(source: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("app.py", source)
    return file.getvalue()


def admitting(topic: str, queue: str) -> str:
    """A queue's policy that lets one topic send to it."""
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": f"arn:aws:sqs:us-east-1:{topic.split(':')[4]}:{queue}",
        "Condition": {"ArnEquals": {"aws:SourceArn": topic}},
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


@pytest.fixture
def seen(emulator: Emulator) -> Any:
    """Gives the requests since the test began, without those of the Lambda host's logs."""
    before = len(emulator.requests())
    return lambda: [r for r in emulator.requests()[before:] if r["service"] != "logs"]


def test_functions_of_a_stack_run_in_the_lambda_host(emulator: Emulator) -> None:
    s3, stacks = client(emulator, "s3"), client(emulator, "cloudformation")
    functions = client(emulator, "lambda")
    s3.create_bucket(Bucket="emulated-code")
    for key, said in ("one.zip", "1"), ("two.zip", "2"):
        told = f"{said}, c.memory_limit_in_mb, os.environ['SAID']"
        source = f"import os\ndef handler(e, c): return [{told}]"
        s3.put_object(Bucket="emulated-code", Key=key, Body=code(source))

    def answer(qualifier: str) -> Any:
        done = functions.invoke(FunctionName="in-a-stack-function", Qualifier=qualifier)
        return json.load(done["Payload"])

    def parameters(**values: str) -> Any:
        return [{"ParameterKey": k, "ParameterValue": v} for k, v in values.items()]

    stacks.create_stack(
        StackName="in-a-stack", TemplateBody=TEMPLATE, Parameters=parameters(Key="one.zip")
    )
    wait = {"Delay": 0.05, "MaxAttempts": 200}
    stacks.get_waiter("stack_create_complete").wait(StackName="in-a-stack", WaiterConfig=wait)
    assert answer("$LATEST") == answer("live") == [1, "128", "in-a-stack"]
    made = functions.get_function(FunctionName="in-a-stack-function")
    assert made["Tags"]["made-by"] == "a test"
    once = functions.get_function_event_invoke_config(FunctionName="in-a-stack-function")
    assert once["MaximumRetryAttempts"] == 0
    stacks.update_stack(
        StackName="in-a-stack",
        TemplateBody=TEMPLATE,
        Parameters=parameters(Key="two.zip", Memory="256"),
    )
    stacks.get_waiter("stack_update_complete").wait(StackName="in-a-stack", WaiterConfig=wait)
    assert answer("$LATEST") == answer("live") == [2, "256", "in-a-stack"]
    # What the host refuses fails the stack, which goes back to what it was.
    stacks.update_stack(
        StackName="in-a-stack", TemplateBody=TEMPLATE, Parameters=parameters(Key="no.zip")
    )
    with pytest.raises(WaiterError):
        stacks.get_waiter("stack_update_complete").wait(StackName="in-a-stack", WaiterConfig=wait)
    events = stacks.describe_stack_events(StackName="in-a-stack")["StackEvents"]
    reasons = [event.get("ResourceStatusReason", "") for event in events]
    assert any("NoSuchKey" in reason for reason in reasons)
    assert answer("$LATEST") == [2, "256", "in-a-stack"]
    stacks.delete_stack(StackName="in-a-stack")
    stacks.get_waiter("stack_delete_complete").wait(StackName="in-a-stack", WaiterConfig=wait)
    with pytest.raises(ClientError, match="ResourceNotFound"):
        functions.get_function(FunctionName="in-a-stack-function")


def test_requests_are_written_down_as_a_bill_would_count_them(
    emulator: Emulator, seen: Any
) -> None:
    s3, sqs, sns = (client(emulator, name) for name in ("s3", "sqs", "sns"))
    s3.create_bucket(Bucket="counted")
    s3.put_object(Bucket="counted", Key="a/b", Body=b"x" * 1000)
    s3.get_object(Bucket="counted", Key="a/b", Range="bytes=0-9")
    with pytest.raises(ClientError):
        s3.put_object(Bucket="counted", Key="a/b", Body=b"y", IfNoneMatch="*")
    with pytest.raises(ClientError):
        s3.get_object(Bucket="counted", Key="none")
    s3.list_objects_v2(Bucket="counted")
    s3.delete_objects(Bucket="counted", Delete={"Objects": [{"Key": "a/b"}]})
    topic = sns.create_topic(Name="counted-topic")["TopicArn"]
    queue = sqs.create_queue(
        QueueName="counted-queue", Attributes={"Policy": admitting(topic, "counted-queue")}
    )["QueueUrl"]
    sns.subscribe(
        TopicArn=topic,
        Protocol="sqs",
        Endpoint=f"arn:aws:sqs:us-east-1:{topic.split(':')[4]}:counted-queue",
        Attributes={"RawMessageDelivery": "true", "FilterPolicy": '{"to": ["0017"]}'},
    )
    to = {"DataType": "String.Array", "StringValue": '["0017","0042"]'}
    body = {"DataType": "Binary", "BinaryValue": b"\0" * 108}
    sns.publish_batch(
        TopicArn=topic,
        PublishBatchRequestEntries=[
            {"Id": str(i), "Message": ".", "MessageAttributes": {"b": body, "to": to}}
            for i in range(2)
        ],
    )
    sqs.send_message_batch(
        QueueUrl=queue,
        Entries=[{"Id": "1", "MessageBody": ".", "MessageAttributes": {"b": body}}],
    )
    messages = sqs.receive_message(
        QueueUrl=queue, WaitTimeSeconds=1, MaxNumberOfMessages=10, MessageAttributeNames=["b"]
    )["Messages"]
    held = [{"Id": str(i), "ReceiptHandle": m["ReceiptHandle"]} for i, m in enumerate(messages)]
    held.append({"Id": "none", "ReceiptHandle": "none"})
    sqs.delete_message_batch(QueueUrl=queue, Entries=held)
    sqs.receive_message(QueueUrl=queue)
    told = ("service", "operation", "status", "messages", "entries", "failed", "error")
    lines = [tuple(line[name] for name in told if line.get(name) is not None) for line in seen()]
    # A message counts its body, and of each attribute the name, the type and the value.
    direct = 1 + (1 + 6 + 108)
    published = direct + (2 + 12 + 15)
    assert lines[:7] == [
        ("s3", "CreateBucket", 200),
        ("s3", "PutObject", 200),
        ("s3", "GetObject", 206),
        ("s3", "PutObject", 412, "PreconditionFailed"),
        ("s3", "GetObject", 404, "NoSuchKey"),
        ("s3", "ListObjectsV2", 200),
        ("s3", "DeleteObjects", 200),
    ]
    assert lines[10:] == [
        ("sns", "PublishBatch", 200, [published, published]),
        ("sqs", "SendMessageBatch", 200, [direct]),
        ("sqs", "ReceiveMessage", 200, [direct] * len(messages)),
        ("sqs", "DeleteMessageBatch", 200, len(messages) + 1, 1),
        ("sqs", "ReceiveMessage", 200, []),
    ]
    assert len(messages) == 3
    assert {m["MessageAttributes"]["b"]["BinaryValue"] for m in messages} == {b"\0" * 108}


def test_a_batch_has_the_size_that_sns_takes(emulator: Emulator) -> None:
    sns = client(emulator, "sns")
    topic = sns.create_topic(Name="batches")["TopicArn"]

    def publish(*sizes: int) -> Any:
        return sns.publish_batch(
            TopicArn=topic,
            PublishBatchRequestEntries=[
                {
                    "Id": str(i),
                    "Message": ".",
                    "MessageAttributes": {
                        "b": {"DataType": "Binary", "BinaryValue": bytes(size - 8)}
                    },
                }
                for i, size in enumerate(sizes)
            ],
        )

    assert len(publish(100_000, 162_144)["Successful"]) == 2
    with pytest.raises(ClientError, match="BatchRequestTooLong"):
        publish(100_000, 162_145)


def test_no_message_passes_where_a_queue_does_not_admit_it(emulator: Emulator) -> None:
    sqs, sns = client(emulator, "sqs"), client(emulator, "sns")
    topic = sns.create_topic(Name="not-admitted")["TopicArn"]
    account = topic.split(":")[4]
    arn = f"arn:aws:sqs:us-east-1:{account}:admits-another"
    policy = admitting(f"{topic}-another", "admits-another")
    queue = sqs.create_queue(QueueName="admits-another", Attributes={"Policy": policy})["QueueUrl"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    sns.publish(TopicArn=topic, Message="not for you")
    assert "Messages" not in sqs.receive_message(QueueUrl=queue)


def test_it_leaves_no_process_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = processes()
    with Emulator(concurrency=7) as emulator:
        settings = client(emulator, "lambda").get_account_settings()
        assert settings["AccountLimit"]["ConcurrentExecutions"] == 7
        inside = emulator.access_log
        assert inside.is_relative_to(tmp_path)
    assert processes() <= before
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ServiceError, match="not running"):
        _ = emulator.environment


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = (
        "import os, signal\n"
        "from fsdray.testing.emulator import Emulator\n"
        "emulator = Emulator().start()\n"
        "print(*emulator.pids, flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as owner:
        assert owner.stdout is not None
        handles = [os.pidfd_open(int(pid)) for pid in owner.stdout.readline().split()]
        owner.send_signal(signal.SIGKILL)
    for handle in handles:
        assert select.select([handle], [], [], 20)[0], "a process did not end"
        os.close(handle)
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_named(emulator: Emulator) -> None:
    port = int(emulator.url.rpartition(":")[2])
    with pytest.raises(SettingsError, match=f"port={port}: cannot listen"):
        Emulator(port=port).start()


def test_what_pip_cannot_install_is_an_error_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        SettingsError, match=r"could not install ministack==0.0.1(.|\n)*No matching"
    ):
        packages.installed(tmp_path, "ministack==0.0.1")
    assert [path.suffix for path in (tmp_path / "emulator").iterdir()] == [".lock"]
