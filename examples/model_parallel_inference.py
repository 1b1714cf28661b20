"""Run a network on eight workers that each hold an eighth of it, and check the answer.

Run it with ``python examples/model_parallel_inference.py``; it needs ``fsdray[inference]``, no
account and no server. It is what ``fsdray infer --model radixnet:1024 --inputs digits:1000
--workers 8 --verify`` does.
"""

import numpy as np

import fsdray as fsd
from fsdray.observe.progress import live


def main() -> None:
    model = fsd.inference.radixnet(1024, layers=120)  # or fsd.inference.load(path)
    samples = fsd.inference.digits(1000, model.inputs)  # or fsd.inference.load_samples(path, …)
    print(f"{model.name}: {model.edges:,} edges; {samples.shape[0]} handwritten digits")

    fsd.init()
    try:
        with live() as progress:  # a bar on a terminal, nothing in a pipe
            answer = fsd.inference.run(
                model,
                samples,
                workers=8,
                channel="queue",  # or "object"
                partition="hypergraph",  # each worker owns some neurons of every layer
                progress=progress,
            )
        serial = fsd.inference.run(model, samples, strategy="serial")
    finally:
        fsd.shutdown()

    same = np.array_equal(answer.activations.toarray(), serial.activations.toarray())
    print(f"{answer.categories.size} samples end in a category: {answer.categories[:8]} …")
    print(f"the serial run's activations are {'the same' if same else 'different'}")
    print(f"{answer.seconds:.2f} s on {answer.workers} workers, {serial.seconds:.2f} s on one")
    print(f"{answer.rows_sent:,} rows sent in {answer.messages_sent:,} messages")
    print(answer.receipt)  # what AWS bills for these requests
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
