"""Who owns which neuron of each layer: the partitions, and what they cost in rows sent.

A partition is found once for a network and a number of workers, without any sample. What
ranks then send one another, and when, is decided by the engine.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from fsdray import interrupts
from fsdray.errors import SettingsError
from fsdray.inference.model import Model

__all__ = ["METHODS", "Partition", "PartitionStatistics", "partition", "statistics"]

#: The ways to divide a network, by the name that `partition` takes.
METHODS = ("hypergraph", "random", "block")

_BALANCE = 0.03  # how far the heaviest rank of a layer may be over the mean
_WHOLE = 0.25  # the same, while groups of identical rows are still kept together
_MOST_WEIGHT = 2**30  # of all vertices together: Mt-KaHyPar adds weights in 32 bits
_SCALE = 64  # a row's weight is this many a nonzero, so that a fixed vertex's 1 hardly counts


@dataclass(frozen=True, eq=False)
class Partition:
    """For every layer, the rank that owns each output neuron.

    Parameters
    ----------
    workers
        Number of ranks.
    method
        How it was made: one of `METHODS`.
    owner
        One int32 array a layer, shape (outputs,), of ranks 0..workers-1. The network's inputs
        have no owner: each rank is given those that its rows of layer 1 read.
    """

    workers: int
    method: str
    owner: tuple[NDArray[np.int32], ...]


@dataclass(frozen=True)
class PartitionStatistics:
    """What a partition costs, whatever the samples are.

    Parameters
    ----------
    rows_sent
        Over layers 2 and on: for each neuron of the layer before, the ranks other than its
        owner that have a row which reads it.
    messages
        Number of (layer, source, destination) with at least one row to send.
    imbalance
        The largest, over layers, of the heaviest rank's nonzeros over the mean rank's: 1 is
        perfect. A layer without nonzeros counts as 1.
    """

    rows_sent: int
    messages: int
    imbalance: float


def statistics(model: Model, partition: Partition) -> PartitionStatistics:
    """Count what a partition costs.

    Parameters
    ----------
    model
        The network.
    partition
        A partition of it.

    Returns
    -------
    PartitionStatistics
        Exact counts, from the definition; nothing is estimated.

    Raises
    ------
    SettingsError
        When the partition is not one of this model.
    """
    shapes = [(layer.outputs,) for layer in model.layers]
    if [owner.shape for owner in partition.owner] != shapes:
        raise SettingsError("the partition is of another model: make one for this model")
    workers, rows_sent, messages, imbalance = partition.workers, 0, 0, 1.0
    for number, layer in enumerate(model.layers):
        owner = partition.owner[number]
        loads = np.bincount(owner, weights=np.diff(layer.weights.indptr), minlength=workers)
        if layer.edges:
            imbalance = max(imbalance, float(loads.max() / loads.mean()))
        if number:
            sources = partition.owner[number - 1]
            neuron, rank = np.nonzero(_readers(layer.weights, owner, workers))
            crossing = sources[neuron] != rank
            rows_sent += int(crossing.sum())
            messages += np.unique(sources[neuron[crossing]] * workers + rank[crossing]).size
    return PartitionStatistics(rows_sent, messages, imbalance)


def partition(
    model: Model,
    workers: int,
    method: str = "hypergraph",
    seed: int = 0,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Partition:
    """Divide the neurons of every layer among ranks.

    Parameters
    ----------
    model
        The network.
    workers
        Number of ranks, from 1 to the neurons of the smallest layer.
    method
        ``"hypergraph"``: few rows sent, each layer balanced to 3 % where its rows can be. The
        rows of a layer are the vertices, its columns the nets, and each net holds the rank
        that owns its column's neuron as a fixed vertex, so that connectivity minus one is the
        number of rows sent (the column-net model of Çatalyürek and Aykanat, IEEE TPDS
        10(7), 1999). Solved by Mt-KaHyPar's deterministic preset, layer after layer.
        ``"random"``: a permutation of its own for each layer, equal numbers of rows.
        ``"block"``: neighbouring rows together, equal numbers of rows.
    seed
        Of what is random: the same seed gives the same partition, on any number of threads.
    progress
        Called with (layers done, layers in all) after each layer.

    Returns
    -------
    Partition

    Raises
    ------
    SettingsError
        When the number of workers does not fit the model, the method is unknown, or Mt-KaHyPar
        is needed and not installed.
    """
    widths = [layer.outputs for layer in model.layers]
    least = min(widths)
    if not 1 <= workers <= least:
        raise SettingsError(
            f"{workers} workers for {model.name!r}: use 1 to {least}; its smallest layer has "
            f"{least} neurons"
        )
    if method not in METHODS:
        raise SettingsError(f"unknown partition {method!r}: use one of {', '.join(METHODS)}")
    if seed < 0:
        raise SettingsError(f"seed is {seed}: give 0 or more")
    if method == "hypergraph" and workers > 1:
        owners = _hypergraph(model, workers, seed)
    else:
        owners = _regular(widths, workers, seed if method == "random" else None)
    found: list[NDArray[np.int32]] = []
    for owner in owners:
        found.append(owner.astype(np.int32))
        if progress is not None:
            progress(len(found), model.depth)
    return Partition(workers, method, tuple(found))


def _regular(widths: list[int], workers: int, seed: int | None) -> Iterator[NDArray[np.int64]]:
    """Yield equal blocks for each layer, their rows permuted where a seed is given."""
    generator = None if seed is None else np.random.Generator(np.random.PCG64(seed))
    for width in widths:
        owner = np.arange(width) * workers // width
        yield owner if generator is None else generator.permutation(owner)


def _hypergraph(model: Model, workers: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield each layer's owners, found one after another with the layer before as given.

    Layer 1 receives nothing, so layer 2 is divided first, as freely as it likes, and then each
    neuron of layer 1 goes to a rank that reads it, as far as balance allows.
    """
    solve = _solver(workers, seed)
    weights = [layer.weights for layer in model.layers]
    source = _divided(weights[min(1, len(weights) - 1)], None, workers, solve)
    if len(weights) > 1:
        yield _nearest(weights[0], _readers(weights[1], source, workers), workers)
    yield source
    for matrix in weights[2:]:
        source = _divided(matrix, source, workers, solve)
        yield source


