"""The engine's activations of every layer, bit for bit against an independent SciPy run.

Categories alone prove little: late layers of the challenge's network hold only 0 and 32.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, random_array

from fsdray import inference
from fsdray.errors import SettingsError
from fsdray.inference import Layer, Model, Partition

pytestmark = pytest.mark.usefixtures("session")

MANY = pytest.mark.thorough("each finds a partition of the real network, for seconds")
METHODS = ("hypergraph", "random", "block")
CHANNELS = ("queue", "object")


def oracle(model: Model, samples: csr_array) -> list[csr_array]:
    """Every layer's activations (samples × neurons), by SciPy with float64 sums."""
    y = samples.T.astype(np.float64)
    found = []
    for layer in model.layers:
        z = (layer.weights.astype(np.float64) @ y).tocsr().toarray()
        bias = np.broadcast_to(np.reshape(layer.bias, (-1, 1)), z.shape)
        z = np.where((z != 0) | (layer.bias_on == "all"), z + bias, z)
        if layer.relu:
            z = np.maximum(z, 0.0)
        if layer.clamp is not None:
            z = np.minimum(z, layer.clamp)
        values = z.astype(np.float32)
        found.append(csr_array(values.T))
        y = csr_array(values.astype(np.float64))
    return found


def signed_network(neurons: int, depth: int, seed: int, **rules: Any) -> Model:
    """Random signed weights, scaled so that activations neither die nor saturate."""
    rng = np.random.default_rng(seed)
    layers = []
    density = min(1.0, 10 / neurons)
    for _ in range(depth):
        weights = random_array((neurons, neurons), density=density, rng=rng, format="csr")
        weights.data = rng.normal(0.25, 0.6, weights.nnz) / np.sqrt(10) * 2
        layers.append(Layer(weights, rng.normal(-0.02, 0.1, neurons), **rules))
    return Model(tuple(layers), f"signed-{neurons}x{depth}")


def some_samples(count: int, neurons: int, seed: int) -> csr_array:
    """A third of each sample's values are not zero; some samples are all zero."""
    rng = np.random.default_rng(seed)
    dense = rng.random((count, neurons)) * (rng.random((count, neurons)) < 0.3)
    dense[:: max(2, count // 3)] = 0
    return csr_array(dense.astype(np.float32))


def assert_same_bits(found: csr_array, expected: csr_array, what: str) -> None:
    one, other = found.toarray(), expected.toarray()
    wrong = np.argwhere(one.view(np.uint32) != (other + np.float32(0)).view(np.uint32))
    assert wrong.size == 0, f"{what}: {len(wrong)} activations differ, the first at {wrong[0]}"


def assert_layers(answer: inference.Answer, expected: list[csr_array]) -> None:
    assert len(answer.layers) == len(expected)
    for number, (found, true) in enumerate(zip(answer.layers, expected, strict=True), 1):
        assert_same_bits(found, true, f"layer {number}")
    assert_same_bits(answer.activations, expected[-1], "the last layer")
    true_categories = np.flatnonzero(expected[-1].sum(axis=1)) + 1
    assert answer.categories.tolist() == true_categories.tolist()


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8, 12])
@pytest.mark.on_aws("3-hypergraph-queue", "5-block-object")
def test_a_signed_network_has_the_oracles_bits(workers: int, method: str, channel: str) -> None:
    model = signed_network(96, 6, seed=7)
    samples = some_samples(40, 96, seed=1)
    expected = oracle(model, samples)
    last = expected[-1].toarray()
    assert 0.05 < np.mean(last > 0) < 0.95, "the network died or saturated: the test is void"
    assert np.mean(last == 32) < 0.5
    answer = inference.run(
        model, samples, workers=workers, channel=channel, partition=method, record=True
    )
    assert_layers(answer, expected)


@pytest.mark.parametrize("channel", [*CHANNELS, "auto"])
def test_biases_everywhere_wake_dead_samples(channel: str) -> None:
    model = signed_network(60, 5, seed=3, bias_on="all", clamp=None)
    assert not model.layers[0].keeps_dead
    samples = some_samples(17, 60, seed=2)
    answer = inference.run(
        model, samples, workers=4, channel=channel, partition="random", record=True
    )
    assert_layers(answer, oracle(model, samples))


def test_negative_activations_travel() -> None:
    model = signed_network(60, 4, seed=5, relu=False, clamp=None)
    samples = some_samples(9, 60, seed=4)
    answer = inference.run(model, samples, workers=3, partition="block", record=True)
    assert_layers(answer, oracle(model, samples))
    assert (answer.activations.toarray() < 0).any()


