"""Back-pressure by hand: never more than a number of tasks under way."""

import fsdray as ray

MOST = 8

ray.init(num_cpus=4, logging_level="ERROR")


@ray.remote
def square(number: int) -> int:
    return number * number


under_way: list = []
total = peak = 0
for number in range(200):
    if len(under_way) >= MOST:
        ready, under_way = ray.wait(under_way, num_returns=1)
        total += sum(ray.get(ready))
    under_way.append(square.remote(number))
    peak = max(peak, len(under_way))
total += sum(ray.get(under_way))
print(f"{total}, at most {peak} at a time on {int(ray.cluster_resources()['CPU'])} CPUs")
