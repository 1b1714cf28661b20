"""What the functions of a run wrote, from CloudWatch Logs: ``fsdray logs RUN``.

A line that a task prints is a JSON object with run, task and rank (`calls` makes it). What else is
in the log, of programs that a task started or of Lambda itself, names nobody: it is that of the
call whose lines are around it, since an environment runs one call at a time.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from fsdray.backends.aws import border
from fsdray.errors import SettingsError
from fsdray.settings import Settings

LATE = 10.0  # seconds: an event may be found so much after it happened
STREAMS = 100  # that one request may name (FilterLogEvents)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
# Lambda's own lines; a REPORT tells news only where it has a status.
_BEGINS = re.compile(r"START RequestId: ")
_DULL = re.compile(r"(END|INIT_START|REPORT)\b(?!.*\tStatus: )")
_LAMBDAS = re.compile(r"(REPORT|INIT_REPORT|RequestId:) |\S+Z [0-9a-f-]{36} Task timed out")


@dataclass(frozen=True)
class Line:
    """One line of what a task wrote, or of what Lambda said of it.

    Parameters
    ----------
    time : seconds since 1970. text : the line.
    run : the session's id. task : its name and id, as errors tell them. rank : in a gang.
    is_lambdas : whether these are Lambda's own words.
    """

    time: float
    text: str
    run: str | None = None
    task: str | None = None
    rank: int | None = None
    is_lambdas: bool = False

    def to_json(self) -> dict[str, Any]:
        """The same for programs, without what is not known."""
        return {name: value for name, value in vars(self).items() if value not in (None, False)}


def parse(event: dict[str, Any]) -> Line:
    """A line from an event of FilterLogEvents."""
    at, message = event["timestamp"] / 1000, event["message"].rstrip("\n")
    try:
        told = json.loads(message)
    except ValueError:
        told = None
    if isinstance(told, dict) and isinstance(told.get("run"), str):
        return Line(at, str(told.get("text", "")), told["run"], told.get("task"), told.get("rank"))
    return Line(at, message.rstrip(), is_lambdas=_LAMBDAS.match(message) is not None)


@dataclass
class _Stream:
    """What one environment wrote."""

    owner: Line | None = None  # a line of the call that it runs
    nameless: list[Line] = field(default_factory=list)  # before the call's first line with a name

    def take(self, line: Line, message: str) -> Iterator[Line]:
        """The lines of which this one tells whose they are, itself last."""
        if line.run is not None:
            for earlier in self.nameless:
                yield replace(earlier, run=line.run, task=line.task, rank=line.rank)
            self.nameless.clear()
            self.owner = line
            yield line
        elif _BEGINS.match(message):
            self.owner = None
            self.nameless.clear()
        elif _DULL.match(message) or not line.text:
            return
        elif self.owner is None:
            self.nameless.append(line)
        else:
            yield replace(line, run=self.owner.run, task=self.owner.task, rank=self.owner.rank)


def _pause() -> None:
    # FilterLogEvents is allowed 5 times a second for an account and region (CloudWatch's quotas).
    time.sleep(1.0)


class Reader:
    """Reads lines of a run, by time, each once.

    Parameters
    ----------
    client : of CloudWatch Logs, boto3's.
    groups : the log groups of the stack's functions.
    run : the session's id; None reads the lines of all runs that tasks printed.
    rank : of this rank alone.
    """

    def __init__(
        self, client: Any, groups: Sequence[str], run: str | None, rank: int | None = None
    ) -> None:
        self._client = client
        self._run = run
        self._rank = rank
        self._seen: dict[str, float] = {}  # ids of events, with their times
        self._streams: dict[str, dict[str, _Stream]] = {group: {} for group in groups}

    def read(self, since: float) -> list[Line]:
        """Lines from `since` (seconds since 1970) on that were not read before."""
        found = []
        for group, streams in self._streams.items():
            # First the streams that have lines of the run, then all that is in those.
            wanted = "*" if self._run is None else self._run.replace("\\", "").replace('"', "")
            pattern = f'{{ $.run = "{wanted}" }}'
            for event in self._events(group, since, filterPattern=pattern):
                line = parse(event)
                if self._run is None and line.run is not None:
                    if self._is_new(event):
                        found.append(line)
                elif line.run is not None and line.run == self._run:
                    streams.setdefault(event["logStreamName"], _Stream())
            names = sorted(streams)
            for begin in range(0, len(names), STREAMS):
                some = names[begin : begin + STREAMS]
                for event in self._events(group, since, logStreamNames=some):
                    if self._is_new(event):
                        stream = streams[event["logStreamName"]]
                        found += stream.take(parse(event), event["message"])
        return sorted(filter(self._is_wanted, found), key=lambda line: line.time)

    def follow(self, since: float, pause: Callable[[], None] = _pause) -> Iterator[Line]:
        """Lines from `since` on, and those that come, looked for after each `pause`."""
        while True:
            lines = self.read(since)
            yield from lines
            since = max([since, *(line.time - LATE for line in lines)])
            self._seen = {event: at for event, at in self._seen.items() if at >= since}
            pause()

    def _is_wanted(self, line: Line) -> bool:
        return self._run in (None, line.run) and self._rank in (None, line.rank)

    def _is_new(self, event: dict[str, Any]) -> bool:
        if event["eventId"] in self._seen:
            return False
        self._seen[event["eventId"]] = event["timestamp"] / 1000
        return True

    def _events(self, group: str, since: float, **more: Any) -> Iterator[dict[str, Any]]:
        asked = {"logGroupName": group, "startTime": max(0, int(since * 1000)), **more}
        while True:
            with border.crossing(f"reading the log group {group}"):
                page = self._client.filter_log_events(**asked)
            yield from page["events"]
            if not page.get("nextToken"):
                return
            asked["nextToken"] = page["nextToken"]


def of_stack(settings: Settings, run: str | None, rank: int | None) -> Reader:
    """A reader of the logs of the functions of a stack."""
    import boto3

    from fsdray.backends.aws.stack import read_stack

    with border.crossing("connecting to CloudWatch Logs"):
        session = boto3.Session(profile_name=settings.profile, region_name=settings.region)
        client = session.client("logs")
    return Reader(client, groups(read_stack(settings).functions.values()), run, rank)


def groups(functions: Iterable[str]) -> list[str]:
    """The log groups of functions."""
    # A name may go on with the alias by which the function is called.
    return sorted({f"/aws/lambda/{name.partition(':')[0]}" for name in functions})


def parse_since(text: str, now: float | None = None) -> float:
    """Seconds since 1970 from ``90s``, ``10m``, ``2h``, ``1d`` (ago) or an ISO 8601 time.

    Raises
    ------
    SettingsError : it is neither.
    """
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
        return (time.time() if now is None else now) - float(found[1]) * _UNITS[found[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(
            f"--since {text}: say how long ago (90s, 10m, 2h, 1d) or when (2026-11-22T10:00)"
        ) from None
    return moment.timestamp()  # without a zone it is this machine's


@dataclass(frozen=True)
class RunSeen:
    """A run of which there are lines."""

    run: str
    first: float
    last: float
    lines: int
    tasks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The same for programs."""
        return dict(vars(self))


