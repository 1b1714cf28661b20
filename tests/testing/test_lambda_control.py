"""The Lambda host's control API, through AWS's own client."""

from __future__ import annotations

import base64
import hashlib
import inspect
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.exceptions import ClientError

from fsdray.testing import LambdaHost
from fsdray.testing.lambda_host.control import Control
from fsdray.testing.lambda_host.routes import _OPERATIONS, find_route
from tests.testing.conftest import ROLE, RUNTIME, Deploy, call, connect, package

pytest.importorskip("awslambdaric", reason="the test extra has it")


ONE = "def handler(event, context): return 1"
TWO = "def handler(event, context): return 2"


def test_every_operation_is_one_of_the_services_own() -> None:
    model = botocore.session.get_session().get_service_model("lambda")
    for method, path, name in _OPERATIONS:
        http = model.operation_model(name).http
        generic = re.sub(r"\{\w+\}", "{}", path)
        assert (http["method"], re.sub(r"\{\w+\}", "{}", http["requestUri"]).rstrip("/")) == (
            method,
            generic,
        )
        assert find_route(method, path.replace("{", "").replace("}", ""))[0] == name
        operation = getattr(Control, re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower())
        assert inspect.iscoroutinefunction(operation)


def test_a_function_is_made_told_and_deleted(client: Any) -> None:
    code = package(app=ONE)
    made = client.create_function(
        FunctionName="made",
        Role=ROLE,
        Runtime=RUNTIME,
        Handler="app.handler",
        Code={"ZipFile": code},
        MemorySize=512,
        Timeout=9,
        Description="a function",
        Environment={"Variables": {"A": "1"}},
        Tags={"owner": "me"},
        Architectures=["arm64"],
    )
    assert made["ResponseMetadata"]["HTTPStatusCode"] == 201
    assert (made["State"], made["StateReasonCode"]) == ("Pending", "Creating")
    assert made["CodeSha256"] == base64.b64encode(hashlib.sha256(code).digest()).decode()
    client.get_waiter("function_active_v2").wait(FunctionName="made")
    for name in ("made", made["FunctionArn"], "000000000000:function:made", "made:$LATEST"):
        told = client.get_function(FunctionName=name)
        assert told["Configuration"]["FunctionArn"] == made["FunctionArn"]
    configuration = told["Configuration"]
    expected = {
        "FunctionName": "made",
        "Role": ROLE,
        "Runtime": RUNTIME,
        "Handler": "app.handler",
        "CodeSize": len(code),
        "MemorySize": 512,
        "Timeout": 9,
        "Description": "a function",
        "Environment": {"Variables": {"A": "1"}},
        "Architectures": ["arm64"],
        "Version": "$LATEST",
        "State": "Active",
        "LastUpdateStatus": "Successful",
        "PackageType": "Zip",
        "EphemeralStorage": {"Size": 512},
        "LoggingConfig": {"LogFormat": "Text", "LogGroup": "/aws/lambda/made"},
    }
    assert {name: configuration[name] for name in expected} == expected
    assert told["Tags"] == {"owner": "me"}
    assert client.get_function_configuration(FunctionName="made")["MemorySize"] == 512
    assert "made" in [f["FunctionName"] for f in client.list_functions()["Functions"]]
    with pytest.raises(client.exceptions.ResourceConflictException, match="already exist: made"):
        client.create_function(
            FunctionName="made",
            Role=ROLE,
            Runtime=RUNTIME,
            Handler="app.handler",
            Code={"ZipFile": code},
        )
    client.delete_function(FunctionName="made")
    for ask in (client.get_function, client.delete_function, client.invoke):
        with pytest.raises(client.exceptions.ResourceNotFoundException):
            ask(FunctionName="made")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"Timeout": 901}, "less than or equal to 900"),
        ({"MemorySize": 10_241}, "less than or equal to 10240"),
        ({"Runtime": "nodejs22.x"}, "runtime"),
        ({"Environment": {"Variables": {"AWS_REGION": "mars"}}}, "request: AWS_REGION"),
        ({"Environment": {"Variables": {"A": "x" * 5000}}}, "4KB limit"),
        ({"Code": {"ZipFile": b"no zip"}}, "Could not unzip uploaded file"),
        ({"Code": {"S3Bucket": "bucket", "S3Key": "key"}}, "endpoint_url"),
        ({"Code": {}}, "provide a source for function code"),
        ({"Layers": ["arn:aws:lambda:us-east-1:000000000000:layer:x:1"]}, "no layers"),
        ({"FunctionName": "a name"}, "regular expression pattern"),
    ],
)
def test_what_lambda_would_refuse_is_refused(client: Any, given: Any, message: str) -> None:
    asked = {
        "FunctionName": "refused",
        "Role": ROLE,
        "Runtime": RUNTIME,
        "Handler": "app.handler",
        "Code": {"ZipFile": package(app=ONE)},
    }
    with pytest.raises(ClientError, match=re.escape(message)) as caught:
        client.create_function(**asked | given)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        client.get_function(FunctionName="refused")


