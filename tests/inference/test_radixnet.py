"""The benchmark networks: the rule they are built by, and the real ones it describes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fsdray.errors import SettingsError
from fsdray.inference.formats import load
from fsdray.inference.model import Model
from fsdray.inference.radixnet import radixnet


def base(neurons: int, k: int) -> NDArray[np.float64]:
    """Return B_k, (inputs, outputs), as the rule writes it down."""
    radix = neurons // 16
    one = np.eye(radix)
    return np.kron(np.ones((16, 16)), one + np.roll(one, -(2**k), axis=1)) / 16


def signatures(model: Model, first: int, depth: int) -> list[bytes]:
    """Return for each input neuron what it is joined to in a block of layers."""
    block = [layer.weights.toarray() for layer in model.layers[first : first + depth]]
    return [row.tobytes() for row in np.concatenate(block).T]


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(0, 2**32))
def test_layers_are_the_base_layers_with_one_permutation_of_inputs_a_block(
    depth: int, layers: int, seed: int
) -> None:
    neurons = 16 * 2**depth
    model = radixnet(neurons, layers, seed)
    for number, layer in enumerate(model.layers):
        weights, expected = layer.weights.toarray().T, base(neurons, number % depth)
        assert (np.diff(layer.weights.indptr) == 32).all()
        assert layer.weights.has_canonical_format
        if number < depth:
            np.testing.assert_array_equal(weights, expected)
        assert sorted(map(bytes, weights)) == sorted(map(bytes, expected.astype(np.float32)))
    for first in range(0, layers - depth + 1, depth):
        block = signatures(model, first, depth)
        assert sorted(block) == sorted(signatures(model, 0, depth))


def test_the_same_seed_gives_the_same_network_and_another_one_another() -> None:
    assert radixnet(64, 6, 1).digest() == radixnet(64, 6, 1).digest()
    assert radixnet(64, 6, 1).digest() != radixnet(64, 6, 2).digest()
    assert radixnet(64, 2, 1).digest() == radixnet(64, 2, 2).digest()  # the first block is fixed


def test_size_bias_and_clamp_are_the_challenges() -> None:
    model = radixnet(1024)
    assert (model.inputs, model.depth, model.edges) == (1024, 120, 32 * 1024 * 120)
    assert model.name == "radixnet:1024x120"
    layer = model.layers[0]
    assert (layer.bias, layer.bias_on, layer.relu, layer.clamp) == (-0.30, "nonzero", True, 32)


@pytest.mark.parametrize(
    ("neurons", "bias"),
    [(32, -0.3), (512, -0.3), (2048, -0.325), (4096, -0.35), (8192, -0.375), (16384, -0.4)],
)
def test_bias_goes_through_the_challenges_table(neurons: int, bias: float) -> None:
    assert radixnet(neurons, layers=1).layers[0].bias == pytest.approx(bias, abs=1e-12)


@pytest.mark.parametrize(
    ("neurons", "nearest"),
    [(-5, 32), (0, 32), (16, 32), (33, 32), (47, 32), (49, 64), (1000, 1024)],
)
def test_other_numbers_of_neurons_are_refused_with_the_nearest(neurons: int, nearest: int) -> None:
    with pytest.raises(SettingsError, match=rf"not {neurons}.*nearest is {nearest}$"):
        radixnet(neurons)


def test_no_layers_and_negative_seeds_are_refused() -> None:
    with pytest.raises(SettingsError, match="at least 1"):
        radixnet(64, 0)
    with pytest.raises(SettingsError, match="seed is -1"):
        radixnet(64, 1, -1)


def test_the_challenges_own_network_follows_the_rule(challenge_1024: Path) -> None:
    real, built = load(challenge_1024 / "neuron1024.tar.xz"), radixnet(1024, layers=6)
    assert Model(real.layers[:6], name="first").digest() == built.digest()
    expected = sorted(signatures(built, 0, 6))
    for first in range(0, 120, 6):
        assert sorted(signatures(real, first, 6)) == expected
