"""The functions' logs in CloudWatch Logs, where the service would put them.

Lambda writes them with the function's own role: here too nobody makes the log group, which the
stack does. Events are sent in batches, some time after they happened, as the service does.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from fsdray.testing.lambda_host.logs import Event

_PAUSE = 0.1  # seconds in which events gather
_EVENTS = 1000  # of one PutLogEvents; the service takes 10,000, in 1 MB
_BYTES = 1_000_000
_OVERHEAD = 26  # bytes that an event counts besides its message (PutLogEvents' reference)


class CloudWatch:
    """Takes events and sends them; those of a group that is not there are dropped.

    Parameters
    ----------
    client : of CloudWatch Logs, aiobotocore's.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._waiting: list[Event] = []
        self._has_come = asyncio.Event()
        self._streams: set[tuple[str, str]] = set()
        self._has_complained = False

    def emit(self, event: Event) -> None:
        """Send an event soon."""
        self._waiting.append(event)
        self._has_come.set()

    async def run(self) -> None:
        """Send what comes, until cancelled."""
        while True:
            await self._has_come.wait()
            await asyncio.sleep(_PAUSE)
            await self.flush()

    async def flush(self) -> None:
        """Send what waits."""
        events, self._waiting = self._waiting, []
        self._has_come.clear()
        by_stream: dict[tuple[str, str], list[Event]] = {}
        for event in events:
            by_stream.setdefault((event.group, event.stream), []).append(event)
        for (group, stream), its in by_stream.items():
            for batch in _batches(its):
                await self._put(group, stream, batch)

    async def _put(self, group: str, stream: str, events: list[dict[str, Any]]) -> None:
        names = {"logGroupName": group, "logStreamName": stream}
        try:
            if (group, stream) not in self._streams:
                with contextlib.suppress(self._client.exceptions.ResourceAlreadyExistsException):
                    await self._client.create_log_stream(**names)
                self._streams.add((group, stream))
            await self._client.put_log_events(**names, logEvents=events)
        except self._client.exceptions.ResourceNotFoundException:
            self._streams.discard((group, stream))  # no such group: as on Lambda, nobody is told
        except (BotoCoreError, ClientError) as error:
            # The functions go on; a host whose emulator was stopped says so once.
            if not self._has_complained:
                print(f"warning: logs are lost: {error}", file=sys.stderr)
            self._has_complained = True


def _batches(events: list[Event]) -> list[list[dict[str, Any]]]:
    found: list[list[dict[str, Any]]] = []
    size = _BYTES
    # A stream's events are sent by time; those of one time stay in their order.
    for event in sorted(events, key=lambda event: event.time):
        needed = len(event.message.encode()) + _OVERHEAD
        if size + needed > _BYTES or len(found[-1]) == _EVENTS:
            found.append([])
            size = 0
        # An empty message is refused by the service, and Lambda sends none.
        if event.message:
            found[-1].append({"timestamp": event.time, "message": event.message})
            size += needed
    return [batch for batch in found if batch]


@contextlib.asynccontextmanager
async def cloudwatch(endpoint_url: str, region: str) -> AsyncIterator[CloudWatch]:
    """A writer of logs to the emulator at `endpoint_url`; at the end all is there."""
    from aiobotocore.config import AioConfig
    from aiobotocore.session import get_session

    async with get_session().create_client(
        "logs",
        endpoint_url=endpoint_url,
        region_name=region,
        aws_access_key_id="local",
        aws_secret_access_key="local",
        config=AioConfig(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 2}),
    ) as client:
        writer = CloudWatch(client)
        running = asyncio.create_task(writer.run())
        try:
            yield writer
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            await writer.flush()
