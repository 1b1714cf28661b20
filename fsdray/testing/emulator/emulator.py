"""`Emulator`: ministack and a Lambda host, in processes of their own, while a context lasts."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from fsdray.backends.local.directory import SessionDirectory
from fsdray.errors import ServiceError, SettingsError
from fsdray.settings import resolve
from fsdray.testing.emulator.packages import installed
from fsdray.testing.lambda_host import LambdaHost
from fsdray.testing.lambda_host.host import check_runtime

REGION = "us-east-1"
ACCOUNT = "000000000000"
_ENDING = 10.0  # seconds that ministack is given to clear away
_BACKLOG = 1024


class Emulator:
    """AWS's services that fsdray uses, on this machine, for real AWS clients.

    Parameters
    ----------
    port : where all but Lambda listens; 0 takes a free one.
    concurrency : the account's limit on concurrent executions.
    logs, access_log : files to append to, as `HostSettings` says; what ministack was asked is in
        the same access log. By default they lie in a directory that goes with the emulator.
    cache : where ministack is installed; by default where fsdray keeps all that it caches.
    environment : variables that every function is given, below its own.
    **host : all else that a `LambdaHost` takes.

    Examples
    --------
    ::

        with Emulator() as emulator:
            subprocess.run(["fsdray", "deploy", "--yes"], env=os.environ | emulator.environment)
    """

    def __init__(
        self,
        *,
        port: int = 0,
        concurrency: int = 1000,
        logs: str | os.PathLike[str] | None = None,
        access_log: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | None = None,
        environment: Mapping[str, str] | None = None,
        **host: Any,
    ) -> None:
        self._port = port
        self._given = {"logs": logs, "access_log": access_log}
        self._cache = Path(cache) if cache is not None else resolve({}).cache_directory
        self._host = {
            "concurrency": concurrency,
            "environment": dict(environment or {}),
            "region": REGION,
            "account": ACCOUNT,
            "cloudwatch": True,
            **host,
        }
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._lambda: LambdaHost | None = None
        self._files: dict[str, Path] = {}
        self._url = ""

    @property
    def url(self) -> str:
        """Where all but Lambda is served: an `endpoint_url`."""
        if not self._url:
            raise ServiceError("the emulator is not running: enter it first with `with`")
        return self._url

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which AWS's clients talk to this emulator, and to nothing else."""
        url = self.url
        assert self._lambda is not None
        return {
            "AWS_ENDPOINT_URL": url,
            "AWS_ENDPOINT_URL_LAMBDA": self._lambda.url,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_SESSION_TOKEN": "local",
            "AWS_REGION": str(self._host["region"]),
            "AWS_DEFAULT_REGION": str(self._host["region"]),
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def logs(self) -> Path:
        """The functions' logs: a line of JSON an event."""
        return self._file("logs")

    @property
    def access_log(self) -> Path:
        """Every request: a line of JSON with its service, operation, status and sizes."""
        return self._file("access_log")

    @property
    def pids(self) -> list[int]:
        """The processes of ministack and of the Lambda host, while they run."""
        return [
            pid
            for pid in (
                self._process.pid if self._process else None,
                self._lambda.pid if self._lambda else None,
            )
            if pid is not None
        ]

    def requests(self) -> list[dict[str, Any]]:
        """What the access log holds now."""
        return [json.loads(line) for line in self.access_log.read_bytes().splitlines()]

    def start(self) -> Emulator:
        """Start to serve; `with` does so too.

        Raises
        ------
        SettingsError
            what it needs is not installed and cannot be, or the port is taken.
        ServiceError
            it did not start.
        """
        check_runtime()
        packages = installed(self._cache)
        with contextlib.ExitStack() as stack:
            stack.callback(setattr, self, "_url", "")
            directory = SessionDirectory(tempfile.gettempdir())
            stack.callback(directory.close)
            for name, given in self._given.items():
                path = Path(given) if given is not None else directory.path / f"{name}.jsonl"
                path.touch()
                self._files[name] = path.absolute()
            listener = stack.enter_context(_listen(self._port))
            self._url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            stack.callback(self._end)  # last of the two: the host still sends logs
            self._lambda = LambdaHost(endpoint_url=self._url, **self._files, **self._host)
            self._lambda.start()
            stack.callback(self._close_host, self._lambda)
            self._process = self._serve(listener, directory.path, packages)
            assert self._process.stdout is not None
            if self._process.stdout.readline() != b"ready\n":
                raise ServiceError("ministack did not start: see what it wrote above")
            self._stack = stack.pop_all()
        return self

    def close(self) -> None:
        """End it: no process and no directory of it is left."""
        self._stack.close()

    def __enter__(self) -> Emulator:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _file(self, name: str) -> Path:
        if name not in self._files:
            raise ServiceError("the emulator is not running: enter it first with `with`")
        return self._files[name]

    def _serve(
        self, listener: socket.socket, directory: Path, packages: Path
    ) -> subprocess.Popen[bytes]:
        assert self._lambda is not None
        settings = {
            "packages": str(packages),
            "directory": str(directory),
            "listener": listener.fileno(),
            "functions": self._lambda.url,
            "access_log": str(self._files["access_log"]),
        }
        return subprocess.Popen(
            # Without what is installed beside fsdray, and without the user's variables for Python.
            [
                sys.executable,
                "-I",
                "-S",
                str(Path(__file__).with_name("guest.py")),
                json.dumps(settings),
            ],
            # It ends when its stdin does: also when this process is killed.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            cwd=directory,
            env=_variables(directory, listener.getsockname()[1], str(self._host["region"])),
            start_new_session=True,  # what interrupts us ends it through us
        )

    def _close_host(self, host: LambdaHost) -> None:
        host.close()
        self._lambda = None

    def _end(self) -> None:
        process, self._process = self._process, None
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
            process.kill()
            process.wait()
        process.stdout.close()


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"port={port}: cannot listen there ({error.strerror}): name another, or 0 for a free "
            "one"
        ) from error


def _variables(directory: Path, port: int, region: str) -> dict[str, str]:
    """ministack's own settings, and nothing of the user's that it might take for one."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(directory),
        "TMPDIR": str(directory),
        "S3_DATA_DIR": str(directory / "s3"),
        "STATE_DIR": str(directory / "state"),
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "MINISTACK_HOST": "127.0.0.1",
        "MINISTACK_REGION": region,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "LOG_LEVEL": "ERROR",
        "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0",
    }
