"""How long a function's environment takes to start, in `fsdray.testing.LambdaHost`.

In the checkout's directory (about a minute; ``--full`` packs all that functions require, and takes
four more)::

    pip install -e '.[test]'
    python benchmarks/cold_start.py --json cold_start.json

``init`` is what the REPORT lines say: from the environment's start until its handler is imported;
``cpu`` the processor time of that import alone; ``call`` a call that starts an environment, as its
caller sees it (medians, ms). ``empty`` is a function of one line: what Python and AWS's runtime
client take. ``source`` is fsdray without its bytecode, as it would be without ``fsdray deploy``'s
compiling; ``fsdray`` is what deploy packs. ``--full`` adds fsdray with packages of its own, in
environments that have nothing else, where the others take those of this Python. It also says what
numba's kernel takes in a new environment (ms): ``fetch`` of the compiler from the bucket, ``numba``
to import, ``kernel`` to be compiled in the first environment and loaded in the later ones; beside
``scipy``: to import NumPy, SciPy and the engine, and to multiply a first small layer so. Start
latencies of Lambda itself and its network come on top.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

import fsdray as fsd
from fsdray.backends.aws.deploy import deploy
from fsdray.backends.aws.deploy_commands import Screen
from fsdray.backends.aws.options import Options
from fsdray.backends.aws.package import build
from fsdray.backends.aws.template import plan
from fsdray.observe.progress import Silent
from fsdray.services import MIB
from fsdray.settings import Settings
from fsdray.testing.emulator import Emulator

EMPTY = "def handler(event, context): return event"
HANDLER = "fsdray.backends.aws.handler.handler"
COUNT = 11
KERNELS = 6
BUCKET = "cold-starts"


def packed(source: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("app.py", source)
    return file.getvalue()


def without_bytecode(path: Path) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(file, "w") as archive:
        for name in whole.namelist():
            if not name.endswith(".pyc"):
                archive.writestr(name, whole.read(name))
    return file.getvalue()


def cpu_ms(module: str, folder: Path, python: list[str]) -> float:
    """Processor time of one import, in a process of its own."""
    script = (
        f"import time; b = time.process_time(); import {module}; print(time.process_time() - b)"
    )
    taken = []
    for _ in range(COUNT):
        told = subprocess.run(
            [sys.executable, *python, "-P", "-c", script],
            env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
            check=True,
        )
        taken.append(float(told.stdout) * 1000)
    return round(statistics.median(taken), 1)


def measured(
    emulator: Emulator, name: str, data: bytes, handler: str, variables: dict[str, str]
) -> dict[str, float]:
    """Start an environment of a function again and again."""
    where = emulator.environment
    options: dict[str, Any] = {
        "region_name": where["AWS_REGION"],
        "aws_access_key_id": where["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": where["AWS_SECRET_ACCESS_KEY"],
        "config": Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
    }
    s3 = boto3.client("s3", endpoint_url=where["AWS_ENDPOINT_URL"], **options)
    functions = boto3.client("lambda", endpoint_url=where["AWS_ENDPOINT_URL_LAMBDA"], **options)
    s3.put_object(Bucket=BUCKET, Key=name, Body=data)
    functions.create_function(
        FunctionName=name,
        Runtime=f"python{sys.version_info.major}.{sys.version_info.minor}",
        Handler=handler,
        Role="arn:aws:iam::000000000000:role/any",
        Code={"S3Bucket": BUCKET, "S3Key": name},
        MemorySize=1769,
        Timeout=60,
        Environment={"Variables": variables},
    )
    taken = []
    for number in range(COUNT + 1):
        began = time.perf_counter()
        # Not an event of fsdray's: the handler is imported, and refuses it.
        functions.invoke(FunctionName=name, Payload=b"{}")
        taken.append((time.perf_counter() - began) * 1000)
        # A changed function starts anew.
        functions.update_function_configuration(FunctionName=name, Description=str(number))
    inits = []
    for line in emulator.logs.read_bytes().splitlines():
        event = json.loads(line)
        if event["group"].endswith(f"/{name}") and "Init Duration: " in event["message"]:
            inits.append(float(event["message"].partition("Init Duration: ")[2].split(" ")[0]))
    # The first has the disk's caches to fill.
    return {
        "init": round(statistics.median(inits[1:]), 1),
        "call": round(statistics.median(taken[1:]), 1),
    }


def of_kernels(name: str) -> list[dict[str, float]]:
    """What numba's kernel takes, in one new environment after the other of a deployed stack."""

    @fsd.remote
    def timed() -> dict[str, float]:
        import importlib
        import time

        marks = [time.perf_counter()]
        import numpy as np

        from fsdray.inference import kernels

        square = np.arange(3), np.arange(2), np.ones(2, np.float32)
        out = np.empty((2, 2), np.float32)
        kernels.fused(*square, out + 1, 0.0, nonzero_bias=False, relu=True, clamp=None, out=out)
        for step in (
            lambda: None,
            lambda: importlib.import_module("llvmlite.binding"),
            lambda: importlib.import_module("numba"),
            kernels.warm,
        ):
            step()
            marks.append(time.perf_counter())
        names = ("scipy", "fetch", "numba", "kernel")
        return {
            each: round(1000 * (after - before), 1)
            for each, before, after in zip(names, marks[:-1], marks[1:], strict=True)
        }

    functions = boto3.client("lambda")
    taken = []
    for number in range(KERNELS):
        with fsd.init("aws", stack=name):
            taken.append(fsd.get(timed.remote()))
        functions.update_function_configuration(
            FunctionName=f"{name}-1769", Description=str(number)
        )
    return taken


