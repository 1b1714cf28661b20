"""`fsdray logs`: what a run's functions wrote, by time, each line once, whoever wrote it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from fsdray.backends.aws import calls, logs
from fsdray.errors import SettingsError

REQUEST = "6b1d5f4e-0000-4000-8000-0123456789ab"


def wrote(at: int, run: str, text: str, rank: int | None = None, stream: str = "one") -> Any:
    """An event as a task's print makes it."""
    name = "work" if rank is None else f"work[{rank}]"
    line = calls.log_line(run, "c0ffee", f"{name} ab12-3", rank, text)
    return said(at, line.decode(), stream)


def said(at: int, message: str, stream: str = "one") -> Any:
    """An event as Lambda, or a program that a task started, writes it."""
    event = {"timestamp": at, "message": message, "eventId": f"{at}-{message}"}
    return event | {"logStreamName": stream}


def begins(at: int, stream: str = "one") -> Any:
    return said(at, f"START RequestId: {REQUEST} Version: $LATEST\n", stream)


class CloudWatch:
    """Log groups that answer in pages of two."""

    def __init__(self, **groups: list[Any]) -> None:
        self.groups = groups
        self.asked: list[dict[str, Any]] = []

    def filter_log_events(self, **asked: Any) -> dict[str, Any]:
        self.asked.append(asked)
        wanted = asked.get("filterPattern")
        events = [
            event
            for event in self.groups[asked["logGroupName"]]
            if event["timestamp"] >= asked["startTime"]
            and event["logStreamName"] in asked.get("logStreamNames", [event["logStreamName"]])
            and (wanted is None or self.has(event, wanted))
        ]
        begin = int(asked.get("nextToken", 0))
        more = {"nextToken": str(begin + 2)} if len(events) > begin + 2 else {}
        return {"events": events[begin : begin + 2], **more}

    def has(self, event: Any, pattern: str) -> bool:
        """As CloudWatch filters JSON."""
        found = re.fullmatch(r'\{ \$\.run = "([^"]*)" \}', pattern)
        assert found is not None, pattern
        try:
            run = json.loads(event["message"])["run"]
        except (ValueError, TypeError, KeyError):
            return False
        return isinstance(run, str) and found[1] in ("*", run)


def texts(client: CloudWatch, run: str | None, rank: int | None = None) -> list[str]:
    reader = logs.Reader(client, list(client.groups), run, rank)
    return [line.text for line in reader.read(0)]


def test_groups_are_merged_by_time_and_other_runs_left_out() -> None:
    client = CloudWatch(
        small=[
            wrote(1, "a", "one"),
            wrote(2, "b", "not this", stream="two"),
            wrote(5, "a", "five"),
        ],
        large=[wrote(3, "a", "three", rank=0), wrote(4, "a", "four", rank=1)],
    )
    assert texts(client, "a") == ["one", "three", "four", "five"]
    assert texts(client, "a", rank=1) == ["four"]
    assert texts(client, None) == ["one", "not this", "three", "four", "five"]


def test_what_names_nobody_is_that_of_the_call_around_it() -> None:
    killed = f"RequestId: {REQUEST} Error: Runtime exited with error: signal: killed"
    late = f"2026-11-22T10:00:00.000Z {REQUEST} Task timed out after 3.00 seconds\n\n"
    report = f"REPORT RequestId: {REQUEST}\tDuration: 1.00 ms\t"
    client = CloudWatch(
        group=[
            begins(1),
            said(2, "of a program that it started\n"),
            wrote(3, "a", "its last words", rank=3),
            said(4, killed),
            said(5, f"END RequestId: {REQUEST}\n"),
            said(6, report),
            said(7, f"{report}Status: error\tError Type: Runtime.ExitError\n"),
            begins(8),
            said(9, "of a call that is not known"),
            begins(10),
            wrote(11, "b", "not this"),
            said(12, late),
            begins(13, "two"),
            wrote(14, "a", "later", rank=4, stream="two"),
            said(15, late, "two"),
        ]
    )
    reader = logs.Reader(client, ["group"], "a")
    lines = reader.read(0)
    assert [line.text for line in lines] == [
        "of a program that it started",
        "its last words",
        killed,
        f"{report}Status: error\tError Type: Runtime.ExitError",
        "later",
        late.rstrip(),
    ]
    assert [line.rank for line in lines] == [3, 3, 3, 3, 4, 4]
    assert {line.run for line in lines} == {"a"}
    assert [line.is_lambdas for line in lines] == [False, False, True, True, False, True]


def test_a_users_own_json_is_text() -> None:
    own = json.dumps({"run": 7, "loss": 0.1})
    client = CloudWatch(group=[begins(1), wrote(2, "a", own), begins(3), said(4, own)])
    assert texts(client, "a") == [own]
    assert texts(client, None) == [own]


def test_following_shows_each_line_once_late_ones_too() -> None:
    group = [wrote(20_000, "a", "first"), wrote(21_000, "a", "second")]
    client = CloudWatch(group=group)
    later = iter([[wrote(20_500, "a", "late")], [], [wrote(60_000, "a", "last")], []])

    class Interrupted(Exception):
        pass

    def pause() -> None:
        try:
            group.extend(next(later))
        except StopIteration:
            raise Interrupted from None

    following = logs.Reader(client, ["group"], "a").follow(0, pause)
    found = [next(following).text for _ in range(4)]
    with pytest.raises(Interrupted):
        next(following)
    assert found == ["first", "second", "late", "last"]
    assert client.asked[-1]["startTime"] == 50_000, "it does not begin anew each time"


def test_runs_are_listed_with_their_tasks() -> None:
    client = CloudWatch(
        group=[
            wrote(1000, "a", "x", rank=0),
            wrote(2000, "b", "y"),
            wrote(3000, "a", "z", rank=1),
        ]
    )
    found = logs.runs(logs.Reader(client, ["group"], None).read(0))
    assert [(seen.run, seen.first, seen.last, seen.lines) for seen in found] == [
        ("a", 1.0, 3.0, 2),
        ("b", 2.0, 2.0, 1),
    ]
    assert found[0].tasks == ("work",)
    assert "2 lines" in logs.shown_run(found[0])


def test_a_line_for_a_terminal_names_its_rank_in_a_color_of_its_own() -> None:
    lines = [logs.parse(wrote(1000, "a", "text", rank=rank)) for rank in range(3)]
    plain = [logs.shown(line, is_colored=False) for line in lines]
    assert plain[1].endswith("(work[1] ab12-3) text")
    assert "\x1b" not in "".join(plain)
    colors = {logs.shown(line, is_colored=True).split("(")[0].split("\x1b")[-1] for line in lines}
    assert len(colors) == 3


@pytest.mark.parametrize(
    ("text", "since"),
    [("90s", 910.0), ("10m", 400.0), ("0.5h", -800.0), ("1970-01-01T00:00:10+00:00", 10.0)],
)
def test_since_is_how_long_ago_or_when(text: str, since: float) -> None:
    assert logs.parse_since(text, now=1000.0) == since


@pytest.mark.parametrize("text", ["", "soon", "10", "m", "10w", "-5m"])
def test_any_other_since_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--since"):
        logs.parse_since(text)