def _readers(weights: csr_array, owner: NDArray[Any], workers: int) -> NDArray[np.bool_]:
    """Return for each input neuron and rank, (inputs, workers), whether the rank reads it."""
    reads = np.zeros((weights.shape[1], workers), dtype=bool)
    reads[weights.indices, np.repeat(owner, np.diff(weights.indptr))] = True
    return reads


@dataclass(frozen=True)
class _Nets:
    """The columns of a layer; those with the same readers and the same owner are one net."""

    pins: csr_array  # (nets, groups): which groups of rows read the columns
    weight: NDArray[np.int64]  # (nets,): how many columns each net stands for
    source: NDArray[np.int64] | None  # (nets,): who owns the columns' neurons


_Solve = Callable[[NDArray[np.int64], _Nets, float], NDArray[np.int64]]


def _divided(
    weights: csr_array, source: NDArray[np.int64] | None, workers: int, solve: _Solve
) -> NDArray[np.int64]:
    """Return the owners of a layer's rows, given the owners of its inputs.

    Rows that read the same columns are one vertex: to part them never sends less. They are
    parted only where no balance is possible otherwise: in equal chunks before the solver, and
    row by row after it.
    """
    group = _alike(weights)
    rows = np.bincount(group)
    first = np.unique(group, return_index=True)[1]
    # A row without nonzeros still costs a little: spread those too.
    weight = np.maximum(np.diff(weights.indptr)[first], 1).astype(np.int64)
    nets = _nets(weights[first], source, workers)
    mean = float(weight @ rows) / workers
    chunks = _chunks(weight, rows, workers, mean)
    heavy = np.repeat(weight, np.diff(chunks.indptr)) * chunks.data
    greedy = _spread(heavy, workers)
    limit = max(1 + _BALANCE, float(np.bincount(greedy, heavy).max()) / mean)
    expanded = _Nets((nets.pins @ (chunks > 0).astype(np.int32)).tocsr(), nets.weight, nets.source)
    rank = greedy if heavy.size <= workers else solve(heavy, expanded, limit)
    share = np.zeros((rows.size, workers), dtype=np.int64)
    np.add.at(share, (np.repeat(np.arange(rows.size), np.diff(chunks.indptr)), rank), chunks.data)
    single = np.repeat(weight, rows)
    best = float(np.bincount(_spread(single, workers), single).max())
    share = _balanced(share, weight, nets, max((1 + _BALANCE) * mean, best))
    owner = np.empty(group.size, dtype=np.int64)
    ranks = np.tile(np.arange(workers), rows.size)
    owner[np.argsort(group, kind="stable")] = np.repeat(ranks, share.ravel())
    return owner


