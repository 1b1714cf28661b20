"""What crosses between `functions` and `handler`: the event of a call, its answer, and its log.

Pure functions of bytes. What the payload within is, is `fsdray.worker`'s; JSON holds it as base64.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fsdray.errors import (
    EnvironmentMismatch,
    FsdrayError,
    FunctionCrashed,
    FunctionTimeout,
    OutOfMemory,
    ServiceError,
)
from fsdray.services import Buffer

VERSION = 1
TIMED_OUT, SPENT, CANCELLED = 124, 70, 130
"""Exit statuses by which the handler ends its own process: the call's time is up, its gang is
broken while its code still runs, its caller does not want it any more."""

ENDS = "fsdray: this process ends here: "
UNWANTED = "its call was cancelled"
"""What the handler's last line in the log begins with."""

LOG_LINES = 20  # what an error carries of a function's last output

Lines = list[tuple[str, str]]
"""What calls printed: who, and a line."""


@dataclass(frozen=True)
class Event:
    """One call, as the handler is given it.

    Parameters
    ----------
    session : the caller's, below which all its objects are.
    call : the call's own id. label : names it for people.
    timeout : seconds. concurrency : calls that the session may run at one time.
    above : the ids of the calls above it that wait for it, its caller's last.
    storage : what holds the session's objects (`fsdray.settings.Settings`).
    sent : when, in seconds of the caller's wall clock.
    payload : what the worker runs.
    """

    session: str
    call: str
    label: str
    timeout: float
    concurrency: int
    above: tuple[str, ...]
    storage: str
    sent: float
    payload: Buffer

    def dump(self) -> bytes:
        """As JSON; `load` reads it once Lambda's runtime has parsed it."""
        told = {
            "v": VERSION,
            "s": self.session,
            "i": self.call,
            "l": self.label,
            "t": self.timeout,
            "c": self.concurrency,
            "a": self.above,
            "o": self.storage,
            "w": self.sent,
        }
        return _with_payload(told, self.payload)

    @classmethod
    def load(cls, told: Any) -> Event:
        """The event in parsed JSON.

        Raises
        ------
        EnvironmentMismatch : it is of another version of fsdray, or none of ours.
        """
        if not isinstance(told, dict) or told.get("v") != VERSION:
            raise EnvironmentMismatch(
                "this function of an fsdray stack was called by something else than the same "
                "version of fsdray: run `fsdray deploy` with the version that calls it"
            )
        return cls(
            session=told["s"],
            call=told["i"],
            label=told["l"],
            timeout=told["t"],
            concurrency=told["c"],
            above=tuple(told["a"]),
            storage=told["o"],
            sent=told["w"],
            payload=_bytes(told["p"]),
        )


@dataclass(frozen=True)
class Answer:
    """What a call came to that replied; `mail` is what it knows of inboxes (`ledger`)."""

    reply: Buffer
    printed: Lines
    mail: list[list[int]] = field(default_factory=list)

    def parsed(self) -> dict[str, Any]:
        """As JSON, for Lambda's runtime to write; `load` reads it."""
        told = self._beside()
        told["p"] = binascii.b2a_base64(self.reply, newline=False).decode("ascii")
        return told

    @classmethod
    def load(cls, data: bytes) -> Answer:
        told = json.loads(data)
        printed = [(who, line) for who, line in told.get("o", ())]
        return cls(_bytes(told["p"]), printed, told.get("m", []))

    def _beside(self) -> dict[str, Any]:
        told = {"o": self.printed, "m": self.mail}
        return {name: each for name, each in told.items() if each}


@dataclass(frozen=True)
class Told:
    """What Lambda's log says of a call.

    Parameters
    ----------
    lines : what the call wrote last, without what Lambda itself writes.
    gb_seconds : billed; None where the log does not say.
    had_memory : whether it may have been killed for something else than want of memory.
    is_cancelled : whether it ended because nobody wants it any more.
    """

    lines: list[str]
    gb_seconds: float | None = None
    had_memory: bool = False
    is_cancelled: bool = False


def log_line(session: str, call: str, label: str, rank: int | None, text: str) -> bytes:
    """One line of a task's output, as it is kept in CloudWatch and read back by `told`."""
    told: dict[str, Any] = {"run": session, "call": call, "task": label}
    if rank is not None:
        told["rank"] = rank
    told["text"] = text
    return json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


_OWN = re.compile(
    r"(START|END|REPORT|INIT_START|INIT_REPORT|EXTENSION|XRAY|RequestId:) |Runtime\.ExitError$|"
    r"\S+Z [0-9a-f-]{36} Task timed out"
)
_REPORT = re.compile(
    r"^REPORT .*Billed Duration: (\d+) ms.*Memory Size: (\d+) MB.*Max Memory Used: (\d+) MB",
    re.MULTILINE,
)
_NEARLY = 0.95  # of its memory, below which what was killed had some left


