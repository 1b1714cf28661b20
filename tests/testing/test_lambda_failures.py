"""How functions fail in the Lambda host, beside AWS's own runtime interface emulator (RIE).

RIE is a binary inside the wheel of aws-sam-cli. It runs one environment with the same runtime
client, and answers as the service's own code does: the host must give the same payloads, but
where `fsdray.testing.lambda_host` says that it follows the service instead.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.testing.conftest import PATIENCE, ROLE, RUNTIME, package

pytest.importorskip("awslambdaric", reason="the test extra has it")


WHEEL = "aws-sam-cli==1.170.0"

APP = """
import os, signal, sys, threading

class Own(Exception):
    pass

def inner():
    raise Own("with \\u00e9 and \\n a line")

def raises(event, context): raise ValueError("no")
def raises_own(event, context): inner()
def raises_from(event, context):
    try:
        inner()
    except Own as error:
        raise KeyError("key") from error
def raises_nothing(event, context): raise Exception
def raises_base(event, context): raise BaseException("base")
def interrupted(event, context): raise KeyboardInterrupt
def wrong_arguments(event): pass
def exits_0(event, context): sys.exit(0)
def exits_1(event, context): sys.exit(1)
def exits_text(event, context): sys.exit("bye")
def leaves_0(event, context): os._exit(0)
def leaves_3(event, context): os._exit(3)
def killed(event, context): os.kill(os.getpid(), signal.SIGKILL)
def terminated(event, context):
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait()
def segfaults(event, context): os.kill(os.getpid(), signal.SIGSEGV)
def aborts(event, context): os.abort()
def bus(event, context): os.kill(os.getpid(), signal.SIGBUS)
def returns_object(event, context): return object()
def returns_cycle(event, context):
    found = []
    found.append(found)
    return found
def returns_bytes(event, context): return b"bytes"
def returns_much(event, context): return "x" * (6 * 1024 * 1024 + 99)
def returns_all(event, context): return "x" * (6 * 1024 * 1024 + 98)
def returns_nan(event, context): return float("nan")
def returns_none(event, context): pass
def slow(event, context): threading.Event().wait()
def echo(event, context): return event
"""
MODULES = {
    "app": APP,
    "imports": "import nowhere_to_be_found\ndef handler(event, context): pass",
    "syntax": "def handler(event, context) pass",
    "indentation": "def handler(event, context):\npass",
    "raising": "raise RuntimeError('at import')",
    "exiting": "import sys; sys.exit(4)",
    "leaving": "import os; os._exit(5)",
}
SAME = [
    *(
        f"app.{name}"
        for name in re.findall(r"^def (\w+)", APP, re.M)
        if name not in ("inner", "slow")
    ),
    "app.nothing",
    "app",
    "nowhere.handler",
    "sys.exit",
    "imports.handler",
    "syntax.handler",
    "indentation.handler",
    "raising.handler",
]
VALUES = [
    f"app.{name}"
    for name in ("returns_bytes", "returns_all", "returns_nan", "returns_none", "echo")
]
EXITED = "RequestId: <id> Error: Runtime exited with error: exit status {}"
# What RIE answers, and what the service does: see fsdray.testing.lambda_host.
DIFFERENT = {
    "app.slow": (
        "Task timed out after 1.00 seconds",
        {
            "errorType": "Sandbox.Timedout",
            "errorMessage": "RequestId: <id> Error: Task timed out after 1.00 seconds",
        },
    ),
    "exiting.handler": (
        "",
        {
            "errorType": "Runtime.ExitError",
            "errorMessage": EXITED.format(4),
        },
    ),
    "leaving.handler": (
        "",
        {
            "errorType": "Runtime.ExitError",
            "errorMessage": EXITED.format(5),
        },
    ),
}
TIMEOUT = {"app.slow": 1}


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RIE's binary."""
    directory = tmp_path_factory.mktemp("rie")
    fetched = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "-d", directory, WHEEL],
        capture_output=True,
        text=True,
    )
    if fetched.returncode:
        pytest.skip(f"RIE's wheel cannot be had: {fetched.stderr.strip().splitlines()[-1]}")
    kind = {"x86_64": "x86_64", "aarch64": "arm64"}.get(platform.machine())
    if kind is None:
        pytest.skip(f"there is no RIE for {platform.machine()}")
    with zipfile.ZipFile(next(directory.glob("*.whl"))) as wheel:
        binary = wheel.extract(f"samcli/local/rapid/aws-lambda-rie-{kind}", directory)
    os.chmod(binary, 0o755)
    return Path(binary)


