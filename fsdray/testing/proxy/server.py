"""`FaultProxy`: an HTTP server on a thread of its own, which passes requests on or does not."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
import weakref
from collections import Counter
from collections.abc import Mapping, MutableMapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fsdray.testing.proxy import callers, wire
from fsdray.testing.proxy.schedule import Asked, Fault, Schedule

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession, web

_LARGEST = 256 * 1024 * 1024  # bytes of a request's body
_LONG = 1024 * 1024  # bytes
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding"}
_OF_BODY = {"content-md5", "x-amz-checksum-crc32", "x-amz-checksum-crc64nvme"}
_REFUSALS = {
    Fault.THROTTLE: 429,
    Fault.UNAVAILABLE: 503,
    Fault.INTERNAL: 500,
    Fault.EXPIRED: 403,
}


class FaultProxy:
    """Stands before a server of AWS's APIs while a context lasts.

    Parameters
    ----------
    target : the URL that requests go on to; it may be set later.
    schedule : says what befalls a request; it may be changed at any time. None: nothing does.
    slow : seconds that `Fault.SLOW` adds.
    visibility : seconds after which messages come again that were received and not deleted; None
        leaves it to their queue, and a receive whose answer is cut costs that long.
    sees_callers : tell the schedule which process asks, so that it can have it killed: Linux only,
        and a moment for each connection.

    Examples
    --------
    ::

        with FaultProxy(emulator.url, seeded(7, {Fault.CUT_AFTER: 0.1})) as proxy:
            os.environ["AWS_ENDPOINT_URL"] = proxy.url
    """

    def __init__(
        self,
        target: str = "",
        schedule: Schedule | None = None,
        *,
        slow: float = 0.3,
        visibility: int | None = None,
        sees_callers: bool = False,
    ) -> None:
        self.target = target
        self.schedule = schedule
        self.done: Counter[tuple[Fault, str]] = Counter()  # faults, by operation
        self.asked: Counter[tuple[str, str]] = Counter()  # requests, by service and operation
        self.killed: list[int] = []  # processes
        self.url = ""
        self._port = 0
        self._processes: dict[int, int] = {os.getpid(): 0}  # their numbers
        self._turns: Counter[int] = Counter()
        self._sees_callers = sees_callers
        self._callers: MutableMapping[Any, int | None] = weakref.WeakKeyDictionary()
        self._slow = slow
        self._visibility = visibility
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.AppRunner | None = None
        self._client: ClientSession | None = None

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def forget(self) -> None:
        """Let all that comes pass, and count anew: requests, faults and processes."""
        self.schedule = None
        self.done.clear()
        self.asked.clear()
        self.killed.clear()
        self._processes = {os.getpid(): 0}
        self._turns.clear()

    async def _start(self) -> None:
        from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web

        self._client = ClientSession(
            auto_decompress=False,
            connector=TCPConnector(limit=0),
            cookie_jar=DummyCookieJar(),
            timeout=ClientTimeout(total=None),
        )
        application = web.Application(client_max_size=_LARGEST)
        application.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url, self._port = f"http://{host}:{port}", port

    async def _stop(self) -> None:
        assert self._runner is not None
        assert self._client is not None
        await self._runner.cleanup()
        await self._client.close()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        service, operation = wire.asked_of(request.method, request.path_qs, headers, body)
        caller = self._caller(request)
        process = 0 if caller is None else self._processes[caller]
        asked = Asked(
            service, operation, self.asked[service, operation], process, self._turns[process]
        )
        self.asked[service, operation] += 1
        self._turns[process] += 1
        fault = self.schedule(asked) if self.schedule is not None else None
        if fault is not None:
            self.done[fault, operation] += 1
        if fault in _REFUSALS:
            refused = wire.refusal(service, _REFUSALS[fault])
            return web.Response(status=refused.status, headers=refused.headers, body=refused.body)
        if fault is Fault.CUT_BEFORE:
            return _cut(request)
        if fault is Fault.KILL_BEFORE:
            return self._kill(request, caller)
        if operation == "ReceiveMessage" and self._visibility is not None:
            body = json.dumps(json.loads(body) | {"VisibilityTimeout": self._visibility}).encode()
        failed: list[str] = []
        if fault is Fault.PARTIAL:
            body, failed = wire.first_of_batch(operation, body)
            headers = {name: each for name, each in headers.items() if name not in _OF_BODY}
        if fault is Fault.TWICE:
            await (await self._send(request, headers, body)).read()
        answer = await self._send(request, headers, body)
        told = await answer.read()
        if fault is Fault.SLOW:
            await asyncio.sleep(self._slow)
        if fault is Fault.CUT_AFTER:
            return _cut(request)
        if fault is Fault.KILL_AFTER:
            return self._kill(request, caller)
        if failed and answer.status == 200:
            told = wire.with_failed(operation, told, failed)
        if fault is Fault.LATE and answer.status == 200:
            told, receipts = wire.without_messages(told)
            await self._put_back(request, headers, body, receipts)
        return await self._answer(request, answer, told, is_cut=fault is Fault.CUT_MIDWAY)

    def _caller(self, request: web.Request) -> int | None:
        """The process that asks; numbered, if it is new."""
        if not self._sees_callers or request.transport is None:
            return None
        connection = request.transport
        if connection not in self._callers:
            port = request.transport.get_extra_info("peername")[1]
            self._callers[connection] = callers.process_of(port, self._port, self._processes)
        caller = self._callers[connection]
        if caller is not None:
            self._processes.setdefault(caller, len(self._processes))
        return caller

    def _kill(self, request: web.Request, caller: int | None) -> web.StreamResponse:
        assert caller is not None, "a schedule that kills needs a proxy that sees_callers"
        self.killed.append(caller)
        callers.kill(caller)
        return _cut(request)

    async def _send(
        self, request: web.Request, headers: Mapping[str, str], body: bytes
    ) -> ClientResponse:
        from yarl import URL

        assert self._client is not None
        passed = {
            name: value
            for name, value in headers.items()
            if name not in _HOP or name == "content-encoding"
        }
        url = URL(self.target + request.raw_path, encoded=True)
        return await self._client.request(
            # aiohttp wants long bytes as a file, which it sends piece by piece.
            request.method,
            url,
            headers=passed,
            data=body if len(body) < _LONG else io.BytesIO(body),
            allow_redirects=False,
        )

    async def _answer(
        self, request: web.Request, answer: ClientResponse, told: bytes, *, is_cut: bool
    ) -> web.StreamResponse:
        from aiohttp import web

        headers = {name: each for name, each in answer.headers.items() if name.lower() not in _HOP}
        response = web.StreamResponse(status=answer.status, headers=headers)
        # What a HEAD tells of the length is the object's, and no body follows.
        is_head = request.method == "HEAD"
        length = answer.headers.get("Content-Length", "0") if is_head else str(len(told))
        response.headers["Content-Length"] = length
        await response.prepare(request)
        if is_cut:
            await response.write(told[: len(told) // 2])
            return _cut(request)
        if not is_head:
            await response.write(told)
        await response.write_eof()
        return response

    async def _put_back(
        self, request: web.Request, headers: Mapping[str, str], body: bytes, receipts: list[str]
    ) -> None:
        """Have what was received come again in a second."""
        target = {"x-amz-target": "AmazonSQS.ChangeMessageVisibility"}
        for receipt in receipts:
            told: dict[str, Any] = {
                "QueueUrl": json.loads(body)["QueueUrl"],
                "ReceiptHandle": receipt,
                "VisibilityTimeout": 1,
            }
            await self._send(request, {**headers, **target}, json.dumps(told).encode())


def _cut(request: web.Request) -> web.StreamResponse:
    """End the connection as a network does: with no word."""
    from aiohttp import web

    if request.transport is not None:
        request.transport.abort()
    return web.Response()
