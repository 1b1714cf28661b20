"""Collectives beside mpi4py's objects on a real MPI, Ray's groups and a store, on this machine.

From the checkout's directory, in the environment of benchmarks/README.md::

    .venv-bench/bin/python -m benchmarks.collectives --json collectives.json

Each operation of each system runs in processes of its own, from the smallest array to the largest,
and the systems take turns. What is timed is one call by all ranks, after a barrier, on an array of
float64 that does not compress: the slowest rank's time, of many such calls the median, and of the
rounds the median again.

With ``--together`` all operations run in the same processes, one after the other. That matters to
mpi4py, whose arrays come from the C library's allocator: what one call gave back is given to the
system, and taken page by page by the next, or not, by what else lies in the heap. An allreduce of
1 MB that follows an allgather takes a fifth of what it takes by itself.

fsdray
    A gang on the local backend, channel ``auto``.
mpi4py
    The lower-case methods, on the MPI whose ``mpiexec`` lies beside the Python that --mpi names.
    Its ranks never sleep while they wait: on a machine with fewer idle cores than ranks it takes
    the time of others.
ray
    ``ray.util.collective`` with gloo, which has no scatter and no gather, and takes no objects.
store
    What programs on Lithops do: each value is an object of its storage (here the local one), and
    readers look for its key every millisecond.

Targets: from 1 MB on at least as fast as mpi4py; at 1 KB within a millisecond of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pickle
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

SIZES = (1 << 10, 1 << 20, 16 << 20)
OPERATIONS = ("bcast", "scatter", "gather", "allgather", "allreduce")
RAYS = ("bcast", "allgather", "allreduce")  # what its groups have of these
SYSTEMS = ("fsdray", "mpi4py", "ray", "store")
PATIENCE = 180.0  # seconds for one system at one number of ranks

Times = dict[str, list[float]]
Operations = Mapping[str, Callable[[], Any]]


def measured(
    barrier: Callable[[], Any], make: Callable[[int], Operations], names: Sequence[str]
) -> Times:
    """Seconds of each call at this rank, by ``operation size``."""
    found = {}
    for size in SIZES:
        for name, call in make(size).items():
            if name not in names:
                continue
            for _ in range(2):
                call()  # what is made once is not counted
            count = 100 if size <= 1 << 10 else 40 if size <= 1 << 20 else 8
            times = []
            for _ in range(count):
                barrier()
                began = time.perf_counter()
                call()
                times.append(time.perf_counter() - began)
            found[f"{name} {size}"] = times
    return found


def slowest(ranks: list[Times]) -> dict[str, float]:
    """The median over the calls of the slowest rank's time."""
    return {
        key: statistics.median(map(max, zip(*(times[key] for times in ranks), strict=True)))
        for key in ranks[0]
    }


