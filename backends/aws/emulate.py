"""``fsdray emulate``: AWS on this machine with a stack in it, until it is interrupted.

Only here does a module of this backend know that there are emulators.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
from collections.abc import Mapping
from types import FrameType
from typing import Any

from fsdray.backends.aws.deploy import Show, deploy
from fsdray.backends.aws.options import Options, check_name
from fsdray.errors import ServiceError
from fsdray.settings import Settings

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Interrupted(BaseException):
    """Somebody wants it to end."""


def emulate(
    settings: Settings, changes: Mapping[str, Any], show: Show, *, port: int, concurrency: int
) -> int:
    """Serve, and print on stdout what makes a shell's programs use it; the exit status.

    Raises
    ------
    SettingsError : what it needs is not installed, or the port is taken.
    ServiceError : a part of it ended by itself.
    """
    from fsdray.testing.emulator import Emulator

    check_name(settings.stack)
    Options.load("{}", changes)  # what cannot be is said before anything starts
    before = {number: signal.signal(number, _interrupt) for number in _SIGNALS}
    try:
        with Emulator(
            port=port,
            concurrency=concurrency,
            cache=settings.cache_directory,
            cloudwatch=True,
        ) as emulator:
            variables = emulator.environment | {"FSDRAY_STACK": settings.stack}
            os.environ.update(variables)
            # A profile would name an account, and a key of its own.
            os.environ.pop("AWS_PROFILE", None)
            here = Settings(stack=settings.stack, cache=settings.cache)
            deploy(here, changes, show, is_bare=True)
            for name, value in variables.items():
                print(f"export {name}={shlex.quote(value)}", flush=True)
            show.say("Serving until interrupted")
            _wait(emulator.pids)
            raise ServiceError("a part of the emulator ended by itself")
    except _Interrupted:
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:  # the end is not to be interrupted in its turn
        signal.signal(each, signal.SIG_IGN)
    raise _Interrupted


def _wait(pids: list[int]) -> None:
    """Wait until one of the processes ends."""
    handles = [os.pidfd_open(pid) for pid in pids]
    try:
        select.select(handles, [], [])
    finally:
        for handle in handles:
            os.close(handle)
