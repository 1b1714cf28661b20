"""What tasks cost their caller on the AWS backend: processor time, memory and requests a task.

In the checkout's directory (two minutes)::

    pip install -e '.[test]'
    python benchmarks/aws_tasks.py --json aws_tasks.json

Beside it stands the local backend, in the same run. AWS is `fsdray.testing.emulator`, so times say
what this machine and the emulator take, and nothing of AWS: only ``cpu_ms`` (of the caller's own
process, a task, without TLS), ``peak_mb`` and ``requests`` are about fsdray. ``first`` is the first
call of a session (a cold function), ``one`` a call alone (median), ``rate`` tasks a second of
`--tasks` at one time with `--concurrency`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsdray as fsd

ALONE = 100  # calls of which the median is taken
SLOTS = 20


@fsd.remote(memory=512)
def nothing() -> None: ...


class Silent:
    """Is told of a deploy, and says nothing."""

    def say(self, text: str) -> None: ...
    def begin(self, what: str, total: int) -> None: ...
    def event(self, event: Any) -> None: ...
    def end(self) -> None: ...


@contextlib.contextmanager
def stack() -> Iterator[None]:
    """A stack on an emulator, which sessions find."""
    from fsdray.backends.aws.deploy import deploy
    from fsdray.settings import resolve
    from fsdray.testing.emulator import Emulator

    with Emulator() as emulator:
        os.environ.update(emulator.environment)
        deploy(resolve({"backend": "aws"}), {"slots": SLOTS}, Silent(), is_bare=True)
        yield


def timed(count: int) -> float:
    """Seconds that so many tasks at one time take."""
    began = time.perf_counter()
    fsd.get([nothing.remote() for _ in range(count)])
    return time.perf_counter() - began


def measure(backend: str, tasks: int, concurrency: int) -> dict[str, Any]:
    began = time.perf_counter()
    with fsd.init(backend, concurrency=concurrency):
        found: dict[str, Any] = {"backend": backend, "init_s": time.perf_counter() - began}
        found["first_s"] = timed(1)
        timed(4 * concurrency)  # all functions are warm
        found["one_ms"] = statistics.median(timed(1) for _ in range(ALONE)) * 1000
        before = fsd.receipt().requests
        used = time.process_time()
        took = timed(tasks)
        found["cpu_ms"] = (time.process_time() - used) / tasks * 1000
        found["rate"] = tasks / took
        after = fsd.receipt().requests
        found["requests"] = {
            name: (after[name] - before.get(name, 0)) / tasks
            for name in after
            if name != "gb_seconds" and after[name] != before.get(name, 0)
        }
        found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    rows = [measure("local", arguments.tasks, arguments.concurrency)]
    with stack():
        rows.append(measure("aws", arguments.tasks, arguments.concurrency))
    print(f"{'':8}{'init':>9}{'first':>9}{'one':>10}{'rate':>11}{'cpu/task':>11}{'peak':>9}")
    for row in rows:
        print(
            f"{row['backend']:8}{row['init_s']:7.2f} s{row['first_s']:7.2f} s"
            f"{row['one_ms']:7.2f} ms{row['rate']:9,.0f}/s{row['cpu_ms']:8.2f} ms"
            f"{row['peak_mb']:6.0f} MB"
            f"  {', '.join(f'{number:g} {name}' for name, number in row['requests'].items())}"
        )
    if arguments.json:
        about = {"cores": os.cpu_count(), "python": platform.python_version()}
        arguments.json.write_text(
            json.dumps({**about, **vars(arguments), "rows": rows}, default=str)
        )


if __name__ == "__main__":
    main()
