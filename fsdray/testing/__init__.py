"""The public testing kit: what whoever writes a backend can run against it.

The `…_checks` modules hold one coroutine function for each guarantee that `fsdray.services`
states, in the tuples that are exported here; every backend of ours passes the same ones. No
pytest is needed: a check raises `AssertionError` that says what was promised and what was seen.
`run_ranks` runs a program on many ranks in one process, and `faults` makes services misbehave as
far as they may: they repeat, delay, reorder and corrupt by seed.
"""

from __future__ import annotations

from fsdray.testing.calls import call_function, decode_reply, encode_call
from fsdray.testing.faults import FaultyMessages, FaultyObjects
from fsdray.testing.function_checks import FUNCTION_CHECKS, STOP_CHECKS, check_functions
from fsdray.testing.inprocess import run_ranks
from fsdray.testing.lambda_host import LambdaHost
from fsdray.testing.message_checks import MESSAGE_CHECKS, check_messages
from fsdray.testing.object_checks import OBJECT_CHECKS, check_objects

__all__ = [
    "FUNCTION_CHECKS",
    "MESSAGE_CHECKS",
    "OBJECT_CHECKS",
    "STOP_CHECKS",
    "FaultyMessages",
    "FaultyObjects",
    "LambdaHost",
    "call_function",
    "check_functions",
    "check_messages",
    "check_objects",
    "decode_reply",
    "encode_call",
    "run_ranks",
]
