"""What is missing or does not fit is told before anything is billed, with what to run."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import fsdray as fsd
from fsdray.backends.aws import backend
from fsdray.backends.aws.deploy import deploy
from fsdray.errors import EnvironmentMismatch, FsdrayError, ServiceError, SettingsError
from tests import leftovers
from tests.backends.aws.conftest import Aws, Silent, deployed

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


def test_what_a_user_sees_of_a_setting_that_is_wrong(aws: Aws) -> None:
    told = run_by_user("import fsdray as fsd\nfsd.init('aws', stack='elsewhere')")
    assert "botocore" not in told
    assert told.count("Traceback") == 1
    assert told.splitlines()[-1].startswith("fsdray.errors.SettingsError: there is no stack")


@pytest.mark.thorough("it deploys a stack twice")
def test_what_a_user_sees_of_a_stack_that_somebody_took_apart() -> None:
    import boto3

    from fsdray.cli import main

    with deployed() as aws:
        # Of the queues that a gang leases first, and then the bucket.
        boto3.client("sqs").delete_queue(QueueUrl=f"{aws.stack.queues}0001")
        told = run_by_user(GANG)
        assert "a queue of the stack is not there" in told
        assert "run `fsdray doctor` to see all that is missing" in told.splitlines()[-2]
        assert "at the end of the session" not in told  # what is left is given back all the same
        leftovers.check(aws.stack, but_of={1})
        s3 = boto3.client("s3")
        for each in s3.list_objects_v2(Bucket=aws.stack.bucket)["Contents"]:
            s3.delete_object(Bucket=aws.stack.bucket, Key=each["Key"])
        s3.delete_bucket(Bucket=aws.stack.bucket)
        told = run_by_user(GANG)
        assert told.count("Traceback") == 2  # AWS's own error, and what it means
        assert told.splitlines()[-1].startswith("fsdray: at the end of the session: ")
        fsd.init("aws")
        with pytest.raises(ServiceError, match="`fsdray destroy`, then `fsdray deploy`, make it"):
            fsd.put(np.zeros(1_000_000))
        with pytest.raises(ServiceError, match="bucket is not there"):
            fsd.shutdown()
        # What the doctor says to run helps.
        assert main(["doctor"]) == 1
        assert main(["destroy", "--yes"]) == 0
        deploy(aws.settings, {"slots": 20}, Silent(), is_bare=True)
        assert main(["doctor"]) == 0


GANG = """
import fsdray as fsd

fsd.init("aws")

@fsd.remote(world_size=3, channel="queue", max_retries=0)
def total():
    return fsd.collective.world().allreduce(1)

fsd.get(total.remote())
"""


def run_by_user(program: str) -> str:
    """What a program writes to stderr that ends with an error."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr
