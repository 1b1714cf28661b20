"""Calls to the Lambda host, through AWS's own clients."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from fsdray.testing import LambdaHost
from fsdray.testing.lambda_host import HostSettings, scheduler
from fsdray.testing.lambda_host.server import serving
from tests.testing.conftest import Deploy, call, connect, deploy_to, wait_for_end

pytest.importorskip("awslambdaric", reason="the test extra has it")


ECHO = "def handler(event, context): return event"
COUNT = """
import os
calls = 0
def handler(event, context):
    global calls
    calls += 1
    return [os.getpid(), calls]
"""
# Says that it runs by opening the event's pipe, and ends when that is closed.
HOLD = """
import os
def handler(event, context):
    if event:
        with open(event) as pipe:
            pipe.read()
    return os.getpid()
"""
# Fails, and says so in the event's pipe.
FAIL = """
def handler(event, context):
    with open(event, "a") as pipe:
        pipe.write(context.aws_request_id + "\\n")
    raise RuntimeError("again")
"""


class Held:
    """A call that is under way until it is let go."""

    def __init__(self, client: Any, name: str, directory: Path, **settings: Any) -> None:
        path = directory / f"pipe-{name}-{len(list(directory.iterdir()))}"
        os.mkfifo(path)
        self._pool = ThreadPoolExecutor(1)
        self._answer = self._pool.submit(call, client, name, str(path), **settings)
        self._pipe = path.open("w")  # waits until the function has opened it too

    def let_go(self) -> Any:
        self._pipe.close()
        self._pool.shutdown()
        return self._answer.result()


def tail(answer: Any) -> list[str]:
    return base64.b64decode(answer["LogResult"]).decode().splitlines()


def test_a_call_gives_its_value_and_knows_its_context(client: Any, deploy: Deploy) -> None:
    name = deploy(
        """
import os
def handler(event, context):
    return {
        "event": event,
        "name": context.function_name, "version": context.function_version,
        "memory": context.memory_limit_in_mb, "arn": context.invoked_function_arn,
        "group": context.log_group_name, "stream": context.log_stream_name,
        "id": context.aws_request_id, "left": context.get_remaining_time_in_millis(),
        "custom": context.client_context.custom,
        "environ": dict(os.environ), "cwd": os.getcwd(),
    }
