"""Where the pool of slots is kept: one object in the stack's bucket, written on condition."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from fsdray.backends.aws import border
from fsdray.backends.aws.clients import Clients
from fsdray.backends.aws.pool import KEY

_READS = 4  # times that it is asked for where an answer breaks off, which no client looks after
_REFUSED = {"PreconditionFailed", "ConditionalRequestConflict", "OperationAborted", "412", "409"}


class PoolObject:
    """See `fsdray.backends.aws.leases.Store`; each look counts as a ``lease``."""

    def __init__(self, clients: Clients, bucket: str) -> None:
        self._clients = clients
        self._named = {"Bucket": bucket, "Key": KEY}

    async def read(self) -> tuple[str | None, str | None, float]:
        s3 = await self._clients.get("s3", None)
        self._clients.count("lease", 1)
        with border.crossing("looking for free inboxes"):
            for attempt in range(1, _READS + 1):
                try:
                    answer = await s3.get_object(**self._named)
                    async with answer["Body"] as body:
                        return (await body.read()).decode(), answer["ETag"], _date(answer)
                except Exception as error:
                    if border.code_of(error) in ("NoSuchKey", "404"):
                        return None, None, _date(getattr(error, "response", {}))
                    if attempt == _READS or not border.was_cut(error):
                        raise
                self._clients.count("lease", 1)
        raise AssertionError("unreachable")

    async def write(self, text: str, etag: str | None) -> bool:
        s3 = await self._clients.get("s3", None)
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        with border.crossing("leasing inboxes"):
            try:
                await s3.put_object(**self._named, **condition, Body=text.encode())
            except Exception as error:
                # Not there any more: whoever removed it, the next look sees it.
                if border.code_of(error) in _REFUSED or border.code_of(error) == "NoSuchKey":
                    return False
                raise
        return True


def _date(answer: Mapping[str, Any]) -> float:
    """The store's own time, in whole seconds."""
    headers = (answer.get("ResponseMetadata") or {}).get("HTTPHeaders") or {}
    told = headers.get("date")
    if told is None:  # S3 always tells; to what is no S3, one clock is as good as another
        return time.time()
    from email.utils import parsedate_to_datetime  # AWS's client brings it; a cold start need not

    return parsedate_to_datetime(told).timestamp()
