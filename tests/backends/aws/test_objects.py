"""S3 as objects, by the guarantees of `fsdray.services`, and how its requests are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import boto3
import pytest

from fsdray import loop
from fsdray.backends.aws.clients import Clients
from fsdray.backends.aws.objects import AwsObjects
from fsdray.services import LARGE_OBJECT, gets, puts
from fsdray.testing import OBJECT_CHECKS
from tests.backends.aws.conftest import Aws

PREFIX = "runs/tests/"


Program = Callable[[AwsObjects, Counter[str]], Coroutine[Any, Any, None]]


class Objects:
    """Objects in a bucket, for one test after the other."""

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        self._counts: Counter[str] = Counter()
        self.clients = Clients(self._count)

    def run(self, program: Program) -> None:
        """Run a program with objects, and what they have counted since it began."""

        async def run() -> None:
            await self.clients.get("s3")
            self._counts.clear()
            await program(AwsObjects(self.clients, self.bucket, PREFIX), self._counts)

        loop.run(run())

    def _count(self, name: str, amount: float) -> None:
        self._counts[name] += int(amount)


@pytest.fixture(scope="module")
def bucket(aws: Aws) -> Iterator[Objects]:
    made = Objects(aws.stack.bucket)
    yield made
    loop.run(made.clients.close())


@pytest.mark.parametrize("check", OBJECT_CHECKS, ids=lambda check: check.__name__)
def test_objects_keep_their_guarantees(bucket: Objects, check: Any) -> None:
    async def program(objects: AwsObjects, counts: Counter[str]) -> None:
        await check(objects)

    bucket.run(program)


def test_a_large_object_goes_in_parts_and_each_is_counted(bucket: Objects) -> None:
    size = LARGE_OBJECT + 1
    data = [bytes(range(256)) * (LARGE_OBJECT // 512), b"!" * (LARGE_OBJECT // 2 + 1)]

    async def program(objects: AwsObjects, counts: Counter[str]) -> None:
        etag = await objects.put("large", data, if_absent=True)
        assert etag is not None
        assert counts == {"put": puts(size), "put_bytes": size}
        blob = await objects.get("large")
        assert blob is not None
        assert blob.data == b"".join(data)
        assert counts["get"] == gets(size) == 3
        assert counts["get_bytes"] == size
        assert await objects.put("large", data, if_absent=True) is None
        assert await objects.put("large", data, if_match=etag) is not None
        await objects.delete(["large"])

    bucket.run(program)
    told = boto3.client("s3").list_multipart_uploads(Bucket=bucket.bucket)
    assert not told.get("Uploads"), "parts are kept that nobody will complete"


def test_requests_are_counted_as_s3_bills_them(bucket: Objects) -> None:
    async def program(objects: AwsObjects, counts: Counter[str]) -> None:
        await objects.put("one", b"12345")
        await objects.put("one", b"x", if_absent=True)
        await objects.get("one")
        await objects.get("one", range=(1, 3))
        await objects.get("none")
        await objects.list("")
        await objects.delete(["one", "none"])
        assert counts == {
            "put": 2,
            "put_bytes": 6,
            "get": 2,
            "get_bytes": 7,
            "miss": 1,
            "list": 1,
            "delete": 1,
        }

    bucket.run(program)


def test_a_session_sees_its_own_objects_alone(bucket: Objects) -> None:
    async def program(objects: AwsObjects, counts: Counter[str]) -> None:
        other = AwsObjects(bucket.clients, bucket.bucket, "runs/test/")
        await objects.put("mine", b"1")
        assert await other.get("mine") is None
        assert await other.list("") == []
        assert await objects.list("") == ["mine"]
        await objects.delete(["mine"])

    bucket.run(program)


def test_a_put_whose_answer_was_lost_knows_itself(bucket: Objects) -> None:
    """It is sent again, as after an answer that was lost, and meets what it wrote itself."""

    async def program(objects: AwsObjects, counts: Counter[str]) -> None:
        s3 = await objects._client()
        s3.meta.events.register("needs-retry.s3.PutObject", _once_more, unique_id="again")
        etag = await objects.put("mine", b"1", if_absent=True)
        assert counts["put"] == 2, "it was sent once"
        assert etag is not None, "it did not know its own object again"
        assert counts["get"] == 1
        s3.meta.events.unregister("needs-retry.s3.PutObject", unique_id="again")
        assert await objects.put("mine", b"2", if_absent=True) is None
        await objects.delete(["mine"])

    bucket.run(program)


def _once_more(attempts: int, **_: Any) -> float | None:
    return 0.0 if attempts == 1 else None
