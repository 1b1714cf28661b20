"""What crosses between caller and function on AWS, and what an answer without a reply means."""

from __future__ import annotations

import base64
import json

import pytest

from fsdray.backends.aws import calls
from fsdray.backends.aws.calls import Answer, Event, Told
from fsdray.errors import (
    EnvironmentMismatch,
    FsdrayError,
    FunctionCrashed,
    FunctionTimeout,
    OutOfMemory,
    ServiceError,
)
from fsdray.services import FunctionLimits

REQUEST = "8f5a1f10-1111-2222-3333-444455556666"
START = f"START RequestId: {REQUEST} Version: $LATEST\n"
END = f"END RequestId: {REQUEST}\n"


def report(used: int = 100, status: str = "") -> str:
    return (
        f"REPORT RequestId: {REQUEST}\tDuration: 11.50 ms\tBilled Duration: 12 ms\t"
        f"Memory Size: 512 MB\tMax Memory Used: {used} MB\t{status}\n"
    )


def encoded(text: str) -> str:
    """As Lambda sends the end of a log: its last 4 KB."""
    return base64.b64encode(text.encode()[-4096:]).decode()


def own_line(text: str) -> str:
    return calls.log_line("run", "id", "work 12-3", None, text).decode()


def test_an_event_comes_back_as_it_went() -> None:
    event = Event(
        session="s" * 16,
        call="id",
        label='odd "name" ü 12-3',
        timeout=1.5,
        concurrency=40,
        above=("of", "it"),
        storage="express",
        sent=1.25,
        payload=b"\0\xff" * 9,
    )
    assert Event.load(json.loads(event.dump())) == event


def test_the_largest_payload_fits_into_lambdas_six_megabytes() -> None:
    label = "f" * 200
    payload = bytes(FunctionLimits().payload)
    above = ("i" * 12,) * 64
    event = Event("s" * 16, "i" * 12, label, 900.0, 1000, above, "standard", 0.1 + 0.2, payload)
    assert len(event.dump()) < 6 * 1024**2
    printed = [(label, "x" * 64 * 1024)]
    assert len(json.dumps(Answer(payload, printed).parsed())) < 6 * 1024**2


@pytest.mark.parametrize("printed", [[], [("f 12-3", "a line"), ("g 12-4", "ü\x1b[1m")]])
def test_an_answer_comes_back_as_it_went(printed: calls.Lines) -> None:
    answer = Answer(b"\0reply", printed)
    assert Answer.load(json.dumps(answer.parsed()).encode()) == answer


@pytest.mark.parametrize("told", [None, 3, {}, {"v": 0}, {"Records": []}])
def test_an_event_of_others_is_refused(told: object) -> None:
    with pytest.raises(EnvironmentMismatch, match="fsdray deploy"):
        Event.load(told)


def test_a_log_is_read_without_what_lambda_writes() -> None:
    text = START + own_line("first") + "raw, from a library\n" + own_line("last") + END + report()
    told = calls.read_log(encoded(text))
    assert told.lines == ["first", "raw, from a library", "last"]
    assert told.gb_seconds == pytest.approx(0.012 * 0.5)


def test_a_log_that_is_cut_begins_with_a_whole_line() -> None:
    text = START + "".join(own_line(f"line {i}") for i in range(200)) + END + report()
    told = calls.read_log(encoded(text))
    assert told.lines[-1] == "line 199"
    assert told.lines == [f"line {i}" for i in range(200 - len(told.lines), 200)]


def test_a_line_of_the_users_that_looks_like_ours_stays() -> None:
    text = START + '{"run": 1}\n{"run":\n' + END + report()
    assert calls.read_log(encoded(text)).lines == ['{"run": 1}', '{"run":']


def test_a_log_says_whether_a_call_was_not_wanted_any_more() -> None:
    end = f"{calls.ENDS}{calls.UNWANTED}\n"
    told = calls.read_log(encoded(START + own_line("said") + end + END + report()))
    assert told.is_cancelled
    assert told.lines == ["said"]
    assert not calls.read_log(encoded(START + own_line(calls.UNWANTED) + END)).is_cancelled


EXIT = "Runtime.ExitError"


@pytest.mark.parametrize(
    ("kind", "message", "log", "seconds", "error", "says"),
    [
        (EXIT, "Runtime exited with error: exit status 3", "", 1, FunctionCrashed, "status 3"),
        (EXIT, "Runtime exited with error: exit status 1", "", 1, FunctionCrashed, "status 1"),
        (EXIT, "Runtime exited with error: exit status 1", "", 31, FunctionTimeout, "30 s"),
        (EXIT, "Runtime exited with error: exit status 124", "", 30, FunctionTimeout, "30 s"),
        (EXIT, "Runtime exited with error: exit status 70", "", 1, FunctionCrashed, "70"),
        (EXIT, "Runtime exited without providing a reason", "", 1, FunctionCrashed, "reason"),
        (
            EXIT,
            "Runtime exited with error: signal: segmentation fault (core dumped)",
            "",
            1,
            FunctionCrashed,
            "killed by signal 11 (SIGSEGV)",
        ),
        (EXIT, "Runtime exited with error: signal: killed", "", 1, OutOfMemory, "512 MB"),
        (
            EXIT,
            "Runtime exited with error: signal: killed",
            report(512, "Status: error\tError Type: Runtime.OutOfMemory"),
            1,
            OutOfMemory,
            "memory=MB",
        ),
        (
            EXIT,
            "Runtime exited with error: signal: killed",
            report(100),
            1,
            FunctionCrashed,
            "killed by signal 9 (SIGKILL)",
        ),
        ("Runtime.OutOfMemory", "x", "", 1, OutOfMemory, "512 MB"),
        ("Sandbox.Timedout", "Task timed out after 900.00 seconds", "", 1, FunctionTimeout, "s"),
        ("Function.ResponseSizeTooLarge", "x", "", 1, FunctionCrashed, "inline_limit"),
        ("Runtime.ImportModuleError", "No module", "", 1, ServiceError, "fsdray deploy"),
        ("EnvironmentMismatch", "both sides", "", 1, EnvironmentMismatch, "both sides"),
        ("KeyError", "'x'", "", 1, FunctionCrashed, "KeyError"),
    ],
)
def test_how_a_call_failed_is_its_error(
    kind: str, message: str, log: str, seconds: float, error: type[FsdrayError], says: str
) -> None:
    body = {"errorType": kind, "errorMessage": f"RequestId: {REQUEST} Error: {message}"}
    found = calls.failure_of(
        json.dumps(body).encode(),
        calls.read_log(encoded(START + own_line("said") + log)),
        name="work",
        memory=512,
        given=512,
        timeout=30,
        seconds=seconds,
    )
    assert type(found) is error
    assert says in str(found)
    assert getattr(found, "log", ("said",)) == ("said",)


def test_an_answer_that_is_no_error_of_lambdas_is_shown() -> None:
    found = calls.failure_of(
        b"<html>", Told([]), name="work", memory=1, given=1, timeout=1, seconds=1
    )
    assert "<html>" in str(found)


@pytest.mark.parametrize(
    ("label", "rank", "name"),
    [
        ("work 12-3", None, "work"),
        ("work[17] 12-3", 17, "work[17]"),
        ("odd[1] name 12-3", None, "odd[1] name"),
        ("", None, "a call"),
    ],
)
def test_a_label_says_the_rank_and_the_name(label: str, rank: int | None, name: str) -> None:
    assert calls.rank_of(label) == rank
    assert calls.name_of(label) == name
