"""What a pool's calls run in their workers: the initializer, then the function on each item."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any


class Job:
    """What a worker runs on each chunk, after the initializer has run in its process.

    It travels as one: functions of `__main__` share their globals only with what they are
    pickled with.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        func: Callable[..., Any],
        pool: str,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
    ) -> None:
        self._run = run
        self._func = func
        self._pool = pool
        self._initializer = initializer
        self._initargs = initargs
        self._is_ready = initializer is None

    def __call__(self, *args: Any) -> Any:
        if self._initializer is not None and not self._is_ready:
            _initialize(self._pool, self._initializer, self._initargs)
            self._is_ready = True
        return self._run(self._func, *args)


_initialized: dict[str, dict[str, Any]] = {}
"""Pools whose initializer ran in this process, and the globals that it set."""


def _initialize(pool: str, initializer: Callable[..., object], initargs: tuple[Any, ...]) -> None:
    """Run a pool's initializer, once in this process."""
    names = getattr(initializer, "__globals__", {})
    known = _initialized.get(pool)
    if known is None:
        before = dict(names)
        initializer(*initargs)
        _initialized[pool] = {
            name: value
            for name, value in names.items()
            if name not in before or before[name] is not value
        }
    elif names is not vars(sys.modules.get(initializer.__module__, object)):
        # A function that travelled by value has globals of its own, new with every job.
        names.update(known)


def call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def call_each(func: Callable[[Any], Any], chunk: list[Any]) -> list[Any]:
    return [func(item) for item in chunk]


def call_each_star(func: Callable[..., Any], chunk: list[Iterable[Any]]) -> list[Any]:
    return [func(*item) for item in chunk]
