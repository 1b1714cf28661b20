"""Ask a real MPI and fsdray the same questions: mpi4py's own programs, P = 1, 2, 3, 5, 8.

It needs mpi4py and an ``mpiexec`` beside this Python, or beside the one that --python names.
From the checkout's directory: ``python -m benchmarks.oracle``. With --record
it renews what the tests compare with.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import fsdray as fsd
from tests import oracle
from tests.collective import CHANNELS, services
from tests.oracle import under_fsdray

RECORDED = Path(oracle.__file__).parent / "answers.json"


def ask_mpi(python: str, size: int) -> tuple[str, dict[str, list[str]]]:
    """The library's name, and what each rank answers to each program."""
    mpiexec = Path(python).with_name("mpiexec")
    # Open MPI starts more ranks than cores, and as root, only where it is told so.
    allowed = os.environ | {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    with tempfile.TemporaryDirectory() as directory:
        answers = Path(directory) / "answers.json"
        command = [mpiexec, "-n", str(size), python, "-m", "tests.oracle.under_mpi", answers]
        done = subprocess.run(
            command, env=allowed, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode:
            raise SystemExit(f"{mpiexec} failed:\n{done.stdout}{done.stderr}")
        return done.stdout.strip(), json.loads(answers.read_text())


def ask_fsdray(channel: str, size: int) -> dict[str, list[dict[str, str]]]:
    """What each rank answers, on threads and as a gang of tasks."""
    with services() as here:
        on_threads = under_fsdray.on_threads(here, channel, size)
    task = fsd.remote(world_size=size, channel=channel)(under_fsdray.as_task)
    return {"threads": on_threads, "tasks": fsd.get(task.remote())}


def main() -> int:
    """Ask both, show where they differ, and return how often they do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="the one that has mpi4py")
    parser.add_argument("--record", action="store_true", help="write what MPI answered")
    arguments = parser.parse_args()
    said: dict[int, Any] = {}
    library, differences = "", 0
    fsd.init("local", concurrency=max(oracle.SIZES))
    for size in oracle.SIZES:
        library, said[size] = ask_mpi(arguments.python, size)
        for channel in CHANNELS:
            for where, found in ask_fsdray(channel, size).items():
                wrong = [
                    (name, rank)
                    for name, answers in said[size].items()
                    for rank in range(size)
                    if answers[rank] != found[rank][name]
                ]
                differences += len(wrong)
                count = len(said[size])
                print(f"P={size} {channel:6} {where:7} {count} programs, {len(wrong)} differences")
                for name, rank in wrong:
                    print(f"  {name}, rank {rank}: {library} says {said[size][name][rank]}")
                    print(f"    fsdray says {found[rank][name]}")
    fsd.shutdown()
    if arguments.record:
        RECORDED.write_text(json.dumps({"library": library, "answers": said}, indent=1) + "\n")
    return differences


if __name__ == "__main__":
    raise SystemExit(min(main(), 1))
