"""One execution environment: a process with AWS's runtime client, and the API that it polls.

It runs one call at a time, keeps the call's time and memory, and turns each way to fail into the
payload that Lambda answers with. Which environment runs which call is decided in `scheduler`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import json
import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from fsdray.testing.lambda_host import logs, runtime
from fsdray.testing.lambda_host.functions import Version, memory_bytes
from fsdray.testing.lambda_host.limits import MB, RESPONSE_PAYLOAD
from fsdray.testing.lambda_host.processes import Exit, Process, Processes

_RUNTIME = "/2018-06-01/runtime/"
_AWAKE = 0.05  # seconds after a call in which an environment is not frozen yet: cheaper to reuse
SHUTDOWN = 0.001  # seconds that requests under way are given; aiohttp takes 0 for no limit
_PIPE = 1 << 20  # bytes that an environment may write ahead of the host
_CHUNK = 1 << 16
_numbers = itertools.count(1)


@dataclass
class Invocation:
    """One call, as it is given to an environment."""

    request_id: str
    payload: bytes
    arn: str  # as it was invoked
    trace: str
    client_context: str | None = None  # JSON
    tail: logs.Tail = field(default_factory=logs.Tail)


@dataclass(frozen=True)
class Answer:
    """What came of a call: the function's own value, or the error that it ended with."""

    payload: bytes
    is_error: bool = False
    status: str | None = None  # of the REPORT line


@dataclass(frozen=True)
class Surroundings:
    """What the environments of a host share."""

    processes: Processes
    directory: Path
    variables: Mapping[str, str]
    emit_log: Callable[[logs.Event], None] | None
    isolated: Path | None = None  # what `runtime.lay_out` made, where they are to be isolated


def failure(kind: str, message: str) -> bytes:
    """An error that the platform, not the runtime, reports."""
    return json.dumps({"errorType": kind, "errorMessage": message}, separators=(",", ":")).encode()


