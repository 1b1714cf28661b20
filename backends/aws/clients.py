"""The clients of AWS in this process, and the meter at their wire.

One aiobotocore client for each service, made when first asked for and kept until the session
ends, or, in a function, as long as its environment lives. Every request that leaves, retries
included, is counted here and nowhere else; what a request was about is for who asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from fsdray._version import __version__
from fsdray.backends.aws import border
from fsdray.errors import ServiceError
from fsdray.services import Count

KEEPALIVE = 10.0  # seconds that an unused connection is kept: S3 closes its own after about 20
CONNECT = 5.0  # seconds to reach a service
READ = {
    # A call may run for 900 s before Lambda answers.
    "lambda": 960.0,
    # A long poll takes 20 s.
    "sqs": 35.0,
}
_READ = 30.0  # seconds of silence from any other service
CONNECTIONS = {
    # One for each call that waits for its answer: `admission` limits those.
    "lambda": 10_000,
}
_CONNECTIONS = 64  # of any other client: a function may have 1,024 files open
ATTEMPTS = {
    # A call that is sent again may run again: `functions` decides.
    "lambda": 1,
}
_ATTEMPTS = 5  # of any other request, each of them counted

COUNTED = {
    "Invoke": "invoke",
    "Publish": "publish",
    "PublishBatch": "publish",
    "SendMessage": "send",
    "SendMessageBatch": "send",
    "ReceiveMessage": "receive",
    "DeleteMessage": "acknowledge",
    "DeleteMessageBatch": "acknowledge",
    # Rare, and billed as those are: a broken gang's queues are emptied, a zombie puts back.
    "PurgeQueue": "acknowledge",
    "ChangeMessageVisibility": "acknowledge",
    "PutObject": "put",
    "CreateMultipartUpload": "put",
    "UploadPart": "put",
    "CompleteMultipartUpload": "put",
    "GetObject": "get",
    "HeadObject": "get",
    "CreateSession": "get",
    "ListObjectsV2": "list",
    "DeleteObject": "delete",
    "DeleteObjects": "delete",
    "AbortMultipartUpload": "delete",
}
"""What a request of each operation is counted as (`fsdray.services.Count`); others are free."""

_sizes: ContextVar[Mapping[str, float]] = ContextVar(
    "fsdray_aws_sizes", default=MappingProxyType({})
)


@contextmanager
def sized(**counts: float) -> Iterator[None]:
    """Within, each attempt of a request adds these to the meter: its units, its bytes."""
    token = _sizes.set(counts)
    try:
        yield
    finally:
        _sizes.reset(token)


class Clients:
    """AWS's clients on fsdray's loop, with what this process may use of them.

    Parameters
    ----------
    count : told of each request, in the context that made it.
    region, profile : as boto3 finds them where None.
    """

    def __init__(
        self,
        count: Count,
        *,
        region: str | None = None,
        profile: str | None = None,
    ) -> None:
        self.count = count
        self._region = region
        self._profile = profile
        self._session: Any = None
        self._clients: dict[tuple[str | None, str], asyncio.Task[Any]] = {}
        self._open = contextlib.AsyncExitStack()
        self._is_closed = False

    async def get(self, service: str, prefix: str | None = "") -> Any:
        """The client of ``"s3"``, ``"sqs"``…; made once.

        `prefix` begins the names of what its requests are counted as, for services that have
        several prices; there is one client for each. None: who asks counts for himself.

        Raises
        ------
        ServiceError
            after `close`: nobody would close what is opened then.
        """
        if self._is_closed:
            raise ServiceError(f"nothing is asked of {service} any more: the session has ended")
        making = self._clients.get((prefix, service))
        if making is None or (making.done() and (making.cancelled() or making.exception())):
            making = asyncio.create_task(self._make(service, prefix))
            self._clients[prefix, service] = making
        return await asyncio.shield(making)

    def control(self, service: str) -> Any:
        """A boto3 client, which blocks, for what is asked once; nothing of it is billed."""
        import boto3

        with border.crossing(f"connecting to {service}"):
            session = boto3.Session(profile_name=self._profile, region_name=self._region)
            return session.client(service)

    async def close(self) -> None:
        """Close all connections, for good."""
        self._is_closed = True
        for making in self._clients.values():
            making.cancel()
        await asyncio.gather(*self._clients.values(), return_exceptions=True)
        await self._open.aclose()

    async def _make(self, service: str, prefix: str | None) -> Any:
        # Half a second to import: only who uses AWS pays for it.
        from aiobotocore.config import AioConfig
        from aiobotocore.session import AioSession

        with border.crossing(f"connecting to {service}"):
            if self._session is None:
                self._session = AioSession(profile=self._profile)
            client = await self._open.enter_async_context(
                self._session.create_client(
                    service,
                    region_name=self._region or _region_of_environment(),
                    config=AioConfig(
                        connect_timeout=CONNECT,
                        read_timeout=READ.get(service, _READ),
                        retries={
                            "mode": "standard",
                            "total_max_attempts": ATTEMPTS.get(service, _ATTEMPTS),
                        },
                        max_pool_connections=CONNECTIONS.get(service, _CONNECTIONS),
                        connector_args={
                            "keepalive_timeout": KEEPALIVE,
                            "socket_factory": _kept_alive,
                        },
                        # Botocore's own takes an eighth of a request's time to make.
                        user_agent=f"fsdray/{__version__}",
                        parameter_validation=False,
                        # TLS and the signature, which covers the body where there is no TLS,
                        # already see damage.
                        request_checksum_calculation="when_required",
                        response_checksum_validation="when_required",
                    ),
                )
            )
        if prefix is not None:
            _meter(client, self.count, prefix)
        return client


def _region_of_environment() -> str | None:
    # Lambda sets AWS_REGION, which botocore does not read.
    return os.environ.get("AWS_REGION")


def _kept_alive(address: tuple[Any, ...]) -> socket.socket:
    """A socket on which an answer may take 15 minutes: NAT gateways forget after 350 s."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # not on macOS
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 30)
    return made


def _meter(client: Any, count: Count, prefix: str) -> None:
    """Count what leaves a client: botocore calls these for each attempt, in its task's context."""

    def sent(event_name: str, **_: Any) -> None:
        name = COUNTED.get(event_name.rpartition(".")[2])
        if name is not None:
            # A look is a miss until its answer is there: who waits may give one up on its way.
            count(prefix + ("miss" if name == "get" else name), 1)
            for size, amount in _sizes.get().items():
                count(prefix + size, amount)

    def answered(event_name: str, response_dict: Mapping[str, Any] | None, **_: Any) -> None:
        name = COUNTED.get(event_name.rpartition(".")[2])
        if name is None or response_dict is None:
            return
        status = response_dict["status_code"]
        if status == 429 or status >= 500:
            # AWS does not bill what it refuses for its own reasons.
            count(prefix + ("miss" if name == "get" else name), -1)
            for size, amount in _sizes.get().items():
                count(prefix + size, -amount)
        elif name == "get" and status != 404:
            count(prefix + "miss", -1)
            count(prefix + "get", 1)

    client.meta.events.register("before-send", sent)
    client.meta.events.register("response-received", answered)