def _alike(matrix: csr_array) -> NDArray[np.int64]:
    """Number the rows by the columns they hold: equal numbers for equal sets of columns."""
    marks = np.random.Generator(np.random.PCG64(0)).integers(
        2**64 - 1, size=matrix.shape[1], dtype=np.uint64
    )
    sums = np.concatenate(
        [np.zeros(1, np.uint64), np.cumsum(marks[matrix.indices], dtype=np.uint64)]
    )
    start, length = matrix.indptr[:-1], np.diff(matrix.indptr)
    _, first, group = np.unique(
        sums[matrix.indptr[1:]] - sums[start], return_index=True, return_inverse=True
    )
    like = first[group]
    same = np.arange(matrix.nnz) + np.repeat(start[like] - start, length)
    if (length[like] != length).any() or (matrix.indices[same] != matrix.indices).any():
        return np.arange(matrix.shape[0])  # two sets with one sum: rare beyond measure, but seen
    return np.argsort(np.argsort(first))[group]


def _nets(groups: csr_array, source: NDArray[np.int64] | None, workers: int) -> _Nets:
    """Return the nets of the columns that are read by at least one group of rows."""
    columns = csr_array(groups.T)
    columns.sort_indices()
    kind = _alike(columns)
    key = kind if source is None else kind * workers + source
    _, first, weight = np.unique(key, return_index=True, return_counts=True)
    read = np.diff(columns.indptr)[first] > 0
    first = first[read]
    pins = columns[first]
    pins.data = np.ones(pins.nnz, dtype=np.int32)
    return _Nets(pins, weight[read], None if source is None else source[first])


