"""How ranks share the cores where there are more ranks than cores.

What a rank waits for is then mostly still to be sent by those that wait for its core, and whom it
wakes would take its core before it has woken the others, or done what it is doing. Each change
costs what the core's caches held.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

_usual: int | None = None  # the policy of this process's main thread, where another holds


TURNS = 100
"""How often who waits gives way before it sleeps: some 100 µs where nobody else can run. To sleep
and be woken takes longer, so where ranks answer at once this saves time and, since others run
meanwhile, no core's: small collectives of 4 ranks on 2 cores take two thirds of the time."""


def give_way(while_so: Callable[[], bool], turns: int = TURNS) -> None:
    """Let others who can run have this core, again and again while that is so."""
    for _ in range(turns):
        if not while_so():
            return
        os.sched_yield()


def keep() -> None:
    """From now on whom this thread wakes waits for a core, until this one gives way or sleeps.

    Others of the machine are not held up: their threads still take the core from this one.
    """
    global _usual
    if _usual is None:
        _usual = os.sched_getscheduler(0)
        _set(os.SCHED_BATCH, _usual)


def as_usual() -> None:
    """`keep` no more."""
    global _usual
    if _usual is not None:
        _set(_usual, os.SCHED_BATCH)
        _usual = None


def _set(policy: int, instead_of: int) -> None:
    if {policy, instead_of} <= {os.SCHED_OTHER, os.SCHED_BATCH}:  # nobody has chosen another
        with suppress(PermissionError):  # as in some containers: then it is as it was
            os.sched_setscheduler(0, policy, os.sched_param(0))
