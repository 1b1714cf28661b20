"""One measurement of one system in this process, which must be a fresh one; prints one JSON line.

`tasks.py` runs this again and again and says what is measured and how. A system is an adapter of
a few lines, in the words of its own manual, that gives each library the same two processes.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, Protocol

# What a benchmark of imports must not have imported itself (NumPy, psutil) is imported late.

PROCESSES = 2
MANY = (1000, 10_000)
MARK = "FSDRAY_BENCHMARK"  # in the environment of all that one measurement started
ARRAY = 12_500_000  # float64s: 100 MB
MB = 1e6


def nothing() -> None:
    """Do nothing: what is measured is all that is around it."""


def ends(array: Any) -> float:
    """Read the first and last page of an array."""
    return float(array[0] + array[-1])


class System(Protocol):
    """What is asked of each library; `call` starts `nothing`, `take` waits for values."""

    package: str | None
    trials: int  # single calls whose median is the latency
    counts: tuple[int, ...]  # calls at once
    stores: bool  # whether a value can be stored and passed by a reference

    def load(self) -> None: ...
    def open(self) -> None: ...
    def call(self) -> Any: ...
    def take(self, refs: Sequence[Any]) -> list[Any]: ...
    def many(self, count: int) -> Sequence[Any]: ...
    def put(self, array: Any) -> Any: ...
    def call_ends(self, array: Any) -> Any: ...
    def close(self) -> None: ...


class Fsdray:
    """A session with what `fsdray.init` gives by itself: as many short calls as there are cores."""

    package: str | None = "fsdray"
    trials = 300
    counts = MANY
    stores = True

    def load(self) -> None:
        import fsdray

        self.fsd = fsdray

    def open(self) -> None:
        self.fsd.init()
        self.nothing = self.fsd.remote(nothing)
        self.ends = self.fsd.remote(ends)

    def call(self) -> Any:
        return self.nothing.remote()

    def take(self, refs: Sequence[Any]) -> list[Any]:
        return self.fsd.get(list(refs))

    def many(self, count: int) -> Sequence[Any]:
        remote = self.nothing.remote
        return [remote() for _ in range(count)]

    def put(self, array: Any) -> Any:
        return self.fsd.put(array)

    def call_ends(self, array: Any) -> Any:
        return self.ends.remote(array)

    def close(self) -> None:
        self.fsd.shutdown()


class Ray:
    """A local Ray without its dashboard, which nobody needs to run tasks."""

    package: str | None = "ray"
    trials = 300
    counts = MANY
    stores = True

    def load(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # else a warning a start
        import ray

        self.ray = ray

    def open(self) -> None:
        self.ray.init(num_cpus=PROCESSES, include_dashboard=False, logging_level="ERROR")
        self.nothing = self.ray.remote(nothing)
        self.ends = self.ray.remote(ends)

    def call(self) -> Any:
        return self.nothing.remote()

    def take(self, refs: Sequence[Any]) -> list[Any]:
        return self.ray.get(list(refs))

    def many(self, count: int) -> Sequence[Any]:
        remote = self.nothing.remote
        return [remote() for _ in range(count)]

    def put(self, array: Any) -> Any:
        return self.ray.put(array)

    def call_ends(self, array: Any) -> Any:
        return self.ends.remote(array)

    def close(self) -> None:
        self.ray.shutdown()


class ProcessPool:
    """The standard library's pool, forked; arguments are pickled through a pipe each time."""

    package: str | None = None
    trials = 300
    counts = MANY
    stores = False

    def load(self) -> None:
        from concurrent.futures import ProcessPoolExecutor

        self.executor = ProcessPoolExecutor

    def open(self) -> None:
        self.pool = self.executor(PROCESSES)

    def call(self) -> Any:
        return self.pool.submit(nothing)

    def take(self, refs: Sequence[Any]) -> list[Any]:
        return [ref.result() for ref in refs]

    def many(self, count: int) -> Sequence[Any]:
        submit = self.pool.submit
        return [submit(nothing) for _ in range(count)]

    def put(self, array: Any) -> Any:
        raise NotImplementedError

    def call_ends(self, array: Any) -> Any:
        return self.pool.submit(ends, array)

    def close(self) -> None:
        self.pool.shutdown()


