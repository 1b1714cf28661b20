"""Inference on AWS: the bits and the bill of this machine, and a meter that is the access log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest

import fsdray as fsd
from fsdray import inference
from fsdray.backends.aws.clients import COUNTED
from fsdray.services import units
from tests.backends.aws.conftest import Aws

pytestmark = pytest.mark.thorough("a minute of inference on the emulator")

CHANNELS = ("queue", "object")
WORKERS = 3

ASKED = (
    "invoke", "publish", "publish_units", "publish_bytes", "send", "send_units", "send_bytes",
    "put", "put_bytes",
)  # fmt: skip
"""What a program asks for: it does not depend on time, so it is the same everywhere."""

PER_RECEIVE = 10  # messages that one receive brings at most
POLL = 20.0  # seconds that a receive waits for the first


@pytest.fixture(scope="module")
def network() -> tuple[inference.Model, Any]:
    return inference.radixnet(256, 12), inference.digits(200, 256)


Ran = tuple[inference.Answer, dict[str, float], list[dict[str, Any]]]


def run(aws: Aws, backend: str, network: Any, channel: str) -> Ran:
    """The answer, what the session counted up to then, and what AWS was asked for."""
    before = len(aws.emulator.requests())
    with fsd.init(backend, concurrency=8):
        answer = inference.run(*network, workers=WORKERS, channel=channel)
        return answer, dict(fsd.receipt().requests), aws.emulator.requests()[before:]


def logged(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """What the emulator's access log comes to, in the meter's words."""
    found: Counter[str] = Counter()
    for line in lines:
        name = COUNTED.get(line["operation"])
        if name is None:
            continue
        if line.get("key", "").endswith("pool.json"):
            found["lease"] += name == "get"
            continue
        if name == "get" and line["status"] == 404:
            name = "miss"
        found[name] += 1
        if name in ("publish", "send"):
            found[f"{name}_units"] += units(sum(line["messages"]))
            found[f"{name}_bytes"] += sum(line["messages"])
        elif name == "receive":
            found["receive_units"] += units(sum(line["messages"]))
        elif name in ("put", "get"):
            found[f"{name}_bytes"] += line["received" if name == "put" else "sent"]
    return {name: count for name, count in found.items() if count}


@pytest.mark.parametrize("channel", CHANNELS)
def test_bits_and_bill_are_those_of_this_machine(aws: Aws, network: Any, channel: str) -> None:
    here, paid, _ = run(aws, "local", network, channel)
    there, billed, lines = run(aws, "aws", network, channel)

    assert (here.activations != there.activations).nnz == 0
    assert here.activations.data.tobytes() == there.activations.data.tobytes()
    assert np.array_equal(here.categories, there.categories)

    assert {name: billed.get(name, 0) for name in ASKED} == {
        name: paid.get(name, 0) for name in ASKED
    }
    # Each message is received and each delete holds up to ten of them: what is between is time's.
    if channel == "queue":
        messages = sum(
            len(line["messages"])
            for line in lines
            if line["operation"] == "ReceiveMessage" and line["status"] == 200
        )
        polls = there.seconds / POLL * WORKERS + WORKERS
        assert messages / PER_RECEIVE <= billed["receive"] <= messages + polls
        assert messages / PER_RECEIVE <= billed["acknowledge"] <= messages

    counted = logged(lines)
    # A look that was given up on its way is a miss here, and may have been a get there.
    for found in (billed, counted):
        found["looks"] = found.pop("get", 0) + found.pop("miss", 0)
    kinds = {*ASKED, "receive", "receive_units", "acknowledge", "looks", "lease"}
    assert {name: billed.get(name, 0) for name in kinds} == {
        name: counted.get(name, 0) for name in kinds
    }
