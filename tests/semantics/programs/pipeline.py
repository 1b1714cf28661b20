"""A pipeline of refs: nothing is fetched between the steps, and a step may return refs."""

import numpy as np

import fsdray as ray


@ray.remote
def load(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 100, 100_000)


@ray.remote
def clean(array: np.ndarray) -> np.ndarray:
    return array[array % 2 == 0]


@ray.remote
def scale(array: np.ndarray, *, by: int) -> np.ndarray:
    return array * by


@ray.remote(num_returns=2)
def extremes(array: np.ndarray) -> tuple[int, int]:
    return int(array.min()), int(array.max())


@ray.remote
def split(array: np.ndarray) -> list:
    return [ray.put(part) for part in np.array_split(array, 2)]


ends = [extremes.remote(scale.remote(clean.remote(load.remote(n)), by=10)) for n in range(4)]
lows, highs = zip(*ends, strict=True)
print(ray.get(list(lows)), ray.get(list(highs)))
halves = ray.get(split.remote(np.arange(10)))
print([int(ray.get(half).sum()) for half in halves])
