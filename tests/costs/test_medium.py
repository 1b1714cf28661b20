"""What choices are made by is what the price table and the model of the network say."""

from __future__ import annotations

import random
import statistics

import pytest

from fsdray.backends.simulated import EXPRESS, Network
from fsdray.costs.latency import Latency
from fsdray.costs.medium import USUAL, Medium
from fsdray.costs.prices import load_prices


def test_the_usual_prices_are_the_packaged_table_s() -> None:
    made = Medium.of(load_prices())
    assert dict(Medium().prices) == pytest.approx(dict(made.prices), rel=1e-12)
    assert Medium(prices=made.prices) == made


def test_the_simulated_network_is_the_one_that_choices_expect() -> None:
    assert statistics.mean(Network().bandwidth) == USUAL.bandwidth
    express = Medium.of(load_prices(storage="express"))
    assert (EXPRESS.put, EXPRESS.get) == (express.put, express.get)
    assert (EXPRESS.put, EXPRESS.get) != (USUAL.put, USUAL.get)


def test_a_medium_travels_as_plain_values() -> None:
    assert Medium.from_json(USUAL.as_json()) == USUAL


def test_the_slowest_of_many_is_about_the_greatest_of_so_many_drawn() -> None:
    source, put = random.Random(0), Latency(0.041, 0.125)
    greatest = [max(put.draw(source) for _ in range(64)) for _ in range(2000)]
    assert put.slowest(64) == pytest.approx(statistics.median(greatest), rel=0.1)
    assert put.slowest(1) == put.median
