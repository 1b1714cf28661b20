"""A hundred thousand tasks from one caller: its memory and its speed over the run; and deaths.

``python benchmarks/many.py`` runs three programs, each in a process of its own:

windows
    100,000 tasks, 1,000 at a time, whose refs are dropped when their values are there.
at-once
    100,000 tasks, all submitted before the first value is asked for, all refs kept; twice, so
    that what the first left behind would show in the second.
faults
    10,000 tasks of half a millisecond while workers die, by a printed seed: one attempt in twenty
    kills its own process, and a thread kills workers from outside.

Every value is checked. Memory is the anonymous resident memory of the caller; speed is told for
each tenth of the tasks. Needs psutil.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from systems import MB, anonymous

import fsdray as fsd

WINDOW = 1000
DEATHS = 0.05  # of all attempts, by their own hand
KILLS = 0.05  # seconds between two workers' deaths from outside, on average
RETRIES = 10


@fsd.remote
def same(number: int) -> int:
    """Return what was given: nothing to do, and something to check."""
    return number


@fsd.remote(max_retries=RETRIES)
def mortal(number: int, seed: int) -> tuple[int, int]:
    """Compute for a moment, and die where the seed says so; the number and the attempt."""
    attempt = fsd.get_runtime_context().attempt or 0
    until = time.perf_counter() + 0.0005
    while time.perf_counter() < until:
        pass
    if dies(number, attempt, seed):
        os.kill(os.getpid(), signal.SIGKILL)
    return number, attempt


def dies(number: int, attempt: int, seed: int) -> bool:
    """Whether this attempt ends its own process."""
    return random.Random(f"{seed}-{number}-{attempt}").random() < DEATHS


def windows(count: int, seed: int) -> dict[str, Any]:
    """Submit a window, get it, drop it."""
    tenths = Tenths(count)
    for begin in range(0, count, WINDOW):
        numbers = range(begin, min(begin + WINDOW, count))
        assert fsd.get([same.remote(number) for number in numbers]) == list(numbers)
        tenths.reached(numbers.stop)
    return tenths.report()


def at_once(count: int, seed: int) -> dict[str, Any]:
    """Submit everything, then get it in order; twice."""
    report: dict[str, Any] = {}
    for lap in ("first", "second"):
        tenths, begin = Tenths(count), time.perf_counter()
        refs = []
        for number in range(count):
            refs.append(same.remote(number))
            tenths.reached(number + 1)
        report[lap] = {"submitted": tenths.report()}
        tenths = Tenths(count)
        for i in range(0, count, WINDOW):
            stop = min(i + WINDOW, count)
            assert fsd.get(refs[i:stop]) == list(range(i, stop))
            tenths.reached(stop)
        report[lap] |= tenths.report()
        report[lap]["rate"] = count / (time.perf_counter() - begin)
        del refs
        gc.collect()
        # What a dropped ref frees is freed on the loop, behind this call.
        assert fsd.get(same.remote(0)) == 0
        report[lap]["left_mb"] = anonymous() / MB
    return report


def faults(count: int, seed: int) -> dict[str, Any]:
    """Run to the end while workers die, and hold the receipts to what the tasks saw."""
    rng = random.Random(seed)
    over = threading.Event()
    kills = 0

    def kill_some() -> None:
        nonlocal kills
        while not over.wait(rng.expovariate(1 / KILLS)):
            found = sorted(workers())
            if found:
                try:
                    os.kill(rng.choice(found), signal.SIGKILL)
                except ProcessLookupError:
                    continue  # it was faster
                kills += 1

    killer = threading.Thread(target=kill_some)
    begin = time.perf_counter()
    refs = [mortal.remote(number, seed) for number in range(count)]
    killer.start()
    try:
        values = fsd.get(refs)
    finally:
        over.set()
        killer.join()
    seconds = time.perf_counter() - begin
    assert [number for number, _ in values] == list(range(count))
    attempts = [attempt for _, attempt in values]
    asked = [ref.receipt().requests["invoke"] for ref in refs]
    assert asked == attempts, "an attempt was not counted"
    assert not any(dies(n, attempt, seed) for n, attempt in values)
    own = sum(dies(n, a, seed) for n, last in values for a in range(1, last))
    again = sum(attempts) - count
    assert again >= own > 0
    return {
        "rate": count / seconds,
        "attempts": sum(attempts),
        "most_attempts": max(attempts),
        "own_deaths": own,
        "killed_from_outside": kills,
        "lost_to_kills": again - own,
    }


def workers() -> Iterator[int]:
    """Processes that run calls: they are forked by the one that this process started."""
    for child in psutil.Process().children():
        try:
            yield from (worker.pid for worker in child.children())
        except psutil.NoSuchProcess:
            continue


class Tenths:
    """Speed and memory at each tenth of the way."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._steps = [(0, time.perf_counter(), anonymous() / MB)]

    def reached(self, number: int) -> None:
        """So many tasks are done."""
        if number * 10 // self._count > self._steps[-1][0] * 10 // self._count:
            self._steps.append((number, time.perf_counter(), anonymous() / MB))

    def report(self) -> dict[str, Any]:
        """Tasks a second in each tenth, and MB at their ends, the start first."""
        pairs = list(zip(self._steps, self._steps[1:], strict=False))
        return {
            "rates": [(n - m) / (now - then) for (m, then, _), (n, now, _) in pairs],
            "mb": [mb for _, _, mb in self._steps],
        }


