"""Pi by throwing darts: independent samples, added up by the driver."""

import random

import fsdray as ray

ray.init(num_cpus=4)


@ray.remote
def throw(count: int, seed: int) -> int:
    darts = random.Random(seed)
    return sum(darts.random() ** 2 + darts.random() ** 2 <= 1 for _ in range(count))


TASKS, DARTS = 20, 20_000
inside = sum(ray.get([throw.remote(DARTS, seed) for seed in range(TASKS)]))
print(f"pi is about {4 * inside / (TASKS * DARTS):.2f}")

ray.shutdown()