""",
        Timeout=7,
        MemorySize=256,
        Environment={"Variables": {"MINE": "yes"}},
    )
    context = base64.b64encode(json.dumps({"custom": {"a": "ä"}}).encode()).decode()
    answer = client.invoke(FunctionName=name, Payload=b'{"x": 1}', ClientContext=context)
    value = json.loads(answer["Payload"].read())
    assert (answer["StatusCode"], answer["ExecutedVersion"]) == (200, "$LATEST")
    assert value["event"] == {"x": 1}
    assert value["name"] == name
    assert value["version"] == "$LATEST"
    assert value["memory"] == "256"
    assert value["arn"] == f"arn:aws:lambda:us-east-1:000000000000:function:{name}"
    assert value["group"] == f"/aws/lambda/{name}"
    assert re.fullmatch(r"\d{4}/\d\d/\d\d/\[\$LATEST\][0-9a-f]{32}", value["stream"])
    assert value["id"] == answer["ResponseMetadata"]["RequestId"]
    assert 0 < value["left"] <= 7000
    assert value["custom"] == {"a": "ä"}
    environ = value["environ"]
    assert environ["MINE"] == "yes"
    assert environ["AWS_REGION"] == environ["AWS_DEFAULT_REGION"] == "us-east-1"
    assert environ["AWS_LAMBDA_FUNCTION_NAME"] == name
    assert environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] == "256"
    assert environ["AWS_LAMBDA_LOG_GROUP_NAME"] == f"/aws/lambda/{name}"
    assert environ["AWS_ENDPOINT_URL_LAMBDA"] == client.meta.endpoint_url
    assert environ["LAMBDA_TASK_ROOT"] == value["cwd"]
    assert environ["_X_AMZN_TRACE_ID"].startswith("Root=1-")
    assert "PYTEST_CURRENT_TEST" not in environ, "the host's own environment is not the function's"


def test_an_asyncio_client_is_served_too(host: LambdaHost, deploy: Deploy) -> None:
    name = deploy(ECHO)

    async def calls() -> list[bytes]:
        session = get_session()
        async with session.create_client(
            "lambda",
            endpoint_url=host.url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        ) as client:

            async def one(n: int) -> bytes:
                answer = await client.invoke(FunctionName=name, Payload=str(n).encode())
                data: bytes = await answer["Payload"].read()
                return data

            return await asyncio.gather(*map(one, range(5)))

    assert asyncio.run(calls()) == [b"0", b"1", b"2", b"3", b"4"]


def test_no_payload_is_an_empty_event(client: Any, deploy: Deploy) -> None:
    answer = client.invoke(FunctionName=deploy(ECHO))
    assert answer["Payload"].read() == b"{}"


def test_an_environment_is_reused_and_keeps_its_state(client: Any, deploy: Deploy) -> None:
    name = deploy(COUNT)
    answers = [call(client, name) for _ in range(5)]
    assert {pid for pid, _ in answers} == {answers[0][0]}
    assert [calls for _, calls in answers] == [1, 2, 3, 4, 5]


def test_an_environment_runs_one_call_at_a_time(
    client: Any, deploy: Deploy, tmp_path: Path
) -> None:
    name = deploy(HOLD, Timeout=60)
    first = Held(client, name, tmp_path)
    second = Held(client, name, tmp_path)
    pids = {first.let_go(), second.let_go()}
    assert len(pids) == 2
    assert call(client, name) in pids


def test_a_reservation_limits_a_function(client: Any, deploy: Deploy, tmp_path: Path) -> None:
    name = deploy(HOLD, Timeout=60)
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
    held = Held(client, name, tmp_path)
    with pytest.raises(client.exceptions.TooManyRequestsException) as caught:
        call(client, name)
    assert caught.value.response["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 429
    pid = held.let_go()
    assert call(client, name) == pid
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    with pytest.raises(client.exceptions.TooManyRequestsException):
        call(client, name)
    client.delete_function_concurrency(FunctionName=name)
    assert call(client, name) == pid


def test_the_account_limits_all_functions_and_async_calls_wait(tmp_path: Path) -> None:
    with LambdaHost(concurrency=1) as host:
        client = connect(host.url)
        name, other = deploy_to(client, HOLD, Timeout=60), deploy_to(client, HOLD, Timeout=60)
        held = Held(client, name, tmp_path)
        with pytest.raises(client.exceptions.TooManyRequestsException) as caught:
            call(client, other)
        assert caught.value.response["Reason"] == "ConcurrentInvocationLimitExceeded"
        pipe = tmp_path / "late"
        os.mkfifo(pipe)
        client.invoke(
            FunctionName=other, InvocationType="Event", Payload=json.dumps(str(pipe)).encode()
        )
        held.let_go()
        open(pipe, "w").close()  # opens when the call runs
        settings = client.get_account_settings()["AccountLimit"]
        assert settings["ConcurrentExecutions"] == 1


def test_payloads_of_6_mb_pass_and_a_byte_more_does_not(client: Any, deploy: Deploy) -> None:
    name = deploy(ECHO, MemorySize=512, Timeout=60)
    payload = b'"' + b"x" * (6 * 1024 * 1024 - 2) + b'"'
    answer = client.invoke(FunctionName=name, Payload=payload)
    assert answer["Payload"].read() == payload
    with pytest.raises(ClientError) as caught:
        client.invoke(FunctionName=name, Payload=payload[:-1] + b'x"')
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 413
    assert caught.value.response["Error"]["Code"] == "RequestEntityTooLargeException"
    assert caught.value.response["Error"]["Message"] == (
        "6291457 byte payload is too large for the RequestResponse invocation type "
        "(limit 6291456 bytes)"
    )
    with pytest.raises(ClientError, match="limit 1048576 bytes"):
        client.invoke(
            FunctionName=name, InvocationType="Event", Payload=b'"' + b"x" * 1024 * 1024 + b'"'
        )


def test_what_cannot_be_called_is_refused(client: Any, deploy: Deploy) -> None:
    name = deploy(ECHO)
    with pytest.raises(client.exceptions.ResourceNotFoundException) as missing:
        client.invoke(FunctionName="nobody")
    arn = "arn:aws:lambda:us-east-1:000000000000:function:nobody"
    assert missing.value.response["Error"]["Message"] == f"Function not found: {arn}"
    assert missing.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        client.invoke(FunctionName=name, Qualifier="9")
    with pytest.raises(client.exceptions.InvalidRequestContentException):
        client.invoke(FunctionName=name, Payload=b"not JSON")
    with pytest.raises(ClientError, match="invocationType"):
        client.invoke(FunctionName=name, InvocationType="Sometimes")
    assert client.invoke(FunctionName=name, InvocationType="DryRun")["StatusCode"] == 204


def test_the_log_tail_tells_of_the_call(client: Any, deploy: Deploy) -> None:
    name = deploy(
        """