def test_new_code_and_settings_run_in_new_environments(client: Any, deploy: Deploy) -> None:
    name = deploy(ONE)
    assert call(client, name) == 1
    changed = client.update_function_code(FunctionName=name, ZipFile=package(app=TWO))
    assert changed["LastUpdateStatus"] == "InProgress"
    client.get_waiter("function_updated_v2").wait(FunctionName=name)
    assert call(client, name) == 2
    client.update_function_configuration(FunctionName=name, Description="kept")
    client.update_function_configuration(
        FunctionName=name, Environment={"Variables": {"B": "2"}}, MemorySize=256
    )
    told = client.get_function_configuration(FunctionName=name)
    assert (told["Description"], told["MemorySize"]) == ("kept", 256)
    assert told["Environment"] == {"Variables": {"B": "2"}}
    with pytest.raises(ClientError, match="Revision Id"):
        client.update_function_configuration(FunctionName=name, RevisionId="old", Timeout=5)


def test_versions_and_aliases_are_called_by_their_names(client: Any, deploy: Deploy) -> None:
    name = deploy(ONE)
    first = client.publish_version(FunctionName=name, Description="first")
    assert first["Version"] == "1"
    assert first["FunctionArn"].endswith(f":{name}:1")
    assert client.publish_version(FunctionName=name)["Version"] == "2", "the description changed"
    assert client.publish_version(FunctionName=name)["Version"] == "2", "nothing changed"
    client.create_alias(FunctionName=name, Name="live", FunctionVersion="1")
    client.update_function_code(FunctionName=name, ZipFile=package(app=TWO))
    assert call(client, name) == 2
    for qualifier in ("1", "live"):
        answer = client.invoke(FunctionName=name, Qualifier=qualifier)
        assert (answer["ExecutedVersion"], answer["Payload"].read()) == ("1", b"1")
    assert call(client, f"{name}:live") == 1
    client.update_alias(FunctionName=name, Name="live", FunctionVersion="$LATEST")
    assert call(client, name, Qualifier="live") == 2
    versions = client.list_versions_by_function(FunctionName=name)["Versions"]
    assert [version["Version"] for version in versions] == ["$LATEST", "1", "2"]
    assert [x["Name"] for x in client.list_aliases(FunctionName=name)["Aliases"]] == ["live"]
    client.delete_alias(FunctionName=name, Name="live")
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        client.get_alias(FunctionName=name, Name="live")
    client.delete_function(FunctionName=name, Qualifier="1")
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        client.invoke(FunctionName=name, Qualifier="1")


