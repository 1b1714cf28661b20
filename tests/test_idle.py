"""No wait is a hidden loop: an idle session, a waiting gang and a waiting driver use no CPU."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

import fsdray as fsd
from fsdray.errors import GetTimeout
from tests.conftest import processes

pytestmark = pytest.mark.usefixtures("own_session")

SECONDS = 4.0
MOST = 0.01  # of one core, all processes together

_TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: set[int]) -> float:
    """CPU time that these processes have used so far."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICK


@fsd.remote
def wait_for(key: str) -> None:
    fsd.loop.run(fsd.session.current().backend.objects.get(key, wait=60))


@fsd.remote
def wait_and_yield(key: str) -> Any:
    fsd.loop.run(fsd.session.current().backend.objects.get(key, wait=60))
    yield 1


@fsd.remote(world_size=6)
def wait_for_a_slow_rank(key: str) -> int:
    comm = fsd.collective.world()
    if comm.rank == 5:
        fsd.loop.run(fsd.session.current().backend.objects.get(key, wait=60))
    return int(comm.allreduce(1))


def use_while(ref: Any) -> float:
    """The share of a core that is used while the driver waits for a value."""
    with pytest.raises(GetTimeout):
        fsd.get(ref, timeout=1)  # start-up is not idleness
    pids = processes() | {os.getpid()}
    before = cpu_seconds(pids)
    with pytest.raises(GetTimeout):
        fsd.get(ref, timeout=SECONDS)
    return (cpu_seconds(pids) - before) / SECONDS


def test_an_idle_session_uses_no_cpu() -> None:
    fsd.loop.run(fsd.session.current().backend.objects.put("there", b""))
    fsd.get(wait_for.remote("there"))
    pids = processes() | {os.getpid()}
    assert len(pids) > 2, "the template and a warm worker are there"
    threading.Event().wait(1)
    before = cpu_seconds(pids)
    threading.Event().wait(SECONDS)
    assert (cpu_seconds(pids) - before) / SECONDS < MOST


def test_a_driver_that_waits_in_get_uses_no_cpu() -> None:
    ref = wait_for.remote("never")
    assert use_while(ref) < MOST


def test_a_driver_that_waits_for_the_next_item_of_a_generator_uses_no_cpu() -> None:
    generator = wait_and_yield.remote("never")
    with pytest.raises(GetTimeout):
        fsd.get(generator.completed(), timeout=1)
    pids = processes() | {os.getpid()}
    before = cpu_seconds(pids)
    assert fsd.wait([generator], timeout=SECONDS) == ([], [generator])
    assert (cpu_seconds(pids) - before) / SECONDS < MOST


@pytest.mark.parametrize("channel", ["queue", "object"])
def test_a_gang_that_waits_for_a_slow_rank_uses_no_cpu(channel: str) -> None:
    refs = wait_for_a_slow_rank.options(channel=channel).remote(f"slow-{channel}")
    assert use_while(refs) < MOST
    fsd.loop.run(fsd.session.current().backend.objects.put(f"slow-{channel}", b""))
    assert fsd.get(refs, timeout=30) == [6] * 6