class Dask:
    """A LocalCluster of processes with one thread each, without its dashboard."""

    package: str | None = "distributed"
    trials = 200
    counts = MANY
    stores = True

    def load(self) -> None:
        import distributed

        self.distributed = distributed

    def open(self) -> None:
        self.cluster = self.distributed.LocalCluster(
            n_workers=PROCESSES, threads_per_worker=1, processes=True, dashboard_address=None
        )
        self.client = self.distributed.Client(self.cluster)

    def call(self) -> Any:
        return self.client.submit(nothing, pure=False)

    def take(self, refs: Sequence[Any]) -> list[Any]:
        return list(self.client.gather(list(refs)))

    def many(self, count: int) -> Sequence[Any]:
        submit = self.client.submit
        return [submit(nothing, pure=False) for _ in range(count)]

    def put(self, array: Any) -> Any:
        return self.client.scatter(array, hash=False)

    def call_ends(self, array: Any) -> Any:
        return self.client.submit(ends, array, pure=False)

    def close(self) -> None:
        self.client.close()
        self.cluster.close()


class Lithops:
    """Lithops on localhost, with this interpreter, looking for results every 0.1 s (not 2 s)."""

    package: str | None = "lithops"
    trials = 5
    counts = (20,)  # it starts a process for each call: 1,000 take minutes
    stores = False

    def load(self) -> None:
        import lithops

        self.lithops = lithops

    def open(self) -> None:
        config = {
            "lithops": {"backend": "localhost", "storage": "localhost", "monitoring_interval": 0.1},
            "localhost": {"runtime": sys.executable, "worker_processes": PROCESSES},
        }
        self.executor = self.lithops.FunctionExecutor(config=config, log_level="ERROR")

    def call(self) -> Any:
        return self.executor.call_async(nothing, ())

    def take(self, refs: Sequence[Any]) -> list[Any]:
        # Its get_result leaves out what is None.
        self.executor.wait(list(refs), download_results=True, show_progressbar=False)
        return [ref.result() for ref in refs]

    def many(self, count: int) -> Sequence[Any]:
        # One job of many calls: calls one by one would each be a job of a tenth of a second.
        return self.executor.map(_ignore, range(count))

    def put(self, array: Any) -> Any:
        raise NotImplementedError

    def call_ends(self, array: Any) -> Any:
        return self.executor.call_async(ends, {"array": array})

    def close(self) -> None:
        self.executor.clean()


def _ignore(number: int) -> None:
    """Do nothing with an argument: Lithops' map gives one."""


SYSTEMS: dict[str, Callable[[], System]] = {
    "fsdray": Fsdray,
    "ray": Ray,
    "pool": ProcessPool,
    "dask": Dask,
    "lithops": Lithops,
}


def tree(mark: str) -> list[Any]:
    """The processes of one measurement: the first, and all that it started, daemons too."""
    import psutil

    found = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found[process.pid] = process
                found |= {child.pid: child for child in process.children(recursive=True)}
        except psutil.Error:
            continue  # it has ended, or is another user's
    return list(found.values())


def start(system: System) -> dict[str, Any]:
    """Import, init, first result; then what the session takes while it does nothing."""
    times = [time.perf_counter()]
    for step in (system.load, system.open, lambda: system.take([system.call()])):
        step()
        times.append(time.perf_counter())
    time.sleep(3)  # what comes up in the background has come up
    pss = {process.pid: process.memory_full_info().pss for process in tree(os.environ[MARK])}
    return {
        "import": times[1] - times[0],
        "init": times[2] - times[1],
        "first": times[3] - times[2],
        "start": times[3] - times[0],
        "idle_mb": sum(pss.values()) / MB,
        "idle_driver_mb": pss[os.getpid()] / MB,
        "idle_processes": len(pss),
    }