import logging
print("at import")
def handler(event, context):
    print("printed")
    logging.warning("logged")
    print("x" * event)
"""
    )
    cold = client.invoke(FunctionName=name, Payload=b"3", LogType="Tail")
    request_id = cold["ResponseMetadata"]["RequestId"]
    lines = tail(cold)
    assert lines[0] == "at import"
    assert lines[1] == f"START RequestId: {request_id} Version: $LATEST"
    assert lines[2] == "printed"
    assert re.fullmatch(rf"\[WARNING\]\t\S+Z\t{request_id}\tlogged", lines[3])
    assert lines[4:6] == ["xxx", f"END RequestId: {request_id}"]
    report = (
        rf"REPORT RequestId: {request_id}\tDuration: [\d.]+ ms\tBilled Duration: \d+ ms\t"
        r"Memory Size: 128 MB\tMax Memory Used: [1-9]\d* MB\t"
    )
    assert re.fullmatch(report + r"Init Duration: [\d.]+ ms\t", lines[6])
    warm = tail(client.invoke(FunctionName=name, Payload=b"3", LogType="Tail"))
    assert warm[0].startswith("START RequestId: ")
    assert re.fullmatch(report.replace(request_id, r"\S+"), warm[-1])
    long = client.invoke(FunctionName=name, Payload=b"9000", LogType="Tail")
    assert len(base64.b64decode(long["LogResult"])) == 4096
    assert "LogResult" not in client.invoke(FunctionName=name, Payload=b"3")


def test_a_call_that_takes_too_long_ends_its_environment(
    client: Any, deploy: Deploy, tmp_path: Path
) -> None:
    name = deploy(
        """
import os, threading
def handler(event, context):
    if event:
        with open(event, "w") as file:
            file.write(str(os.getpid()))
        threading.Event().wait()
    return os.getpid()
