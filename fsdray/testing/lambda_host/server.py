"""The host's server: it takes requests of the Lambda API, and owns all that answering them needs.

It runs in a process of its own; `host` starts that from Python, `__main__` from a shell.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import tempfile
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from typing import IO, Any

from aiohttp import web

from fsdray.backends.local.directory import SessionDirectory
from fsdray.errors import SettingsError
from fsdray.testing.lambda_host.control import Control, Request
from fsdray.testing.lambda_host.environment import SHUTDOWN, Surroundings
from fsdray.testing.lambda_host.faults import ApiFault, invalid_request, too_large
from fsdray.testing.lambda_host.invoke import Answered, invoke
from fsdray.testing.lambda_host.limits import REQUEST, HostSettings
from fsdray.testing.lambda_host.logs import Event
from fsdray.testing.lambda_host.processes import Processes
from fsdray.testing.lambda_host.routes import find_route
from fsdray.testing.lambda_host.runtime import lay_out
from fsdray.testing.lambda_host.scheduler import Scheduler

_INVOKE = re.compile(r"/2015-03-31/functions/([^/]+)/invocations")
_BACKLOG = 4096
_KEEP_ALIVE = 3600.0  # seconds: a client that tries once must not find its connection closed


class Server:
    """Answers requests: invocations through the scheduler, all else through `Control`."""

    def __init__(
        self, control: Control, scheduler: Scheduler, access_log: IO[bytes] | None
    ) -> None:
        self._control = control
        self._scheduler = scheduler
        self._access_log = access_log

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """One request, whatever it is."""
        began = time.time()
        operation, function = "Unknown", ""
        try:
            invoked = _INVOKE.fullmatch(request.path) if request.method == "POST" else None
            if invoked is not None:
                operation, function = "Invoke", invoked[1]
                answered = await self._invoke(request, function)
            else:
                operation, path = find_route(request.method, request.path)
                function = path.get("name", "")
                answered = await self._control_call(request, operation, path)
        except ApiFault as fault:
            answered = _refusal(fault)
        except (ConnectionError, web.RequestPayloadError):  # nobody is there to be answered
            answered = Answered(400, {}, told={"error": "cut"})
        except Exception as error:  # a fault of the host must be an answer, not a lost connection
            traceback.print_exc()
            answered = _refusal(
                ApiFault(500, "ServiceException", f"{type(error).__name__}: {error}")
            )
        self._log(began, operation, function, answered)
        return web.Response(status=answered.status, headers=answered.headers, body=answered.body)

    async def _invoke(self, request: web.BaseRequest, function: str) -> Answered:
        body = await _body(request, "InvokeFunction")
        qualifier = request.query.get("Qualifier") if request.query_string else None
        return await invoke(
            self._control, self._scheduler, function, qualifier, request.headers, body
        )

    async def _control_call(
        self, request: web.BaseRequest, operation: str, path: Mapping[str, str]
    ) -> Answered:
        data = await _body(request, operation)
        try:
            body = json.loads(data) if data else {}
        except ValueError as error:
            raise invalid_request(f"Could not parse request body into json: {error}") from error
        asked = Request(path, request.query, body, tuple(request.query.getall("tagKeys", [])))
        method = re.sub(r"(?<!^)(?=[A-Z])", "_", operation).lower()
        status, told = await getattr(self._control, method)(asked)
        headers = {"x-amzn-RequestId": str(uuid.uuid4()), "Content-Type": "application/json"}
        return Answered(status, headers, b"" if told is None else json.dumps(told).encode())

    def _log(self, began: float, operation: str, function: str, answered: Answered) -> None:
        if self._access_log is None:
            return
        line: dict[str, Any] = {
            "time": round(began, 6),
            "service": "lambda",
            "operation": operation,
            "function": function,
            "status": answered.status,
            **answered.told,
        }
        self._access_log.write(json.dumps(line).encode() + b"\n")


async def _body(request: web.BaseRequest, operation: str) -> bytes:
    fault = too_large(f"Request must be smaller than {REQUEST} bytes for the {operation} operation")
    if (request.content_length or 0) > REQUEST:
        raise fault
    body = await request.content.read()
    if len(body) > REQUEST:
        raise fault
    return body


def _refusal(fault: ApiFault) -> Answered:
    headers = {
        "x-amzn-ErrorType": fault.code,
        "x-amzn-RequestId": str(uuid.uuid4()),
        "Content-Type": "application/json",
    }
    if fault.status == 429:
        headers["Retry-After"] = "1"
    return Answered(fault.status, headers, fault.body(), {"error": fault.code})


@contextlib.asynccontextmanager
async def serving(settings: HostSettings) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """Serve while the context lasts; gives the URL, and an event that is set if it cannot go on."""
    loop = asyncio.get_running_loop()
    lost = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        try:
            listener = socket.create_server(("127.0.0.1", settings.port), backlog=_BACKLOG)
        except OSError as error:
            raise SettingsError(
                f"port={settings.port}: cannot listen there ({error.strerror}): name another, or 0 "
                "for a free one"
            ) from error
        stack.callback(listener.close)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        access_log = _append(stack, settings.access_log)
        emit_log = await _emit(stack, settings)
        directory = SessionDirectory(settings.directory or tempfile.gettempdir())
        stack.callback(directory.close)
        if not directory.runs_code:
            raise SettingsError(
                f"directory={str(directory.path.parent)!r} is mounted noexec: name another, or set "
                "TMPDIR, so that packages with native modules can run"
            )
        processes = Processes(directory.path, lost.set)
        try:
            around = Surroundings(
                processes,
                directory.path,
                _variables(settings, url),
                emit_log,
                lay_out(directory.path / "runtime") if settings.is_isolated else None,
            )
            scheduler = Scheduler(around, settings)
            control = Control(scheduler, settings, directory.path)
            api = web.Server(
                Server(control, scheduler, access_log).handle,
                access_log=None,
                keepalive_timeout=_KEEP_ALIVE,
            )
            server = await loop.create_server(api, sock=listener, backlog=_BACKLOG)
            try:
                yield url, lost
            finally:
                server.close()
                await api.shutdown(SHUTDOWN)
                await scheduler.close()
        finally:
            await processes.close()


def _append(
    stack: contextlib.AsyncExitStack, path: str | os.PathLike[str] | None
) -> IO[bytes] | None:
    if path is None:
        return None
    return stack.enter_context(open(path, "ab", buffering=0))


async def _emit(
    stack: contextlib.AsyncExitStack, settings: HostSettings
) -> Callable[[Event], None] | None:
    """Where the functions' logs go."""
    takers: list[Callable[[Event], None]] = []
    if (file := _append(stack, settings.logs)) is not None:
        takers.append(_writer(file))
    if settings.cloudwatch:
        if settings.endpoint_url is None:
            raise SettingsError("cloudwatch=True: say where it is, by endpoint_url=")
        # Only here, since it takes a third of a second to import.
        from fsdray.testing.lambda_host.cloudwatch import cloudwatch

        writer = cloudwatch(settings.endpoint_url, settings.region)
        takers.append((await stack.enter_async_context(writer)).emit)
    if not takers:
        return None

    def emit(event: Event) -> None:
        for take in takers:
            take(event)

    return emit


def _writer(file: IO[bytes]) -> Callable[[Event], None]:
    def write(event: Event) -> None:
        file.write(event.line())

    return write


def _variables(settings: HostSettings, url: str) -> dict[str, str]:
    """What every environment finds: its region, made-up credentials, and where the services are."""
    found = {
        "AWS_REGION": settings.region,
        "AWS_DEFAULT_REGION": settings.region,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_SESSION_TOKEN": "local",
        "AWS_ENDPOINT_URL_LAMBDA": url,
    }
    if settings.endpoint_url is not None:
        found["AWS_ENDPOINT_URL"] = settings.endpoint_url
    return found | dict(settings.environment)