def test_layers_may_differ_in_width() -> None:
    rng = np.random.default_rng(0)
    widths = [30, 50, 8, 20]
    layers = tuple(
        Layer(random_array((b, a), density=0.3, rng=rng, format="csr"), 0.01)
        for a, b in itertools.pairwise(widths)
    )
    model = Model(layers, "widths")
    samples = some_samples(12, 30, seed=6)
    answer = inference.run(model, samples, workers=8, partition="random", record=True)
    assert_layers(answer, oracle(model, samples))


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 10**6),
    neurons=st.integers(5, 40),
    depth=st.integers(1, 4),
    workers=st.integers(1, 5),
    channel=st.sampled_from(CHANNELS),
    bias_on=st.sampled_from(["nonzero", "all"]),
)
def test_any_partition_of_any_network_has_the_oracles_bits(
    seed: int, neurons: int, depth: int, workers: int, channel: str, bias_on: str
) -> None:
    model = signed_network(neurons, depth, seed, bias_on=bias_on)
    rng = np.random.default_rng(seed)
    # Ranks may own no neuron of a layer at all.
    owners = tuple(rng.integers(0, workers, neurons).astype(np.int32) for _ in range(depth))
    samples = some_samples(int(rng.integers(1, 20)), neurons, seed)
    answer = inference.run(
        model,
        samples,
        workers=workers,
        channel=channel,
        partition=Partition(workers, "any", owners),
        record=True,
    )
    assert_layers(answer, oracle(model, samples))


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize(
    "workers",
    [
        1,
        pytest.param(2, marks=MANY),
        pytest.param(5, marks=MANY),
        8,
        pytest.param(12, marks=MANY),
    ],
)
@pytest.mark.on_aws("8-queue", "8-object")
@pytest.mark.slow_on_aws
def test_the_real_network_has_the_oracles_bits_and_the_true_categories(
    challenge_1024: Path, real: Real, workers: int, channel: str
) -> None:
    answer = inference.run(
        real.model, real.samples, workers=workers, channel=channel, partition=real.part(workers),
        record=True,
    )  # fmt: skip
    assert_layers(answer, real.layers)
    assert answer.categories.tolist() == real.truth.tolist()
    assert len(answer.categories) == 73
    if workers == 8:
        assert answer.rows_sent <= 116_000
        requests = answer.receipt.requests
        if channel == "queue":
            assert requests["publish"] <= 1000
            assert any(receives <= 3000 for receives in receives_of_runs(answer, real))
        else:
            assert requests["put"] <= 1000
        assert "list" not in requests


def receives_of_runs(first: inference.Answer, real: Real) -> Iterator[float]:
    """Of a run by 8 workers on the queue, and of two more: ranks that other work holds up find less
    at a time, so that a busy machine makes a run take more receives than it needs."""
    yield first.receipt.requests["receive"]
    for _ in range(2):
        again = inference.run(
            real.model, real.samples, workers=8, channel="queue", partition=real.part(8)
        )
        yield again.receipt.requests["receive"]


class Real:
    """The real network and its first 2,000 samples, read once; partitions, found once."""

    def __init__(self, path: Path) -> None:
        self.model = inference.load(path)
        samples = next(path.glob("sparse-images-1024*"))
        self.samples = inference.load_samples(samples, self.model.inputs)
        self.truth = inference.load_categories(next(path.glob("*categories*")))
        self.layers = oracle(self.model, self.samples)
        self._parts: dict[int, Partition] = {}

    def part(self, workers: int) -> Partition:
        if workers not in self._parts:
            self._parts[workers] = inference.partition(self.model, workers)
        return self._parts[workers]


@pytest.fixture(scope="module")
def real(challenge_1024: Path) -> Real:
    return Real(challenge_1024)


def test_the_serial_strategy_is_one_worker_that_talks_to_nobody() -> None:
    model, samples = signed_network(32, 3, seed=1), some_samples(6, 32, seed=1)
    answer = inference.run(model, samples, strategy="serial", record=True)
    assert_layers(answer, oracle(model, samples))
    assert answer.rows_sent == answer.messages_sent == answer.bytes_sent == 0
    assert answer.receipt.requests["invoke"] == 1
    assert "publish" not in answer.receipt.requests


def test_a_run_repeats_its_bits_and_what_it_asks_for() -> None:
    model, samples = signed_network(64, 5, seed=2), some_samples(30, 64, seed=2)
    one, other = (inference.run(model, samples, workers=4, channel="queue") for _ in range(2))
    assert_same_bits(one.activations, other.activations, "the second run")
    asked = ("invoke", "publish", "publish_bytes", "publish_units", "put")
    assert [one.receipt.requests.get(name) for name in asked] == [
        other.receipt.requests.get(name) for name in asked
    ]
    assert one.bytes_sent == other.bytes_sent > 0


def test_rank_receipts_add_up_to_what_the_ranks_asked_for() -> None:
    model, samples = signed_network(64, 5, seed=2), some_samples(30, 64, seed=2)
    answer = inference.run(model, samples, workers=4, channel="queue")
    assert len(answer.rank_receipts) == 4
    published = [receipt.requests.get("publish", 0) for receipt in answer.rank_receipts]
    assert sum(published) == answer.receipt.requests["publish"] > 0
    assert all(published)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"workers": 0}, "from 1 to 32"),
        ({"workers": 33}, "from 1 to 32"),
        ({"channel": "pigeon"}, "queue, object"),
        ({"partition": "magic"}, "hypergraph"),
        ({"strategy": "data"}, "serial, model"),
        ({"strategy": "serial", "workers": 2}, "one worker"),
        ({"samples": np.ones((3, 31))}, "read"),
        ({"samples": np.full((3, 32), np.nan)}, "finite"),
        ({"samples": np.ones((0, 32))}, "at least one"),
        ({"partition": Partition(3, "x", (np.zeros(32, np.int32),) * 3)}, "3 workers"),
        ({"partition": Partition(2, "x", (np.zeros(31, np.int32),) * 3)}, "another model"),
        ({"memory": 1}, "memory"),
        ({"timeout": -1}, "timeout"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(
    change: dict[str, Any], says: str
) -> None:
    model = signed_network(32, 3, seed=1)
    options: dict[str, Any] = {"samples": some_samples(6, 32, seed=1), "workers": 2, **change}
    with pytest.raises(SettingsError, match=says):
        inference.run(model, **options)


def test_more_workers_than_may_run_are_refused_before_the_network_is_divided() -> None:
    model = signed_network(64, 2, seed=1)
    told: list[str] = []

    class Listener:
        def phase(self, name: str, total: int | None = None) -> None:
            told.append(name)

        def advance(self, amount: int = 1) -> None:
            told.append("advance")

    with pytest.raises(SettingsError, match=r"init\(concurrency=50\)"):
        inference.run(model, some_samples(6, 64, seed=1), workers=50, progress=Listener())
    assert told == []
