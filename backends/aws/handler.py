"""What Lambda calls: it runs one call of a session on the main thread, and replies.

An environment serves calls of many sessions, one after the other. What it keeps between them is
what it has imported, and AWS's clients. `printed` says what a line of its log is, `watch` what ends
a call early, and `fsdray.worker` what a call is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
import time
from functools import cache
from typing import Any

from fsdray import loop, worker
from fsdray.backends.aws import calls, late
from fsdray.backends.aws.backend import AwsBackend
from fsdray.backends.aws.calls import Answer, Event
from fsdray.backends.aws.clients import Clients
from fsdray.backends.aws.functions import cancel_key
from fsdray.backends.aws.printed import Printed
from fsdray.backends.aws.stack import Stack
from fsdray.backends.aws.variables import read_secrets
from fsdray.backends.aws.watch import exit_now, watch
from fsdray.costs.meter import Meter, count, metering
from fsdray.errors import FsdrayError
from fsdray.services import FunctionLimits

_LAST_WORDS = 1.0, 0.2  # seconds, and of a call's time: each word of a rank's last is a request
LATE = 5.0
"""Seconds after which a call that begins looks first whether it is wanted: who cancelled it waits a
while for its end, and then empties the inboxes that it would send to. Of two clocks that differ,
this costs a look, or saves one."""
_MARGIN = 0.5  # seconds of the function's own time, in which a call ends before Lambda ends it


class _Environment:
    """What this process keeps between calls."""

    def __init__(self) -> None:
        self._stack = Stack.of_environment()
        self.compiled = late.install(self._stack.bucket, self._stack.region)
        read_secrets(self._stack.region)
        self._clients = Clients(count, region=self._stack.region)
        self._backend: AwsBackend | None = None  # of the session that called last
        self.printed = Printed()
        self.printed.redirect()

    def backend(self, event: Event) -> AwsBackend:
        """The services of the event's session."""
        backend = self._backend
        if backend is None or backend.session != event.session:
            limits = FunctionLimits(
                concurrency=event.concurrency, architecture=self._stack.architecture
            )
            backend = self._backend = AwsBackend.of_session(
                self._stack,
                self._clients,
                event.session,
                limits,
                event.storage,
                self.printed.pass_on,
            )
        backend.functions.above = (*event.above, event.call)
        return backend


_environment = cache(_Environment)  # made by the first call: to import this changes nothing


def handler(told: Any, context: Any) -> dict[str, Any]:
    """Run the call in `told` (`calls.Event`); its answer (`calls.Answer`)."""
    event = Event.load(told)
    left = context.get_remaining_time_in_millis() / 1000 - _MARGIN
    timeout = max(0.001, min(event.timeout, left))
    here = _environment()
    backend = here.backend(event)
    functions = backend.functions
    replies: list[bytes] = []
    is_over = threading.Event()

    def respond(reply: bytes, is_spent: bool) -> None:
        replies.append(reply)
        if is_spent and not is_over.is_set():
            # The main thread is deep in user code, which nothing can stop.
            _respond_past(context.aws_request_id, Answer(reply, here.printed.end()))

    async def is_unwanted() -> bool:
        # Its own mark, or that of its caller, which died.
        marks = [cancel_key(call) for call in (event.call, *event.above[-1:])]
        return any(await asyncio.gather(*map(backend.objects.get, marks)))

    here.printed.begin(event)
    with metering(Meter()) as meter, contextlib.suppress(FsdrayError):  # it is looked again later
        if time.time() - event.sent > LATE and loop.run(is_unwanted()):
            exit_now(calls.UNWANTED, calls.CANCELLED)
    watching = watch(timeout, is_unwanted, functions.tell_all)
    try:
        seconds, share = _LAST_WORDS
        spared = min(seconds, share * timeout)
        worker.run(event.payload, backend, timeout - spared, respond, meter)
        is_over.set()
        if functions.is_telling:
            loop.run(functions.told())
        if here.compiled is not None:
            here.compiled.keep()
    finally:
        watching.cancel()
        printed = here.printed.end()
    return Answer(replies[0], printed, backend.messages.ledger.take()).parsed()


def _respond_past(request_id: str, answer: Answer) -> None:
    """Reply from beside the main thread, as a runtime does, and end this process.

    Lambda's Runtime API takes a call's response from whoever in the environment sends it.
    """
    import http.client  # brings all of email, and is needed once

    host = os.environ["AWS_LAMBDA_RUNTIME_API"]
    connection = http.client.HTTPConnection(host, timeout=10)
    body = json.dumps(answer.parsed()).encode()
    path = f"/2018-06-01/runtime/invocation/{request_id}/response"
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    connection.getresponse().read()
    exit_now("its gang broke, and its code runs on", calls.SPENT)
