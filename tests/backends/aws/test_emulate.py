"""``fsdray emulate``: prints what a shell needs, serves a stack, and leaves nothing."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from fsdray import cli
from fsdray.backends.aws import emulate as emulating
from fsdray.backends.aws.stack import read_stack
from fsdray.settings import resolve
from tests.conftest import processes
from tests.deployed import using

MAIN = "import sys; from fsdray.cli import main; sys.exit(main())"


def test_a_stack_is_served_until_interrupted(tmp_path: Path) -> None:
    before = processes()
    options = ["--slots", "3", "--memory", "512", "--stack", "tried"]
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, "emulate", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        variables = {}
        while "FSDRAY_STACK" not in variables:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            (export, assignment) = shlex.split(line)
            assert export == "export"
            name, _, value = assignment.partition("=")
            variables[name] = value
        with using(variables):
            stack = read_stack(resolve({}))
            assert (stack.name, stack.slots) == ("tried", 3)
            function = boto3.client("lambda").get_function(FunctionName=stack.functions[512])
            assert function["Configuration"]["MemorySize"] == 512
        handles = [os.pidfd_open(pid) for pid in processes() - before]
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)  # as from an impatient hand
        assert process.wait(30) == 0
        assert process.stdout.read() == ""
        assert "Serving until interrupted" in process.stderr.read()
    for handle in handles:
        assert select.select([handle], [], [], 20)[0], "a process was left over"
        os.close(handle)
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_ends_ends_all_of_it() -> None:
    with subprocess.Popen(["sleep", "600"]) as lasting, subprocess.Popen(["true"]) as short:
        emulating._wait([lasting.pid, short.pid])
        lasting.kill()


def test_what_cannot_be_is_an_error_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["emulate", "--slots", "0"], "slots=0"),
        (["emulate", "--memory", "lots"], "'lots' is not MB"),
        (["deploy", "--tag", "nonsense"], "'nonsense' is not NAME=VALUE"),
        (["deploy", "--requirements", "/not/there"], "is not a file"),
        (["destroy"], "give --yes"),
    ):
        assert cli.main(arguments) != 0
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("fsdray: error: ")
        assert said in error
