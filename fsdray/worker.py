"""The function's side: decodes a call, runs it, replies, and supervises the ranks it started.

It runs on whatever process a backend started it in; `fsdray.gang` knows the tree, and
`fsdray.session` is what the user's code inside a task submits to.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sized
from functools import partial
from typing import Any

from fsdray import (
    buffers,
    collective,
    context,
    coroutines,
    environment,
    failure,
    gang,
    groups,
    loop,
    modules,
    session,
    streams,
    values,
    wire,
)
from fsdray.context import RuntimeContext
from fsdray.costs.meter import Meter, set_outermost
from fsdray.errors import FsdrayError, NotPicklable, ObjectLost, RankFailed
from fsdray.services import Backend, Buffer
from fsdray.session import Session
from fsdray.wire import Call, Environment, Hole, Inline, Kept, Payload, RankReply, Reply

_FUNCTIONS = 64  # functions that a worker keeps decoded

Respond = Callable[[bytes, bool], None]
"""Takes the reply, and whether this process must not be used again."""

# The same bytes are another function with other modules.
_functions: OrderedDict[tuple[bytes, Environment], Callable[..., Any]] = OrderedDict()


def run(
    payload: Buffer,
    backend: Backend,
    timeout: float,
    respond: Respond,
    meter: Meter | None = None,
) -> None:
    """Run one call on this thread and hand its reply to `respond`, once.

    `timeout` is what the platform gives it, in seconds; `meter` has what it has cost already.
    """
    once = _Once(respond)
    meter = meter or Meter()
    set_outermost(meter)
    try:
        call = wire.load_call(payload)
    except FsdrayError as error:
        refused = failure.encode(failure.capture(error, "a call"))
        once.respond(wire.dump(Reply({0: RankReply((Inline(refused, failed=True),))})), False)
        return
    here = session.enter(backend, call)
    if call.gang is None:
        own = _execute(here, call, meter)
        once.respond(wire.dump(Reply({0: own})), False)
    else:
        _run_rank(here, call, timeout, meter, once)


def _run_rank(here: Session, call: Call, timeout: float, meter: Meter, once: _Once) -> None:
    assert call.gang is not None

    async def start() -> tuple[gang.Rank, asyncio.Task[None]]:
        rank = gang.Rank(here.backend, call, timeout)
        return rank, asyncio.create_task(fail_for_others(rank))

    async def fail_for_others(rank: gang.Rank) -> None:
        reply = await rank.last_reply()
        once.respond(wire.dump(reply), True)

    rank, failing = loop.run(start())
    collective.enter(rank.communicator)
    # A rank that waits for a message may wait for what needs the very place that it has.
    loop.when_long(here.yielded)
    try:
        own = _execute(here, call, meter, rank)
        reply = loop.run(rank.reply(own))
    finally:
        loop.when_long(None)
        collective.enter(None)
        loop.get().call_soon_threadsafe(failing.cancel)
    mine = reply.ranks[call.gang.rank]
    counted = dataclasses.replace(mine, counts=meter.counts())
    whole = dataclasses.replace(reply, ranks={**reply.ranks, call.gang.rank: counted})
    once.respond(wire.dump(whole), False)


def _execute(here: Session, call: Call, meter: Meter, rank: gang.Rank | None = None) -> RankReply:
    """Run the user's function; its values, or its failure for each of them."""
    returns = call.returns if call.gang is None else (call.returns[call.gang.rank],)
    context.enter(
        RuntimeContext(
            backend=here.backend.name,
            task_id=call.task,
            task_name=call.name,
            attempt=call.attempt,
            rank=None if call.gang is None else call.gang.rank,
            world_size=None if call.gang is None else call.gang.size,
            run=context.run_of(here.backend),
        )
    )
    around = environment.current().entered(call.environment, partial(_bundle, here))
    try:
        with around:
            function = _function(here, call)
            args, kwargs = _arguments(here, call)
            with groups.ending_with_task(call.timeout):
                value = coroutines.finished(here, function(*args, **kwargs))
                if call.items is not None:
                    streams.produce(here, call, value)
                    value = None
            results = _values(call, value, len(returns))
            # All of them, before any is stored.
            encoded_results = [_encoded(call, each) for each in results]
            payloads = [
                _send(here, call, key, parts)
                for key, parts in zip(returns, encoded_results, strict=True)
            ]
    except BaseException as error:
        # Whatever the user's code raised is the task's outcome, SystemExit aside: the platform
        # sees a process that ends.
        if isinstance(error, SystemExit):
            raise
        environment.explain(error)
        note = f"{call.whereabouts()}, on pid {os.getpid()}"
        encoded = failure.encode(failure.capture(error, call.name, note))
        if rank is not None:
            loop.run(rank.raised(encoded, isinstance(error, RankFailed)))
        payloads = [
            dataclasses.replace(_send(here, call, key, [encoded]), failed=True) for key in returns
        ]
    finally:
        if not here.is_flushed():
            # Its children may be waiting for the very place that it has.
            with here.yielded():
                loop.run(here.flush())
        context.enter(None)
    return RankReply(tuple(payloads), meter.counts())