def normal(payload: bytes, task_root: str) -> object:
    """A payload without what is another each time."""
    text = payload.decode().replace(task_root, "<task>")
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<id>", text)
    try:
        return json.loads(text, parse_constant=str)  # NaN is no equal of itself
    except ValueError:
        return text


def ask_emulator(binary: Path, code: Path, handler: str) -> object:
    """What RIE answers to one call."""
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports.append(free.getsockname()[1])
    process = subprocess.Popen(
        [
            binary,
            *("--runtime-interface-emulator-address", f"127.0.0.1:{ports[0]}"),
            *("--runtime-api-address", f"127.0.0.1:{ports[1]}"),
            *(sys.executable, "-m", "awslambdaric", handler),
        ],
        cwd=code,
        env={
            "PATH": os.environ["PATH"],
            "LAMBDA_TASK_ROOT": str(code),
            "PYTHONDONTWRITEBYTECODE": "1",
            "AWS_LAMBDA_FUNCTION_TIMEOUT": str(TIMEOUT.get(handler, 60)),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        connection = http.client.HTTPConnection("127.0.0.1", ports[0], timeout=PATIENCE)
        for _ in range(int(PATIENCE * 100)):
            try:
                connection.connect()
                break
            except ConnectionRefusedError:  # it gives no sign when it is ready
                threading.Event().wait(0.01)
        connection.request("POST", "/2015-03-31/functions/function/invocations", b"{}")
        answer = normal(connection.getresponse().read(), str(code))
        connection.close()
        return answer
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def asked_again(emulator: Path, code: Path, handler: str) -> object:
    """`ask_emulator`, by another one where it resets the connection instead of answering."""
    for _ in range(2):
        with suppress(ConnectionResetError):
            return ask_emulator(emulator, code, handler)
    return ask_emulator(emulator, code, handler)


@pytest.fixture(scope="module")
def emulated(emulator: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What RIE answers to each handler, one environment each."""
    code = tmp_path_factory.mktemp("code")
    for name, source in MODULES.items():
        (code / f"{name}.py").write_text(source)
    handlers = [*SAME, *DIFFERENT]
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda handler: asked_again(emulator, code, handler), handlers)
        return dict(zip(handlers, answers, strict=True))


@pytest.fixture(scope="module")
def hosted(client: Any) -> dict[str, tuple[object, bool]]:
    """What the host answers to each handler, and whether as an error."""
    zipped = package(**MODULES)

    def ask(handler: str) -> tuple[object, bool]:
        name = "fails-" + re.sub(r"\W", "-", handler)
        client.create_function(
            FunctionName=name,
            Role=ROLE,
            Runtime=RUNTIME,
            Handler=handler,
            Code={"ZipFile": zipped},
            Timeout=TIMEOUT.get(handler, 60),
        )
        location = client.get_function(FunctionName=name)["Code"]["Location"]
        answer = client.invoke(FunctionName=name, Payload=b"{}")
        payload = normal(answer["Payload"].read(), location.removeprefix("file://"))
        return payload, answer.get("FunctionError") == "Unhandled"

    handlers = [*SAME, *DIFFERENT]
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(handlers, pool.map(ask, handlers), strict=True))


@pytest.mark.parametrize("handler", SAME)
def test_a_failure_is_told_as_aws_tells_it(
    handler: str, emulated: dict[str, object], hosted: dict[str, tuple[object, bool]]
) -> None:
    told, is_error = hosted[handler]
    assert told == emulated[handler]
    assert is_error == (handler not in VALUES)


@pytest.mark.parametrize("handler", DIFFERENT)
def test_where_the_emulator_differs_the_host_follows_the_service(
    handler: str, hosted: dict[str, tuple[object, bool]]
) -> None:
    assert hosted[handler] == (DIFFERENT[handler][1], True)


@pytest.mark.parametrize("handler", DIFFERENT)
def test_the_emulator_still_differs(handler: str, emulated: dict[str, object]) -> None:
    assert emulated[handler] == DIFFERENT[handler][0]
