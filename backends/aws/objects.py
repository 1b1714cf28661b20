"""`fsdray.services.Objects` over S3: what is large goes in parts, and a condition is never lost.

All keys of a session lie below a prefix of its own. Requests are counted by `clients`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Sequence
from random import random
from typing import Any

import tenacity

from fsdray.backends.aws import border
from fsdray.backends.aws.clients import Clients, sized
from fsdray.errors import ServiceError
from fsdray.services import LARGE_OBJECT, MIB, Blob, Buffer, ObjectLimits, Pace, part_size

_AT_ONCE = 8  # parts of one process under way: what a function's network takes, and its memory
_READS = 4  # times that a body is asked for whose connection broke
_PIECE = MIB  # bytes that are taken from a connection at a time
_CONFLICTS = 10  # times that a put is sent again which met another put of the same key
_DELETES = 6  # times that keys are sent which a batch failed to delete, about 3 s in all
_PAUSE = 0.1  # seconds before the second of them; twice as long before each later one
_PASSING = {"InternalError", "ServiceUnavailable", "SlowDown", "OperationAborted"}
"""Why a key of a batch was not deleted, where that may be otherwise soon (S3's error codes)."""
_DIRECTORY = "--x-s3"  # ends the names of directory buckets
_OURS = "put"  # metadata by which a conditional put is known again
_CONFLICTING = ("ConditionalRequestConflict", "OperationAborted")


class AwsObjects:
    """Objects of one session in one bucket.

    Parameters
    ----------
    clients : of this process. bucket : its name; it may be a directory bucket of S3 Express.
    prefix : what all keys begin with in the bucket; callers neither give nor see it.
    """

    def __init__(self, clients: Clients, bucket: str, prefix: str) -> None:
        self._clients = clients
        self._bucket = bucket
        self._prefix = prefix
        self._lists_directories = bucket.endswith(_DIRECTORY)
        self._parts = asyncio.Semaphore(_AT_ONCE)
        self.limits = ObjectLimits(key=ObjectLimits().key - len(prefix))

    async def put(
        self,
        key: str,
        data: Buffer | Sequence[Buffer],
        *,
        if_absent: bool = False,
        if_match: str | None = None,
        is_attached: bool = False,
    ) -> str | None:
        self.limits.check_put(key, if_absent, if_match)
        parts = [data] if isinstance(data, bytes | bytearray | memoryview) else list(data)
        views = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        size = sum(view.nbytes for view in views)
        condition: dict[str, Any] = {}
        if if_absent:
            condition["IfNoneMatch"] = "*"
        elif if_match is not None:
            condition["IfMatch"] = if_match
        s3 = await self._client()
        named = {"Bucket": self._bucket, "Key": self._prefix + key}
        # A put whose answer was lost is sent again, and must know itself from another's.
        is_large = size > LARGE_OBJECT
        nonce = secrets.token_hex(8) if condition or is_large else ""
        marked: dict[str, Any] = {"Metadata": {_OURS: nonce}} if nonce else {}
        with border.crossing(f"putting the object {key!r}"):
            try:
                async for attempt in _after_conflicts():
                    with attempt:
                        if is_large:
                            answer = await self._put_parts(s3, named, marked, condition, views)
                        else:
                            with sized(put_bytes=size):
                                answer = await s3.put_object(
                                    **named, **marked, **condition, Body=_joined(views)
                                )
                return str(answer["ETag"])
            except Exception as error:
                if not nonce or not _says_no(error):
                    raise
                etag = await self._etag_if_ours(s3, named, nonce) if _was_repeated(error) else None
                if etag is None and not condition:
                    raise
                return etag

    async def get(
        self,
        key: str,
        *,
        range: tuple[int, int] | None = None,  # noqa: A002 - S3's own word
        wait: float | None = None,
        pace: Pace = Pace(),
    ) -> Blob | None:
        self.limits.check_get(key, range)
        clock = asyncio.get_running_loop().time
        deadline = clock() + (wait or 0.0)
        step = pace.first
        with border.crossing(f"getting the object {key!r}"):
            while True:
                blob = await self._look(key, range)
                left = deadline - clock()
                if blob is not None or left <= 0:
                    return blob
                await asyncio.sleep(min(step, left))
                step = min(step * pace.factor, pace.ceiling)

    async def list(self, prefix: str) -> list[str]:
        s3 = await self._client()
        found: list[str] = []
        whole = self._prefix + prefix
        asked = whole[: whole.rfind("/") + 1] if self._lists_directories else whole
        page: dict[str, Any] = {}
        with border.crossing(f"listing the objects {prefix!r}"):
            while True:
                answer = await s3.list_objects_v2(Bucket=self._bucket, Prefix=asked, **page)
                found += [each["Key"] for each in answer.get("Contents", ())]
                if not answer.get("IsTruncated"):
                    break
                page = {"ContinuationToken": answer["NextContinuationToken"]}
        return sorted(key[len(self._prefix) :] for key in found if key.startswith(whole))

    async def delete(self, keys: Sequence[str]) -> None:
        s3 = await self._client()
        for start in range(0, len(keys), self.limits.delete_keys):
            some = keys[start : start + self.limits.delete_keys]
            with border.crossing(f"deleting {len(some)} objects"):
                await self._delete(s3, [self._prefix + key for key in some])

    async def _delete(self, s3: Any, keys: Sequence[str]) -> None:
        """One batch, of which a part may fail: S3 says so with a 200, and no client looks."""
        left = list(keys)
        pause = _PAUSE
        for attempt in range(1, _DELETES + 1):
            answer = await s3.delete_objects(
                Bucket=self._bucket,
                Delete={"Objects": [{"Key": key} for key in left], "Quiet": True},
            )
            failed = answer.get("Errors") or ()
            if not failed:
                return
            first = failed[0]
            if attempt == _DELETES or any(each.get("Code") not in _PASSING for each in failed):
                raise ServiceError(
                    f"deleting {len(keys)} objects: {len(failed)} were not deleted; the first, "
                    f"{first.get('Key')!r}: {first.get('Code')}: {first.get('Message')}"
                )
            left = [each["Key"] for each in failed]
            await asyncio.sleep(pause * (0.5 + random()))
            pause *= 2

    async def _client(self) -> Any:
        return await self._clients.get("s3")

    # Putting

    async def _put_parts(
        self,
        s3: Any,
        named: dict[str, str],
        marked: dict[str, Any],
        condition: dict[str, Any],
        views: Sequence[memoryview],
    ) -> Any:
        """A multipart upload: the object is there as a whole or not at all."""
        size = sum(view.nbytes for view in views)
        step = part_size(size)
        begun = await s3.create_multipart_upload(**named, **marked)
        upload = {**named, "UploadId": begun["UploadId"]}

        async def send(number: int, start: int) -> dict[str, Any]:
            async with self._parts:
                body = _cut(views, start, start + step)
                with sized(put_bytes=len(body)):
                    answer = await s3.upload_part(**upload, PartNumber=number, Body=body)
            return {"PartNumber": number, "ETag": answer["ETag"]}

        try:
            async with asyncio.TaskGroup() as group:
                sending = [
                    group.create_task(send(number, start))
                    for number, start in enumerate(range(0, size, step), 1)
                ]
            parts = [each.result() for each in sending]
            return await s3.complete_multipart_upload(
                **upload, **condition, MultipartUpload={"Parts": parts}
            )
        except BaseException as error:
            # Parts that nobody completes are kept, and billed, until they are given up.
            with contextlib.suppress(Exception):  # the first error says more; a day ends them, too
                await asyncio.shield(s3.abort_multipart_upload(**upload))
            if isinstance(error, ExceptionGroup):
                raise error.exceptions[0] from error
            raise

    async def _etag_if_ours(self, s3: Any, named: dict[str, str], nonce: str) -> str | None:
        """The object's etag where this very put has written it; its answer was lost."""
        try:
            head = await s3.head_object(**named)
        except Exception as error:
            if border.status_of(error) == 404:
                return None
            raise
        return str(head["ETag"]) if head.get("Metadata", {}).get(_OURS) == nonce else None

    # Getting

    async def _look(self, key: str, span: tuple[int, int] | None) -> Blob | None:
        """One read, again where its connection broke; None where there is no such key."""
        s3 = await self._client()
        named = {"Bucket": self._bucket, "Key": self._prefix + key}
        for attempt in range(1, _READS + 1):
            try:
                return await self._read(s3, named, span)
            except Exception as error:
                status = border.status_of(error)
                if status == 404 and border.code_of(error) != "NoSuchBucket":
                    return None
                # 412: it was replaced between two of its parts.
                if attempt == _READS or not (status == 412 or border.was_cut(error)):
                    raise
        raise AssertionError("unreachable")

    async def _read(self, s3: Any, named: dict[str, str], span: tuple[int, int] | None) -> Blob:
        if span is not None and span[0] == span[1]:
            return await self._nothing(s3, named)
        asked = {} if span is None else {"Range": f"bytes={span[0]}-{span[1] - 1}"}
        try:
            answer = await s3.get_object(**named, **asked)
        except Exception as error:
            if border.status_of(error) == 416:  # it begins past the end
                return await self._nothing(s3, named)
            raise
        length = answer["ContentLength"]
        whole = length
        if span is not None and answer.get("ContentRange"):
            whole = int(answer["ContentRange"].rpartition("/")[2])
        etag = str(answer["ETag"])
        if length <= _PIECE:
            data = bytearray(await answer["Body"].read())
        else:
            data = bytearray(length)
            await self._fill(s3, named, memoryview(data), answer, span[0] if span else 0)
        self._clients.count("get_bytes", len(data))
        return Blob(memoryview(data), whole, etag)

    async def _fill(
        self, s3: Any, named: dict[str, str], data: memoryview, answer: Any, offset: int
    ) -> None:
        """Read a body in place; where it is large, all but its first part by other requests."""
        length = len(data)
        step = part_size(length) if length > LARGE_OBJECT else length

        async def take(start: int) -> None:
            end = min(start + step, length)
            async with self._parts:
                part = await s3.get_object(
                    **named,
                    IfMatch=answer["ETag"],
                    Range=f"bytes={offset + start}-{offset + end - 1}",
                )
                await _read_into(part["Body"], data[start:end])

        try:
            async with asyncio.TaskGroup() as group:
                for start in range(step, length, step):
                    group.create_task(take(start))
                await _read_into(answer["Body"], data[:step])
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors

    async def _nothing(self, s3: Any, named: dict[str, str]) -> Blob:
        """No bytes of an object: S3 has no empty range."""
        head = await s3.head_object(**named)
        return Blob(memoryview(bytearray()), head["ContentLength"], str(head["ETag"]))


async def _read_into(body: Any, data: memoryview) -> None:
    at = 0
    while at < len(data):
        piece = await body.read(min(_PIECE, len(data) - at))
        if not piece:
            raise ConnectionResetError(f"an object ended after {at} of {len(data)} bytes")
        data[at : at + len(piece)] = piece
        at += len(piece)
    body.close()


def _joined(views: Sequence[memoryview]) -> bytes | bytearray:
    """One body of them, copied only where they are several."""
    if len(views) == 1 and isinstance(views[0].obj, bytes | bytearray):
        whole = views[0].obj
        if len(whole) == views[0].nbytes:
            return whole
    return b"".join(views)


def _cut(views: Sequence[memoryview], start: int, end: int) -> bytes:
    """Bytes from `start` up to `end` of what the views are together."""
    found = []
    for view in views:
        if start < len(view) and end > 0:
            found.append(view[max(0, start) : end])
        start, end = start - len(view), end - len(view)
    return b"".join(found)


def _after_conflicts() -> tenacity.AsyncRetrying:
    """Sends a put again which met another of its key: S3 wrote neither, and says so."""
    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(
            lambda error: (
                border.code_of(error) in ("ConditionalRequestConflict", "OperationAborted")
            )
        ),
        wait=tenacity.wait_random_exponential(multiplier=0.05, max=1.0),
        stop=tenacity.stop_after_attempt(_CONFLICTS),
        reraise=True,
    )


def _says_no(error: Exception) -> bool:
    """Whether S3 says that a condition does not hold: of a key that is not there, by a 404."""
    status, code = border.status_of(error), border.code_of(error)
    return status == 412 or (status == 404 and code != "NoSuchBucket")


def _was_repeated(error: Any) -> bool:
    return bool(error.response.get("ResponseMetadata", {}).get("RetryAttempts"))