""",
        Timeout=1,
    )
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(
            client.invoke, FunctionName=name, Payload=json.dumps(str(pipe)), LogType="Tail"
        )
        pid = int(pipe.read_text())
        pidfd = os.pidfd_open(pid)
        answer = late.result()
    request_id = answer["ResponseMetadata"]["RequestId"]
    assert answer["FunctionError"] == "Unhandled"
    assert json.loads(answer["Payload"].read()) == {
        "errorType": "Sandbox.Timedout",
        "errorMessage": f"RequestId: {request_id} Error: Task timed out after 1.00 seconds",
    }
    assert any(x.endswith(f"{request_id} Task timed out after 1.00 seconds") for x in tail(answer))
    assert "Status: timeout" in tail(answer)[-1]
    wait_for_end(pidfd)
    assert call(client, name) != pid


@pytest.mark.parametrize(
    "taken",
    [
        "kept = bytearray(300 << 20)",  # seen while it is held, or after it
        "bytearray(300 << 20)",  # freed before anybody can look
        "import subprocess, sys; subprocess.run([sys.executable, '-c', "
        "'kept = bytearray(300 << 20); import threading; threading.Event().wait()'])",
    ],
)
def test_memory_over_the_limit_is_killed(client: Any, deploy: Deploy, taken: str) -> None:
    name = deploy(f"def handler(event, context):\n    {taken}\n    return 1", Timeout=60)
    answer = client.invoke(FunctionName=name, LogType="Tail")
    request_id = answer["ResponseMetadata"]["RequestId"]
    assert answer["FunctionError"] == "Unhandled"
    assert json.loads(answer["Payload"].read()) == {
        "errorType": "Runtime.ExitError",
        "errorMessage": f"RequestId: {request_id} Error: Runtime exited with error: signal: killed",
    }
    assert "Max Memory Used: 128 MB" in tail(answer)[-1]
    assert "Error Type: Runtime.OutOfMemory" in tail(answer)[-1]
    client.update_function_configuration(FunctionName=name, MemorySize=1024)
    if "subprocess" not in taken:
        assert call(client, name) == 1


class Lines:
    """A pipe that calls write to and a test reads, line by line."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        # For both ways, or there would be an end between two writers.
        self._pipe = open(os.open(path, os.O_RDWR), encoding="utf-8")  # noqa: SIM115
        self.event = json.dumps(str(path)).encode()

    def read(self, count: int) -> list[str]:
        return [self._pipe.readline().strip() for _ in range(count)]

    def close(self) -> None:
        self._pipe.close()


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    pipe = Lines(tmp_path / "lines")
    yield pipe
    pipe.close()


def test_an_asynchronous_call_is_tried_again_twice(
    client: Any, deploy: Deploy, lines: Lines
) -> None:
    name = deploy(FAIL)
    asked = {"FunctionName": name, "InvocationType": "Event", "Payload": lines.event}
    first = client.invoke(**asked)
    assert first["StatusCode"] == 202
    assert lines.read(3) == [first["ResponseMetadata"]["RequestId"]] * 3
    second = client.invoke(**asked)
    assert lines.read(3) == [second["ResponseMetadata"]["RequestId"]] * 3


def test_no_retries_if_none_are_wanted(client: Any, deploy: Deploy, lines: Lines) -> None:
    name = deploy(FAIL)
    client.put_function_event_invoke_config(FunctionName=name, MaximumRetryAttempts=0)
    asked = {"FunctionName": name, "InvocationType": "Event", "Payload": lines.event}
    # A retry would come before the later calls' own, and be read in their place.
    for _ in range(5):
        request_id = client.invoke(**asked)["ResponseMetadata"]["RequestId"]
        assert lines.read(1) == [request_id]


def test_a_failed_init_is_done_again_in_the_call(
    client: Any, deploy: Deploy, tmp_path: Path
) -> None:
    file = tmp_path / "inits"
    name = deploy(f"open({str(file)!r}, 'a').write('init\\n')\nraise RuntimeError('no')")
    answer = client.invoke(FunctionName=name, LogType="Tail")
    error = json.loads(answer["Payload"].read())
    assert (error["errorType"], error["errorMessage"], error["requestId"]) == (
        "RuntimeError",
        "no",
        "",
    )
    assert file.read_text() == "init\n" * 2
    log = "\n".join(tail(answer))
    assert re.search(r"INIT_REPORT Init Duration: [\d.]+ ms\tPhase: invoke\tStatus: error", log)
    assert "Init Duration" not in tail(answer)[-1]


def test_an_init_that_takes_too_long_is_done_again_in_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "INIT_SECONDS", 0.1)  # Lambda's 10, in a host of this process

    def calls(url: str) -> Any:
        client = connect(url)
        name = deploy_to(client, "import threading\nthreading.Event().wait()", Timeout=1)
        return client.invoke(FunctionName=name, LogType="Tail")

    async def hosted() -> Any:
        async with serving(HostSettings(directory=tmp_path)) as (url, _):
            return await asyncio.to_thread(calls, url)

    answer = asyncio.run(hosted())
    assert json.loads(answer["Payload"].read())["errorType"] == "Sandbox.Timedout"
    log = "\n".join(tail(answer))
    assert re.search(
        r"INIT_REPORT Init Duration: 1\d\d\.\d\d ms\tPhase: init\tStatus: timeout", log
    )
    assert "Task timed out after 1.00 seconds" in log
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_a_function_runs_between_calls(client: Any, deploy: Deploy) -> None:
    name = deploy(COUNT)
    pid, _ = call(client, name)
    state = ""
    for _ in range(1000):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "T":
            break
        threading.Event().wait(0.01)  # the kernel tells nobody but its parent
    assert state == "T"
    assert call(client, name) == [pid, 2]


