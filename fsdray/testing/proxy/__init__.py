"""A proxy between AWS's clients and an emulator that does, by seed, what networks and AWS do.

`FaultProxy` is a real HTTP server: clients find it through ``AWS_ENDPOINT_URL``, and nothing of
fsdray knows of it. Modules: `server` passes requests on; `schedule` says which of them go wrong,
and how; `wire` knows AWS's two protocols: their errors, their batches; `callers` who asks.
"""

from __future__ import annotations

from fsdray.testing.proxy.schedule import (
    Asked,
    Fault,
    Schedule,
    killing,
    rarely,
    seeded,
)
from fsdray.testing.proxy.server import FaultProxy

__all__ = ["Asked", "Fault", "FaultProxy", "Schedule", "killing", "rarely", "seeded"]