def read_log(encoded: str | None) -> Told:
    """What the end of a call's log says (the Invoke API's ``LogResult``: 4 KB of base64)."""
    if not encoded:
        return Told([])
    text = base64.b64decode(encoded).decode(errors="replace")
    report = _REPORT.search(text)
    billed, had_memory = None, False
    if report is not None:
        milliseconds, size, used = map(int, report.groups())
        billed = milliseconds / 1000 * size / 1024
        had_memory = used < _NEARLY * size and "Runtime.OutOfMemory" not in text
    lines = []
    for line in text.split("\n"):
        if line.startswith('{"run":'):
            try:
                lines.append(json.loads(line)["text"])
                continue
            except (ValueError, KeyError):
                pass  # a line of the user's own that looks alike
        if line and not line.startswith(ENDS) and not _OWN.match(line):
            lines.append(line)
    if len(text) >= 4000 and lines and not text.startswith(("START", "INIT_START", "{")):
        del lines[0]  # it began before what was kept
    return Told(lines[-LOG_LINES:], billed, had_memory, f"{ENDS}{UNWANTED}\n" in text)


def failure_of(
    error: bytes,
    log: Told,
    *,
    name: str,
    memory: int,
    given: int,
    timeout: float,
    seconds: float,
) -> FsdrayError:
    """The error of a call that did not reply, from what Lambda answered.

    Parameters
    ----------
    error : the answer's body. name : the call's, for people.
    memory, given, timeout : what it asked for and what it had, in MB, and its seconds.
    seconds : that it took.
    """
    try:
        told = json.loads(error)
        kind, message = str(told.get("errorType")), str(told.get("errorMessage"))
    except (ValueError, AttributeError):
        kind, message = "", error.decode(errors="replace")
    status = re.search(r"exit status (\d+)", message)
    code = int(status[1]) if status else None
    if kind == "Runtime.OutOfMemory" or ("signal: killed" in message and not log.had_memory):
        more = "" if given == memory else f", and of the {given} MB that its function has"
        return OutOfMemory(
            f"{name} used more than its memory of {memory} MB{more}, and was stopped; give it "
            f"more than {given} MB with the option memory=MB",
            log.lines,
        )
    if (
        code == TIMED_OUT
        or kind == "Sandbox.Timedout"
        or "Task timed out" in message
        # A process that cannot run its watchdog is ended by a second one, with status 1.
        or (code == 1 and seconds >= timeout)
    ):
        return FunctionTimeout(
            f"{name} ran longer than its timeout of {timeout:g} s and was stopped; give it more "
            "with the option timeout=SECONDS",
            log.lines,
        )
    if kind == "EnvironmentMismatch":
        return EnvironmentMismatch(message)
    if kind == "Function.ResponseSizeTooLarge":
        return FunctionCrashed(
            f"{name} replied with more than a function may send back ({message}): lower the "
            "setting inline_limit, so that results travel through the object store",
            log.lines,
        )
    if kind in ("Runtime.ImportModuleError", "Runtime.HandlerNotFound"):
        return ServiceError(
            f"the function that was deployed cannot start ({message}): run `fsdray deploy`",
            log.lines,
        )
    if kind == "Runtime.ExitError":
        how = re.sub(r"^RequestId: \S+ Error: (Runtime )?", "", message)
        how = re.sub(r"^exited with error: (exit )?status ", "exited with status ", how)
        how = re.sub(r"^exited with error: signal: (.*?)( \(.*\))?$", _killed, how)
    else:
        how = f"failed ({kind}: {message})" if kind else f"failed ({message})"
    return FunctionCrashed(f"the process of {name} {how} before it replied", log.lines)


def _killed(said: re.Match[str]) -> str:
    """Lambda gives a signal's description, as the C library does."""
    for number in signal.Signals:
        if (signal.strsignal(number) or "").lower() == said[1]:
            return f"was killed by signal {number.value} ({number.name})"
    return f"was killed by a signal ({said[1]})"


def rank_of(label: str) -> int | None:
    """The rank in a call's label (`fsdray.wire.Call.label`)."""
    found = re.search(r"\[(\d+)\] \S+$", label)
    return int(found[1]) if found else None


def name_of(label: str) -> str:
    """The name in a call's label, for who reads an error."""
    return label.rpartition(" ")[0] or label or "a call"


def shown(printed: Sequence[tuple[str, str]]) -> list[str]:
    """Lines as the caller sees them."""
    return [f"({who}) {line}" for who, line in printed]


def _with_payload(told: dict[str, Any], payload: Buffer) -> bytes:
    # The payload may be megabytes: put in by hand, it is not looked at for what to escape.
    head = json.dumps(told, separators=(",", ":"))[:-1]
    return b"".join((f'{head},"p":"'.encode(), binascii.b2a_base64(payload, newline=False), b'"}'))


def _bytes(encoded: str) -> bytes:
    return binascii.a2b_base64(encoded)
