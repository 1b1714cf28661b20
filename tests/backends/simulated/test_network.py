"""The model draws what it says, and a node's link and connections carry only so much."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdray.backends.simulated import Latency
from fsdray.backends.simulated.world import Line
from fsdray.costs.latency import lognormal
from tests.backends.simulated import Simulated, virtually


@given(median=st.floats(1e-4, 10), spread=st.floats(1, 50))
def test_the_fit_has_the_median_and_the_percentile_that_it_was_given(
    median: float, spread: float
) -> None:
    mu, sigma = lognormal(median, median * spread)
    fitted = statistics.NormalDist(mu, sigma) if sigma else None
    assert math.exp(mu) == pytest.approx(median)
    if fitted is not None:
        assert math.exp(fitted.inv_cdf(0.99)) == pytest.approx(median * spread)


def test_what_is_drawn_has_them_too() -> None:
    source = random.Random(0)
    drawn = sorted(Latency(0.041, 0.125).draw(source) for _ in range(20_000))
    assert drawn[10_000] == pytest.approx(0.041, rel=0.03)
    assert drawn[19_800] == pytest.approx(0.125, rel=0.06)


def test_a_line_passes_one_thing_after_the_other() -> None:
    line = Line(100.0)
    assert line.end(1.0, 50) == 1.5
    assert line.end(1.0, 50) == 2.0
    assert line.end(5.0, 100) == 6.0


def test_requests_beyond_the_connections_wait_for_one() -> None:
    async def program(here: Simulated) -> None:
        node, connections = here.world.node(5), here.world.network.connections
        assert {node.connect(2.0) for _ in range(connections)} == {0.0}
        assert {node.connect(1.0) for _ in range(connections)} == {2.0}
        assert node.connect(1.0) == 3.0

    virtually(program)


def test_bandwidths_are_a_node_s_own_and_between_the_two_that_were_measured() -> None:
    async def program(here: Simulated) -> None:
        rates = [here.world.node(rank).up.rate for rank in range(50)]
        low, high = here.world.network.bandwidth
        assert all(low <= rate <= high for rate in rates)
        assert len(set(rates)) == 50

    virtually(program)