def full(options: Options, variables: dict[str, str]) -> dict[str, Any]:
    """The whole package, in environments that have nothing else."""
    package = build(options, Settings().cache_directory)
    with Emulator(is_isolated=True) as emulator:
        os.environ.update(emulator.environment)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        found: dict[str, Any] = dict(
            measured(emulator, "full", package.path.read_bytes(), HANDLER, variables)
        )
        settings = Settings(stack="kernels")
        deploy(settings, {"slots": 1, "memory": (1769,)}, Screen(sys.stderr, Silent()))
        first, *others = of_kernels("kernels")
    found["megabytes"] = {
        "zip": round(package.path.stat().st_size / MIB, 1),
        "unpacked": round(package.unpacked / MIB, 1),
        "late": {key: round(path.stat().st_size / MIB, 1) for key, path in package.late.items()},
    }
    found["kernel"] = {
        "first": first,
        "later": {name: statistics.median(each[name] for each in others) for name in first},
    }
    return found


def main() -> None:
    """Measure, print, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="where to write what was measured")
    parser.add_argument("--full", action="store_true", help="with all packages of its own, too")
    arguments = parser.parse_args()
    cache = Settings().cache_directory
    options = Options()
    bare = build(options, cache, is_bare=True)
    cases = {
        "empty": (packed(EMPTY), "app.handler"),
        "source": (without_bytecode(bare.path), HANDLER),
        "fsdray": (bare.path.read_bytes(), HANDLER),
    }
    stack = plan("cold", options, region="us-east-1", account="0" * 12, partition="aws").stack
    variables = {"FSDRAY_STACK_JSON": stack.dump(), "PYTHONDONTWRITEBYTECODE": "1"}
    results: dict[str, dict[str, Any]] = {}
    with Emulator() as emulator, tempfile.TemporaryDirectory() as folder:
        boto3.client(
            "s3",
            endpoint_url=emulator.url,
            region_name="us-east-1",
            aws_access_key_id="local",
            aws_secret_access_key="local",
        ).create_bucket(Bucket=BUCKET)
        for name, (data, handler) in cases.items():
            results[name] = measured(emulator, name, data, handler, variables)
            if handler == HANDLER:
                place = Path(folder, name)
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    archive.extractall(place)
                module = handler.rpartition(".")[0]
                results[name]["cpu"] = cpu_ms(module, place, ["-B"])
            print(name, results[name], flush=True)
    if arguments.full:
        results["full"] = full(options, variables)
        print("full", results["full"], flush=True)
    told = {
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0],
        "results": results,
    }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
