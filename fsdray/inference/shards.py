"""Shards: what each rank must know of a network to compute its own neurons, found once.

A partition fixes who sends which rows to whom in every layer, so all of it is planned here and
nothing is negotiated while samples run. What ranks do with a shard is in `engine`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from fsdray.inference.model import Layer, Model
from fsdray.inference.partition import Partition

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Some rows of a layer's weights, in CSR form, and where their results go.

    `indices` count the rows of the block that these weights multiply. They are sorted as the
    neurons' own numbers are, so a sum adds up in the same order whoever computes it.
    """

    rows: Integers  # places among this rank's outputs
    indptr: Integers
    indices: NDArray[np.int32]
    data: NDArray[np.float32]
    bias: float | NDArray[np.float64]


@dataclass(frozen=True)
class LayerShard:
    """One rank's part of one layer.

    The block that it multiplies has a row for each of `inputs` neurons, in their order: `kept`
    says where this rank's own rows of the layer before go in it (`own`, which of them), and
    `receives` where those of other ranks go. `interior` rows need only own rows, and their
    indices count those; `boundary` rows need the whole block.
    """

    inputs: int
    outputs: int
    own: Integers
    kept: Integers
    sends: Mapping[int, Integers]  # by destination: which own rows
    receives: Mapping[int, Integers]  # by source: places in the block
    interior: Rows
    boundary: Rows
    nonzero_bias: bool
    relu: bool
    clamp: float | None
    keeps_dead: bool


@dataclass(frozen=True)
class Shard:
    """One rank's part of a network.

    `pixels` are the inputs of the network that its first layer reads; `owned` the neurons of
    each layer that it computes.
    """

    rank: int
    pixels: Integers
    owned: tuple[Integers, ...]
    layers: tuple[LayerShard, ...]


class Sharding:
    """Cuts a model into shards, one at a time, so that only one need be in memory."""

    def __init__(self, model: Model, partition: Partition) -> None:
        self._model = model
        self._workers = partition.workers
        # The network's inputs have no owner: -1 is no rank.
        before = np.full(model.inputs, -1, np.int32)
        self._owners = [before, *partition.owner]
        self._owned = [_owned(owner, partition.workers) for owner in self._owners]
        self._reads = [
            _reads(layer.weights, owner, partition.workers)
            for layer, owner in zip(model.layers, partition.owner, strict=True)
        ]

    def shard(self, rank: int) -> Shard:
        """The shard of one rank."""
        layers = tuple(self._layer(number, rank) for number in range(self._model.depth))
        return Shard(
            rank=rank,
            pixels=np.flatnonzero(self._reads[0][rank]),
            owned=tuple(owned[rank] for owned in self._owned[1:]),
            layers=layers,
        )

    def _layer(self, number: int, rank: int) -> LayerShard:
        layer = self._model.layers[number]
        source = self._owners[number]
        mine, before = self._owned[number + 1][rank], self._owned[number][rank]
        needed = np.flatnonzero(self._reads[number][rank])
        weights = layer.weights[mine]
        if number == 0:
            # Every rank is given the pixels that it reads: they count as its own.
            own = kept = np.arange(len(needed))
            local = np.ones(self._model.inputs, bool)
            before = needed
        else:
            local = source == rank
            kept = np.flatnonzero(local[needed])
            own = np.searchsorted(before, needed[kept])
        is_interior = _all_in(weights, local)
        sends = {} if number == 0 else self._sends(number, rank, before)
        return LayerShard(
            inputs=len(needed),
            outputs=len(mine),
            own=own,
            kept=kept,
            sends=sends,
            receives={} if number == 0 else _receives(source[needed], rank),
            interior=_rows(layer, mine, weights, is_interior, before),
            boundary=_rows(layer, mine, weights, ~is_interior, needed),
            nonzero_bias=layer.bias_on == "nonzero",
            relu=layer.relu,
            clamp=layer.clamp,
            keeps_dead=layer.keeps_dead,
        )

    def _sends(self, number: int, rank: int, before: Integers) -> dict[int, Integers]:
        read_by = self._reads[number][:, before]
        return {
            dest: np.flatnonzero(read_by[dest])
            for dest in range(self._workers)
            if dest != rank and read_by[dest].any()
        }


def _owned(owner: NDArray[np.int32], workers: int) -> list[Integers]:
    """For each rank the neurons that it owns, ascending."""
    return [np.flatnonzero(owner == rank) for rank in range(workers)]


def _reads(weights: csr_array, owner: NDArray[np.int32], workers: int) -> NDArray[np.bool_]:
    """Whether a rank (row) reads a neuron of the layer before (column)."""
    reads = np.zeros((workers, weights.shape[1]), bool)
    reads[np.repeat(owner, np.diff(weights.indptr)), weights.indices] = True
    return reads


def _receives(source: NDArray[np.int32], rank: int) -> dict[int, Integers]:
    return {
        int(other): np.flatnonzero(source == other) for other in np.unique(source) if other != rank
    }


def _all_in(weights: csr_array, members: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of each row, whether all its columns are members; a row without columns has them all."""
    outside = np.concatenate(([0], np.cumsum(~members[weights.indices])))
    return np.asarray(outside[weights.indptr[1:]] == outside[weights.indptr[:-1]])


def _rows(
    layer: Layer,
    mine: Integers,
    weights: csr_array,
    chosen: NDArray[np.bool_],
    block: Integers,
) -> Rows:
    """The chosen rows, their columns renumbered to places in `block` (neurons, ascending)."""
    part = weights[np.flatnonzero(chosen)] if not chosen.all() else weights
    place = np.zeros(weights.shape[1], np.int32)
    place[block] = np.arange(len(block), dtype=np.int32)
    bias: Any = layer.bias
    if not isinstance(bias, float):
        bias = bias[mine[chosen]]
    return Rows(
        rows=np.flatnonzero(chosen),
        indptr=part.indptr.astype(np.int64),
        indices=place[part.indices],
        data=np.ascontiguousarray(part.data, np.float32),
        bias=bias,
    )