def test_a_chain_of_calls_is_stopped_unless_it_is_allowed(
    host: LambdaHost, client: Any, deploy: Deploy
) -> None:
    name = deploy(ECHO)
    connection = http.client.HTTPConnection(host.url.removeprefix("http://"))

    def next_call(trace: str) -> tuple[int, str]:
        path = f"/2015-03-31/functions/{name}/invocations"
        connection.request("POST", path, b"1", {"X-Amzn-Trace-Id": trace} if trace else {})
        answer = connection.getresponse()
        answer.read()
        error = answer.getheader("x-amzn-ErrorType")
        return answer.status, error or str(answer.getheader("X-Amzn-Trace-Id"))

    trace = ""
    for _ in range(16):
        status, trace = next_call(trace)
        assert status == 200
    assert next_call(trace) == (400, "RecursiveInvocationException")
    client.put_function_recursion_config(FunctionName=name, RecursiveLoop="Allow")
    for _ in range(3):
        status, trace = next_call(trace)
        assert status == 200
    connection.close()


def test_a_function_calls_another_through_its_own_client(client: Any, deploy: Deploy) -> None:
    name = deploy(
        """
import json, os, boto3
def handler(event, context):
    if event:
        return os.environ["_X_AMZN_TRACE_ID"]
    again = boto3.client("lambda").invoke(FunctionName=context.function_name, Payload=b"1")
    return [os.environ["_X_AMZN_TRACE_ID"], json.loads(again["Payload"].read())]
""",
        Timeout=60,
        MemorySize=512,
    )
    mine, its = call(client, name)
    assert mine.split(";")[0] == its.split(";")[0], "one trace"
    assert re.search(r"Lineage=1:[0-9a-f]{8}:1$", mine)
    assert re.search(r"Lineage=1:[0-9a-f]{8}:2$", its)


def test_each_environment_has_a_temporary_directory_of_its_own(
    client: Any, deploy: Deploy, tmp_path: Path
) -> None:
    name = deploy(
        HOLD.replace("return os.getpid()", "import tempfile; return tempfile.gettempdir()"),
        Timeout=60,
    )
    first, second = Held(client, name, tmp_path), Held(client, name, tmp_path)
    assert first.let_go() != second.let_go()


def test_a_caller_who_goes_away_does_not_end_the_call(
    host: LambdaHost, deploy: Deploy, tmp_path: Path
) -> None:
    name = deploy(HOLD, Timeout=60)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    connection = http.client.HTTPConnection(host.url.removeprefix("http://"))
    path = f"/2015-03-31/functions/{name}/invocations"
    connection.request("POST", path, json.dumps(str(pipe)).encode())
    with open(pipe, "w"):  # it runs
        connection.close()
    assert isinstance(call(connect(host.url), name), int)


def test_many_callers_at_one_time_each_get_their_own_answer(client: Any, deploy: Deploy) -> None:
    name = deploy(ECHO, Timeout=60)
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=8)
    gate = threading.Barrier(8)

    def many(start: int) -> list[object]:
        gate.wait()
        return [call(client, name, [start, n]) for n in range(25)]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(many, range(8)))
    assert answers == [[[start, n] for n in range(25)] for start in range(8)]


def test_an_isolated_function_has_its_package_and_nothing_of_this_python() -> None:
    source = """
import importlib.util
def handler(event, context):
    return {name: importlib.util.find_spec(name) is not None for name in event}
"""
    wanted = ["app", "json", "awslambdaric", "numpy", "boto3", "fsdray", "pytest"]
    with LambdaHost(is_isolated=True) as host:
        client = connect(host.url)
        found = call(client, deploy_to(client, source), wanted)
    assert [name for name in wanted if found[name]] == ["app", "json", "awslambdaric"]
