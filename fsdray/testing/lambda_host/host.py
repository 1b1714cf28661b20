"""`LambdaHost`: the host in a process of its own, from Python, for as long as a context lasts."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from fsdray.errors import ServiceError, SettingsError
from fsdray.testing.lambda_host.limits import HostSettings

_ENDING = 30.0  # seconds that the host is given to clear away


class LambdaHost:
    """Lambda on this machine, served to real AWS clients while the context lasts.

    Parameters
    ----------
    **settings : as `HostSettings` says.

    Examples
    --------
    ::

        with LambdaHost(concurrency=10) as host:
            client = boto3.client("lambda", endpoint_url=host.url)
    """

    def __init__(self, **settings: Any) -> None:
        try:
            self._settings = HostSettings(**settings)
        except TypeError as error:
            names = ", ".join(each.name for each in dataclasses.fields(HostSettings))
            raise SettingsError(f"{error}: LambdaHost takes {names}") from error
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """Where it serves: an `endpoint_url`, or ``AWS_ENDPOINT_URL_LAMBDA``."""
        if not self._url:
            raise ServiceError("the Lambda host is not running: enter it first with `with`")
        return self._url

    @property
    def pid(self) -> int | None:
        """The process of the host, while it runs."""
        return self._process.pid if self._process is not None else None

    def start(self) -> LambdaHost:
        """Start to serve; `with` does so too."""
        check_runtime()
        # It ends when its stdin does: also when this process is killed.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __package__, "--settings", _encoded(self._settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": _python_path()},
            start_new_session=True,  # what interrupts us ends it through us
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        if not line:
            self.close()
            raise ServiceError("the Lambda host did not start: see what it wrote above")
        self._url = line.strip().rpartition("=")[2]
        return self

    def close(self) -> None:
        """End it: no process and no directory of it is left."""
        process, self._process, self._url = self._process, None, ""
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            # A child of ours that was forked meanwhile may hold its stdin open.
            process.terminate()
            process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            process.kill()  # its guardian clears away
            process.wait()
        process.stdout.close()

    def __enter__(self) -> LambdaHost:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def check_runtime() -> None:
    """Raise `SettingsError` if AWS's runtime client is not installed."""
    if importlib.util.find_spec("awslambdaric") is None:
        raise SettingsError(
            "the Lambda host runs functions with AWS's own runtime client, which is not installed: "
            "pip install awslambdaric, or 'fsdray[test]'"
        )


def _encoded(settings: HostSettings) -> str:
    given = dataclasses.asdict(settings)
    for name in ("logs", "access_log", "directory"):
        if given[name] is not None:
            given[name] = os.fspath(given[name])
    return json.dumps(given)


def _python_path() -> str:
    """One on which the host finds this fsdray, installed or not."""
    ours = str(Path(__file__).resolve().parents[3])
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([ours, given] if given else [ours])
