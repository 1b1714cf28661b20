"""What the checks of all three services share: how long is long, and what must be refused."""

from __future__ import annotations

import asyncio
import functools
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar

from fsdray.errors import (
    SettingsError,
)
from fsdray.services import Objects

T = TypeVar("T")
Services = ParamSpec("Services")

PATIENCE = 30.0  # seconds after which something that must happen has not
SOON = 1.0  # seconds in which whoever waits must have been woken
MOMENT = 0.2  # seconds given to something that must not happen
IDLE_SHARE = 0.1  # of a core, above which a wait is a hidden loop


def now() -> float:
    """The loop's time, in seconds: virtual where the loop's is."""
    return asyncio.get_running_loop().time()


async def waited(wait: Callable[[], Awaitable[T]]) -> tuple[T, float, float]:
    """What waiting came to, how many seconds it took, and how many of processor time.

    Of up to three waits the first that was idle: in a process that has more to do than to wait, one
    may see the work of others.
    """
    for _ in range(3):
        began, used = now(), time.process_time()
        value = await wait()
        took, used = now() - began, time.process_time() - used
        if used < IDLE_SHARE * took:
            break
    return value, took, used


class Late(AssertionError):
    """It came, and took longer than it may; on a machine that others use too perhaps by chance."""


def in_time(took: float, limit: float, what: str) -> None:
    """Raise `Late` where something took that many seconds or more."""
    if took >= limit:
        raise Late(f"{what} after {took:.2f} s")


def tried_again(
    check: Callable[Services, Coroutine[Any, Any, None]],
) -> Callable[Services, Coroutine[Any, Any, None]]:
    """A check that fails where it is `Late` three times in a row."""

    @functools.wraps(check)
    async def thrice(*services: Services.args, **named: Services.kwargs) -> None:
        for _ in range(2):
            try:
                return await check(*services, **named)
            except Late:
                continue
        return await check(*services, **named)

    return thrice


async def refused(use: Coroutine[Any, Any, Any], what: str) -> None:
    try:
        await use
    except SettingsError:
        return
    raise AssertionError(f"{what} raised no SettingsError")


def some_bytes(size: int) -> bytes:
    """The same random bytes on every run."""
    return random.Random(size).randbytes(size)


def wide_view(size: int) -> memoryview:
    """A view whose items are four bytes: its length is not its size."""
    return memoryview(bytes(size)).cast("I")


@asynccontextmanager
async def own_prefix(objects: Objects) -> AsyncIterator[str]:
    """A prefix that nobody else uses; what is below it is deleted."""
    prefix = f"checks-{secrets.token_hex(6)}/"
    try:
        yield prefix
    finally:
        await objects.delete(await objects.list(prefix))
