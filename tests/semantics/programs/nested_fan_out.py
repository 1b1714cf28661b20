"""Tasks that start tasks: quicksort, whose recursion is remote down to a size."""

import random

import fsdray as ray

ray.init(num_cpus=2)


@ray.remote
def quicksort(values: list[int]) -> list[int]:
    if len(values) <= 100:
        return sorted(values)
    pivot = values[len(values) // 2]
    lower = quicksort.remote([x for x in values if x < pivot])
    upper = quicksort.remote([x for x in values if x > pivot])
    same = [x for x in values if x == pivot]
    return ray.get(lower) + same + ray.get(upper)


values = list(range(999, -1, -1))
random.Random(8).shuffle(values)
print(ray.get(quicksort.remote(values)) == sorted(values))
