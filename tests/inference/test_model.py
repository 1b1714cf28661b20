"""Layers and models: what they accept, what they keep, what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse import coo_array, csc_array, csr_array

from fsdray.errors import SettingsError
from fsdray.inference.model import Layer, Model


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int8]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.integers(-3, 3),
    ),
    st.sampled_from([np.asarray, csr_array, csc_array, coo_array]),
)
def test_weights_of_any_kind_become_canonical_float32_rows(dense: Any, kind: Any) -> None:
    weights = Layer(kind(dense), bias=0).weights
    assert isinstance(weights, csr_array)
    assert (weights.dtype, weights.indices.dtype) == (np.float32, np.int32)
    assert weights.indptr.dtype == np.int32
    assert weights.has_canonical_format
    assert weights.data.all()
    np.testing.assert_array_equal(weights.toarray(), dense)


def test_duplicates_are_summed_and_indices_sorted_without_touching_the_callers() -> None:
    given_weights = csr_array(
        (np.array([1, 2, 4], np.float32), np.array([1, 0, 1], np.int64), np.array([0, 3])),
        shape=(1, 2),
    )
    assert Layer(given_weights, bias=0).weights.toarray().tolist() == [[2, 5]]
    assert given_weights.nnz == 3


def test_canonical_weights_are_not_copied() -> None:
    weights = Layer(np.eye(3), bias=0).weights
    assert np.shares_memory(Layer(weights, bias=0).weights.data, weights.data)


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        (np.array([[np.nan]]), "finite"),
        (np.array([[1e39]]), "finite"),
        (np.zeros((0, 3)), "shape"),
        (np.zeros(3), "shape"),
        ([[1], [1, 2]], "rectangular"),
        (np.array([["a"]]), "real numbers"),
        (csr_array(np.array([[1j]])), "real numbers"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights: Any, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        Layer(weights, bias=0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"bias": [1.0, 2.0, 3.0]}, r"shape \(3,\).*2 outputs"),
        ({"bias": float("inf")}, "finite"),
        ({"bias": "x"}, "give a number"),
        ({"bias": 0, "bias_on": "some"}, "'some'"),
        ({"bias": 0, "clamp": 0}, "positive"),
        ({"bias": 0, "clamp": float("nan")}, "positive"),
        ({"bias": 0, "clamp": "x"}, "positive"),
    ],
)
def test_rules_that_do_not_fit_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        Layer(np.eye(2), **options)


def test_bias_is_kept_in_float64() -> None:
    assert Layer(np.eye(2), bias=float(np.float32(0.5))).bias == 0.5
    bias = Layer(np.eye(2), bias=np.array([0.1, 0.2], np.float32)).bias
    assert isinstance(bias, np.ndarray)
    assert bias.dtype == np.float64


def test_a_dead_sample_stays_dead_unless_a_bias_is_added_to_it() -> None:
    assert Layer(np.eye(2), bias=-0.3).keeps_dead
    assert Layer(np.eye(2), bias=0.3, relu=False).keeps_dead
    assert Layer(np.eye(2), bias=np.zeros(2), bias_on="all").keeps_dead
    assert not Layer(np.eye(2), bias=np.array([0.0, 0.1]), bias_on="all").keeps_dead


def test_a_model_tells_its_sizes() -> None:
    model = Model((Layer(np.ones((3, 2)), bias=0), Layer(np.ones((1, 3)), bias=0)), name="m")
    assert (model.inputs, model.outputs, model.edges, model.depth) == (2, 1, 9, 2)
    assert (model.layers[0].inputs, model.layers[0].outputs, model.layers[0].edges) == (2, 3, 6)


def test_layers_that_do_not_chain_are_refused_with_both_sizes() -> None:
    with pytest.raises(SettingsError, match=r"layer 1 computes 3 .*layer 2 reads 4"):
        Model((Layer(np.ones((3, 2)), bias=0), Layer(np.ones((1, 4)), bias=0)), name="m")


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(SettingsError, match="no layers"):
        Model((), name="m")


def test_digest_follows_the_contents_and_nothing_else() -> None:
    base = Model((Layer(np.eye(2), bias=0.1),), name="a")
    assert base.digest() == Model((Layer(csc_array(np.eye(2)), bias=0.1),), name="b").digest()
    # Written down so that it stays the same across releases: caches are keyed by it.
    assert base.digest() == ("2153cb53d35bd7f0e6e368d07ffebdc158aef5a583e1997ef8bd6f90124baec6")
    others = [
        Layer(np.eye(2) * 2, bias=0.1),
        Layer(np.eye(2)[::-1], bias=0.1),
        Layer(np.eye(2), bias=0.2),
        Layer(np.eye(2), bias=np.array([0.1, 0.1])),
        Layer(np.eye(2), bias=0.1, bias_on="all"),
        Layer(np.eye(2), bias=0.1, relu=False),
        Layer(np.eye(2), bias=0.1, clamp=None),
    ]
    digests = {Model((layer,), name="a").digest() for layer in others}
    assert len(digests | {base.digest()}) == len(others) + 1
