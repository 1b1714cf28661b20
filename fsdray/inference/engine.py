"""The engine: what one rank does with its shard, layer by layer, over the communicator.

A layer is: post the rows that others need; multiply what is here meanwhile; take what came;
multiply the rest. The coroutine `forward` is all of it. Sums add up in the order of the neurons'
numbers wherever they are computed (see `kernels`), so the bits do not depend on the partition.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from fsdray import collective
from fsdray.collective import AsyncCommunicator
from fsdray.inference import kernels
from fsdray.inference.shards import Integers, LayerShard, Rows, Shard

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Block:
    """Activations: `values` (neurons, live samples); samples that are not live are zero."""

    values: Floats
    live: Integers  # sample numbers from 0, ascending


@dataclass(frozen=True)
class RankAnswer:
    """What one rank found: its neurons' activations of the last layer, or of all layers."""

    layers: tuple[Block, ...]
    sent_bytes: int
    seconds: Mapping[str, float] = field(default_factory=dict)


def rank_program(shard: Shard, samples: csr_array, record: bool) -> RankAnswer:
    """The task that each rank of the gang runs.

    Parameters
    ----------
    shard : this rank's part of the network.
    samples : the pixels that it reads, (len(shard.pixels), samples), float32.
    record : whether to return every layer's activations, or only the last one's.
    """
    return collective.run(forward, shard, samples, record)


async def forward(
    comm: AsyncCommunicator, shard: Shard, samples: csr_array, record: bool = False
) -> RankAnswer:
    """Run the samples through the network."""
    loop = asyncio.get_running_loop()
    count = samples.shape[1]
    began, waited = loop.time(), 0.0
    y = await comm.compute(_first, samples)
    answers: list[Block] = []
    for layer in shard.layers:
        exchange = asyncio.ensure_future(
            comm.neighbor_alltoall(
                {dest: pack(y, rows, count) for dest, rows in layer.sends.items()},
                layer.receives,
            )
        )
        try:
            y = y if layer.keeps_dead else _widened(y, np.arange(count))
            interior = await comm.compute(_interior, layer, y)
            pause = loop.time()
            received = await exchange
            waited += loop.time() - pause
        finally:
            exchange.cancel()
        y = await comm.compute(_whole, layer, y, interior, received, count)
        if record:
            answers.append(y)
    took = loop.time() - began
    return RankAnswer(
        layers=tuple(answers) if record else (y,),
        sent_bytes=comm.sent_bytes,
        seconds={"compute": took - waited, "waiting": waited},
    )


def pack(y: Block, rows: Integers, count: int) -> tuple[NDArray[np.uint8], Floats]:
    """A message: which of `count` samples are live, as bits, and their values in `rows`."""
    is_live = np.zeros(count, bool)
    is_live[y.live] = True
    return np.packbits(is_live), y.values[rows]


def unpack(message: tuple[NDArray[np.uint8], Floats], count: int) -> Block:
    """What `pack` packed."""
    bits, values = message
    return Block(values, np.flatnonzero(np.unpackbits(bits, count=count)))


def _first(samples: csr_array) -> Block:
    """The pixels, of the samples that have any."""
    dense = samples.toarray()
    return _compacted(dense, np.arange(samples.shape[1]), dense.any(axis=0))


def _interior(layer: LayerShard, y: Block) -> tuple[Floats, Flags]:
    """Outputs of the rows that need nothing from others; the other rows are not set yet."""
    out = np.empty((layer.outputs, len(y.live)), np.float32)
    seen = np.zeros(len(y.live), bool)
    _multiply(layer, layer.interior, y.values, out, seen)
    return out, seen


def _whole(
    layer: LayerShard,
    y: Block,
    interior: tuple[Floats, Flags],
    received: Mapping[int, tuple[NDArray[np.uint8], Floats]],
    count: int,
) -> Block:
    """All outputs, once the rows of others are there."""
    out, seen = interior
    if len(layer.boundary.rows) == 0:
        return _compacted(out, y.live, seen)
    blocks = {source: unpack(message, count) for source, message in received.items()}
    live = y.live
    for block in blocks.values():
        if not np.array_equal(live, block.live):
            live = np.union1d(live, block.live)
    x = np.empty((layer.inputs, len(live)), np.float32)
    _place(x, layer.kept, Block(y.values[layer.own], y.live), live)
    for source, block in blocks.items():
        _place(x, layer.receives[source], block, live)
    if len(live) > len(y.live):
        out = _widened(Block(out, y.live), live).values
        seen = kernels.expand(seen[None, :].astype(np.float32), _members(y.live, live))[0] > 0
    _multiply(layer, layer.boundary, x, out, seen)
    return _compacted(out, live, seen)


def _multiply(layer: LayerShard, part: Rows, x: Floats, out: Floats, seen: Flags) -> None:
    kernels.fused(
        part.indptr,
        part.indices,
        part.data,
        x,
        part.bias,
        nonzero_bias=layer.nonzero_bias,
        relu=layer.relu,
        clamp=layer.clamp,
        out=out,
        rows=part.rows,
        live=seen,
    )


def _place(x: Floats, rows: Integers, block: Block, live: Integers) -> None:
    """Copy a block's values into rows of `x`, whose columns are the samples `live`."""
    if len(block.live) == len(live):
        x[rows] = block.values
    else:
        x[rows] = 0.0
        x[rows[:, None], np.searchsorted(live, block.live)] = block.values


def _widened(y: Block, live: Integers) -> Block:
    """The same activations with a column for each of `live`, which holds all that are live."""
    return Block(kernels.expand(y.values, _members(y.live, live)), live)


def _members(some: Integers, of: Integers) -> Flags:
    members = np.zeros(len(of), bool)
    members[np.searchsorted(of, some)] = True
    return members


def _compacted(values: Floats, live: Integers, seen: Flags) -> Block:
    """Without the samples that are dead in all of these neurons."""
    return Block(kernels.compact(values, seen), live[seen])
