"""The Invoke API: what a call may be, and how what came of it is answered.

Running it is for `scheduler`. A chain of calls is followed through the trace header that AWS's
SDKs pass on, and stopped where Lambda would take it for a loop.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
import time
import uuid
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fsdray.testing.lambda_host.control import Control
from fsdray.testing.lambda_host.environment import Invocation
from fsdray.testing.lambda_host.faults import (
    ApiFault,
    constraint,
    invalid_request,
    recursive,
    too_large,
)
from fsdray.testing.lambda_host.functions import LATEST, Function, Version, parse_name
from fsdray.testing.lambda_host.limits import ASYNCHRONOUS_PAYLOAD, CHAIN, SYNCHRONOUS_PAYLOAD
from fsdray.testing.lambda_host.scheduler import Scheduler


@dataclass(frozen=True)
class Answered:
    """An answer of the Invoke API, and what the access log says of it."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    told: Mapping[str, Any] = field(default_factory=dict)


async def invoke(
    control: Control,
    scheduler: Scheduler,
    name: str,
    qualifier: str | None,
    headers: Mapping[str, str],
    payload: bytes,
) -> Answered:
    """Answer one Invoke request.

    Raises
    ------
    ApiFault : the call may not be, or not now.
    """
    kind = headers.get("X-Amz-Invocation-Type") or "RequestResponse"
    name, qualifier = parse_name(name, qualifier)
    function, version = control.find(name, qualifier)
    _check(kind, payload)
    if kind == "DryRun":
        return Answered(204, {}, told={"type": kind})
    arn = version.arn if qualifier is None else f"{version.arn}:{qualifier}"
    invocation = Invocation(
        request_id=str(uuid.uuid4()),
        payload=payload or b"{}",
        arn=arn,
        trace=_trace(headers.get("X-Amzn-Trace-Id"), function, version),
        client_context=_client_context(headers.get("X-Amz-Client-Context")),
    )
    answer = {"x-amzn-RequestId": invocation.request_id, "X-Amzn-Trace-Id": invocation.trace}
    if kind == "Event":
        config = function.event_configs.get(qualifier or LATEST, {})
        scheduler.call_later(version.name, _resolver(control, name, qualifier), invocation, config)
        return Answered(202, answer, told={"type": kind, "request_id": invocation.request_id})
    finished = await scheduler.call(version, invocation)
    answer["Content-Type"] = "application/json"
    answer["X-Amz-Executed-Version"] = version.number
    if finished.answer.is_error:
        answer["X-Amz-Function-Error"] = "Unhandled"
    if headers.get("X-Amz-Log-Type") == "Tail":
        answer["X-Amz-Log-Result"] = invocation.tail.encoded()
    told = {
        "type": kind,
        "request_id": invocation.request_id,
        "is_error": finished.answer.is_error,
        "billed_ms": finished.billed,
        "memory_mb": version.memory,
        "was_cold": finished.was_cold,
    }
    return Answered(200, answer, finished.answer.payload, told)


def _check(kind: str, payload: bytes) -> None:
    if kind not in ("RequestResponse", "Event", "DryRun"):
        rule = "satisfy enum value set: [Event, RequestResponse, DryRun]"
        raise constraint(kind, "invocationType", rule)
    limit = ASYNCHRONOUS_PAYLOAD if kind == "Event" else SYNCHRONOUS_PAYLOAD
    if len(payload) > limit:
        raise too_large(
            f"{len(payload)} byte payload is too large for the {kind} invocation type "
            f"(limit {limit} bytes)"
        )
    if payload:
        try:
            json.loads(payload)
        except ValueError as error:
            raise invalid_request(
                "Could not parse request body into json: Could not parse payload into json: "
                f"{error}"
            ) from error


def _client_context(encoded: str | None) -> str | None:
    if not encoded:
        return None
    try:
        decoded = base64.b64decode(encoded, validate=True).decode()
        json.loads(decoded)
    except (binascii.Error, ValueError) as error:
        raise invalid_request(
            "Client context must be a valid Base64-encoded JSON object."
        ) from error
    # One line: it travels on as a header.
    return json.dumps(json.loads(decoded))


def _trace(given: str | None, function: Function, version: Version) -> str:
    """The trace header of a call; with its lineage: the function called first, and how often since.

    Raises
    ------
    ApiFault : the chain has become a loop that the function does not allow.
    """
    fields = dict(re.findall(r"(\w+)=([^;]*)", given or ""))
    own = f"{zlib.crc32(version.arn.encode()):08x}"
    counts = dict(re.findall(r"([0-9a-f]{8}):(\d+)", fields.get("Lineage", "")))
    count = int(counts.get(own, 0)) + 1
    if count > CHAIN and function.recursion == "Terminate":
        raise recursive()
    counts[own] = str(min(count, 32_767))
    lineage = "|".join(f"{key}:{value}" for key, value in counts.items())
    root = fields.get("Root") or f"1-{int(time.time()):08x}-{secrets.token_hex(12)}"
    return f"Root={root};Parent={secrets.token_hex(8)};Sampled=0;Lineage=1:{lineage}"


def _resolver(control: Control, name: str, qualifier: str | None) -> Callable[[], Version | None]:
    def resolve() -> Version | None:
        try:
            return control.find(name, qualifier)[1]
        except ApiFault:
            return None  # deleted meanwhile

    return resolve