def array(rank: int, size: int) -> Any:
    """What a rank gives."""
    return np.random.default_rng(rank).random(size // 8)


def objects(comm: Any) -> Callable[[int], Operations]:
    """The operations of a communicator with mpi4py's lower-case methods."""

    def make(size: int) -> Operations:
        mine, is_root = array(comm.rank, size), comm.rank == 0
        return {
            "bcast": lambda: comm.bcast(mine if is_root else None),
            "scatter": lambda: comm.scatter([mine] * comm.size if is_root else None),
            "gather": lambda: comm.gather(mine),
            "allgather": lambda: comm.allgather(mine),
            "allreduce": lambda: comm.allreduce(mine),
        }

    return make


def in_fsdray(ranks: int, names: Sequence[str]) -> dict[str, float]:
    import fsdray as fsd

    def rank() -> Times:
        comm = fsd.collective.world()
        return measured(comm.barrier, objects(comm), names)

    fsd.init("local", concurrency=ranks)
    try:
        gang = fsd.remote(world_size=ranks, channel="auto")(rank)
        return slowest(fsd.get(gang.remote()))
    finally:
        fsd.shutdown()


def in_mpi4py(names: Sequence[str]) -> dict[str, float] | None:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    every = comm.gather(measured(comm.barrier, objects(comm), names))
    return None if every is None else slowest(every)


def in_ray(ranks: int, names: Sequence[str]) -> dict[str, float]:
    import ray
    from ray.util import collective

    class Rank:
        def run(self, rank: int) -> Times:
            collective.init_collective_group(ranks, rank, backend="gloo", group_name="g")

            def make(size: int) -> Operations:
                mine = array(rank, size)
                every = [np.empty_like(mine) for _ in range(ranks)]
                return {
                    "bcast": lambda: collective.broadcast(mine, 0, "g"),
                    "allgather": lambda: collective.allgather(every, mine, "g"),
                    "allreduce": lambda: collective.allreduce(mine, "g"),
                }

            return measured(lambda: collective.barrier("g"), make, names)

    ray.init(num_cpus=ranks, include_dashboard=False, log_to_driver=False)
    try:
        actors = [ray.remote(Rank).remote() for _ in range(ranks)]
        return slowest(ray.get([actor.run.remote(r) for r, actor in enumerate(actors)]))
    finally:
        ray.shutdown()


class Stored:
    """A communicator over Lithops' storage."""

    def __init__(self, rank: int, size: int, run: str) -> None:
        from lithops import Storage

        self.rank, self.size = rank, size
        self._store = Storage({"lithops": {"storage": "localhost"}, "localhost": {}})
        self._run, self._number = run, 0

    def _put(self, value: Any, name: object = "all") -> None:
        key = f"{self._run}/{self._number}/{self.rank}/{name}"
        self._store.put_object("fsdray-benchmark", key, pickle.dumps(value, protocol=5))

    def _get(self, source: int, name: object = "all") -> Any:
        key = f"{self._run}/{self._number}/{source}/{name}"
        while True:
            try:
                return pickle.loads(self._store.get_object("fsdray-benchmark", key))
            except Exception:  # its storages raise different things for a key that is not there,
                time.sleep(0.001)  # and a file that is being written reads as half a pickle

    def bcast(self, value: Any) -> Any:
        self._number += 1
        if self.rank == 0:
            self._put(value)
            return value
        return self._get(0)

    def scatter(self, values: list[Any] | None) -> Any:
        self._number += 1
        if values is None:
            return self._get(0, self.rank)
        for rank in range(1, self.size):
            self._put(values[rank], rank)
        return values[0]

    def gather(self, value: Any) -> Any:
        self._number += 1
        if self.rank:
            return self._put(value)
        return [value, *(self._get(rank) for rank in range(1, self.size))]

    def allgather(self, value: Any) -> list[Any]:
        self._number += 1
        self._put(value)
        return [value if r == self.rank else self._get(r) for r in range(self.size)]

    def allreduce(self, value: Any) -> Any:
        return sum(self.allgather(value))

    def barrier(self) -> None:
        self.allgather(None)


def in_store(ranks: int, names: Sequence[str]) -> dict[str, float]:
    run = uuid.uuid4().hex
    with ThreadPoolExecutor(ranks) as pool:
        every = pool.map(lambda rank: _in_process(run, rank, ranks, names), range(ranks))
        return slowest([json.loads(each) for each in every])


def _in_process(run: str, rank: int, ranks: int, names: Sequence[str]) -> str:
    command = [sys.executable, "-m", __spec__.name, "--rank", f"{rank}", "--run", run]
    command += ["--one", "store", "--ranks", f"{ranks}", "--operations", *names]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def run_one(system: str, ranks: int, mpi: str, names: Sequence[str]) -> dict[str, float] | str:
    """One system's figures of these operations, or why it has none."""
    command = [sys.executable, "-m", __spec__.name, "--one", system, "--ranks", f"{ranks}"]
    command += ["--operations", *names]
    allowed = dict(os.environ)
    if system == "mpi4py":
        command[0] = mpi
        command = [f"{Path(mpi).with_name('mpiexec')}", "-n", f"{ranks}", *command]
        # Open MPI starts more ranks than cores, and as root, only where it is told so.
        allowed |= {
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        }
    try:
        done = subprocess.run(
            command, env=allowed, capture_output=True, text=True, timeout=PATIENCE, check=True
        )
    except subprocess.CalledProcessError as error:
        return (error.stderr.strip().splitlines() or ["it failed"])[-1][:200]
    except subprocess.TimeoutExpired:
        return f"it took over {PATIENCE:.0f} s"
    except FileNotFoundError as error:
        return str(error)
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def table(figures: dict[str, list[dict[str, float]]], ranks: int) -> None:
    """Print the medians in milliseconds."""
    print(f"\nP = {ranks}, milliseconds\n{'':24}" + "".join(f"{name:>10}" for name in figures))
    for size, name in itertools.product(SIZES, OPERATIONS):
        key, cells = f"{name} {size}", []
        for rounds in figures.values():
            times = [each[key] for each in rounds if key in each]
            cells.append(f"{1e3 * statistics.median(times):10.2f}" if times else f"{'–':>10}")
        print(f"{name:10} {size:>12,} " + "".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", nargs="*", default=SYSTEMS, choices=SYSTEMS)
    parser.add_argument("--mpi", default=sys.executable, help="the Python that has mpi4py")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--together", action="store_true", help="all operations in the same processes"
    )
    parser.add_argument("--operations", nargs="*", default=OPERATIONS, choices=OPERATIONS)
    parser.add_argument("--one", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.rank is not None:
        comm = Stored(asked.rank, asked.ranks[0], asked.run)
        print(json.dumps(measured(comm.barrier, objects(comm), asked.operations)))
        return
    if asked.one:
        ones = {"fsdray": in_fsdray, "ray": in_ray, "store": in_store}
        if asked.one == "mpi4py":
            found = in_mpi4py(asked.operations)
        else:
            found = ones[asked.one](asked.ranks[0], asked.operations)
        if found is not None:
            print(json.dumps(found))
        return
    result = {}
    runs = [asked.operations] if asked.together else [[name] for name in asked.operations]
    for ranks in asked.ranks:
        figures: dict[str, list[dict[str, float]]] = {name: [] for name in asked.systems}
        for names, _ in itertools.product(runs, range(asked.rounds)):
            for name in list(figures):
                if name == "ray" and not {*names} & {*RAYS}:
                    continue
                found = run_one(name, ranks, asked.mpi, names)
                if isinstance(found, str):
                    print(f"{name} is left out: {found}")
                    del figures[name]
                else:
                    figures[name].append(found)
        table(figures, ranks)
        result[ranks] = figures
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