class Environment:
    """A process that serves one version, from its start to its end.

    Parameters
    ----------
    version : what it runs.
    around : what it shares with the host's others.
    tail : where the log of its init goes too: that of the call that it is started for.
    """

    def __init__(self, version: Version, around: Surroundings, tail: logs.Tail) -> None:
        self.version = version
        self.idle_since = 0.0
        self.init_seconds = 0.0
        self._around = around
        self._loop = asyncio.get_running_loop()
        self._turn: asyncio.Future[None] = self._loop.create_future()  # something happened
        self._parked: asyncio.Future[Invocation] | None = None  # the runtime asks for a call
        self._running: Invocation | None = None
        self._answer: Answer | None = None
        self._init_error: bytes | None = None
        self._exit: Exit | None = None
        self._is_late = False  # what it ran took too long: it is not used again
        self._has_ended = False
        self._number = next(_numbers)
        self._directory = around.directory / "environments" / str(self._number)
        self._api = web.Server(self._serve, access_log=None)
        stream = f"{time.strftime('%Y/%m/%d')}/[{version.number}]{uuid.uuid4().hex}"
        self.log = logs.Log(version.log_group, stream, tail, around.emit_log)
        self._process: Process | None = None
        self._listener: asyncio.Server | None = None
        self._output = -1  # where what it writes is read from
        self._peak = 0  # bytes
        self._is_frozen = False
        self._freezing: asyncio.TimerHandle | None = None
        self._deadline = 0.0  # the call's

    @property
    def is_ready(self) -> bool:
        """Whether it waits for a call."""
        return self._parked is not None and self._exit is None and not self._is_late

    async def initialise(self, invocation: Invocation, seconds: float) -> Answer | None:
        """Start the process for a call and wait until it asks for it; or how it failed to."""
        began = self._loop.time()
        self._directory.mkdir(parents=True)
        self._listener = await self._loop.create_server(self._api, "127.0.0.1", 0)
        host, port = self._listener.sockets[0].getsockname()
        self._output, theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._output, False)
        with contextlib.suppress(OSError):  # the user's pipes may be limited to less
            fcntl.fcntl(self._output, fcntl.F_SETPIPE_SZ, _PIPE)
        self._loop.add_reader(self._output, self._read_output)
        self._process = self._around.processes.start(
            [*runtime.command(self._around.isolated), self.version.handler],
            self._variables(f"{host}:{port}"),
            self.version.code.path,
            theirs,
            memory_bytes(self.version),
            self._exited,
        )
        os.close(theirs)
        await self._turn_ends(seconds)
        self.init_seconds = self._loop.time() - began
        self._read_output()
        if self._init_error is not None:
            kind = json.loads(self._init_error).get("errorType", "Runtime.Unknown")
            return Answer(self._init_error, True, f"error\tError Type: {kind}")
        if self._exit is not None:
            return self._died(invocation.request_id, self._exit)
        if not self.is_ready:
            return self._timed_out(invocation.request_id, seconds)
        self._look()
        return None

    async def run(self, invocation: Invocation, timeout: float, spent: float = 0.0) -> Answer:
        """Have the runtime run one call, and wait until it asks for another or ends.

        `spent` seconds of its `timeout` are over.
        """
        seconds = max(0.0, timeout - spent)
        assert self._parked is not None
        self._running, self._answer = invocation, None
        self._turn = self._loop.create_future()
        self._deadline = time.time() + seconds
        self._thaw()
        self._parked.set_result(invocation)
        self._parked = None
        await self._turn_ends(seconds)
        self._read_output()
        self._running = None
        self._look()
        answer = self._answer
        if self._exit is not None and self._exit.is_out_of_memory:
            answer = None
        if answer is None and self._exit is not None:
            answer = self._died(invocation.request_id, self._exit)
        elif answer is None:
            answer = self._timed_out(invocation.request_id, timeout)
        return answer

    def rest(self) -> None:
        """It has no call for now: frozen soon, so that nothing of it runs, as in Lambda."""
        self.idle_since = self._loop.time()
        self._freezing = self._loop.call_later(_AWAKE, self._freeze)

    def peak_mb(self) -> int:
        """The most memory that its process has used, in MB; all of it when killed for that."""
        if self._exit is not None and self._exit.is_out_of_memory:
            return self.version.memory
        return -(-self._peak // MB)

    def end(self) -> None:
        """Kill the process and forget all that it had."""
        if self._has_ended:
            return
        self._has_ended = True
        if self._parked is not None:
            self._parked.cancel()
        if self._freezing is not None:
            self._freezing.cancel()
        if self._output >= 0:
            self._read_output()
            self._loop.remove_reader(self._output)
            os.close(self._output)
            self._output = -1  # of a call that was running, `run` still goes on
        if self._process is not None:
            self._process.end()
        if self._listener is not None:
            self._listener.close()
        closing = self._loop.create_task(self._clear())
        _closing.add(closing)
        closing.add_done_callback(_closing.discard)

    async def _clear(self) -> None:
        await self._api.shutdown(SHUTDOWN)
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def _turn_ends(self, seconds: float) -> None:
        timer = self._loop.call_later(seconds, self._wake)
        try:
            await self._turn
        finally:
            timer.cancel()

    def _wake(self) -> None:
        if not self._turn.done():
            self._turn.set_result(None)

    def _freeze(self) -> None:
        assert self._process is not None
        self._is_frozen = True
        self._process.freeze()

    def _thaw(self) -> None:
        if self._freezing is not None:
            self._freezing.cancel()
        if self._is_frozen and self._process is not None:
            self._is_frozen = False
            self._process.thaw()

    def _exited(self, how: Exit) -> None:
        self._exit = how
        self._peak = max(self._peak, how.peak)
        self._wake()

    def _died(self, request_id: str, how: Exit) -> Answer:
        self.log.platform(logs.exited(request_id, str(how)))
        kind = "Runtime.OutOfMemory" if how.is_out_of_memory else "Runtime.ExitError"
        said = failure("Runtime.ExitError", f"RequestId: {request_id} Error: {how}")
        return Answer(said, True, f"error\tError Type: {kind}")

    def _timed_out(self, request_id: str, seconds: float) -> Answer:
        self._is_late = True
        self.log.platform(logs.timed_out(request_id, seconds))
        said = f"RequestId: {request_id} Error: Task timed out after {seconds:.2f} seconds"
        return Answer(failure("Sandbox.Timedout", said), True, "timeout")

    def _look(self) -> None:
        """See what memory it took, also between two looks of the guardian."""
        assert self._process is not None
        if self._exit is not None or self._process.pid is None:
            return
        resident = files = 0
        path = f"/proc/{self._process.pid}/status"
        with contextlib.suppress(OSError), open(path, "rb") as status:  # or it has gone
            for line in status:
                if line.startswith(b"VmHWM"):
                    resident = int(line.split()[1]) * 1024
                elif line.startswith(b"RssFile"):
                    files = int(line.split()[1]) * 1024
                    break
        self._peak = max(self._peak, resident)
        # What mirrors files the kernel could have taken back.
        if resident - files > memory_bytes(self.version):
            self._exit = Exit(-signal.SIGKILL, is_out_of_memory=True)

    def _read_output(self) -> None:
        """Take what is in the pipe; not for ever, though it be filled as fast."""
        if self._output < 0:
            return
        with contextlib.suppress(BlockingIOError):
            for _ in range(_PIPE // _CHUNK):
                data = os.read(self._output, _CHUNK)
                if not data:  # nobody can write to it any more
                    self._loop.remove_reader(self._output)
                    return
                self.log.output(data)

    def _variables(self, api: str) -> dict[str, str]:
        version, task_root = self.version, str(self.version.code.path)
        isolated = self._around.isolated
        path = [task_root] if isolated is None else [task_root, str(isolated)]
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "TMPDIR": str(self._directory),
            "PWD": task_root,
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONDONTWRITEBYTECODE": "1",
            **self._around.variables,
            **version.variables,
            "_HANDLER": version.handler,
            "AWS_EXECUTION_ENV": f"AWS_Lambda_{version.runtime}",
            "AWS_LAMBDA_FUNCTION_NAME": version.name,
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(version.memory),
            "AWS_LAMBDA_FUNCTION_VERSION": version.number,
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_LAMBDA_LOG_GROUP_NAME": self.log.group,
            "AWS_LAMBDA_LOG_STREAM_NAME": self.log.stream,
            "AWS_LAMBDA_RUNTIME_API": api,
            "LAMBDA_TASK_ROOT": task_root,
            "LAMBDA_RUNTIME_DIR": "/var/runtime",
        }

    async def _serve(self, request: web.BaseRequest) -> web.Response:
        """The Runtime API (Developer Guide, "Using the Lambda runtime API")."""
        path = request.path
        if path == _RUNTIME + "invocation/next":
            return await self._next()
        body = await request.content.read()
        if path == _RUNTIME + "init/error":
            self._init_error = body
            self._wake()
            return _accepted()
        if path.startswith(_RUNTIME + "invocation/"):
            request_id, _, what = path.removeprefix(_RUNTIME + "invocation/").partition("/")
            if self._running is None or request_id != self._running.request_id:
                return _refused(400, "InvalidRequestID", "Invalid request ID")
            if self._answer is not None:
                return _refused(403, "InvalidStateTransition", "State transition is not allowed")
            return self._answered(body, is_error=what == "error")
        return _refused(404, "NotFound", f"no {path}")

    async def _next(self) -> web.Response:
        self._parked = self._loop.create_future()
        self._wake()
        invocation = await self._parked
        headers = {
            "Content-Type": "application/json",
            "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
            "Lambda-Runtime-Deadline-Ms": str(int(self._deadline * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": invocation.arn,
            "Lambda-Runtime-Trace-Id": invocation.trace,
        }
        if invocation.client_context is not None:
            headers["Lambda-Runtime-Client-Context"] = invocation.client_context
        return web.Response(body=invocation.payload, headers=headers)

    def _answered(self, body: bytes, is_error: bool) -> web.Response:
        if len(body) > RESPONSE_PAYLOAD:
            size = f"exceeded maximum allowed payload size ({RESPONSE_PAYLOAD} bytes)."
            said = failure("Function.ResponseSizeTooLarge", f"Response payload size {size}")
            self._answer = Answer(said, True, "error\tError Type: Function.ResponseSizeTooLarge")
            return _refused(413, "RequestEntityTooLarge", size.capitalize())
        self._answer = Answer(body, is_error)
        return _accepted()


_closing: set[asyncio.Task[None]] = set()  # environments that are being cleared away


async def all_cleared() -> None:
    """Wait until nothing of ended environments is under way."""
    while _closing:
        await asyncio.wait(_closing)


def _accepted() -> web.Response:
    return web.Response(status=202, body=b'{"status":"OK"}', content_type="application/json")


def _refused(status: int, kind: str, message: str) -> web.Response:
    said: dict[str, Any] = {"errorMessage": message, "errorType": kind}
    return web.Response(status=status, body=json.dumps(said).encode())
