"""How far it is: wait for what is ready, with a timeout, until all is."""

import fsdray as ray

with ray.init(num_cpus=2):

    @ray.remote
    def work(number: int) -> int:
        return sum(i * i for i in range(1000 * number)) % 97

    refs = [work.remote(n) for n in range(40)]
    left, done = list(refs), 0
    while left:
        ready, left = ray.wait(left, num_returns=min(10, len(left)), timeout=5.0)
        assert len(ready) <= 10
        done += len(ready)
        print(f"{done} of {len(refs)} done")
    print("sum", sum(ray.get(refs)))
print("session open:", ray.is_initialized())
