"""The benchmark networks of the Sparse DNN Graph Challenge, built by rule instead of read.

Only the challenge's figures and the RadiX-Net rule live here. Its files are read by
`fsdray.inference.formats`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from fsdray.errors import SettingsError
from fsdray.inference.model import Layer, Model

__all__ = ["CHALLENGE_BIAS", "CHALLENGE_CLAMP", "radixnet"]

#: Bias by number of neurons, and the upper limit of an activation: Sparse DNN Graph
#: Challenge (Kepner et al., HPEC 2019, graphchallenge.mit.edu).
CHALLENGE_BIAS = {1024: -0.30, 4096: -0.35, 16384: -0.40, 65536: -0.45}
CHALLENGE_CLAMP = 32.0

_COPIES = 16  # the Kronecker factor: each residue class has this many identical neurons
_WEIGHT = np.float32(1 / 16)


def radixnet(neurons: int, layers: int = 120, seed: int = 0) -> Model:
    """Build a RadiX-Net as the challenge's generator does, with permutations of our own.

    With R = neurons/16 = 2^depth, base layer k joins input i to output j, with weight 1/16,
    when i ≡ j or i ≡ j + 2^k (mod R): 32 connections a neuron. Layers 1..depth are the base
    layers 0..depth-1; each later block of `depth` layers repeats them with the inputs
    permuted, one random permutation a block. The rule (Kepner and Robinett, "RadiX-Net:
    Structured Sparse Matrices for Deep Neural Networks", 2019) holds for all 120 of the
    challenge's layers with 1024 neurons.

    Parameters
    ----------
    neurons
        Neurons in every layer: 16·2^k with k ≥ 1.
    layers
        Number of layers, at least 1. The challenge has 120, 480 and 1920.
    seed
        Of the permutations: NumPy's PCG64. The same seed gives the same network.

    Returns
    -------
    Model
        Float32 weights; bias (on nonzero sums) of the challenge for 1024, 4096, 16384 and
        65536 neurons; -0.30 below, and between and beyond them -0.05 for each factor of 4,
        linear in log(neurons). Activations are clamped to [0, 32]. The layers share one
        array of values, since all weights are equal.

    Raises
    ------
    SettingsError
        When `neurons` is no such number (the nearest one is named), `layers` is under 1 or
        `seed` is negative.
    """
    if layers < 1:
        raise SettingsError(f"radixnet with {layers} layers: give at least 1")
    if seed < 0:
        raise SettingsError(f"seed is {seed}: give 0 or more")
    depth = _depth(neurons)
    radix = neurons // _COPIES
    data = np.full(neurons * 2 * _COPIES, _WEIGHT, dtype=np.float32)
    indptr = np.arange(0, data.size + 1, 2 * _COPIES, dtype=np.int32)
    bias = _bias(neurons)
    built = []
    for number, classes in zip(range(layers), _input_classes(neurons, depth, seed), strict=False):
        first = np.arange(radix)
        second = (first + (1 << number % depth)) % radix
        inputs = np.sort(np.concatenate([classes[first], classes[second]], axis=1), axis=1)
        indices = np.tile(inputs, (_COPIES, 1)).ravel()
        weights = csr_array((data, indices, indptr), shape=(neurons, neurons))
        built.append(Layer(weights, bias=bias, clamp=CHALLENGE_CLAMP))
    return Model(tuple(built), name=f"radixnet:{neurons}x{layers}")


def _input_classes(neurons: int, depth: int, seed: int) -> Iterator[NDArray[np.int32]]:
    """Yield, layer after layer, the 16 input neurons of each residue class: (radix, 16)."""
    generator = np.random.Generator(np.random.PCG64(seed))
    order = np.arange(neurons, dtype=np.int32)
    while True:
        classes = order.reshape(_COPIES, -1).T
        for _ in range(depth):
            yield classes
        order = generator.permutation(neurons).astype(np.int32)


def _depth(neurons: int) -> int:
    """Return log2(neurons/16), or say which number of neurons is nearest to a valid one."""
    power = max(1, math.floor(math.log2(max(neurons, 1) / _COPIES)))
    below, above = _COPIES << power, _COPIES << power + 1
    if neurons != below:
        nearest = below if neurons - below <= above - neurons else above
        raise SettingsError(
            f"a RadiX-Net has 16·2^k neurons (32, 64, … 1024, …), not {neurons}: "
            f"the nearest is {nearest}"
        )
    return power


def _bias(neurons: int) -> float:
    if neurons in CHALLENGE_BIAS:
        return CHALLENGE_BIAS[neurons]
    return -0.30 - 0.05 * max(0.0, math.log(neurons / 1024, 4))
