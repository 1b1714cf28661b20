"""``python guest.py``: ministack, served until whoever started it lets go.

It runs apart from fsdray, on the standard library and ministack alone. It ends when its stdin
does, and removes its directory then: so nothing is left, also where its owner was killed.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from types import ModuleType
from typing import IO, Any

_KEEP_ALIVE = 3600.0  # seconds: a client that tries once must not find its connection closed
_ENDING = 0.2  # seconds that requests under way are given


def main() -> None:
    """Serve as the JSON in the first argument says."""
    settings = json.loads(sys.argv[1])
    sys.path.insert(0, settings["packages"])
    try:
        with open(settings["access_log"], "ab", buffering=0) as file:
            asyncio.run(_serve(settings, file))
    finally:
        shutil.rmtree(settings["directory"], ignore_errors=True)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # ministack's threads are not waited for


async def _serve(settings: dict[str, Any], file: IO[bytes]) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    ministack = importlib.import_module("ministack.app")
    amend = _sibling("amend")
    amend.hand_functions_over(_sibling("mirror"), settings["functions"])
    amend.keep_attributes_of_nested_stacks()
    amend.wake_receivers(loop)
    amend.keep_binary_attributes()
    amend.keep_queue_policies()
    serve = importlib.import_module("hypercorn.asyncio").serve
    config = importlib.import_module("hypercorn.config").Config()
    config.bind = [f"fd://{settings['listener']}"]
    config.keep_alive_timeout = _KEEP_ALIVE
    config.graceful_timeout = config.shutdown_timeout = _ENDING
    config.loglevel = "WARNING"
    config.errorlog = "-"
    # Its owner holds stdin open for as long as it wants this.
    loop.add_reader(0, _read_until_eof, stop)
    app = _sibling("access").AccessLog(ministack.app, file)
    await serve(_telling(app), config, shutdown_trigger=stop.wait)


def _telling(app: Callable[..., Any]) -> Callable[..., Any]:
    """An application that tells on stdout when it has started."""

    async def told(scope: Any, receive: Any, send: Any) -> None:
        async def send_told(event: dict[str, Any]) -> None:
            await send(event)
            if event["type"] == "lifespan.startup.complete":
                print("ready", flush=True)

        await app(scope, receive, send_told if scope["type"] == "lifespan" else send)

    return told


def _sibling(name: str) -> ModuleType:
    """A module beside this one; as part of fsdray it would bring in fsdray's requirements."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"fsdray_emulator_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _read_until_eof(stop: asyncio.Event) -> None:
    if not os.read(0, 1024):
        asyncio.get_running_loop().remove_reader(0)
        stop.set()


if __name__ == "__main__":
    main()
