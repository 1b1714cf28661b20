"""Work that fails: processes that die, errors that pass, and what is given up on."""

import os
import tempfile

import fsdray as ray
from fsdray.exceptions import RayTaskError, WorkerCrashedError

ray.init(num_cpus=2, log_to_driver=False)


def attempt(path: str) -> int:
    with open(path, "ab", buffering=0) as file:
        file.write(b".")
        return file.tell()


@ray.remote(max_retries=2)
def dies(path: str) -> str:
    if attempt(path) < 3:
        os._exit(1)
    return "survived"


@ray.remote(max_retries=4, retry_exceptions=[ConnectionError])
def passes(path: str) -> str:
    if attempt(path) < 4:
        raise ConnectionError("try again")
    return "connected"


@ray.remote(max_retries=1)
def hopeless() -> None:
    os._exit(1)


@ray.remote
def wrong() -> None:
    raise ValueError("a bug")


with tempfile.TemporaryDirectory() as folder:
    print(ray.get([dies.remote(f"{folder}/1"), passes.remote(f"{folder}/2")]))
for task in (hopeless, wrong):
    try:
        ray.get(task.remote())
    except WorkerCrashedError:
        print("crashed")
    except RayTaskError as error:
        print("raised", isinstance(error, ValueError), isinstance(error.cause, ValueError))
