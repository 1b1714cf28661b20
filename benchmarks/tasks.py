"""Tasks beside Ray, ProcessPoolExecutor, Dask's LocalCluster and Lithops on localhost, in one run.

In the checkout's directory, this sets up what is needed, and runs it (about 15 minutes)::

    python -m venv .venv-bench
    .venv-bench/bin/pip install -e . -r benchmarks/requirements.txt
    .venv-bench/bin/python benchmarks/tasks.py --json tasks.json --plot tasks.svg

Every measurement is a fresh process (``systems.py``), and the systems take turns: fsdray, Ray,
the others, and again, so that what else the machine does befalls all of them. Figures are medians
over these rounds; one round before them, whose figures are dropped, fills the caches. All have two
processes to run calls in; Ray and Dask have no dashboard. A ratio is the median of the rounds' own
ratios, since a busy minute befalls both systems of a round. What is measured:

start
    Seconds from the first ``import`` to the first result of a task that does nothing, and the
    memory of that session three seconds later: the proportional set size (each shared page
    divided by those who share it) of the caller and of all processes that the library started.
latency
    Submit one such task and get its value: the median of 300 in a warm session.
throughput
    Submit 1,000 in a loop, get all values with one call; the same with 10,000. CPU time a task,
    of the caller's process and of all processes, is that of the 10,000.
array
    A NumPy array of 100 MB is put, given by its ref to a task that reads its first and last page,
    and got; a new array each time, the first time apart from the median of five more. Both workers
    have imported NumPy before. A pool has no refs: the array is given to the task itself. Whether
    get copied is told by the growth of the process' own (unshared) memory after all of the array
    was read.

The targets are fsdray's own, against Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

from systems import MARK, MEASURES, SYSTEMS, tree

TITLES = {
    "fsdray": "fsdray",
    "ray": "Ray",
    "pool": "process pool",
    "dask": "Dask",
    "lithops": "Lithops",
}
ONE = Path(__file__).with_name("systems.py")
PATIENCE = 300.0  # seconds for one measurement

Figures = dict[str, dict[str, list[Any]]]  # by system and key, one a round


@dataclass(frozen=True)
class Row:
    """A line of the table; `target` bounds fsdray's figure divided by Ray's."""

    key: str
    title: str
    unit: str
    scale: float = 1.0
    target: float | None = None
    more_is_better: bool = False

    def ratio(self, figures: Figures) -> float | None:
        ours, theirs = figures["fsdray"].get(self.key), figures.get("ray", {}).get(self.key)
        if not ours or not theirs or not all(theirs):
            return None
        return statistics.median(a / b for a, b in zip(ours, theirs, strict=False))

    def is_met(self, ratio: float) -> bool:
        assert self.target is not None
        return ratio >= self.target if self.more_is_better else ratio <= self.target


ROWS = (
    Row("start", "import to first result", "s", target=1 / 5),
    Row("import", "  import", "s"),
    Row("init", "  init", "s"),
    Row("first", "  first task", "s"),
    Row("latency", "one no-op task", "ms", 1e3, target=1 / 2),
    Row("latency_p95", "  19 of 20 within", "ms", 1e3),
    Row("rate_1000", "1,000 no-op tasks", "/s", target=2.5, more_is_better=True),
    Row("rate_10000", "10,000 no-op tasks", "/s", more_is_better=True),
    Row("rate_20", "20 no-op tasks", "/s", more_is_better=True),
    Row("driver_cpu", "  caller's CPU a task", "µs", 1e6),
    Row("all_cpu", "  all CPU a task", "µs", 1e6),
    Row("put_first", "put 100 MB, first", "ms", 1e3, target=1.0),
    Row("put", "put 100 MB, then", "ms", 1e3, target=1.0),
    Row("pass_first", "its ref to a task, first", "ms", 1e3, target=1.0),
    Row("pass", "its ref to a task, then", "ms", 1e3, target=1.0),
    Row("get_first", "get it, first", "ms", 1e3),
    Row("get", "get it, then", "ms", 1e3),
    Row("get_copied_mb", "  copied by get", "MB"),
    Row("idle_mb", "idle session", "MB", target=1 / 5),
    Row("idle_driver_mb", "  caller's part", "MB"),
    Row("idle_processes", "  processes", ""),
)


def installed(names: Sequence[str]) -> list[str]:
    """Those that can run; the others are named with how to get them."""
    found = []
    for name in names:
        package = SYSTEMS[name]().package
        try:
            if package is not None:
                version(package)
        except PackageNotFoundError:
            how = "pip install -r benchmarks/requirements.txt"
            print(f"{TITLES[name]} is left out: it is not installed ({how})", file=sys.stderr)
        else:
            found.append(name)
    return found


def measure(system: str, what: str) -> dict[str, Any]:
    """One measurement in a process of its own; ``{"refused": why}`` where there is none."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    with subprocess.Popen(
        [sys.executable, str(ONE), system, what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, MARK: mark},
    ) as process:
        try:
            out, err = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            for left in tree(mark):
                left.send_signal(signal.SIGKILL)
            return {"refused": f"no answer within {PATIENCE:g} s"}
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if process.returncode != 0 or not lines:
        return {"refused": (err.strip() or "no output").splitlines()[-1]}
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def rounds(
    systems: Sequence[str], measures: Sequence[str], repeats: int
) -> tuple[Figures, dict[str, dict[str, str]]]:
    """All figures by system and key, in the order of the rounds; and what was refused."""
    figures: Figures = {name: {} for name in systems}
    refused: dict[str, dict[str, str]] = {name: {} for name in systems}
    for name in systems:
        measure(name, "start")
    try:
        for number in range(repeats):
            for what, name in product(measures, systems):
                if what in refused[name]:
                    continue
                show(f"round {number + 1} of {repeats}: {what}, {TITLES[name]}")
                answer = measure(name, what)
                if "refused" in answer:
                    refused[name][what] = answer["refused"]
                    continue
                for key, value in answer.items():
                    figures[name].setdefault(key, []).append(value)
    except KeyboardInterrupt:
        print("\ninterrupted: these are the figures so far", file=sys.stderr)
    show("")
    return figures, refused


