"""Call a function a hundred times, then run one on eight ranks that talk to one another.

Run it with ``python examples/tasks_and_gangs.py``; it needs no account and no server.
"""

import numpy as np

import fsdray as fsd


@fsd.remote(memory=2048, timeout=300)  # MB, seconds
def square(x: int) -> int:
    return x * x


@fsd.remote(world_size=8)  # a gang: eight ranks run this at once
def mean(chunk: np.ndarray) -> float:
    comm = fsd.collective.world()
    return comm.allreduce(chunk.sum()) / comm.allreduce(chunk.size)


def main() -> None:
    fsd.init()
    try:
        squares = fsd.get([square.remote(i) for i in range(100)])
        print(f"the sum of the first hundred squares is {sum(squares)}")

        values = np.random.default_rng(seed=1).normal(loc=5.0, size=1_000_000)
        chunks = np.array_split(values, 8)
        means = fsd.get(mean.remote(fsd.per_rank(chunks)))  # rank r is given chunks[r]
        print(f"every rank says that the mean is {means[0]:.6f}; NumPy says {values.mean():.6f}")
    finally:
        fsd.shutdown()


if __name__ == "__main__":
    main()
