"""The arithmetic of one layer: sparse weights times a dense block of samples, and what follows.

Multiply, bias, activation and clamp are one pass over the output, compiled by numba, or SciPy's
four, with the same bits: where numba is not installed, and until it is worth loading (`choose`).
What a layer is, who owns which row, and what travels between ranks are elsewhere (`model`,
`partition`, `engine`).

Bits: every sum starts at 0.0 and adds its row's nonzeros one by one in stored order (ascending
columns in a sorted CSR matrix), in float64. A product of two float32 is exact in float64, so a
fused multiply-add rounds exactly as a multiply and an add do, and a sum does not depend on the
route, the processor, the number of columns beside it, or the number of workers.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import stat
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Route", "choose", "compact", "expand", "fused", "have_numba", "warm"]

Route = Literal["auto", "numba", "scipy"]
Array = NDArray[Any]

# Columns that one pass over the rows takes: wide, so that an input row is read as one long stream,
# which the hardware prefetches; the float64 sums of one row (16 KiB) still fit the first cache.
# Narrower blocks, whose inputs would fit a nearer cache, were slower from N = 1024 to 16384.
_BLOCK = 2048

# Seconds of SciPy's route that a process takes before it loads numba. Loading takes 0.4 to 0.7 s
# with the kernel in numba's cache, and 3 to 5 s in a fresh function, which fetches and may compile
# first (docs/aws.md): short work is over before. Whoever rents until the rent comes to the price
# pays at most twice what was best (Karlin et al., "Competitive snoopy caching", 1988).
_PATIENCE = 0.5
_waited = 0.0  # seconds of it that this process took so far


def have_numba() -> bool:
    """Whether numba is installed. Does not import it."""
    return importlib.util.find_spec("numba") is not None


def choose(route: Route = "auto") -> Literal["numba", "scipy"]:
    """The route a call takes: the only place where that is decided.

    ``auto`` is SciPy's at first in each process, then numba's if it is installed. The bits do not
    depend on it.

    Raises
    ------
    ValueError
        If `route` is not one of ``auto``, ``numba``, ``scipy``.
    """
    if route == "auto":
        is_worth = _waited >= _PATIENCE or _compiled.cache_info().currsize > 0
        return "numba" if is_worth and have_numba() else "scipy"
    if route not in ("numba", "scipy"):
        raise ValueError(f"unknown kernel route {route!r}: use 'auto', 'numba' or 'scipy'")
    return route


def warm() -> None:
    """Import numba and load (or compile, the first time on a machine) the kernel, where it can be.

    Without it the process does so once it has computed for a while.
    """
    if have_numba():
        _compiled()


def fused(
    indptr: Array,
    indices: Array,
    data: Array,
    y: NDArray[np.float32],
    bias: float | Array,
    *,
    nonzero_bias: bool,
    relu: bool,
    clamp: float | None,
    out: NDArray[np.float32],
    rows: Array | None = None,
    live: NDArray[np.uint8] | NDArray[np.bool_] | None = None,
    threads: int = 1,
    route: Route = "auto",
) -> None:
    """Write ``clamp(relu(W @ y + bias))`` into `out`, row i of W into row ``rows[i]``.

    The interpreter lock is released while it runs.

    Parameters
    ----------
    indptr, indices, data
        W in CSR form, outputs × inputs: integers (outputs + 1,), integers and float32 (nonzeros,),
        sorted within each row. int64, int32 and float32 are taken without a copy.
    y
        float32 (inputs, width), C-contiguous: one column a sample.
    bias
        A number or float64 (outputs,), added in float64.
    nonzero_bias
        Add the bias only where the sum is not zero (the Graph Challenge's rule), else everywhere.
    relu
        Replace negatives by +0.0. NaN stays NaN.
    clamp
        Upper bound of the result, or None.
    out
        float32 (m, width), C-contiguous, apart from `y`. Rows that are not in `rows` are left.
    rows
        Integers (outputs,), distinct, or None for ``0, 1, …, outputs - 1``.
    live
        bool or uint8 (width,): made true where a written value of that column is not zero.
    threads
        Threads among which the rows are split. The bits do not depend on it.
    route
        ``auto`` as `choose` says; the others are for tests and benchmarks.

    Raises
    ------
    ValueError
        If shapes do not fit, an index is out of range, or `out` overlaps `y`.
    TypeError
        If `y` or `out` is not float32 and C-contiguous, or `live` not bool or uint8.
    """
    global _waited
    outputs = len(indptr) - 1
    rows = np.arange(outputs) if rows is None else np.ascontiguousarray(rows, np.int64)
    live = np.zeros(y.shape[-1], np.uint8) if live is None else live
    _check(indptr, indices, data, y, out, rows, live)
    biases = np.ascontiguousarray(np.broadcast_to(np.asarray(bias, np.float64), (outputs,)))
    flags = (bool(nonzero_bias), bool(relu), np.inf if clamp is None else float(clamp))
    if outputs == 0 or y.shape[1] == 0:
        return
    if choose(route) == "scipy":
        from scipy.sparse import csr_array

        began = time.perf_counter()
        shape = (outputs, y.shape[0])
        weights = csr_array((np.asarray(data, np.float64), indices, indptr), shape=shape)
        out[rows] = result = _fused_scipy(weights, y, biases, *flags)
        np.logical_or(live, result.any(axis=0), out=live, casting="unsafe")
        _waited += time.perf_counter() - began
        return

    kernel = _compiled()
    # No copies, except of what is of another type or not aligned (a view into a message's bytes).
    starts = np.require(indptr, np.int64, ("C", "A"))
    columns = np.require(indices, np.int32, ("C", "A"))
    values = np.require(data, np.float32, ("C", "A"))
    y = np.require(y, np.float32, ("C", "A"))

    def part(first: int, last: int) -> NDArray[np.uint8]:
        seen = np.zeros(y.shape[1], np.uint8)
        kernel(starts, columns, values, y, biases, *flags, out, rows, seen, first, last)
        return seen

    # Parts of equal work. A pool costs 0.1 ms a call; one that is kept would not survive a fork.
    cuts = np.searchsorted(starts, np.linspace(0, starts[-1], max(1, threads) + 1)[1:-1])
    bounds = [0, *cuts.tolist(), outputs]
    if len(bounds) == 2:
        parts = [part(0, outputs)]
    else:
        with ThreadPoolExecutor(len(bounds) - 1) as pool:
            parts = list(pool.map(part, bounds[:-1], bounds[1:]))
    for seen in parts:
        np.logical_or(live, seen, out=live, casting="unsafe")


def compact(y: NDArray[np.float32], live: Array) -> NDArray[np.float32]:
    """The live columns of `y`: ``y[:, live]``, C-contiguous; `y` itself if all are live.

    Parameters
    ----------
    y
        float32 (rows, width).
    live
        bool or uint8 (width,).
    """
    return y if np.all(live) else np.compress(live, y, axis=1)


def expand(y: NDArray[np.float32], live: Array) -> NDArray[np.float32]:
    """Undo `compact`: float32 (rows, len(live)), zero in the columns that are not live.

    Raises
    ------
    ValueError
        If `y` does not have as many columns as `live` has true entries.
    """
    full = np.zeros((y.shape[0], len(live)), np.float32)
    full[:, np.asarray(live, np.bool_)] = y
    return full


def _check(
    indptr: Array, indices: Array, data: Array, y: Array, out: Array, rows: Array, live: Array
) -> None:
    """Compiled code checks no bounds, so everything that could reach outside is refused here."""
    for name, block in (("y", y), ("out", out)):
        if block.dtype != np.float32 or block.ndim != 2 or not block.flags.c_contiguous:
            raise TypeError(f"{name} must be a C-contiguous float32 matrix")
    if live.dtype not in (np.bool_, np.uint8):
        raise TypeError(f"live must be bool or uint8, not {live.dtype}")
    if out.shape[1] != y.shape[1] or live.shape != (y.shape[1],):
        raise ValueError(f"y {y.shape}, out {out.shape} and live {live.shape} differ in width")
    if not len(indices) == len(data) == indptr[-1] or indptr[0] != 0 or np.any(np.diff(indptr) < 0):
        raise ValueError("indptr, indices and data are not a CSR matrix")
    if rows.shape != (len(indptr) - 1,):
        raise ValueError(f"rows has shape {rows.shape}, W has {len(indptr) - 1} rows")
    for name, index, limit in (("column", indices, y.shape[0]), ("row", rows, out.shape[0])):
        if len(index) and not 0 <= index.min() <= index.max() < limit:
            raise ValueError(f"a {name} index is outside 0..{limit - 1}")
    if np.may_share_memory(y, out):
        raise ValueError("out overlaps y: give an array of its own")


def _fused_scipy(
    weights: Any, y: Array, bias: Array, nonzero_bias: bool, relu: bool, clamp: float
) -> Array:
    """`fused` in four passes; `weights` is a float64 csr_array. Returns float32."""
    with np.errstate(over="ignore", invalid="ignore"):  # compiled code does not warn either
        z = weights @ y.astype(np.float64)
        np.add(z, bias[:, None], out=z, where=z != 0.0 if nonzero_bias else True)
        if relu:
            z[z < 0.0] = 0.0
        z[z > clamp] = clamp
        result: Array = z.astype(np.float32)
    return result


def _fused_rows(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.float32],
    y: NDArray[np.float32],
    bias: NDArray[np.float64],
    nonzero_bias: bool,
    relu: bool,
    clamp: float,
    out: NDArray[np.float32],
    rows: NDArray[np.int64],
    live: NDArray[np.uint8],
    first: int,
    last: int,
) -> None:
    """Rows first..last-1 of `fused`; compiled by `_compiled`, never run as Python."""
    # The sums of one row stay in the first cache. Eight inputs are added at a time, since then
    # the sums are loaded and stored an eighth as often, and the eight pointers and weights still
    # fit in registers (sixteen do not).
    sums = np.empty(_BLOCK, np.float64)
    for left in range(0, y.shape[1], _BLOCK):
        right = min(left + _BLOCK, y.shape[1])
        width = right - left
        for i in range(first, last):
            sums[:width] = 0.0
            k, stop = indptr[i], indptr[i + 1]
            while k + 8 <= stop:
                y0, w0 = y[indices[k], left:right], np.float64(data[k])
                y1, w1 = y[indices[k + 1], left:right], np.float64(data[k + 1])
                y2, w2 = y[indices[k + 2], left:right], np.float64(data[k + 2])
                y3, w3 = y[indices[k + 3], left:right], np.float64(data[k + 3])
                y4, w4 = y[indices[k + 4], left:right], np.float64(data[k + 4])
                y5, w5 = y[indices[k + 5], left:right], np.float64(data[k + 5])
                y6, w6 = y[indices[k + 6], left:right], np.float64(data[k + 6])
                y7, w7 = y[indices[k + 7], left:right], np.float64(data[k + 7])
                for j in range(width):
                    z = sums[j] + w0 * y0[j] + w1 * y1[j] + w2 * y2[j] + w3 * y3[j]
                    sums[j] = z + w4 * y4[j] + w5 * y5[j] + w6 * y6[j] + w7 * y7[j]
                k += 8
            while k < stop:
                y0, w0 = y[indices[k], left:right], np.float64(data[k])
                for j in range(width):
                    sums[j] += w0 * y0[j]
                k += 1
            row, b = out[rows[i], left:right], bias[i]
            alive = live[left:right]
            for j in range(width):
                z = sums[j]
                if not nonzero_bias or z != 0.0:
                    z += b
                # A sum that starts at +0.0 is never -0.0, so neither is what relu leaves.
                if relu and z < 0.0:
                    z = 0.0
                if z > clamp:
                    z = clamp
                value = np.float32(z)
                row[j] = value
                alive[j] |= value != 0.0


@functools.cache
def _compiled() -> Callable[..., None]:
    """The machine code of `_fused_rows`, from numba's cache or compiled into it.

    One explicit signature with read-only inputs takes writable and shared-memory arrays alike,
    so nothing is ever compiled a second time. Writers of the cache replace whole files, so many
    workers may start at once.
    """
    import numba
    from numba import types

    def read(dtype: Any, ndim: int = 1) -> Any:
        return types.Array(dtype, ndim, "C", readonly=True)

    signature = types.void(
        *(read(types.int64), read(types.int32), read(types.float32), read(types.float32, 2)),
        *(read(types.float64), types.boolean, types.boolean, types.float64),
        *(types.float32[:, ::1], read(types.int64), types.uint8[::1]),
        *(types.int64, types.int64),
    )
    # "contract" allows fused multiply-adds, which are exact here, and no reordering.
    njit: Any = functools.partial(numba.njit, signature, nogil=True, fastmath={"contract"})
    config: Any = numba.config
    configured = config.CACHE_DIR
    for directory in (configured, _own_cache()):
        config.CACHE_DIR = directory
        try:
            return njit(cache=True)(_fused_rows)  # type: ignore[no-any-return]
        except (RuntimeError, OSError):  # numba finds no place that it may write to; a full disk
            continue
        finally:
            config.CACHE_DIR = configured
    return njit()(_fused_rows)  # type: ignore[no-any-return]


def _own_cache() -> str:
    """A directory under the temporary one, for where neither package nor home is writable.

    Cached code is run, so a directory that somebody else could have filled is not used.
    """
    path = os.path.join(tempfile.gettempdir(), f"fsdray-numba-{os.getuid()}")
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        found = os.lstat(path)
    except OSError:
        return os.devnull  # not a directory: numba finds it unusable, and the code is not kept
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    return path if private and found.st_uid == os.getuid() else os.devnull