def _bundle(here: Session, digest: str) -> Buffer:
    key = modules.bundle_key(digest)
    return _read(here, Kept(key, 0))


def _function(here: Session, call: Call) -> Callable[..., Any]:
    data = bytes(_read(here, call.function))
    key = data, call.environment
    function = _functions.get(key)
    if function is None:
        function = wire.decode_function(data)
        _functions[key] = function
        if len(_functions) > _FUNCTIONS:
            _functions.popitem(last=False)
    return function


def _arguments(here: Session, call: Call) -> tuple[list[Any], dict[str, Any]]:
    args, kwargs = wire.decode(_read(here, call.arguments))
    given = call.gang.given.get(call.gang.rank, {}) if call.gang is not None else {}
    holes = {**call.holes, **given}

    def fill(value: Any) -> Any:
        if not isinstance(value, Hole):
            return value
        filled, error = here.open(_read(here, holes[value.number]))
        if error is not None:
            raise error
        return filled

    return [fill(v) for v in args], {name: fill(v) for name, v in kwargs.items()}


def _values(call: Call, value: Any, count: int) -> list[Any]:
    if not call.unpack:
        return [value]
    if count == 0:
        return []
    wrong = f"{call.name} has num_returns={count}, but returned"
    if not isinstance(value, Iterable):
        raise TypeError(f"{wrong} {type(value).__name__}")
    # One more than wanted is enough to know: a generator may have no end.
    returned = list(itertools.islice(value, count + 1))
    if len(returned) != count:
        least = "" if isinstance(value, Sized) or len(returned) < count else "at least "
        got = len(value) if isinstance(value, Sized) else len(returned)
        raise ValueError(f"{wrong} {least}{got} values")
    return returned


def _encoded(call: Call, value: Any) -> list[Buffer]:
    try:
        return wire.encode(value)
    except NotPicklable as error:
        # The user's error, not one of the session's settings.
        raise TypeError(f"{call.name} returned what cannot be sent: {error}") from error


def _read(here: Session, payload: Payload) -> Buffer:
    """The bytes of a payload, read-only: what a task is given, it shares with others."""
    if isinstance(payload, Inline):
        return memoryview(payload.data).toreadonly()
    blob = loop.run(here.backend.objects.get(payload.key))
    if blob is None:
        raise ObjectLost(f"the object {payload.key!r} is no longer there")
    return blob.data.toreadonly()


def _send(here: Session, call: Call, key: str, parts: list[Buffer]) -> Payload:
    """A value to be sent back: inline where it is small, and all of them fit in one reply."""
    size = buffers.size(parts)
    # A gang's replies travel up its tree together.
    room = here.backend.functions.limits.payload // 2 // max(1, len(call.returns))
    if size <= min(here.settings.inline_limit, room):
        return Inline(b"".join(parts))
    name = values.value_key(key)
    loop.run(here.backend.objects.put(name, parts))
    return Kept(name, size)


class _Once:
    """Passes on the first response; a rank may be answered for while its code still runs."""

    def __init__(self, respond: Respond) -> None:
        self._respond: Respond | None = respond
        self._lock = threading.Lock()

    def respond(self, reply: bytes, is_spent: bool) -> None:
        with self._lock:
            respond, self._respond = self._respond, None
        if respond is not None:
            respond(reply, is_spent)
