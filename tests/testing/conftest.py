"""A Lambda host for the tests of a module, and a client of it."""

from __future__ import annotations

import io
import json
import os
import select
import uuid
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config

from fsdray.testing import LambdaHost

ROLE = "arn:aws:iam::000000000000:role/test"
RUNTIME = "python3.11"
PATIENCE = 30.0  # seconds, after which what should have happened has not

Deploy = Callable[..., str]


def package(**sources: str) -> bytes:
    """A zip of modules by their names."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        for name, source in sources.items():
            zipped.writestr(f"{name}.py", source)
    return file.getvalue()


def connect(url: str, **settings: Any) -> Any:
    """A real client of the host that tries everything once."""
    return boto3.client(
        "lambda",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 1}, max_pool_connections=40, **settings),
    )


def deploy_to(client: Any, source: str, handler: str = "app.handler", **settings: Any) -> str:
    """Make a function of a module's source; its name."""
    name = f"f-{uuid.uuid4().hex[:8]}"
    client.create_function(
        FunctionName=name,
        Role=ROLE,
        Runtime=RUNTIME,
        Handler=handler,
        Code={"ZipFile": package(app=source)},
        **settings,
    )
    return name


def call(client: Any, name: str, event: object = None, **settings: Any) -> Any:
    """The value that a function gives."""
    answer = client.invoke(FunctionName=name, Payload=json.dumps(event).encode(), **settings)
    value = json.loads(answer["Payload"].read())
    assert "FunctionError" not in answer, value
    return value


def wait_for_end(pidfd: int) -> None:
    """Wait until a process that is not our child has ended."""
    assert select.select([pidfd], [], [], PATIENCE)[0], "it lives on"
    os.close(pidfd)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LambdaHost]:
    with LambdaHost(directory=tmp_path_factory.mktemp("host"), retry_waits=(0, 0)) as running:
        yield running


@pytest.fixture(scope="module")
def client(host: LambdaHost) -> Any:
    return connect(host.url)


@pytest.fixture(scope="module")
def deploy(client: Any) -> Deploy:
    def deployed(source: str, handler: str = "app.handler", **settings: Any) -> str:
        return deploy_to(client, source, handler, **settings)

    return deployed