PROGRAMS = {"windows": windows, "at-once": at_once, "faults": faults}


def run(program: str, count: int, seed: int) -> None:
    """One program in this process; one line of JSON."""
    fsd.init()
    fsd.get([same.remote(number) for number in range(WINDOW)])
    print(json.dumps(PROGRAMS[program](count, seed)), flush=True)
    fsd.shutdown()


def told(program: str, report: dict[str, Any]) -> str:
    """A report for people."""
    if program == "faults":
        return (
            f"faults   {report['rate']:,.0f}/s; {report['attempts']:,} attempts, at most "
            f"{report['most_attempts']} for one task; {report['own_deaths']} died by themselves, "
            f"{report['killed_from_outside']} workers were killed, which cost "
            f"{report['lost_to_kills']} attempts; all values right, all attempts counted"
        )
    if program == "windows":
        return f"windows  {by_tenth('tasks', report)}"
    return "\n".join(
        f"at-once  {lap} lap: {of_lap['rate']:,.0f}/s in all, "
        f"{of_lap['left_mb']:.1f} MB when all refs were dropped\n"
        f"{'':9}{by_tenth('submitted', of_lap['submitted'])}\n{'':9}{by_tenth('got', of_lap)}"
        for lap, of_lap in report.items()
    )


def by_tenth(what: str, report: dict[str, Any]) -> str:
    """Speed and memory along the way."""
    rates, mb = report["rates"], report["mb"]
    change = statistics.median(rates[-3:]) / statistics.median(rates[:3])
    return (
        f"{what}/s by tenth {' '.join(f'{rate:,.0f}' for rate in rates)}"
        f" (last three / first three: {change:.2f}); "
        f"caller's MB {' '.join(f'{each:.1f}' for each in mb)}"
    )


def main() -> None:
    """Parse the command line, run the programs, print, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--programs", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--tasks", type=int, default=100_000, help="a tenth of it for faults")
    parser.add_argument("--seed", type=int, help="of the faults; by default a new one")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.tasks < 100:
        parser.error("--tasks must be at least 100")
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    if arguments.here:
        run(arguments.programs[0], arguments.tasks, seed)
        return
    print(f"seed {seed}, load average {os.getloadavg()[0]:.1f}")
    reports: dict[str, Any] = {"seed": seed, "load_average": os.getloadavg()}
    for program in arguments.programs:
        count = arguments.tasks // 10 if program == "faults" else arguments.tasks
        command = [sys.executable, __file__, "--here", "--programs", program]
        command += [f"--tasks={count}", f"--seed={seed}"]
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        reports[program] = json.loads(out.splitlines()[-1])
        print(told(program, reports[program]), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(reports, indent=2) + "\n")


if __name__ == "__main__":
    main()
