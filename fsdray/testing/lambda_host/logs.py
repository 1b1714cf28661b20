"""The logs of functions: what they write, and what Lambda writes around it (START, END, REPORT).

The forms are those of the service in 2025. `Tail` keeps the last 4 KB that a call may ask for;
`Log` is one environment's, whose events may go to the host's file and to CloudWatch.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from fsdray.testing.lambda_host.functions import Version
from fsdray.testing.lambda_host.limits import LOG_TAIL


class Tail:
    """The end of what was written during one call."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def write(self, data: bytes) -> None:
        self._kept += data
        if len(self._kept) > 4 * LOG_TAIL:
            del self._kept[:-LOG_TAIL]

    def encoded(self) -> str:
        """As `X-Amz-Log-Result` carries it."""
        return base64.b64encode(self._kept[-LOG_TAIL:]).decode("ascii")


class Event(NamedTuple):
    """One event of a log, as CloudWatch keeps it; `time` is in ms since 1970."""

    time: int
    group: str
    stream: str
    message: str

    def line(self) -> bytes:
        """A line of JSON."""
        return json.dumps(self._asdict()).encode() + b"\n"


class Log:
    """What one environment writes: to the tail of the call at hand, and as events to `emit`.

    Parameters
    ----------
    group, stream : where the service would keep it.
    tail : of the first call.
    emit : takes each event; None if nobody wants them.
    """

    def __init__(
        self, group: str, stream: str, tail: Tail, emit: Callable[[Event], None] | None
    ) -> None:
        self.tail = tail
        self.group = group
        self.stream = stream
        self._emit = emit
        self._unfinished = b""

    def output(self, data: bytes) -> None:
        """What the function wrote, as it came."""
        # The runtime joins the lines of one record by carriage returns: the service turns them
        # back, and keeps the record as one event.
        self.tail.write(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
        if self._emit is not None:
            *lines, self._unfinished = (self._unfinished + data).split(b"\n")
            for line in lines:
                self._event(line)

    def platform(self, line: bytes) -> None:
        """What Lambda says itself."""
        self.tail.write(line)
        if self._emit is not None:
            if self._unfinished:
                self._event(self._unfinished)
                self._unfinished = b""
            self._event(line.rstrip(b"\n"))

    def _event(self, line: bytes) -> None:
        assert self._emit is not None
        message = line.decode(errors="replace").rstrip("\r").replace("\r", "\n")
        self._emit(Event(round(time.time() * 1000), self.group, self.stream, message))


def start(request_id: str, version: Version) -> bytes:
    return f"START RequestId: {request_id} Version: {version.number}\n".encode()


def end(request_id: str) -> bytes:
    return f"END RequestId: {request_id}\n".encode()


def timed_out(request_id: str, seconds: float) -> bytes:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    return f"{now} {request_id} Task timed out after {seconds:.2f} seconds\n\n".encode()


def exited(request_id: str, how: str) -> bytes:
    return f"RequestId: {request_id} Error: {how}\nRuntime.ExitError\n".encode()


def init_report(seconds: float, phase: str, status: str) -> bytes:
    told = f"INIT_REPORT Init Duration: {seconds * 1000:.2f} ms\tPhase: {phase}\tStatus: {status}\n"
    return told.encode()


def report(
    request_id: str,
    version: Version,
    seconds: float,
    init_seconds: float | None,
    peak_mb: int,
    status: str | None,
) -> tuple[bytes, int]:
    """The REPORT line, and the milliseconds that are billed: the call's and its init's."""
    milliseconds = seconds * 1000
    init = (init_seconds or 0.0) * 1000
    billed = max(1, math.ceil(milliseconds + init))
    parts = [
        f"REPORT RequestId: {request_id}",
        f"Duration: {milliseconds:.2f} ms",
        f"Billed Duration: {billed} ms",
        f"Memory Size: {version.memory} MB",
        f"Max Memory Used: {min(peak_mb, version.memory)} MB",
    ]
    if init_seconds is not None:
        parts.append(f"Init Duration: {init:.2f} ms")
    if status is not None:
        parts.append(f"Status: {status}")
    return ("\t".join(parts) + "\t\n").encode(), billed
