"""Word count as map and reduce: each map task returns one part for each reduce task."""

from collections import Counter

import fsdray as ray

TEXT = """the quick brown fox jumps over the lazy dog
the dog sleeps and the fox runs
a quick dog is a happy dog"""
REDUCERS = 3


@ray.remote(num_returns=REDUCERS)
def count(line: str) -> list[Counter]:
    parts = [Counter() for _ in range(REDUCERS)]
    for word in line.split():
        parts[len(word) % REDUCERS][word] += 1
    return parts


@ray.remote
def merge(*parts: Counter) -> Counter:
    return sum(parts, Counter())


mapped = [count.remote(line) for line in TEXT.splitlines()]
reduced = [merge.remote(*[parts[i] for parts in mapped]) for i in range(REDUCERS)]
words = sum(ray.get(reduced), Counter())
print(sorted(words.items(), key=lambda item: (-item[1], item[0]))[:4])
