"""Collectives at up to thousands of ranks, simulated: virtual seconds, billed requests, dollars.

Every figure is a simulation of the real communicator on the modelled network (FACTS' latencies,
rates and prices), so it is the same on any machine; seconds are the median over seeds, requests
and dollars their mean. Lambda's own seconds are not in the dollars. Beside our algorithms stand
naive ones: a log tree, all pairs, and polling by LIST. Run it with::

    python benchmarks/scale.py --json scale.json --markdown scale.md --plot scale.svg

``--plot`` needs matplotlib.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fsdray.collective import AsyncCommunicator
from fsdray.testing import simulate

CHANNELS = ("queue", "object", "auto")
BILLED = ("publish", "send", "receive", "acknowledge", "put", "get", "miss", "list")

Program = Callable[[AsyncCommunicator, Any], Coroutine[Any, Any, Any]]


@dataclass(frozen=True)
class Figure:
    """What one collective came to; `wall_seconds` is what simulating it took."""

    collective: str
    channel: str
    ranks: int
    seconds: float
    requests: float
    dollars: float
    wall_seconds: float


def left(one: Any, other: Any) -> Any:
    """A reduction that takes no time."""
    return one


async def allreduce(comm: AsyncCommunicator, value: Any) -> None:
    await comm.allreduce(value, left)


async def bcast(comm: AsyncCommunicator, value: Any) -> None:
    await comm.bcast(value)


async def gather(comm: AsyncCommunicator, value: Any) -> None:
    await comm.gather(value)


async def scatter(comm: AsyncCommunicator, value: Any) -> None:
    await comm.scatter([value] * comm.size if comm.rank == 0 else None)


async def barrier(comm: AsyncCommunicator, value: Any) -> None:
    await comm.barrier()


async def allgather(comm: AsyncCommunicator, value: Any) -> None:
    await comm.allgather(value)


async def alltoall(comm: AsyncCommunicator, value: Any) -> None:
    await comm.alltoall([value] * comm.size)


async def tree_bcast(comm: AsyncCommunicator, value: Any) -> None:
    """A binomial tree below rank 0, as MPI libraries have it."""
    bit = 1
    while bit < comm.size:
        if comm.rank & bit:
            await comm.recv(source=comm.rank - bit)
            break
        bit <<= 1
    while bit > 1:
        bit >>= 1
        if comm.rank + bit < comm.size:
            await comm.send(value, comm.rank + bit)


async def tree_allreduce(comm: AsyncCommunicator, value: Any) -> None:
    """Up a binomial tree, and down again."""
    bit = 1
    while bit < comm.size:
        if comm.rank & bit:
            await comm.send(value, comm.rank - bit)
            break
        if comm.rank + bit < comm.size:
            value = left(value, await comm.recv(source=comm.rank + bit))
        bit <<= 1
    await tree_bcast(comm, value)


async def pairs_alltoall(comm: AsyncCommunicator, value: Any) -> None:
    """Each sends to each by itself."""
    others = [rank for rank in range(comm.size) if rank != comm.rank]
    sends = [comm.send(value, rank) for rank in others]
    for send in sends:
        await send
    for rank in others:
        await comm.recv(source=rank)


async def list_allreduce(comm: AsyncCommunicator, value: Any) -> None:
    """As FSD-Inference waits: a LIST every 0.1 s until all objects are there (arXiv 2403.15195).

    Rank 0 reads all and writes the result.
    """
    channel: Any = comm._end.channel
    objects: Any = channel._objects

    async def all_of(prefix: str, count: int) -> list[str]:
        while len(keys := await objects.list(prefix)) < count:  # noqa: ASYNC110  it is to poll
            await asyncio.sleep(0.1)
        return list(keys)

    async def put(key: str) -> None:
        channel.written.append(key)
        await objects.put(key, value.tobytes())

    if comm.rank == 0:
        keys = await all_of("listed/up/", comm.size - 1)
        await asyncio.gather(*(objects.get(key) for key in keys))
        await put("listed/down/0")
    else:
        await put(f"listed/up/{comm.rank}")
        (key,) = await all_of("listed/down/", 1)
        await objects.get(key)


PROGRAMS: dict[str, Program] = {
    "allreduce": allreduce,
    "bcast": bcast,
    "gather": gather,
    "scatter": scatter,
    "barrier": barrier,
    "allgather": allgather,
    "alltoall": alltoall,
    "naive tree bcast": tree_bcast,
    "naive tree allreduce": tree_allreduce,
    "naive pairs alltoall": pairs_alltoall,
    "naive LIST polling allreduce": list_allreduce,
}
QUADRATIC = ("allgather", "alltoall")
SLOW = ("naive pairs alltoall",)  # a request a pair, twice
ON_OBJECTS = ("naive LIST polling allreduce",)


def sizes_of(name: str, sizes: Iterable[int]) -> list[int]:
    """How many ranks a collective is simulated at."""
    most = 64 if name in SLOW else 512 if name in QUADRATIC else sys.maxsize
    return [size for size in sizes if size <= most]


def measure(name: str, channel: str, ranks: int, size: int, seeds: int) -> Figure:
    """Simulate one collective with `size` bytes that do not compress."""
    value = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    began = time.perf_counter()
    runs = [
        simulate(PROGRAMS[name], ranks, value, channel=channel, seed=seed, trace=False)
        for seed in range(seeds)
    ]
    if any(run.left for run in runs):
        sys.exit(f"{name} of {ranks} ranks on {channel} left something behind")
    return Figure(
        name,
        channel,
        ranks,
        statistics.median(run.seconds for run in runs),
        statistics.mean(sum(run.counts.get(each, 0) for each in BILLED) for run in runs),
        statistics.mean(run.receipt.cost_usd for run in runs),
        time.perf_counter() - began,
    )


def table(figures: list[Figure]) -> str:
    """Markdown: a line for each collective and number of ranks, the channels side by side."""
    head = "| collective | ranks |"
    rule = "|---|---:|"
    for channel in CHANNELS:
        head += f" {channel}: seconds | requests | µ$ |"
        rule += "---:|---:|---:|"
    rows: dict[tuple[str, int], dict[str, Figure]] = {}
    for each in figures:
        rows.setdefault((each.collective, each.ranks), {})[each.channel] = each
    lines = [head, rule]
    for (name, ranks), found in rows.items():
        line = f"| {name} | {ranks:,} |"
        for channel in CHANNELS:
            one = found.get(channel)
            if one is None:
                line += " | | |"
                continue
            line += f" {one.seconds:.2f} | {one.requests:,.0f} | {1e6 * one.dollars:,.1f} |"
        lines.append(line)
    return "\n".join(lines)


def plot(figures: list[Figure], path: Path) -> None:
    """Seconds and dollars by number of ranks, one line a collective."""
    import matplotlib as mpl  # type: ignore[import-not-found]  # only for --plot

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(CHANNELS), figsize=(14, 8), sharex=True, sharey="row")
    for column, channel in enumerate(CHANNELS):
        for name in dict.fromkeys(each.collective for each in figures):
            mine = [each for each in figures if (each.collective, each.channel) == (name, channel)]
            style = "--" if name.startswith("naive") else "-"
            ranks = [each.ranks for each in mine]
            seconds = [each.seconds for each in mine]
            cost = [1e6 * each.dollars for each in mine]
            axes[0][column].loglog(ranks, seconds, style, marker="o", markersize=3, label=name)
            axes[1][column].loglog(ranks, cost, style, marker="o", markersize=3, label=name)
        ticks = sorted({each.ranks for each in figures})
        axes[1][column].set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes[1][column].minorticks_off()
        axes[0][column].set_title(channel)
        axes[1][column].set_xlabel("ranks")
    axes[0][0].set_ylabel("virtual seconds")
    axes[1][0].set_ylabel("µ$ of requests")
    axes[0][-1].legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0))
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Parse the command line, simulate, print the table, write the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 512, 4096])
    parser.add_argument("--bytes", type=int, default=1024, help="of each rank's value")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument(
        "--figures", type=Path, nargs="+", help="of earlier runs (--json); run none"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if min(*arguments.ranks, arguments.seeds) < 1 or arguments.bytes < 0:
        parser.error("--ranks and --seeds must be at least 1, --bytes at least 0")
    figures = []
    if arguments.figures is not None:
        for path in arguments.figures:
            figures += [Figure(**each) for each in json.loads(path.read_text())["figures"]]
        figures.sort(key=lambda each: (list(PROGRAMS).index(each.collective), each.ranks))
        arguments.only = []
    for name in arguments.only:
        for ranks in sizes_of(name, arguments.ranks):
            for channel in CHANNELS:
                if name in ON_OBJECTS and channel != "object":
                    continue
                # Where there are many ranks, one run is already a mean over many draws.
                seeds = arguments.seeds if ranks < 512 else 1
                figures.append(measure(name, channel, ranks, arguments.bytes, seeds))
                print(json.dumps(asdict(figures[-1])), file=sys.stderr, flush=True)
    print(table(figures))
    if arguments.json is not None:
        report = {"bytes": arguments.bytes, "figures": [asdict(each) for each in figures]}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.markdown is not None:
        arguments.markdown.write_text(table(figures) + "\n")
    if arguments.plot is not None:
        plot(figures, arguments.plot)


if __name__ == "__main__":
    main()
