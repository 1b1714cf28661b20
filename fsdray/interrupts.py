"""Ctrl-C, kept away from code that takes it for something else."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def later() -> Iterator[None]:
    """An interrupt that comes within the block is raised at its end.

    It is for what ends soon: modules in C++ make an `ImportError` of an interrupt that comes while
    they are imported, or forget it.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # no interrupt comes here, or it is no exception
        return
    came: list[tuple[Any, ...]] = []
    signal.signal(signal.SIGINT, lambda *told: came.append(told))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(*came[0])
