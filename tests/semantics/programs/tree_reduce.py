"""A sum as a tree: refs of partial sums are the arguments of the next ones."""

import numpy as np

import fsdray as ray

ray.init(ignore_reinit_error=True)


@ray.remote
def make(seed: int) -> np.ndarray:
    return np.full(50_000, seed, dtype=np.int64)


@ray.remote
def add(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return left + right


parts = [make.remote(seed) for seed in range(17)]
while len(parts) > 1:
    merged = [add.remote(parts[i], parts[i + 1]) for i in range(0, len(parts) - 1, 2)]
    parts = merged + ([parts[-1]] if len(parts) % 2 else [])
total = ray.get(parts[0])
print(f"{len(total)} elements, each {total.min()} to {total.max()}")
