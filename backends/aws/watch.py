"""What ends a call from inside of its function: its time, and its caller's having cancelled it.

Lambda cannot stop a call, and the time that it gives is the function's, not the call's. So the
process ends itself, with a status that `calls.failure_of` knows. It runs on the loop: user code has
the main thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import Future

from fsdray import loop
from fsdray.backends.aws import calls
from fsdray.backends.aws.functions import LOOK
from fsdray.errors import FsdrayError
from fsdray.services import Pace

PACE = Pace(first=1.0, factor=1.5, ceiling=5.0)
"""How often a running call looks whether it was cancelled, after its first second. Each look is a
billed miss: an hour of them is $0.0003, where the least of functions costs $0.0075."""

_LATE = 2.0  # seconds after a call's time in which the loop has not ended it: something holds it
_LAST = 1.0  # seconds that an end may take to tell the calls below

Unwanted = Callable[[], Awaitable[bool]]
"""Looks whether the call at hand was cancelled."""


def watch(
    timeout: float, unwanted: Unwanted, end_children: Callable[[], Awaitable[object]]
) -> Future[None]:
    """Watch a call that begins now, until the result is cancelled.

    Parameters
    ----------
    timeout : seconds after which the process ends.
    end_children : tells calls that this one started to stop.
    """
    return loop.submit(_watch(timeout, unwanted, end_children))


async def _watch(
    timeout: float, unwanted: Unwanted, end_children: Callable[[], Awaitable[object]]
) -> None:
    clock = asyncio.get_running_loop().time
    began = clock()
    try:
        if timeout > LOOK:
            await asyncio.sleep(LOOK)
            if sys.__stderr__ is not None:
                # It needs no thread of Python's: code in C may hold them all.
                faulthandler.dump_traceback_later(
                    timeout - LOOK + _LATE, exit=True, file=sys.__stderr__
                )
            step = PACE.first
            while clock() + step < began + timeout:
                with contextlib.suppress(FsdrayError):  # a look that failed is made again
                    if await unwanted():
                        await _end(calls.UNWANTED, calls.CANCELLED, end_children)
                await asyncio.sleep(step)
                step = min(step * PACE.factor, PACE.ceiling)
        await asyncio.sleep(max(0.0, began + timeout - clock()))
        await _end(f"the time of its call, {timeout:g} s, is up", calls.TIMED_OUT, end_children)
    finally:
        faulthandler.cancel_dump_traceback_later()


async def _end(why: str, status: int, end_children: Callable[[], Awaitable[object]]) -> None:
    with contextlib.suppress(FsdrayError, TimeoutError):  # it ends all the same
        await asyncio.wait_for(end_children(), _LAST)
    exit_now(why, status)


def exit_now(why: str, status: int) -> None:
    """End this process; what was printed is in the log before."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, OSError):  # closed by the user's code
            stream.flush()
    os.write(2, f"{calls.ENDS}{why}\n".encode())
    os._exit(status)
