"""The best of a grid of parameters: results are looked at as they come, failures among them."""

import itertools

import fsdray as ray

ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)


@ray.remote(max_retries=1)
def score(data: list[float], rate: float, depth: int) -> tuple[float, dict]:
    if depth == 0:
        raise ValueError(f"depth {depth} at rate {rate}")
    loss = sum((x - rate * depth) ** 2 for x in data)
    return loss, {"rate": rate, "depth": depth}


data = ray.put([1.0, 2.0, 3.0])
pending = {
    score.remote(data, rate, depth): (rate, depth)
    for rate, depth in itertools.product((0.1, 0.5, 1.0), (0, 1, 2, 4))
}
results, failed = [], []
while pending:
    done, _ = ray.wait(list(pending), num_returns=1)
    parameters = pending.pop(done[0])
    try:
        results.append(ray.get(done[0]))
    except ValueError:
        failed.append(parameters)
loss, best = min(results, key=lambda result: (result[0], result[1]["depth"]))
print(f"best {best} with {loss}; {len(results)} scored, failed {sorted(failed)}")
