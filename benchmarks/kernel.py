"""The serial kernel beside SciPy and SuiteSparse:GraphBLAS, on one thread each, in one run.

Every repeat runs the three in turn over the whole network, dropping dead samples where the
representation has any; figures are medians. Two rates are printed, since a challenge rate
(samples × edges / s) also counts the edges of samples that died layers ago: the live rate counts
only those that were still there. Run with ``python benchmarks/kernel.py --help``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy.sparse import csr_array
from threadpoolctl import threadpool_limits

from fsdray.inference import kernels
from fsdray.inference.formats import load, load_categories, load_samples
from fsdray.inference.model import Layer, Model
from fsdray.inference.radixnet import radixnet
from fsdray.inference.samples import digits

try:
    import graphblas as gb
except ImportError:
    sys.exit("benchmarks/kernel.py compares with python-graphblas: pip install 'fsdray[bench]'")

DIGITS = 1797  # what scikit-learn has
SEED = 0

# What an engine returns: the surviving samples' numbers, 1-based, and the samples that were live
# before each layer (None where a representation does not say).
Answer = tuple[NDArray[np.int64], "list[int] | None"]


def ours(model: Model, y: NDArray[np.float32]) -> Answer:
    """Run fsdray's kernel; the next layer reads the live samples only."""
    numbers, widths = np.arange(1, y.shape[1] + 1), []
    for layer in model.layers:
        widths.append(y.shape[1])
        out = np.empty((layer.outputs, y.shape[1]), np.float32)
        live = np.zeros(y.shape[1], np.bool_)
        w = layer.weights
        kernels.fused(
            *(w.indptr, w.indices, w.data, y, layer.bias),
            nonzero_bias=layer.bias_on == "nonzero",
            relu=layer.relu,
            clamp=layer.clamp,
            out=out,
            live=live,
        )
        y, numbers = kernels.compact(out, live), numbers[live]
    return numbers, widths


def with_scipy(model: Model, y: NDArray[np.float32]) -> Answer:
    """Run SciPy's CSR × dense product in float32, in place otherwise, dead samples dropped."""
    numbers = np.arange(1, y.shape[1] + 1)
    for layer in model.layers:
        z = layer.weights @ y
        np.add(z, np.float32(layer.bias), out=z, where=z != 0)
        np.clip(z, 0, layer.clamp, out=z)
        live = z.any(axis=0)
        y, numbers = (z, numbers) if live.all() else (np.compress(live, z, axis=1), numbers[live])
    return numbers, None


def with_graphblas(weights: list[Any], model: Model, y: Any) -> Answer:
    """Run GraphBLAS's sparse × sparse product, samples × neurons: what is dead is not stored."""
    for w, layer in zip(weights, model.layers, strict=True):
        z = y.mxm(w, gb.semiring.plus_times).new(dtype=gb.dtypes.FP32)
        z << z.apply(gb.binary.plus, right=np.float32(layer.bias))
        y = z.select(gb.select.valuegt, np.float32(0)).new()
        if layer.clamp is not None:
            y << y.apply(gb.binary.min, right=np.float32(layer.clamp))
    alive, _ = y.reduce_rowwise(gb.monoid.any).new().to_coo()
    return np.sort(alive.astype(np.int64)) + 1, None


def read(arguments: argparse.Namespace) -> tuple[Model, csr_array, NDArray[np.int64] | None]:
    """Return the network, the samples (samples × neurons), and the true categories if known."""
    if arguments.challenge is None:
        model = radixnet(arguments.neurons, arguments.layers, SEED)
        return model, digits(min(arguments.samples, DIGITS), arguments.neurons), None
    folder: Path = arguments.challenge
    n = arguments.neurons
    whole = load(one_of(folder, f"neuron{n}.tar*", f"neuron{n}"))
    model = Model(whole.layers[: arguments.layers], whole.name)
    samples = load_samples(one_of(folder, f"sparse-images-{n}*"), n)
    truths = sorted(folder.glob(f"neuron{n}-l{arguments.layers}-categories*"))
    return model, samples, load_categories(truths[0]) if truths else None


