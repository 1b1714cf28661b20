"""Functions written with ``async def`` as tasks: each call runs on an event loop of its own.

It is not the loop of `fsdray.loop`, where no user's code ever runs.
"""

from __future__ import annotations

import inspect
from typing import Any


def finished(value: Any) -> Any:
    """What a function returned; of a coroutine, what it returns in the end."""
    if not inspect.iscoroutine(value):
        return value
    import asyncio

    return asyncio.run(value)
