"""An oracle: programs in mpi4py's own words, and what they answer on a real MPI.

`programs` are run as they are under mpi4py (`under_mpi`) and under fsdray
(`tests/collective/test_oracle.py`, `benchmarks/oracle.py`); `answers.json` holds what MPI said.
Only NumPy is imported here: the environment of the real MPI needs nothing of fsdray's.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

SIZES = (1, 2, 3, 5, 8)
_LONGEST = 200


def described(value: Any) -> str:
    """A value as a text that is equal exactly where the values are; floats to ten digits."""
    text = _text(value)
    if len(text) <= _LONGEST:
        return text
    return f"{text[:60]}… {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        data = value.tolist() if value.dtype.hasobject else value.tobytes().hex()
        return f"array({value.dtype.descr}, {value.shape}, {order}, {data})"
    if isinstance(value, float | np.floating):
        return f"{type(value).__name__} {value:.9e}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(k)}: {_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({', '.join(map(_text, value))})"
    if isinstance(value, np.generic):
        return f"{type(value).__name__} {value}"
    return repr(value)
