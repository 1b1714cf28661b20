"""The public testing kit: what whoever writes a backend can run against it.

`checks` holds one coroutine function for each guarantee that `fsdray.services` states, in the
tuples that are exported here; every backend of ours passes the same ones. No pytest is needed: a
check raises `AssertionError` with a text that says what was promised and what was seen.
"""

from __future__ import annotations

from fsdray.testing.checks import (
    FUNCTION_CHECKS,
    MESSAGE_CHECKS,
    OBJECT_CHECKS,
    STOP_CHECKS,
    call_function,
    check_functions,
    check_messages,
    check_objects,
    decode_reply,
    encode_call,
)

__all__ = [
    "FUNCTION_CHECKS",
    "MESSAGE_CHECKS",
    "OBJECT_CHECKS",
    "STOP_CHECKS",
    "call_function",
    "check_functions",
    "check_messages",
    "check_objects",
    "decode_reply",
    "encode_call",
]