def show(text: str) -> None:
    """What is under way, where somebody watches."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def middle(values: Sequence[Any]) -> Any:
    """The median of numbers; of facts, the one that all share, or None."""
    if all(isinstance(value, float | int) and not isinstance(value, bool) for value in values):
        return statistics.median(values)
    return values[0] if all(value == values[0] for value in values) else None


def table(figures: Figures, medians: dict[str, dict[str, Any]]) -> str:
    """The medians as text, ratios to Ray and targets beside fsdray's."""
    others = [name for name in medians if name not in ("fsdray", "ray")]
    head = ["", "", "fsdray", "Ray", "ratio", "target", ""] + [TITLES[name] for name in others]
    lines = [head]
    for row in ROWS:
        line = {name: medians[name].get(row.key) for name in medians}
        if all(value is None for value in line.values()):
            continue
        ratio, target, met = row.ratio(figures), "", ""
        if row.target is not None:
            target = f"{'≥' if row.more_is_better else '≤'} {row.target:g}"
            met = "" if ratio is None else "met" if row.is_met(ratio) else "MISSED"
        lines.append(
            [row.title, row.unit]
            + [shown(line.get(name), row.scale) for name in ("fsdray", "ray")]
            + ["" if ratio is None else f"{ratio:.2f}", target, met]
            + [shown(line[name], row.scale) for name in others]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def shown(value: float | None, scale: float) -> str:
    """A figure with three digits that count."""
    if value is None:
        return "–"
    value *= scale
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plot(medians: dict[str, dict[str, Any]], path: Path) -> None:
    """A small chart for each row that has a target, on logarithmic scales."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in ROWS if row.target is not None and row.key in medians["fsdray"]]
    figure, charts = pyplot.subplots(len(rows), 1, figsize=(7, 1.25 * len(rows)), squeeze=False)
    for row, (chart,) in zip(rows, charts, strict=True):
        names = [name for name in reversed(list(medians)) if row.key in medians[name]]
        values = [medians[name][row.key] * row.scale for name in names]
        colours = ["tab:blue" if name == "fsdray" else "silver" for name in names]
        bars = chart.barh([TITLES[name] for name in names], values, color=colours)
        chart.bar_label(bars, [shown(value, 1) for value in values], padding=3, fontsize=8)
        chart.set_xscale("log")
        chart.margins(x=0.15)
        better = "more is better" if row.more_is_better else "less is better"
        chart.set_title(f"{row.title}, {row.unit} ({better})", fontsize=9, loc="left")
        chart.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Parse the command line, run, print the table, write the JSON and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--measures", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw them here (.svg, .png, .pdf)")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    systems = installed(["fsdray", *(name for name in arguments.systems if name != "fsdray")])

    began, load = time.time(), os.getloadavg()
    figures, refused = rounds(systems, arguments.measures, arguments.repeats)
    medians = {
        name: {key: middle(values) for key, values in figures[name].items()} for name in systems
    }
    print(table(figures, medians))
    for name in systems:
        for what, why in refused[name].items():
            print(f"{TITLES[name]} has no figures for {what}: {why}")
    after = os.getloadavg()
    print(
        f"medians of {arguments.repeats} on {os.cpu_count()} cores, Python "
        f"{platform.python_version()}; load average {load[0]:.1f} before, {after[0]:.1f} after"
    )
    if arguments.json is not None:
        report = {
            "medians": medians,
            "figures": figures,
            "refused": refused,
            "targets": {
                row.key: {
                    "ratio": ratio,
                    "target": row.target,
                    "more_is_better": row.more_is_better,
                    "met": row.is_met(ratio),
                }
                for row in ROWS
                if row.target is not None and (ratio := row.ratio(figures)) is not None
            },
            "load_average": {"before": load, "after": after},
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "machine": platform.machine(),
            "seconds": time.time() - began,
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.plot is not None:
        plot(medians, arguments.plot)


if __name__ == "__main__":
    main()
