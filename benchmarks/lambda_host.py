"""What a call costs in `fsdray.testing.LambdaHost`, beside AWS's own runtime interface emulator.

In the checkout's directory (under a minute)::

    pip install -e '.[test]'
    python benchmarks/lambda_host.py --json lambda_host.json
    python benchmarks/lambda_host.py --rie path/to/aws-lambda-rie-x86_64

The function gives back its event. ``cold`` is a call that starts an environment, ``warm`` one that
finds one (medians, ms); ``rate`` is calls a second from some connections at one time, and ``cpu``
the host's own processor time a call (ms), both over HTTP alone, without an SDK's own time. The
emulator has one environment and no concurrency: it has no rate. Its binary is in the wheel of
aws-sam-cli (``pip download aws-sam-cli --no-deps``).
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3

from fsdray.testing import LambdaHost

SOURCE = "def handler(event, context): return event"
COLD, WARM, RATE = 15, 1000, 4000
CONNECTIONS = (1, 2, 4, 8)


def median_ms(call: Callable[[], object], count: int) -> float:
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return round(statistics.median(taken) * 1000, 2)


def caller(address: str, function: str) -> Callable[[], bytes]:
    """A function that makes one call over a connection of its own."""
    connection = http.client.HTTPConnection(address)
    path = f"/2015-03-31/functions/{function}/invocations"

    def call() -> bytes:
        connection.request("POST", path, b'{"a": 1}')
        return connection.getresponse().read()

    return call


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_host() -> dict[str, Any]:
    with LambdaHost() as host:
        client = boto3.client(
            "lambda",
            endpoint_url=host.url,
            region_name="us-east-1",
            aws_access_key_id="bench",
            aws_secret_access_key="bench",
        )
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as package:
            package.writestr("app.py", SOURCE)
        client.create_function(
            FunctionName="f",
            Role="arn:aws:iam::000000000000:role/bench",
            Runtime="python3.11",
            Handler="app.handler",
            Code={"ZipFile": file.getvalue()},
        )
        address = host.url.removeprefix("http://")
        call = caller(address, "f")
        colds = []
        for number in range(COLD):
            client.update_function_configuration(FunctionName="f", Description=str(number))
            colds.append(median_ms(call, 1))
        found: dict[str, Any] = {"cold": statistics.median(colds), "warm": median_ms(call, WARM)}
        found["warm_boto3"] = median_ms(
            lambda: client.invoke(FunctionName="f", Payload=b"1")["Payload"].read(), WARM
        )
        assert host.pid is not None
        before = processor_seconds(host.pid)
        found["rate"] = {n: rate(address, n) for n in CONNECTIONS}
        used = processor_seconds(host.pid) - before
        found["cpu"] = round(used * 1000 / (len(CONNECTIONS) * RATE), 2)
        return found


def rate(address: str, connections: int) -> int:
    def many(call: Callable[[], bytes]) -> None:
        for _ in range(RATE // connections):
            call()

    calls = [caller(address, "f") for _ in range(connections)]
    began = time.perf_counter()
    with ThreadPoolExecutor(connections) as pool:
        list(pool.map(many, calls))
    return round(RATE / (time.perf_counter() - began))


def measure_emulator(binary: str) -> dict[str, Any]:
    colds = []
    warm = 0.0
    with tempfile.TemporaryDirectory() as code:
        (Path(code) / "app.py").write_text(SOURCE)
        for last in [False] * (COLD - 1) + [True]:
            ports = []
            for _ in range(2):
                with socket.create_server(("127.0.0.1", 0)) as free:
                    ports.append(free.getsockname()[1])
            process = subprocess.Popen(
                [
                    binary,
                    *("--runtime-interface-emulator-address", f"127.0.0.1:{ports[0]}"),
                    *("--runtime-api-address", f"127.0.0.1:{ports[1]}"),
                    *(sys.executable, "-m", "awslambdaric", "app.handler"),
                ],
                cwd=code,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                while True:
                    try:
                        socket.create_connection(("127.0.0.1", ports[0])).close()
                        break
                    except ConnectionRefusedError:
                        time.sleep(0.01)
                call = caller(f"127.0.0.1:{ports[0]}", "function")
                colds.append(median_ms(call, 1))
                if last:
                    warm = median_ms(call, WARM)
            finally:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return {"cold": statistics.median(colds), "warm": warm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rie", metavar="BINARY", help="the emulator to measure beside the host")
    parser.add_argument("--json", metavar="FILE", help="where to write the figures")
    options = parser.parse_args()
    found = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "host": measure_host(),
        "emulator": measure_emulator(options.rie) if options.rie else None,
    }
    text = json.dumps(found, indent=2)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
