"""A coroutine up to where it first has to wait, without a task and without a turn of the loop.

Where who waits has the loop (`fsdray.turn`) and what it waits for is on this machine, most of what
is called is over in that first step. A task and three turns of the loop took as long as all else
that a small collective does.
"""

from __future__ import annotations

import asyncio
import types
from asyncio import events
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")

_is_stepping = False  # on the loop of this process, of which there is one


class Waiting(NamedTuple, Generic[T]):
    """What is left of a coroutine that has to wait: to be awaited, in a task."""

    rest: Coroutine[Any, Any, T]


def is_stepping() -> bool:
    """Whether plain code is doing a first step: nothing else can run on the loop meanwhile.

    There is no task then, for what needs one (`asyncio.timeout`); and this thread may wait for a
    moment, since nobody else would have the loop.
    """
    return _is_stepping


def step(
    coroutine: Coroutine[Any, Any, T], context: Context, loop: asyncio.AbstractEventLoop
) -> T | Waiting[T]:
    """Do it by the one who has this loop, which is not running; what it returns or raises.

    Where it has to wait, that is to go on in the same context.
    """
    global _is_stepping
    events._set_running_loop(loop)
    _is_stepping = True
    try:
        waited = context.run(coroutine.send, None)
    except StopIteration as over:
        result: T = over.value
        return result
    finally:
        _is_stepping = False
        events._set_running_loop(None)
    return Waiting(_rest(coroutine, waited))


def begun(coroutine: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
    """Begin it now, where this is a first step itself; elsewhere by a task of its own."""
    if not _is_stepping:
        return asyncio.ensure_future(coroutine)
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    try:
        waited = coroutine.send(None)
    except StopIteration as over:
        future.set_result(over.value)
    except Exception as error:  # whatever it is, it is that of who waits
        future.set_exception(error)
    else:
        return asyncio.ensure_future(_rest(coroutine, waited))
    return future


async def in_task() -> None:
    """Go on in a task, where this is a first step."""
    if _is_stepping:
        await asyncio.sleep(0)


async def _rest(coroutine: Coroutine[Any, Any, T], waited: Any) -> T:
    """What a coroutine does after it has said what it waits for."""
    return await _from_there(coroutine, waited)


@types.coroutine
def _from_there(coroutine: Coroutine[Any, Any, T], waited: Any) -> Generator[Any, Any, T]:
    while True:
        step: Callable[[], Any]
        try:
            sent = yield waited
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:
            step = partial(coroutine.throw, error)
        else:
            step = partial(coroutine.send, sent)
        try:
            waited = step()
        except StopIteration as over:
            result: T = over.value
            return result
