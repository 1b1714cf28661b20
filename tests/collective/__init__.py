"""What these tests share: services of this process, and arrays that do not compress."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fsdray import loop
from fsdray.backends.local.messages import Inboxes, LocalMessages
from fsdray.backends.local.objects import Files, LocalObjects, Watchers
from fsdray.collective import AsyncCommunicator, Communicator
from fsdray.costs.meter import Meter
from fsdray.services import MessageLimits, Messages, Objects
from fsdray.testing.inprocess import run_ranks

CHANNELS = ("queue", "object", "auto")


@dataclass
class Services:
    """Messages and objects in this process, and what they counted."""

    messages: Messages
    objects: Objects
    inboxes: Inboxes
    files: Files
    meter: Meter = field(default_factory=Meter)

    def count(self, name: str) -> float:
        return self.meter.counts().get(name, 0)

    def run(
        self,
        channel: str,
        size: int,
        program: Callable[[AsyncCommunicator], Coroutine[Any, Any, Any]],
        **more: Any,
    ) -> list[Any]:
        """Run a program on every rank and return what each returned."""
        return asyncio.run(run_ranks(self, channel, size, program, **more))


@contextmanager
def services(limits: MessageLimits = MessageLimits()) -> Iterator[Services]:
    """New ones, whose objects lie in a directory that is removed in the end."""
    with tempfile.TemporaryDirectory() as directory:
        meter = Meter()
        for each in ("objects", "inboxes"):
            (Path(directory) / each).mkdir()
        files = Files(Path(directory) / "objects")
        inboxes = Inboxes(Path(directory) / "inboxes", limits, lambda key: files.delete([key]))
        try:
            yield Services(
                LocalMessages(inboxes, meter.add, limits),
                LocalObjects(files, Watchers(files.exists), meter.add),
                inboxes,
                files,
                meter,
            )
        finally:
            loop.run(closed(inboxes))


async def closed(inboxes: Inboxes) -> None:
    """Close them on the loop that they may be heard on."""
    inboxes.close()


def run(
    channel: str,
    size: int,
    program: Callable[[AsyncCommunicator], Coroutine[Any, Any, Any]],
    **more: Any,
) -> list[Any]:
    """`Services.run` on services of its own, of which nothing must be left."""
    with services() as here:
        results = here.run(channel, size, program, **more)
        assert here.files.list("") == []
        return results


def run_plain(
    channel: str,
    size: int,
    program: Callable[[Communicator], Any],
    here: Services | None = None,
) -> list[Any]:
    """Run plain code as every rank, with a thread for each; what each returned."""
    if here is None:
        with services() as own:
            return run_plain(channel, size, program, own)
    with ThreadPoolExecutor(size) as pool:

        async def rank(comm: AsyncCommunicator) -> Any:
            running = asyncio.get_running_loop()
            return await running.run_in_executor(pool, program, Communicator(comm))

        return loop.run(run_ranks(here, channel, size, rank))


def noise(size: int, seed: int = 0) -> Any:
    """So many bytes that do not compress, as an array."""
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
