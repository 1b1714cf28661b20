"""The real digits: how many, how large, and which."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.datasets import load_digits

from fsdray.errors import SettingsError
from fsdray.inference.radixnet import radixnet
from fsdray.inference.samples import digits


def test_digits_are_canonical_zeros_and_ones() -> None:
    samples = digits(100, 1024)
    assert isinstance(samples, csr_array)
    assert (samples.shape, samples.dtype) == ((100, 1024), np.float32)
    assert samples.has_canonical_format
    assert (samples.data == 1).all()
    assert (np.diff(samples.indptr) > 0).all()


def test_digits_at_their_own_size_are_the_bright_pixels() -> None:
    images = load_digits().images[:50].reshape(50, 64)
    np.testing.assert_array_equal(digits(50, 64).toarray(), images > 13)


def test_pixels_past_the_square_are_zero() -> None:
    samples = digits(20, 50).toarray()
    assert not samples[:, 49:].any()
    assert samples[:, :49].any()
    np.testing.assert_array_equal(samples[:, :49], digits(20, 49).toarray())


def test_enlarged_digits_shrink_back_to_themselves() -> None:
    large = digits(30, 64 * 25).toarray().reshape(30, 40, 40)
    middles = large[:, 2::5, 2::5].reshape(30, 64)  # where pixel centres fall on pixel centres
    np.testing.assert_array_equal(middles, digits(30, 64).toarray())


@pytest.mark.parametrize("neurons", [1, 3, 4])
def test_tiny_networks_get_samples_too(neurons: int) -> None:
    assert digits(5, neurons).shape == (5, neurons)


def test_a_seed_chooses_other_digits_and_the_same_ones_each_time() -> None:
    first, again, other = (digits(40, 64, seed=seed).toarray() for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert sorted(map(bytes, digits(1797, 64, seed=1).toarray())) == sorted(
        map(bytes, digits(1797, 64).toarray())
    )


@pytest.mark.parametrize("count", [-1, 0, 1798])
def test_more_digits_than_there_are_is_refused_with_the_most(count: int) -> None:
    with pytest.raises(SettingsError, match=f"{count} digits.*1797"):
        digits(count, 64)


def test_no_neurons_and_negative_seeds_are_refused() -> None:
    with pytest.raises(SettingsError, match="at least 1"):
        digits(1, 0)
    with pytest.raises(SettingsError, match="seed is -1"):
        digits(1, 64, seed=-1)


def test_missing_scikit_learn_is_said_with_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SettingsError, match=r"fsdray\[inference\]"):
        digits(1, 64)


def test_some_digits_stay_alive_in_a_benchmark_network_and_most_die() -> None:
    active = digits(200, 1024).T.toarray().astype(np.float64)
    for layer in radixnet(1024).layers:
        sums = layer.weights.astype(np.float64) @ active
        active = np.where(sums != 0, sums + layer.bias, 0).clip(0, 32)
        active = active[:, active.any(axis=0)]
    assert 20 <= active.shape[1] <= 100
