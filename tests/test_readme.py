"""What the README and the examples say works as written."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in
            block.splitlines() if line.strip()]  # fmt: skip


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=200, cwd=ROOT
    )


def test_the_readme_has_two_samples_and_two_commands() -> None:
    assert len(SAMPLES) == 2
    assert len(COMMANDS) == 2


@pytest.mark.parametrize("number", range(len(SAMPLES)))
@pytest.mark.slow_on_aws
def test_a_sample_of_the_readme_runs_as_written(number: int, tmp_path: Path) -> None:
    script = tmp_path / "sample.py"
    script.write_text(SAMPLES[number], encoding="utf-8")
    done = run(str(script))
    assert done.returncode == 0, done.stderr
    if "square" in SAMPLES[number]:
        squares, means = done.stdout.splitlines()
        assert squares == str([n * n for n in range(100)])
        assert means.count("499999.5") == 8
    else:
        told = r"\$0\.\d+.*: 8 invocations, .* 936 publishes, 8 sends"
        assert re.match(told, done.stdout), done.stdout


@pytest.mark.slow_on_aws
def test_the_first_command_is_one_that_the_command_line_takes() -> None:
    install, command = COMMANDS[0].split("&&")
    assert shlex.split(install) == ["pip", "install", ".[inference]"]
    words = shlex.split(command)
    assert words[:2] == ["fsdray", "infer"]
    done = run("-m", "fsdray", *words[1:], "--verify", "--json")
    assert done.returncode == 0, done.stderr
    assert '"verified": true' in done.stdout


@pytest.mark.parametrize("example", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
@pytest.mark.slow_on_aws
def test_an_example_runs(example: str) -> None:
    done = run(str(ROOT / "examples" / example))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
