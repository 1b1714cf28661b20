"""Calls as the checks of functions make them: payloads that any backend's worker runs.

They are encoded as `fsdray.session` encodes a call, and run by `fsdray.worker`.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import cloudpickle

from fsdray import failure, loop, modules, session, wire
from fsdray.services import (
    MIB,
    Buffer,
    Functions,
)
from fsdray.settings import Settings
from fsdray.testing.expect import PATIENCE

MEMORY = 512  # MB
TIMEOUT = 60.0  # seconds


def encode_call(
    function: Callable[..., Any], *args: Any, settings: Settings | None = None
) -> bytes:
    """The payload of a call ``function(*args)``, all of it inline.

    A function of the tests themselves travels by value: there is no session to ship its module.
    """
    return wire.dump(
        wire.Call(
            task=f"check-{secrets.token_hex(4)}",
            name=getattr(function, "__name__", "check"),
            function=wire.Inline(_pickled(function)),
            arguments=wire.Inline(b"".join(wire.encode((args, {})))),
            holes={},
            returns=(f"check-{secrets.token_hex(8)}",),
            unpack=False,
            memory=MEMORY,
            timeout=TIMEOUT,
            settings=settings or Settings(),
        )
    )


def _pickled(function: Callable[..., Any]) -> bytes:
    module = sys.modules.get(function.__module__)
    if module is None or not modules.is_own(module.__name__):
        return cloudpickle.dumps(function, protocol=5)  # type: ignore[no-any-return]
    cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps(function, protocol=5)  # type: ignore[no-any-return]
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def decode_reply(reply: Buffer) -> Any:
    """The value in a reply to `encode_call`; what the function raised is raised here."""
    [payload] = wire.load_reply(reply).ranks[0].values
    assert isinstance(payload, wire.Inline), "the reply was large and went to objects"
    value = wire.decode(payload.data)
    if isinstance(value, failure.Failure):
        raise failure.restore(value)
    return value


async def call_function(
    functions: Functions,
    function: Callable[..., Any],
    *args: Any,
    memory: int = MEMORY,
    timeout: float = TIMEOUT,
) -> Any:
    """Run ``function(*args)`` as one call and return its value."""
    reply = await functions.invoke(
        encode_call(function, *args), memory=memory, timeout=timeout, label=function.__name__
    )
    return decode_reply(reply)


# What the calls run

_environments: dict[int, str] = {}


def same(value: Any) -> Any:
    return value


def length(value: bytes) -> int:
    return len(value)


def raise_key_error(name: str) -> NoReturn:
    raise KeyError(name)


def environment() -> str:
    """A name of this environment: made when first asked for, since pids may repeat."""
    return _environments.setdefault(os.getpid(), secrets.token_hex(8))


def meet(prefix: str, number: int, count: int) -> str | None:
    """Wait until `count` calls are here at one time; None where they never are."""
    objects = session.current().backend.objects
    loop.run(objects.put(f"{prefix}{number}", b""))
    for other in range(count):
        if loop.run(objects.get(f"{prefix}{other}", wait=PATIENCE)) is None:
            return None
    return environment()


def until(prefix: str) -> str:
    """Say that it started, wait until it may go, and say that it ran on."""
    objects = session.current().backend.objects
    loop.run(objects.put(prefix + "started", b""))
    loop.run(objects.get(prefix + "go", wait=PATIENCE))
    loop.run(objects.put(prefix + "after", b""))
    return prefix


def write_log() -> None:
    """Thirty lines, half to stdout and half to stderr."""
    for line in range(15):
        print("out", line)
        print("err", line, file=sys.stderr)
    print("the last line")


def leave(status: int) -> NoReturn:
    write_log()
    sys.stdout.flush()
    os._exit(status)


def raise_signal() -> None:
    write_log()
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGSEGV)
    threading.Event().wait()


def eat(megabytes: int) -> None:
    write_log()
    eaten = [b"x" * (8 * MIB) for _ in range(megabytes // 8)]
    threading.Event().wait()
    print(len(eaten))


def hang() -> None:
    write_log()
    threading.Event().wait()
