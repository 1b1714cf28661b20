"""The public testing kit: what whoever writes a backend can run against it.

The `…_checks` modules hold one coroutine function for each guarantee that `fsdray.services`
states, in the tuples that are exported here; every backend of ours passes the same ones. No
pytest is needed: a check raises `AssertionError` that says what was promised and what was seen.
`run_ranks` runs a program on many ranks in one process, and `faults` makes services misbehave as
far as they may: they repeat, delay, reorder and corrupt by seed. `simulate` runs a program on
thousands of ranks in virtual time, on a modelled network. `proxy.FaultProxy` stands between AWS's
clients and an emulator, and does what networks and AWS do.
"""

from __future__ import annotations

from fsdray.backends.simulated import EXPRESS, Death, Faults, Latency, Network, Trace
from fsdray.testing.calls import call_function, decode_reply, encode_call
from fsdray.testing.faults import FaultyMessages, FaultyObjects
from fsdray.testing.function_checks import FUNCTION_CHECKS, STOP_CHECKS, check_functions
from fsdray.testing.inprocess import run_ranks
from fsdray.testing.lambda_host import LambdaHost
from fsdray.testing.message_checks import MESSAGE_CHECKS, check_messages
from fsdray.testing.near import ThroughNear
from fsdray.testing.object_checks import OBJECT_CHECKS, check_objects
from fsdray.testing.simulation import Deadlock, Simulation, compute, simulate

__all__ = [
    "EXPRESS",
    "FUNCTION_CHECKS",
    "MESSAGE_CHECKS",
    "OBJECT_CHECKS",
    "STOP_CHECKS",
    "Deadlock",
    "Death",
    "Faults",
    "FaultyMessages",
    "FaultyObjects",
    "LambdaHost",
    "Latency",
    "Network",
    "Simulation",
    "ThroughNear",
    "Trace",
    "call_function",
    "check_functions",
    "check_messages",
    "check_objects",
    "compute",
    "decode_reply",
    "encode_call",
    "run_ranks",
    "simulate",
]