def runs(lines: Iterable[Line]) -> list[RunSeen]:
    """The runs that lines are of, oldest first."""
    found: dict[str, RunSeen] = {}
    for line in lines:
        if line.run is None:
            continue
        seen = found.get(line.run) or RunSeen(line.run, line.time, line.time, 0, ())
        names = {*seen.tasks}
        if line.task:
            names.add(re.sub(r"(\[\d+\])? \S+$", "", line.task))
        found[line.run] = RunSeen(
            line.run,
            min(seen.first, line.time),
            max(seen.last, line.time),
            seen.lines + 1,
            tuple(sorted(names)),
        )
    return sorted(found.values(), key=lambda seen: seen.first)


_COLORS = (36, 32, 33, 35, 34, 96, 92, 93, 95, 94)


def shown(line: Line, is_colored: bool) -> str:
    """A line for a terminal: its time, its task and rank in a color of their own, its text."""
    moment = datetime.fromtimestamp(line.time).strftime("%H:%M:%S.%f")[:-3]
    who = f"({line.task or '?'})"
    if is_colored:
        color = _COLORS[(line.rank if line.rank is not None else sum(who.encode())) % len(_COLORS)]
        who = f"\x1b[{color}m{who}\x1b[0m"
        moment = f"\x1b[2m{moment}\x1b[0m"
        text = f"\x1b[31m{line.text}\x1b[0m" if line.is_lambdas else line.text
    else:
        text = line.text
    return f"{moment} {who} {text}"


def shown_run(seen: RunSeen) -> str:
    """A run, as one line of a list."""
    first = datetime.fromtimestamp(seen.first, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    names = ", ".join(seen.tasks[:4]) + (", …" if len(seen.tasks) > 4 else "")
    return f"{seen.run}  {first}  {seen.lines:>6} lines  {names}"