def one_of(folder: Path, *patterns: str) -> Path:
    """Return the first file of the folder that fits one of the patterns."""
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            return path
    sys.exit(f"{folder} holds no {' or '.join(patterns)}")


def tiled(samples: csr_array, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Repeat samples up to `count`, each copy in an order of its own, as a block of columns.

    Also returns which sample (from 0) each column is.
    """
    rng = np.random.default_rng(SEED)
    copies = -(-count // samples.shape[0])
    order = np.concatenate([rng.permutation(samples.shape[0]) for _ in range(copies)])[:count]
    return np.ascontiguousarray(samples.toarray().T[:, order], np.float32), order


def plain(layer: Layer) -> bool:
    """Whether the peers above compute this layer: the challenge's rules, one bias."""
    return layer.bias_on == "nonzero" and layer.relu and np.ndim(layer.bias) == 0


def measure(engines: dict[str, Callable[[], Answer]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each engine in each repeat; the engines take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(repeats):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Parse the command line, run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--neurons", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=120)
    parser.add_argument("--challenge", type=Path, help="folder with the challenge's own files")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    if min(arguments.neurons, arguments.samples, arguments.layers, arguments.repeats) < 1:
        parser.error("--neurons, --samples, --layers and --repeats must be at least 1")

    start = time.perf_counter()
    kernels.warm()
    warm_seconds = time.perf_counter() - start
    model, samples, truth = read(arguments)
    if not all(plain(layer) for layer in model.layers):
        sys.exit("the peers here compute the challenge's rules only")
    y, order = tiled(samples, arguments.samples)
    threadpool_limits(1)  # BLAS and OpenMP, for the rest of the process
    gb.ss.config["nthreads"] = 1
    weights = [gb.io.from_scipy_sparse(layer.weights.T.tocsr()) for layer in model.layers]
    inputs = gb.io.from_scipy_sparse(csr_array(y.T))
    engines: dict[str, Callable[[], Answer]] = {
        f"fsdray ({kernels.choose()})": lambda: ours(model, y),
        "SciPy CSR × dense": lambda: with_scipy(model, y),
        "SuiteSparse:GraphBLAS": lambda: with_graphblas(weights, model, inputs),
    }

    answers = {name: engine() for name, engine in engines.items()}  # also the warm-up
    first, *others = engines
    categories, widths = answers[first]
    for name in others:
        if not np.array_equal(answers[name][0], categories):
            sys.exit(f"{name} finds other categories than {first}")
    if truth is not None and not np.array_equal(
        np.flatnonzero(np.isin(order + 1, truth)) + 1, categories
    ):
        sys.exit("the categories are not the challenge's")
    assert widths is not None

    seconds = measure(engines, arguments.repeats)
    edges = sum(layer.edges for layer in model.layers)
    live = sum(w * layer.edges for w, layer in zip(widths, model.layers, strict=True))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    known = "the challenge's" if truth is not None else "the same for all"
    print(
        f"{model.name}, {y.shape[1]} samples, one thread, median of {arguments.repeats}: "
        f"{len(categories)} categories, {known}; "
        f"{live / (y.shape[1] * edges):.1%} of the edges are live"
    )
    print(f"{'':24}{'seconds':>9}{'fsdray is':>11}{'Gedge/s':>10}{'live Gedge/s':>14}")
    for name, median in medians.items():
        print(
            f"{name:24}{median:9.3f}{median / medians[first]:10.2f}×"
            f"{y.shape[1] * edges / median / 1e9:10.1f}{live / median / 1e9:14.2f}"
        )
    if arguments.json is not None:
        report = {
            "model": model.name,
            "samples": y.shape[1],
            "categories": len(categories),
            "categories_match_truth": None if truth is None else True,
            "edges": edges,
            "live_edges": live,
            "warm_seconds": warm_seconds,
            "seconds": seconds,
            "median_seconds": medians,
            "times_fsdray": {name: medians[name] / medians[first] for name in others},
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "scipy": scipy.__version__,
                "python-graphblas": gb.__version__,
            },
            "machine": platform.machine(),
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
