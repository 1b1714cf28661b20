"""Run random schedules: one by its seed, or many; a failure is printed with how to repeat it."""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor

from tests.collective.schedules.check import problems, schedule_of, smaller


def command(seed: int) -> str:
    """What repeats a schedule."""
    return f"python -m tests.collective.schedules --seed {seed}"


def failures(seeds: range) -> list[str]:
    """Run the schedules of these seeds; what went wrong, with what repeats it."""
    found = []
    for seed in seeds:
        wrong = problems(schedule_of(seed))
        if wrong:
            found.append(f"{command(seed)}\n  " + "\n  ".join(wrong[:5]))
    return found


def many(count: int, start: int = 0, processes: int = 2) -> list[str]:
    """Run `count` schedules from seed `start` on, in several processes; what went wrong."""
    size = -(-count // (processes * 20))
    chunks = [range(at, min(at + size, start + count)) for at in range(start, start + count, size)]
    with ProcessPoolExecutor(processes) as pool:
        return [failure for some in pool.map(failures, chunks) for failure in some]


def main() -> int:
    """Run what the command line says; the number of failures."""
    parser = argparse.ArgumentParser(description=__doc__, prog="tests.collective.schedules")
    parser.add_argument("--seed", type=int, help="run this one, and show it made smaller")
    parser.add_argument("--count", type=int, default=10_000, help="how many to run")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    if asked.seed is not None:
        schedule = schedule_of(asked.seed)
        wrong = problems(schedule)
        print(schedule)
        print("\n".join(wrong) or "all is right")
        if wrong:
            less = smaller(schedule)
            print("\nsmaller:", less, *problems(less), sep="\n")
        return len(wrong)
    began = time.perf_counter()
    found = many(asked.count, asked.start, asked.processes)
    seconds = time.perf_counter() - began
    print("\n".join(found))
    print(f"{asked.count} schedules, {len(found)} failed, {seconds:.1f} s")
    return len(found)


if __name__ == "__main__":
    raise SystemExit(min(main(), 1))
