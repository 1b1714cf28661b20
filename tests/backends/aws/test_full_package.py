"""The whole package as it is deployed, in environments that have nothing else to import from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import fsdray as fsd
from fsdray import inference
from fsdray.testing.emulator import Emulator
from tests.deployed import deployed, using

WORKERS, LAYERS = 3, 12
pytestmark = pytest.mark.thorough("pip fetches 140 MB of packages")


@pytest.fixture(scope="module")
def stack() -> Iterator[None]:
    with (
        Emulator(is_isolated=True) as emulator,
        deployed(emulator, "whole", is_bare=False, slots=4, memory=(1769,)) as variables,
        using(variables),
    ):
        yield


def test_functions_import_from_their_package_and_the_bucket_alone(stack: None) -> None:
    @fsd.remote
    def imported() -> tuple[list[str], dict[str, str], str, str]:
        """Where this process imports from, where its packages are, its code and its /tmp."""
        import importlib
        import os
        import sys
        import tempfile

        names = (
            "fsdray",
            "numpy",
            "scipy.sparse",
            "numba",
            "llvmlite",
            "boto3",
            "aiobotocore",
            "xxhash",
            "zstandard",
        )
        files = {name: str(importlib.import_module(name).__file__) for name in names}
        return sys.path, files, os.environ["LAMBDA_TASK_ROOT"], tempfile.gettempdir()

    with fsd.init("aws"):
        path, files, root, temporary = fsd.get(imported.remote())
    assert not [each for each in path if "site-packages" in each]
    late = files.pop("llvmlite")
    assert late.startswith(f"{temporary}/fsdray-late/llvmlite/")
    assert all(file.startswith(f"{root}/") for file in files.values()), files


def test_kernels_are_compiled_once_for_all_environments(stack: None) -> None:
    @fsd.remote
    def load(rank: int) -> tuple[int, int, int]:
        import os

        from fsdray.inference import kernels

        kernels.warm()
        counted = kernels._compiled().stats
        return os.getpid(), sum(counted.cache_hits.values()), sum(counted.cache_misses.values())

    with fsd.init("aws"):
        first = fsd.get(load.remote(0))
        gang = load.options(world_size=3, channel="object").remote(fsd.per_rank([0, 1, 2]))
        others = [each for each in fsd.get(gang) if each[0] != first[0]]
    assert first[1:] == (0, 1)
    assert [each[1:] for each in others] == [(1, 0)] * len(others)
    assert len(others) >= 2


@pytest.mark.parametrize("channel", ["queue", "object"])
def test_inference_has_the_bits_of_this_machine_by_scipy_and_by_numba(
    stack: None, channel: str
) -> None:
    @fsd.remote(world_size=WORKERS, channel="object")
    def uses_of_numba(is_to_load: bool) -> int:
        from fsdray.inference import kernels

        if is_to_load:
            kernels.warm()
        return kernels._compiled.cache_info().hits

    model, samples = inference.radixnet(256, LAYERS), inference.digits(200, 256)

    def run() -> tuple[bytes, ...]:
        found = inference.run(model, samples, workers=WORKERS, channel=channel).activations
        return found.data.tobytes(), found.indices.tobytes(), found.indptr.tobytes()

    with fsd.init("local", concurrency=8):
        here = run()
    with fsd.init("aws", concurrency=8):
        assert run() == here  # too short for a compiler, in new environments
        before = fsd.get(uses_of_numba.remote(True))
        assert run() == here
        after = fsd.get(uses_of_numba.remote(False))
    # Each rank multiplies once a layer at least, and they run where the gangs before them ran.
    assert sum(after) - sum(before) >= LAYERS * WORKERS
