"""One batch through a network: divides it, places the shards, runs the ranks, joins their answers.

What a rank does is in `engine`, what it is given in `shards`; who owns what, in `partition`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse

import fsdray
from fsdray.costs.meter import metering
from fsdray.costs.receipt import Receipt
from fsdray.errors import SettingsError
from fsdray.inference import partition as partitions
from fsdray.inference.engine import Block, RankAnswer, rank_program
from fsdray.inference.model import Model
from fsdray.inference.partition import Partition, PartitionStatistics
from fsdray.inference.shards import Integers, Sharding
from fsdray.observe.progress import Progress, Silent

STRATEGIES = ("serial", "model")


@dataclass(frozen=True)
class Answer:
    """What a batch came to.

    Parameters
    ----------
    categories : int64, the 1-based numbers of the samples that the last layer leaves nonzero.
    activations : float32 (samples, outputs) of the last layer.
    layers : the same for every layer, where ``record=True`` asked for them; else empty.
    seconds : from placing the shards to the last rank's reply.
    phases : seconds of ``partition`` and ``placement``, and of ``compute`` and ``waiting``
        (for messages), which are means over the ranks.
    edges_per_second : samples × edges / seconds, as the Graph Challenge counts.
    sent_bytes : payload that the ranks sent one another.
    receipt : what the run asked of the services. rank_receipts : the same, by rank.
    """

    categories: NDArray[np.int64]
    activations: csr_array
    layers: tuple[csr_array, ...]
    seconds: float
    phases: dict[str, float]
    edges_per_second: float
    workers: int
    strategy: str
    channel: str
    partition: Partition
    statistics: PartitionStatistics
    bytes_sent: int
    receipt: Receipt
    rank_receipts: tuple[Receipt, ...]

    @property
    def rows_sent(self) -> int:
        """Rows of activations that ranks sent one another, over all layers."""
        return self.statistics.rows_sent

    @property
    def relaunched(self) -> int:
        """Workers that were started again because they had died, once for each time."""
        return int(self.receipt.requests.get("invoke", self.workers)) - self.workers

    @property
    def messages_sent(self) -> int:
        """Messages that ranks sent one another, over all layers."""
        return self.statistics.messages


def run(
    model: Model,
    samples: Any,
    *,
    workers: int = 1,
    strategy: str = "model",
    channel: str | None = None,
    partition: str | Partition = "hypergraph",
    seed: int = 0,
    record: bool = False,
    memory: int | None = None,
    timeout: float | None = None,
    max_retries: int = 0,
    progress: Progress | None = None,
) -> Answer:
    """Run a batch of samples through a network, on one function or on many.

    The activations are the same bits for every number of workers, partition and channel.

    Parameters
    ----------
    model : the network.
    samples : (samples, model.inputs), sparse or dense, of finite numbers.
    workers : ranks that share the network (model-parallel). strategy : ``"model"``, or
        ``"serial"``: one worker, which talks to nobody.
    channel : ``"queue"``, ``"object"`` or ``"auto"``; by default the session's.
    partition : ``"hypergraph"``, ``"random"`` or ``"block"``, or one made before. seed : its seed.
    record : return every layer's activations too; for tests and debugging.
    memory, timeout : MB and seconds of each worker; by default the session's.
    max_retries : times that each worker may be started again after it died; it catches up from what
        the others had sent it, and the activations are the same bits.
    progress : told of the phases as they go.

    Raises
    ------
    SettingsError
        where samples, workers, strategy, channel or partition do not fit; nothing has started.
    RankFailed
        where a worker failed; its cause says why.
    """
    matrix = _checked(samples, model)
    workers = _workers(model, workers, strategy)
    told: Progress = progress if progress is not None else Silent()
    program = _program(
        world_size=workers,
        channel=channel,
        memory=memory,
        timeout=timeout,
        max_retries=max_retries,
    )
    began = time.perf_counter()
    division = _divided(model, workers, partition, seed, told)
    divided = time.perf_counter()
    with metering() as meter:
        refs, owned = _start(program, model, division, matrix, record, told)
        placed = time.perf_counter()
        told.phase("run")
        answers: list[RankAnswer] = fsdray.get(refs)
        seconds = time.perf_counter() - divided
    layers = _layers(model, answers, owned, matrix.shape[0])
    here = fsdray.session.current()
    return Answer(
        categories=np.flatnonzero(np.diff(layers[-1].indptr)) + 1,
        activations=layers[-1],
        layers=layers if record else (),
        seconds=seconds,
        phases={
            "partition": divided - began,
            "placement": placed - divided,
            **{name: _mean(answers, name) for name in ("compute", "waiting")},
        },
        edges_per_second=matrix.shape[0] * model.edges / seconds,
        workers=workers,
        strategy=strategy,
        channel=channel or here.settings.channel,
        partition=division,
        statistics=partitions.statistics(model, division),
        bytes_sent=sum(answer.sent_bytes for answer in answers),
        receipt=Receipt(meter.counts(), here.prices),
        rank_receipts=tuple(ref.receipt() for ref in refs),
    )


def _program(**options: Any) -> Any:
    """The ranks' function; what its options cannot have is refused here, before any work."""
    program = fsdray.remote(
        **{name: value for name, value in options.items() if value is not None},
        name="infer",
        preload=("fsdray.inference.engine", "fsdray.inference.kernels:warm"),
    )(rank_program)
    program.check()
    return program


