"""What is said of a finished inference run: its match with what is known, as text and as JSON.

Pure functions of an `Answer` and what it is compared with. Writing them out, and the exit status
that follows, are the command line's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fsdray.costs.receipt import dollars, number

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_array

    from fsdray.inference import Answer, Model

_SHOWN = 10  # sample numbers named in one line of text; JSON names them all


@dataclass(frozen=True)
class Match:
    """How the categories found differ from those expected: 1-based sample numbers, sorted."""

    expected: int
    missing: tuple[int, ...]
    extra: tuple[int, ...]

    @property
    def exact(self) -> bool:
        """Whether they do not differ."""
        return not self.missing and not self.extra


@dataclass(frozen=True)
class Verification:
    """How a run differs from a serial run of the same.

    Parameters
    ----------
    categories
        Those found, beside the serial run's.
    same_bits
        Whether the last layer's activations are the same to the bit.
    difference
        The largest between two of these activations.
    seconds
        What the serial run took.
    """

    categories: Match
    same_bits: bool
    difference: float
    seconds: float

    @property
    def exact(self) -> bool:
        """Whether nothing differs, not even in a bit."""
        return self.categories.exact and self.same_bits


@dataclass(frozen=True)
class Run:
    """A finished run, with what was asked for and what it was compared with.

    Parameters
    ----------
    answer, model
        What came out, of which network.
    samples
        How many went in.
    backend, partition, seed
        What was asked for; the partition is None for a serial run.
    truth
        The categories beside those known to be true, where they are known.
    serial
        The run beside a serial one, where there was one.
    """

    answer: Answer
    model: Model
    samples: int
    backend: str
    partition: str | None
    seed: int
    truth: Match | None = None
    serial: Verification | None = None

    def to_json(self) -> dict[str, object]:
        """Plain values: what ``fsdray infer --json`` prints. Seconds, bytes and dollars."""
        answer, truth, serial = self.answer, self.truth, self.serial
        return {
            "model": self.model.name,
            "neurons": self.model.inputs,
            "layers": self.model.depth,
            "edges": self.model.edges,
            "samples": self.samples,
            "backend": self.backend,
            "strategy": answer.strategy,
            "workers": answer.workers,
            "relaunched": answer.relaunched,
            "channel": answer.channel,
            "partition": self.partition,
            "seed": self.seed,
            "categories": [int(sample) for sample in answer.categories],
            "match": None if truth is None else truth.exact,
            "missing": None if truth is None else list(truth.missing),
            "extra": None if truth is None else list(truth.extra),
            "verified": None if serial is None else serial.exact,
            "largest_difference": None if serial is None else serial.difference,
            "serial_seconds": None if serial is None else serial.seconds,
            "seconds": answer.seconds,
            "phases": dict(answer.phases),
            "edges_per_second": answer.edges_per_second,
            "rows_sent": answer.rows_sent,
            "messages_sent": answer.messages_sent,
            "bytes_sent": answer.bytes_sent,
            "imbalance": answer.statistics.imbalance,
            "requests": dict(answer.receipt.requests),
            "rank_requests": [dict(rank.requests) for rank in answer.rank_receipts],
            "gb_seconds": answer.receipt.requests.get("gb_seconds", 0.0),
            "cost_usd": answer.receipt.cost_usd,
            "cost_with_transfer_usd": answer.receipt.cost_with_transfer_usd,
        }

    def text(self) -> str:
        """The summary for people, without a line break at the end."""
        answer = self.answer
        rows = [
            ("network", _network(self.model)),
            ("run", self._shape()),
            ("categories", f"{answer.categories.size} of {number(self.samples)} samples"),
        ]
        if self.truth is not None:
            rows.append(("truth", describe(self.truth)))
        if self.serial is not None:
            rows.append(("serial run", _verified(self.serial)))
        if self.partition is not None:
            rows.append(("partition", f"{self.partition}: {_sent(answer)}"))
        rows += [
            *([("relaunched", f"{answer.relaunched} workers")] if answer.relaunched else []),
            ("seconds", _seconds(answer)),
            (
                "rate",
                f"{answer.edges_per_second / 1e9:.3g} billion edges a second",
            ),
            ("cost", f"{dollars(answer.receipt.cost_usd)}, by AWS's prices:"),
        ]
        lines = [f"{name:<12}{words}" for name, words in rows]
        return "\n".join([*lines, *("  " + line for line in answer.receipt.table().splitlines())])

    def faults(self) -> list[str]:
        """What differs from what was expected, a line each; empty for a run that is right."""
        found = []
        if self.truth is not None and not self.truth.exact:
            found.append(f"the categories differ from --truth: {describe(self.truth)}")
        if self.serial is not None and not self.serial.exact:
            found.append(f"the run differs from a serial one: {_verified(self.serial)}")
        return found

    def _shape(self) -> str:
        answer = self.answer
        if answer.strategy == "serial":
            return f"serial, backend {self.backend}"
        workers = "1 worker" if answer.workers == 1 else f"{answer.workers} workers"
        way = f"{answer.strategy}-parallel, {workers}, channel {answer.channel}"
        return f"{way}, backend {self.backend}"


def match(found: NDArray[np.int64], expected: NDArray[np.int64]) -> Match:
    """Compare two sets of sample numbers."""
    have, want = set(found.tolist()), set(expected.tolist())
    return Match(len(want), tuple(sorted(want - have)), tuple(sorted(have - want)))


def verification(answer: Answer, serial: Answer) -> Verification:
    """Compare a run with a serial run of the same model and samples."""
    one, other = answer.activations, serial.activations
    return Verification(
        match(answer.categories, serial.categories),
        same_bits(one, other),
        float(abs(one - other).max()),
        serial.seconds,
    )


def same_bits(one: csr_array, other: csr_array) -> bool:
    """Whether two sparse matrices hold the same bits; a stored zero is as good as none."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    one, other = _canonical(one), _canonical(other)
    return (
        np.array_equal(one.indptr, other.indptr)
        and np.array_equal(one.indices, other.indices)
        and one.data.tobytes() == other.data.tobytes()
    )


