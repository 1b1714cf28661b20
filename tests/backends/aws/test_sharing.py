"""Two users' sessions on one stack at the same time: nothing of one is the other's."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests import leftovers
from tests.backends.aws.conftest import Aws

pytestmark = pytest.mark.thorough("half a minute of three sessions")

PROGRAM = """
import json, sys
import fsdray as fsd

me = sys.argv[1]
fsd.init("aws", concurrency=4)

@fsd.remote(world_size=3, channel=sys.argv[2])
def ring(turns):
    comm = fsd.collective.world()
    seen = set()
    for turn in range(turns):
        seen.update(comm.allgather((me, comm.rank, turn)))
    return sorted(seen)

ref = fsd.put(me * 100_000)
told = fsd.get([fsd.remote(lambda text: text[:3]).remote(ref) for _ in range(3)])
print(json.dumps([told, fsd.get(ring.remote(8)), fsd.get_runtime_context().run]))
fsd.shutdown()
"""


def test_two_sessions_at_once_mix_nothing(aws: Aws) -> None:
    users = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, name, channel],
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, channel in (("ada", "queue"), ("bob", "queue"), ("cem", "object"))
    ]
    runs = set()
    for user, name in zip(users, ("ada", "bob", "cem"), strict=True):
        said, _ = user.communicate(timeout=200)
        assert user.returncode == 0
        told, rings, run = json.loads(said)
        assert told == [name] * 3
        assert rings == [[[name, rank, turn] for rank in range(3) for turn in range(8)]] * 3
        runs.add(run)
    assert len(runs) == 3
    leftovers.check(aws.stack)
