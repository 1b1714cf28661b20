from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from fsdray.costs.prices import load_prices
from fsdray.costs.receipt import Receipt
from fsdray.inference.radixnet import radixnet
from fsdray.observe.summary import Run, Verification, describe, match, same_bits, verification

COUNTS = {"invoke": 8, "gb_seconds": 2.5, "publish": 960, "publish_units": 962}


def answer(**changes: Any) -> Any:
    """An answer of eight workers, as `fsdray.inference.run` gives it."""
    fields = {
        "categories": np.array([2, 5], dtype=np.int64),
        "activations": csr_array(np.array([[0, 0], [1, 0]], dtype=np.float32)),
        "seconds": 2.5,
        "phases": {"partition": 17.25, "placement": 0.5, "compute": 1.5, "waiting": 0.5},
        "edges_per_second": 4.5e9,
        "workers": 8,
        "strategy": "model",
        "channel": "queue",
        "statistics": SimpleNamespace(rows_sent=108_185, messages=6_500, imbalance=1.03),
        "rows_sent": 108_185,
        "messages_sent": 6_500,
        "bytes_sent": 1_234_567,
        "receipt": Receipt(COUNTS, load_prices()),
        "rank_receipts": (Receipt({"publish": 120}, load_prices()),) * 8,
        "relaunched": 0,
    }
    return SimpleNamespace(**fields | changes)


def run(**changes: Any) -> Run:
    fields: dict[str, Any] = {
        "answer": answer(),
        "model": radixnet(64, 4),
        "samples": 1797,
        "backend": "local",
        "partition": "hypergraph",
        "seed": 0,
    }
    return Run(**fields | changes)


def numbers(*values: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


def test_the_json_form_has_every_promised_key() -> None:
    document = json.loads(json.dumps(run().to_json(), allow_nan=False))
    promised = {
        "categories", "seconds", "edges_per_second", "workers", "strategy", "channel",
        "partition", "rows_sent", "messages_sent", "bytes_sent", "requests", "cost_usd",
        "phases", "edges", "samples", "neurons", "layers", "imbalance", "match", "verified",
        "gb_seconds", "seed", "backend", "model", "cost_with_transfer_usd", "rank_requests",
    }  # fmt: skip
    assert promised <= document.keys()
    assert document["categories"] == [2, 5]
    assert document["requests"] == COUNTS
    assert (document["neurons"], document["layers"]) == (64, 4)
    assert document["edges"] == 4 * 64 * 32
    assert document["match"] is document["verified"] is None


def test_the_json_form_says_what_differs() -> None:
    verified = Verification(match(numbers(1), numbers(1)), True, 0.0, 1.5)
    document = run(truth=match(numbers(1, 2), numbers(2, 9)), serial=verified).to_json()
    assert (document["match"], document["missing"], document["extra"]) == (False, [9], [1])
    assert (document["verified"], document["serial_seconds"]) == (True, 1.5)


def test_the_text_says_what_was_run_found_sent_spent_and_paid() -> None:
    said = run(truth=match(numbers(2, 5), numbers(5, 2))).text()
    for words in (
        "radixnet:64x4: 4 layers, 64 inputs, 8,192 edges",
        "model-parallel, 8 workers, channel queue, backend local",
        "2 of 1,797 samples",
        "all 2 categories match",
        "hypergraph: 108,185 rows sent in 6,500 messages, 1.23 MB; imbalance 1.030",
        "2.50 from placement to the last reply",
        "partition 17.25, placement 0.50, compute 1.50, waiting 0.50",
        "4.5 billion edges a second",
        "Lambda   invocations",
        "SNS      publishes",
        "total",
    ):
        assert words in said


def test_the_text_of_a_serial_run_speaks_of_no_partition_and_no_channel() -> None:
    alone = answer(strategy="serial", workers=1, rows_sent=0, messages_sent=0, bytes_sent=0)
    said = run(answer=alone, partition=None).text()
    assert "serial, backend local" in said
    assert "rows sent" not in said
    assert "channel" not in said


def test_a_right_run_has_no_faults() -> None:
    verified = Verification(match(numbers(2), numbers(2)), True, 0.0, 1.0)
    assert run(truth=match(numbers(2, 5), numbers(2, 5)), serial=verified).faults() == []


def test_faults_name_the_samples_that_are_missing_and_extra() -> None:
    (fault,) = run(truth=match(numbers(2, 5), numbers(5, 7, 9))).faults()
    assert fault == (
        "the categories differ from --truth: 2 missing (sample 7, 9), 1 extra (sample 2)"
    )


def test_a_difference_in_one_bit_is_a_fault_that_says_how_large_it_is() -> None:
    other = answer(
        activations=csr_array(np.array([[0, 0], [np.nextafter(np.float32(1), 2), 0]], np.float32))
    )
    compared = verification(answer(), other)
    assert compared.categories.exact
    assert not compared.exact
    (fault,) = run(serial=compared).faults()
    assert "same categories, but differences of up to 1.19e-07" in fault


def test_only_the_first_of_many_samples_are_named() -> None:
    said = describe(match(numbers(), np.arange(1, 101)))
    assert said == "100 missing (sample 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …)"


@given(st.sets(st.integers(1, 50)), st.sets(st.integers(1, 50)))
def test_a_match_is_exact_only_for_equal_sets(found: set[int], expected: set[int]) -> None:
    result = match(numbers(*found), numbers(*expected))
    assert result.exact == (found == expected)
    assert set(result.missing) | (found & expected) == expected
    assert set(result.extra) | (found & expected) == found
    assert result.expected == len(expected)


def matrix(*rows: list[float]) -> csr_array:
    return csr_array(np.array(rows, dtype=np.float32))


def test_the_same_values_in_another_layout_are_the_same_bits() -> None:
    one = matrix([0, 2, 3], [0, 0, 1])
    other = csr_array(
        (
            np.array([3, 2, 0, 0.5, 0.5], np.float32),
            np.array([2, 1, 0, 2, 2], np.int64),
            np.array([0, 3, 5], np.int64),
        ),
        shape=(2, 3),
    )
    assert same_bits(one, other)
    assert other.nnz == 5, "the arguments are left as they are"


@pytest.mark.parametrize(
    "other",
    [
        matrix([0, 2, 3], [0, 1, 0]),
        matrix([0, 2, 3], [0, 0, 1.0000001]),
        matrix([0, 2, 3], [0, 0, 0]),
        matrix([0, 2, 3]),
        csr_array(np.array([[0, 2, 3], [0, 0, 1]], np.float64)),
    ],
)
def test_any_other_matrix_has_other_bits(other: csr_array) -> None:
    assert not same_bits(matrix([0, 2, 3], [0, 0, 1]), other)


def test_a_run_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        run().seed = 3  # type: ignore[misc]
