"""docs/collectives.md names what there is, and its samples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fsdray import collective
from fsdray.collective import Communicator, Request, Status

TEXT = (Path(__file__).parents[2] / "docs" / "collectives.md").read_text(encoding="utf-8")
SAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def named(*rows: str) -> set[str]:
    """The names in the second column of these rows of the tables."""
    return {
        name
        for row in rows
        for name in re.findall(r"`(\w+)`", re.findall(rf"\| {row} \| (.*?) \|", TEXT)[0])
    }


def public(what: type) -> set[str]:
    return {name for name in dir(what) if not name.startswith("_")}


def test_every_name_of_a_communicator_is_in_a_table() -> None:
    ours = (
        "other communicators",
        "reduce and scatter",
        "begun collectives",
        "sparse exchange",
        "choices",
    )
    assert named("who", "messages", "collectives", *ours, "coroutines") == public(Communicator)


def test_every_name_of_requests_and_statuses_is_in_a_table() -> None:
    assert named("requests") == public(Request)
    assert named("status") == {*public(Status), *vars(Status())} - {"fill"}


def test_every_constant_and_operation_is_in_a_table() -> None:
    upper = {name for name in collective.__all__ if name.isupper()}
    assert named("operations", "constants") == upper


@pytest.mark.parametrize("number", range(len(SAMPLES)))
def test_a_sample_runs_as_written(number: int, tmp_path: Path) -> None:
    script = tmp_path / "sample.py"
    script.write_text(f"import fsdray as fsd\n{SAMPLES[number]}", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    if number == 0:
        assert "({'from': 3}, 3, 2), ({'from': 0}, 0, 3)" in done.stdout
