"""Run the programs on fsdray: on threads of this process, or as a gang of tasks."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from fsdray import collective, loop
from fsdray.collective import AsyncCommunicator, Communicator
from fsdray.testing.inprocess import Services, run_ranks
from tests.oracle import described
from tests.oracle.programs import PROGRAMS

NAMES = SimpleNamespace(
    **vars(collective),
    split=lambda comm, color, key=0: comm.split(color, key),
    dup=lambda comm: comm.dup(),
    free=lambda comm: comm.free(),
    reduce_scatter=lambda comm, values, op: comm.reduce_scatter(values, op),
)


def answers(world: Communicator) -> dict[str, str]:
    """What this rank answers, by program."""
    found = {}
    for name, program in PROGRAMS.items():
        comm = world.dup()
        found[name] = described(program(comm, NAMES))
        world.barrier()
        comm.free()
    return found


def on_threads(services: Services, channel: str, size: int) -> list[dict[str, str]]:
    """What each rank answers, with a thread for each."""
    with ThreadPoolExecutor(size) as pool:

        async def program(comm: AsyncCommunicator) -> Any:
            here = asyncio.get_running_loop()
            return await here.run_in_executor(pool, answers, Communicator(comm))

        return loop.run(run_ranks(services, channel, size, program))


def as_task() -> dict[str, str]:
    """What each rank of a gang answers; for ``fsdray.remote(world_size=P)``."""
    return answers(collective.world())
