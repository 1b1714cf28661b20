"""However a Lambda host ends, no process and no directory of it is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fsdray.errors import ServiceError, SettingsError
from fsdray.testing import LambdaHost
from tests.testing.conftest import call, connect, deploy_to, wait_for_end

pytest.importorskip("awslambdaric", reason="the test extra has it")


# Starts a child and a daemon that has left its session, and gives the pids of all three, and of
# the guardian.
FAMILY = """
import os, subprocess, sys, tempfile
WAIT = "import threading; threading.Event().wait()"
DAEMON = f'''
import os, subprocess, sys
if os.fork() == 0:
    os.setsid()
    print(os.getpid(), flush=True)
    os.closerange(0, 3)
    {WAIT}
'''
def handler(event, context):
    open(os.path.join(tempfile.gettempdir(), "left"), "w").close()
    child = subprocess.Popen([sys.executable, "-c", WAIT])
    daemon = subprocess.run([sys.executable, "-c", DAEMON], stdout=subprocess.PIPE)
    return [os.getpid(), child.pid, int(daemon.stdout), os.getppid()]
"""


def family(url: str) -> list[int]:
    """Descriptors of an environment's processes, and of the host's guardian."""
    client = connect(url)
    return [os.pidfd_open(pid) for pid in call(client, deploy_to(client, FAMILY, Timeout=60))]


def test_closing_it_leaves_nothing(tmp_path: Path) -> None:
    with LambdaHost(directory=tmp_path) as host:
        pidfds = family(host.url)
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
    for pidfd in pidfds:
        wait_for_end(pidfd)
    with pytest.raises(ServiceError, match="not running"):
        _ = host.url


def test_a_killed_host_leaves_nothing(tmp_path: Path) -> None:
    with LambdaHost(directory=tmp_path) as host:
        pidfds = family(host.url)
        assert host.pid is not None
        os.kill(host.pid, signal.SIGKILL)
        for pidfd in pidfds:
            wait_for_end(pidfd)
        assert list(tmp_path.iterdir()) == []


def test_a_killed_guardian_ends_the_host(tmp_path: Path) -> None:
    with LambdaHost(directory=tmp_path) as host:
        environment, child, daemon, guardian = family(host.url)
        assert host.pid is not None
        ended = os.pidfd_open(host.pid)
        signal.pidfd_send_signal(guardian, signal.SIGKILL)
        for pidfd in (guardian, environment, child, ended):
            wait_for_end(pidfd)
        signal.pidfd_send_signal(daemon, signal.SIGKILL)  # only the guardian knew of it
        wait_for_end(daemon)
        assert list(tmp_path.iterdir()) == []


def test_a_killed_caller_leaves_nothing(tmp_path: Path) -> None:
    program = f"""
import threading
from fsdray.testing import LambdaHost
with LambdaHost(directory={str(tmp_path)!r}) as host:
    print(host.url, host.pid, flush=True)
    threading.Event().wait()
"""
    caller = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    url, pid = caller.stdout.readline().split()
    ended = os.pidfd_open(int(pid))
    pidfds = family(url)
    caller.kill()
    caller.wait()
    caller.stdout.close()
    for pidfd in [ended, *pidfds]:
        wait_for_end(pidfd)
    assert list(tmp_path.iterdir()) == []


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    command = subprocess.Popen(
        [
            *(sys.executable, "-m", "fsdray.testing.lambda_host"),
            *("--directory", str(tmp_path), "--env", "MINE=yes", "--region", "eu-west-1"),
            *("--logs", str(tmp_path / "logs"), "--access-log", str(tmp_path / "requests")),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert command.stdout is not None
    variable, _, url = command.stdout.readline().strip().partition("=")
    assert variable == "export AWS_ENDPOINT_URL_LAMBDA"
    client = connect(url)
    source = (
        "import os\n"
        "def handler(event, context):\n"
        "    print('said')\n"
        "    os.write(1, b'unfinished')\n"
        "    return dict(os.environ)"
    )
    environ = call(client, name := deploy_to(client, source))
    assert environ["MINE"] == "yes"
    assert environ["AWS_REGION"] == "eu-west-1"
    command.send_signal(signal.SIGINT)
    assert command.stdout.read() == ""
    assert command.wait() == 0
    command.stdout.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "requests"]
    events = [json.loads(line) for line in (tmp_path / "logs").read_text().splitlines()]
    assert [event["message"].split(" ")[0] for event in events] == [
        "START",
        "said",
        "unfinished",
        "END",
        "REPORT",
    ]
    assert {event["group"] for event in events} == {f"/aws/lambda/{name}"}
    assert {event["stream"] for event in events} == {environ["AWS_LAMBDA_LOG_STREAM_NAME"]}
    requests = [json.loads(line) for line in (tmp_path / "requests").read_text().splitlines()]
    assert [each["operation"] for each in requests] == ["CreateFunction", "Invoke"]
    assert requests[1]["is_error"] is False
    assert requests[1]["was_cold"] is True


def test_an_idle_environment_is_ended(tmp_path: Path) -> None:
    with LambdaHost(directory=tmp_path, idle=0.2) as host:
        client = connect(host.url)
        name = deploy_to(client, "import os\ndef handler(e, c): return os.getpid()")
        pid = call(client, name)
        wait_for_end(os.pidfd_open(pid))
        assert call(client, name) != pid


def test_settings_that_cannot_be_are_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="concurrency, region"):
        LambdaHost(speed=1)
    with pytest.raises(ServiceError, match="did not start"):
        LambdaHost(directory=tmp_path / "nowhere").start()