def test_concurrency_is_reserved_within_the_account(client: Any, deploy: Deploy) -> None:
    name = deploy(ONE)
    limits = client.get_account_settings()["AccountLimit"]
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=7)
    assert client.get_function_concurrency(FunctionName=name)["ReservedConcurrentExecutions"] == 7
    assert client.get_function(FunctionName=name)["Concurrency"] == {
        "ReservedConcurrentExecutions": 7
    }
    now = client.get_account_settings()["AccountLimit"]
    assert now["ConcurrentExecutions"] == limits["ConcurrentExecutions"] == 1000
    left = limits["UnreservedConcurrentExecutions"]
    assert now["UnreservedConcurrentExecutions"] == left - 7
    with pytest.raises(ClientError, match=r"below its minimum value of \[100\]"):
        client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=901)
    client.delete_function(FunctionName=name)
    now = client.get_account_settings()["AccountLimit"]
    assert now["UnreservedConcurrentExecutions"] == left


def test_settings_of_asynchronous_calls_and_loops_are_kept(client: Any, deploy: Deploy) -> None:
    name = deploy(ONE)
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        client.get_function_event_invoke_config(FunctionName=name)
    client.put_function_event_invoke_config(FunctionName=name, MaximumRetryAttempts=1)
    client.update_function_event_invoke_config(FunctionName=name, MaximumEventAgeInSeconds=60)
    config = client.get_function_event_invoke_config(FunctionName=name)
    assert (config["MaximumRetryAttempts"], config["MaximumEventAgeInSeconds"]) == (1, 60)
    with pytest.raises(ClientError, match="sends results nowhere"):
        client.put_function_event_invoke_config(
            FunctionName=name,
            DestinationConfig={"OnFailure": {"Destination": "arn:aws:sqs:us-east-1:1:q"}},
        )
    client.delete_function_event_invoke_config(FunctionName=name)
    assert client.get_function_recursion_config(FunctionName=name)["RecursiveLoop"] == "Terminate"
    client.put_function_recursion_config(FunctionName=name, RecursiveLoop="Allow")
    assert client.get_function_recursion_config(FunctionName=name)["RecursiveLoop"] == "Allow"


def test_tags_and_permissions_are_kept(client: Any, deploy: Deploy) -> None:
    name = deploy(ONE)
    arn = client.get_function_configuration(FunctionName=name)["FunctionArn"]
    client.tag_resource(Resource=arn, Tags={"a": "1", "b": "2"})
    client.untag_resource(Resource=arn, TagKeys=["a"])
    assert client.list_tags(Resource=arn)["Tags"] == {"b": "2"}
    asked = {
        "FunctionName": name,
        "StatementId": "topic",
        "Action": "lambda:InvokeFunction",
        "Principal": "sns.amazonaws.com",
    }
    statement = json.loads(client.add_permission(**asked)["Statement"])
    assert statement["Principal"] == {"Service": "sns.amazonaws.com"}
    with pytest.raises(client.exceptions.ResourceConflictException):
        client.add_permission(**asked)
    policy = json.loads(client.get_policy(FunctionName=name)["Policy"])
    assert policy["Statement"] == [statement]
    client.remove_permission(FunctionName=name, StatementId="topic")
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        client.get_policy(FunctionName=name)


class Bucket(BaseHTTPRequestHandler):
    """An S3 that has one object."""

    def do_GET(self) -> None:
        found = self.path == "/bucket/code.zip"
        error = b"<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>"
        body = package(app=TWO) if found else error
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def s3() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_code_comes_from_s3(s3: str, tmp_path: Path) -> None:
    with LambdaHost(directory=tmp_path, endpoint_url=s3) as host:
        client = connect(host.url)
        asked = {"FunctionName": "f", "Role": ROLE, "Runtime": RUNTIME, "Handler": "app.handler"}
        with pytest.raises(ClientError, match="S3 Error Code: NoSuchKey"):
            client.create_function(Code={"S3Bucket": "bucket", "S3Key": "other"}, **asked)
        client.create_function(Code={"S3Bucket": "bucket", "S3Key": "code.zip"}, **asked)
        assert call(client, "f") == 2
