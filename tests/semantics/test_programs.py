"""Whole programs as people write them for Ray, with one line changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "programs"

PRINTS = {
    "asynchronous": ["[2, 3, 4, 5, 6]", "2", "True"],
    "fault_tolerance": ["['survived', 'connected']", "crashed", "raised True True"],
    "in_flight": ["2646700, at most 8 at a time on 4 CPUs"],
    "monte_carlo_pi": ["pi is about 3.14"],
    "nested_fan_out": ["True"],
    "parameter_sweep": [
        "best {'rate': 1.0, 'depth': 2} with 2.0; 9 scored, failed [(0.1, 0), (0.5, 0), (1.0, 0)]"
    ],
    "pipeline": ["[0, 0, 0, 0] [980, 980, 980, 980]", "[10, 35]"],
    "progress": [*(f"{n} of 40 done" for n in (10, 20, 30, 40)), "sum", "session open: False"],
    "tree_reduce": ["50000 elements, each 136 to 136"],
    "word_count": ["[('dog', 4), ('the', 4), ('a', 2), ('fox', 2)]"],
}


@pytest.mark.parametrize("name", sorted(path.stem for path in PROGRAMS.glob("*.py")))
def test_a_program_for_ray_runs(name: str, system: str, tmp_path: Path) -> None:
    text = (PROGRAMS / f"{name}.py").read_text(encoding="utf-8")
    assert "\nimport fsdray as ray\n" in text
    if system == "ray":
        text = text.replace("import fsdray as ray\n", "import ray\n").replace(
            "from fsdray.", "from ray."
        )
    script = tmp_path / f"{name}.py"
    script.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    if system == "fsdray":  # Ray's own messages come between
        assert len(printed) == len(PRINTS[name]), printed
    left = iter(printed)
    for told in PRINTS[name]:
        assert any(line.startswith(told) for line in left), (told, printed)