def latency(system: System) -> dict[str, Any]:
    """Submit one call and get its value, again and again."""
    _ready(system)
    seconds = []
    for _ in range(system.trials):
        begin = time.perf_counter()
        system.take([system.call()])
        seconds.append(time.perf_counter() - begin)
    return {
        "latency": statistics.median(seconds),
        "latency_p95": sorted(seconds)[int(0.95 * len(seconds))],
    }


def throughput(system: System) -> dict[str, Any]:
    """Submit many calls, then get all values; CPU time is that of the larger number."""
    _ready(system)
    answer: dict[str, Any] = {}
    _check(system.take(system.many(system.counts[0])), system.counts[0])
    for count in system.counts:
        everywhere = _cpu()
        cpu, begin = time.process_time(), time.perf_counter()
        values = system.take(system.many(count))
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        answer[f"rate_{count}"] = count / seconds
        answer["driver_cpu"] = cpu / count
        answer["all_cpu"] = (_cpu() - everywhere) / count
        _check(values, count)
    return answer


def array(system: System) -> dict[str, Any]:
    """Put 100 MB, give it to a call by its ref, get it; the first time and the median of five."""
    import numpy as np

    _ready(system)
    right = float(ARRAY - 1)
    small = np.arange(1000.0)
    # Both processes import NumPy, which is not what is measured.
    system.take([system.call_ends(small) for _ in range(20)])
    puts, calls, gets = [], [], []
    copied = 0.0
    for _ in range(6):
        data = np.arange(float(ARRAY))
        begin = time.perf_counter()
        try:
            ref = system.put(data) if system.stores else data
            puts.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            value = system.take([system.call_ends(ref)])
        except Exception as error:  # whatever a library says to 100 MB is its answer
            return {"refused": f"{type(error).__name__}: {error}"}
        calls.append(time.perf_counter() - begin)
        _check(value, 1, right)
        if system.stores:
            del data
            before = anonymous()
            begin = time.perf_counter()
            (back,) = system.take([ref])
            gets.append(time.perf_counter() - begin)
            assert back.sum() == right * ARRAY / 2  # all of it is read
            copied = (anonymous() - before) / MB
            answer = {"get_owndata": back.flags.owndata, "get_writeable": back.flags.writeable}
            del back
        del ref
    result: dict[str, Any] = {"pass_first": calls[0], "pass": statistics.median(calls[1:])}
    if system.stores:
        result |= {"put_first": puts[0], "put": statistics.median(puts[1:])}
        result |= {"get_first": gets[0], "get": statistics.median(gets[1:])}
        result |= {"get_copied_mb": copied, **answer}
    return result


def _ready(system: System) -> None:
    """Start, and let both processes come up."""
    system.load()
    system.open()
    for _ in range(3):
        system.take([system.call() for _ in range(min(system.trials, 50))])


def _check(values: Sequence[Any], count: int, value: Any = None) -> None:
    if list(values) != [value] * count:
        raise AssertionError(f"not {count} times {value}: {str(values)[:200]}")


def anonymous() -> int:
    """Bytes of memory that are this process' own, not shared: what a copy would add to."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def _cpu() -> float:
    """CPU seconds of all processes so far, those that have ended with them."""
    return sum(sum(process.cpu_times()[:4]) for process in tree(os.environ[MARK]))


MEASURES = {
    "start": start,
    "latency": latency,
    "throughput": throughput,
    "array": array,
}


def main() -> None:
    """Measure what the command line names; the last line of the output is the result."""
    _, name, measure = sys.argv
    if MARK not in os.environ:
        # What a process was started with can be seen from outside, what it adds cannot.
        os.execve(
            sys.executable, [sys.executable, *sys.argv], {**os.environ, MARK: f"{time.time()}"}
        )
    system = SYSTEMS[name]()
    answer = MEASURES[measure](system)
    answer["version"] = version(system.package) if system.package else sys.version.split()[0]
    print(json.dumps(answer), flush=True)
    system.close()


if __name__ == "__main__":
    main()