def _checked(samples: Any, model: Model) -> csr_array:
    matrix = csr_array(samples if issparse(samples) else np.atleast_2d(samples), dtype=np.float32)
    if matrix.shape[1] != model.inputs:
        raise SettingsError(
            f"samples have {matrix.shape[1]} values each, but {model.name!r} reads {model.inputs}"
        )
    if matrix.shape[0] < 1:
        raise SettingsError("there are no samples: give at least one")
    if not np.isfinite(matrix.data).all():
        raise SettingsError("samples must be finite: remove nan and inf")
    return matrix


def _workers(model: Model, workers: int, strategy: str) -> int:
    if strategy not in STRATEGIES:
        raise SettingsError(f"strategy={strategy!r}: choose one of {', '.join(STRATEGIES)}")
    if strategy == "serial" and workers != 1:
        raise SettingsError(f"strategy='serial' has one worker, not {workers}")
    least = min(layer.outputs for layer in model.layers)
    if not 1 <= workers <= least:
        raise SettingsError(
            f"workers={workers}: choose from 1 to {least}, the neurons of the smallest layer"
        )
    return workers


def _divided(
    model: Model, workers: int, partition: str | Partition, seed: int, progress: Progress
) -> Partition:
    if isinstance(partition, Partition):
        if partition.workers != workers:
            raise SettingsError(
                f"the partition is for {partition.workers} workers, not for {workers}"
            )
        partitions.statistics(model, partition)  # raises where it is another model's
        return partition
    progress.phase("partition", model.depth)
    return partitions.partition(
        model, workers, partition, seed, progress=lambda done, total: progress.advance()
    )


def _start(
    program: Any,
    model: Model,
    division: Partition,
    samples: csr_array,
    record: bool,
    progress: Progress,
) -> tuple[list[Any], list[tuple[Integers, ...]]]:
    """Place each rank's shard and start the gang."""
    sharding = Sharding(model, division)
    by_pixel = samples.T.tocsr()
    progress.phase("placement", division.workers)
    shards, pixels, owned = [], [], []
    for rank in range(division.workers):
        shard = sharding.shard(rank)
        owned.append(shard.owned if record else shard.owned[-1:])
        pixels.append(by_pixel[shard.pixels])
        shards.append(fsdray.put(shard))
        progress.advance()
    return program.remote(fsdray.per_rank(shards), fsdray.per_rank(pixels), record), owned


def _layers(
    model: Model,
    answers: Sequence[RankAnswer],
    owned: Sequence[tuple[Integers, ...]],
    samples: int,
) -> tuple[csr_array, ...]:
    """The layers that the ranks returned, the last ones of the model, each as one matrix."""
    returned = len(answers[0].layers)
    return tuple(
        _joined(
            [answer.layers[number] for answer in answers],
            [of_rank[number] for of_rank in owned],
            (samples, layer.outputs),
        )
        for number, layer in enumerate(model.layers[-returned:])
    )


def _joined(
    blocks: Sequence[Block], owned: Sequence[Integers], shape: tuple[int, int]
) -> csr_array:
    """The ranks' blocks as one matrix (samples, neurons), zeros left out."""
    samples, neurons, values = [], [], []
    for block, mine in zip(blocks, owned, strict=True):
        row, column = np.nonzero(block.values)
        samples.append(block.live[column])
        neurons.append(mine[row])
        values.append(block.values[row, column])
    where = (np.concatenate(samples), np.concatenate(neurons))
    return csr_array((np.concatenate(values), where), shape=shape, dtype=np.float32)


def _mean(answers: Sequence[RankAnswer], phase: str) -> float:
    return float(np.mean([answer.seconds[phase] for answer in answers]))
