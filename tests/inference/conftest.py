"""Where the inference tests find the Graph Challenge's real data, when it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def challenge_1024() -> Path:
    """Return the directory of the real network of 1024 neurons, or skip the test."""
    named = os.environ.get("FSDRAY_CHALLENGE_DATA")
    beside = Path(__file__).parents[3] / "shared" / "graphchallenge-1024"
    found = Path(named) if named else beside
    if not (found / "neuron1024.tar.xz").is_file():
        pytest.skip(f"the challenge's data is not in {found}: set FSDRAY_CHALLENGE_DATA")
    return found