def describe(difference: Match) -> str:
    """A match in words: exact, or which sample numbers are missing and which too many."""
    if difference.exact:
        return f"all {difference.expected} categories match"
    parts = [
        f"{len(samples)} {word} (sample {_listed(samples)})"
        for word, samples in (("missing", difference.missing), ("extra", difference.extra))
        if samples
    ]
    return ", ".join(parts)


def _canonical(matrix: csr_array) -> csr_array:
    matrix = matrix.copy()
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def _listed(samples: tuple[int, ...]) -> str:
    shown = ", ".join(str(sample) for sample in samples[:_SHOWN])
    return shown + (", …" if len(samples) > _SHOWN else "")


def _network(model: Model) -> str:
    size = f"{model.depth} layers, {number(model.inputs)} inputs, {number(model.edges)} edges"
    return f"{model.name}: {size}"


def _verified(serial: Verification) -> str:
    took = f"(it took {serial.seconds:.2f} s)"
    if serial.exact:
        return f"same categories, same bits in the last layer {took}"
    if serial.categories.exact:
        most = f"differences of up to {serial.difference:.3g}"
        return f"same categories, but {most} in the last layer {took}"
    return f"{describe(serial.categories)} {took}"


def _sent(answer: Answer) -> str:
    rows, messages = number(answer.rows_sent), number(answer.messages_sent)
    sent = f"{rows} rows sent in {messages} messages, {_size(answer.bytes_sent)}"
    return f"{sent}; imbalance {answer.statistics.imbalance:.3f}"


def _seconds(answer: Answer) -> str:
    phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in answer.phases.items())
    return f"{answer.seconds:.2f} from placement to the last reply ({phases})"


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
