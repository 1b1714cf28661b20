"""``python -m fsdray.testing.lambda_host``: the host on a port, until it is interrupted."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import signal
import sys

from fsdray.errors import FsdrayError
from fsdray.testing.lambda_host.host import check_runtime
from fsdray.testing.lambda_host.limits import HostSettings


def main() -> int:
    """Serve; print where, as a line that a shell can evaluate."""
    settings, is_owned = _arguments()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # four for each environment
    try:
        check_runtime()
        return asyncio.run(_serve(settings, is_owned))
    except FsdrayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


async def _serve(settings: HostSettings, is_owned: bool) -> int:
    # Slow to import: the arguments are checked first.
    from fsdray.testing.lambda_host.server import serving

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    async with serving(settings) as (url, lost):
        if is_owned:
            os.set_blocking(0, False)
            loop.add_reader(0, _read_until_eof, stop)
        print(f"export AWS_ENDPOINT_URL_LAMBDA={url}", flush=True)
        ends = [asyncio.create_task(event.wait()) for event in (stop, lost)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        if lost.is_set():
            print("error: the guardian of the environments was killed", file=sys.stderr)
        return int(lost.is_set())


def _read_until_eof(stop: asyncio.Event) -> None:
    """Whoever started the host holds its stdin open for as long as it wants it."""
    with contextlib.suppress(BlockingIOError):
        while os.read(0, 1024):
            pass
        asyncio.get_running_loop().remove_reader(0)
        stop.set()


def _arguments() -> tuple[HostSettings, bool]:
    parser = argparse.ArgumentParser(
        prog="python -m fsdray.testing.lambda_host", description=__doc__
    )
    parser.add_argument("--port", type=int, help="where to listen (default: a free one)")
    parser.add_argument("--concurrency", type=int, help="concurrent executions (default: 1000)")
    parser.add_argument("--region", help="in ARNs and environments (default: us-east-1)")
    parser.add_argument("--account", help="twelve digits, in ARNs")
    parser.add_argument("--endpoint-url", help="of the emulator that serves S3 and all else")
    parser.add_argument("--idle", type=float, help="seconds that an unused environment is kept")
    parser.add_argument("--logs", help="a file to append the functions' logs to, as JSON")
    parser.add_argument(
        "--cloudwatch",
        action="store_true",
        default=None,
        help="put them into CloudWatch Logs at --endpoint-url too",
    )
    parser.add_argument("--access-log", help="a file to append a line of JSON a request to")
    parser.add_argument("--directory", help="where its own directory is made")
    parser.add_argument(
        "--isolated",
        action="store_true",
        default=None,
        dest="is_isolated",
        help="functions import from their package alone, as in Lambda",
    )
    parser.add_argument(
        "--env", action="append", metavar="NAME=VALUE", help="a variable that every function gets"
    )
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    owned = given.pop("settings", None)
    if owned is not None:
        given = json.loads(owned)
    if "env" in given:
        given["environment"] = dict(each.split("=", 1) for each in given.pop("env"))
    return HostSettings(**given), owned is not None


if __name__ == "__main__":
    sys.exit(main())
