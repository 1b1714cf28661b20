"""Inference with large sparse networks, on one function or on many.

`model` says what a network is; `formats`, `radixnet` and `samples` make one and its inputs;
`partition` divides it, `shards` cuts it, `engine` runs a rank with `kernels`, and `batch` runs a
whole batch. It uses only what users of tasks and collectives can use too.
"""

from fsdray.inference.batch import Answer, run
from fsdray.inference.formats import load, load_categories, load_samples
from fsdray.inference.model import Layer, Model
from fsdray.inference.partition import Partition, PartitionStatistics, partition, statistics
from fsdray.inference.radixnet import radixnet
from fsdray.inference.samples import digits

__all__ = [
    "Answer",
    "Layer",
    "Model",
    "Partition",
    "PartitionStatistics",
    "digits",
    "load",
    "load_categories",
    "load_samples",
    "partition",
    "radixnet",
    "run",
    "statistics",
]
