"""What is missing or does not fit is told before anything is billed, with what to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import fsdray as fsd
from fsdray.backends.aws import backend
from fsdray.errors import EnvironmentMismatch, FsdrayError, ServiceError, SettingsError
from tests.backends.aws.conftest import Aws, deployed

RUNNING = {"Invoke", "Publish", "PublishBatch", "SendMessageBatch", "ReceiveMessage"}
STORING = {"PutObject", "GetObject", "ListObjectsV2"}


@pytest.fixture(autouse=True)
def _no_session() -> Iterator[None]:
    yield
    fsd.shutdown()


@contextmanager
def nothing_asked(aws: Aws, *operations: str) -> Iterator[None]:
    """Within it no such request is made."""
    before = len(aws.emulator.requests())
    yield
    asked = {each["operation"] for each in aws.emulator.requests()[before:]}
    assert asked.isdisjoint(operations)


@pytest.fixture
def free(aws: Aws) -> Iterator[None]:
    """Within the test nothing is asked for that would be billed."""
    with nothing_asked(aws, *RUNNING, *STORING):
        yield


def refused(**settings: Any) -> str:
    """What `init` says."""
    with pytest.raises(FsdrayError) as raised:
        fsd.init("aws", **settings)
    assert not fsd.is_initialized()
    return str(raised.value)


@pytest.mark.usefixtures("free")
class TestInit:
    def test_without_credentials(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        assert "`aws configure`" in refused()

    def test_without_a_region(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
        monkeypatch.delenv("AWS_REGION")
        monkeypatch.delenv("AWS_DEFAULT_REGION")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        assert "FSDRAY_REGION or AWS_REGION" in refused()

    def test_with_a_profile_that_is_not_there(self) -> None:
        assert "aws configure list-profiles" in refused(profile="nobody")

    def test_without_a_stack(self) -> None:
        said = refused(stack="elsewhere")
        assert "no stack 'elsewhere' in us-east-1: run `fsdray deploy --stack elsewhere`" in said

    def test_with_nobody_at_the_endpoint(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        assert "AWS_ENDPOINT_URL" in refused()

    def test_with_a_stack_of_another_fsdray(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backend, "__version__", "99.0")
        with pytest.raises(EnvironmentMismatch, match=r"this is 99\.0: run `fsdray deploy`"):
            fsd.init("aws")

    def test_with_a_stack_of_another_python(
        self, aws: Aws, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = dataclasses.replace(aws.stack, python="3.99")
        monkeypatch.setattr(backend, "read_stack", lambda _: other)
        with pytest.raises(EnvironmentMismatch, match=r"3\.99, and this is .*: run `fsdray dep"):
            fsd.init("aws")


def test_a_gang_that_is_larger_than_the_pool_of_slots(aws: Aws) -> None:
    fsd.init("aws")
    ranks = aws.stack.slots + 1
    many = fsd.remote(world_size=ranks, channel="queue")(lambda: None)
    with (
        nothing_asked(aws, *RUNNING),
        pytest.raises(SettingsError, match=f"fsdray deploy --slots {ranks}"),
    ):
        fsd.get(many.remote())


def test_a_memory_that_no_function_has(aws: Aws) -> None:
    fsd.init("aws")
    with (
        nothing_asked(aws, *RUNNING),
        pytest.raises(SettingsError, match="the functions of this stack have 512, 1024"),
    ):
        fsd.get(fsd.remote(memory=9000)(lambda: None).remote())


def test_a_bucket_that_is_gone() -> None:
    import boto3

    with deployed() as aws:
        s3 = boto3.client("s3")
        listed = s3.list_objects_v2(Bucket=aws.stack.bucket)["Contents"]
        s3.delete_objects(
            Bucket=aws.stack.bucket, Delete={"Objects": [{"Key": each["Key"]} for each in listed]}
        )
        s3.delete_bucket(Bucket=aws.stack.bucket)
        fsd.init("aws")
        with pytest.raises(ServiceError, match="`fsdray deploy` to make it again"):
            fsd.put(np.zeros(1_000_000))
        with pytest.raises(ServiceError, match="bucket is not there"):
            fsd.shutdown()