def _chunks(
    weight: NDArray[np.int64], rows: NDArray[np.int64], workers: int, mean: float
) -> csr_array:
    """Return how many rows each vertex stands for, (groups, vertices), one group a vertex."""
    largest = int(rows.max())
    while True:
        pieces = -(-rows // largest)
        of = np.repeat(np.arange(rows.size), pieces)
        start = np.concatenate([[0], np.cumsum(pieces)])
        place = np.arange(of.size) - start[of]
        size = rows[of] // pieces[of] + (place < rows[of] % pieces[of])
        heavy = weight[of] * size
        heaviest = np.bincount(_spread(heavy, workers), heavy).max()
        if largest == 1 or heaviest <= (1 + _WHOLE) * mean:
            return csr_array((size, np.arange(of.size), start), shape=(rows.size, of.size))
        largest = -(-largest // 2)


def _spread(weights: NDArray[np.int64], workers: int) -> NDArray[np.int64]:
    """Give each weight, heaviest first, to the lightest rank: within 4/3 of the best balance.

    Graham, "Bounds on multiprocessing timing anomalies", SIAM J. Applied Mathematics 17(2),
    1969.
    """
    if (weights == weights[0]).all():
        return np.arange(weights.size) % workers
    rank = np.empty(weights.size, dtype=np.int64)
    heap = [(0, number) for number in range(workers)]
    for vertex in np.argsort(-weights, kind="stable").tolist():
        load, number = heap[0]
        rank[vertex] = number
        heapq.heapreplace(heap, (load + int(weights[vertex]), number))
    return rank


def _balanced(
    share: NDArray[np.int64], weight: NDArray[np.int64], nets: _Nets, limit: float
) -> NDArray[np.int64]:
    """Move rows from ranks over the limit to others, those first that add the fewest sends."""
    share = share.copy()
    loads = weight @ share
    owned = np.zeros((nets.weight.size, share.shape[1]), dtype=bool)
    if nets.source is not None:
        owned[np.arange(nets.weight.size), nets.source] = True
    while loads.max() > limit:
        giver = int(loads.argmax())
        room = np.maximum(limit - loads, 0) // weight[:, None]
        over = -((limit - loads[giver]) // weight)
        count = np.minimum(np.minimum(room, over[:, None]), share[:, giver, None])
        if not count.any():
            break
        reached = owned | (nets.pins @ (share > 0).astype(np.int32) > 0)
        price = nets.pins.T @ (nets.weight[:, None] * ~reached)
        moved = count * weight[:, None]
        score = np.divide(price, moved, out=np.full(moved.shape, np.inf), where=moved > 0)
        group, taker = np.unravel_index(int(score.argmin()), score.shape)
        rows = int(count[group, taker])
        share[group, giver] -= rows
        share[group, taker] += rows
        loads[giver] -= rows * weight[group]
        loads[taker] += rows * weight[group]
    return share


def _nearest(weights: csr_array, readers: NDArray[np.bool_], workers: int) -> NDArray[np.int64]:
    """Give each neuron to a rank that reads it, while that rank has room: few choices first."""
    weight = np.maximum(np.diff(weights.indptr), 1).astype(np.int64)
    limit = max(
        (1 + _BALANCE) * float(weight.sum()) / workers,
        float(np.bincount(_spread(weight, workers), weight).max()),
    )
    owner = np.empty(weight.size, dtype=np.int64)
    loads = [0] * workers
    choices = np.where(readers.any(axis=1), readers.sum(axis=1), workers)
    for neuron in np.lexsort((-weight, choices)).tolist():
        heavy = int(weight[neuron])
        near = [
            rank
            for rank in np.flatnonzero(readers[neuron]).tolist()
            if loads[rank] + heavy <= limit
        ]
        rank = min(near or range(workers), key=loads.__getitem__)
        owner[neuron] = rank
        loads[rank] += heavy
    return owner


def _solver(workers: int, seed: int) -> _Solve:
    """Start Mt-KaHyPar and return what divides one small hypergraph with it."""
    with interrupts.later():
        try:
            import mtkahypar
        except ImportError as error:
            raise SettingsError(
                "the hypergraph partition needs Mt-KaHyPar: pip install 'fsdray[inference]', or "
                "use the partition random or block"
            ) from error
        engine = mtkahypar.initialize(os.cpu_count() or 1, False)

    def solve(heavy: NDArray[np.int64], nets: _Nets, limit: float) -> NDArray[np.int64]:
        count, pins, fixed = heavy.size, nets.pins.tolil().rows.tolist(), []
        if nets.source is not None:
            fixed = list(range(workers))
            for net, rank in zip(pins, nets.source.tolist(), strict=True):
                net.append(count + rank)
        kept = [number for number, net in enumerate(pins) if len(net) > 1]
        if not kept:
            return _spread(heavy, workers)
        context = engine.context_from_preset(mtkahypar.PresetType.DETERMINISTIC)
        context.set_partitioning_parameters(workers, limit - 1, mtkahypar.Objective.KM1)
        context.logging = False
        mtkahypar.set_seed(seed % 2**31)  # which is what it takes
        scale = min(_SCALE, _MOST_WEIGHT / int(heavy.sum()))
        graph = engine.create_hypergraph(
            context,
            count + len(fixed),
            len(kept),
            [pins[number] for number in kept],
            # Mt-KaHyPar 1.7 crashes on fixed vertices of weight 0.
            np.maximum(heavy * scale, 1).astype(np.int64).tolist() + [1] * len(fixed),
            nets.weight[kept].tolist(),
        )
        if fixed:
            graph.add_fixed_vertices([-1] * count + fixed, workers)
        return np.array(graph.partition(context).get_partition()[:count], dtype=np.int64)

    return solve
