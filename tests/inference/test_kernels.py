"""The fused layer against SciPy in float64, bit for bit, on both of its routes."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fsdray.inference import kernels

sparse = pytest.importorskip("scipy.sparse")
ROUTES = ["scipy", *(["numba"] if kernels.have_numba() else [])]
needs_numba = pytest.mark.skipif(not kernels.have_numba(), reason="numba is not installed")


def random_layer(rng: np.random.Generator, outputs: int, inputs: int, degrees: Any) -> Any:
    """Signed float32 weights with the given number of nonzeros in each row."""
    columns = [np.sort(rng.choice(inputs, d, replace=False)) for d in degrees]
    indptr = np.concatenate([[0], np.cumsum(degrees)]).astype(np.int32)
    indices = np.concatenate([np.zeros(0, np.int64), *columns]).astype(np.int32)
    data = rng.standard_normal(len(indices)).astype(np.float32)
    return sparse.csr_array((data, indices, indptr), shape=(outputs, inputs))


def expected(
    w: Any, y: NDArray[Any], bias: Any, nonzero_bias: bool, relu: bool, clamp: float | None
) -> NDArray[np.float32]:
    """The same layer written with NumPy and SciPy alone."""
    z = w.astype(np.float64) @ y.astype(np.float64)
    shifted = z + np.broadcast_to(np.asarray(bias, np.float64), (w.shape[0],))[:, None]
    z = np.where(z != 0, shifted, z) if nonzero_bias else shifted
    z = np.where(z < 0, 0.0, z) if relu else z
    z = z if clamp is None else np.minimum(z, clamp)
    return np.asarray(z.astype(np.float32))


def call(route: Any, w: Any, y: NDArray[Any], bias: Any = 0.0, **options: Any) -> NDArray[Any]:
    """One layer with plain settings, into an array of its own."""
    plain = {"nonzero_bias": True, "relu": True, "clamp": None}
    out = options.pop("out", None)
    out = np.empty((w.shape[0], y.shape[1]), np.float32) if out is None else out
    settings_ = plain | options
    kernels.fused(w.indptr, w.indices, w.data, y, bias, out=out, route=route, **settings_)
    return out


@pytest.mark.parametrize("route", ROUTES)
@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    degrees=st.lists(st.integers(0, 70), max_size=12),
    width=st.one_of(st.integers(0, 70), st.sampled_from([1023, 1025, 2047, 2048, 2049, 4097])),
    sparsity=st.sampled_from([0.0, 0.5, 0.95]),
    nonzero_bias=st.booleans(),
    one_bias=st.booleans(),
    relu=st.booleans(),
    clamp=st.sampled_from([None, 0.5, 2.0]),
    threads=st.integers(1, 3),
)
def test_a_layer_has_the_bits_of_scipy_in_float64(
    route: Any,
    seed: int,
    degrees: list[int],
    width: int,
    sparsity: float,
    nonzero_bias: bool,
    one_bias: bool,
    relu: bool,
    clamp: float | None,
    threads: int,
) -> None:
    rng = np.random.default_rng(seed)
    outputs, inputs = len(degrees), 80
    w = random_layer(rng, outputs, inputs, degrees)
    y = rng.standard_normal((inputs, width)).astype(np.float32)
    y[:, rng.random(width) < sparsity] = 0
    y[rng.random(y.shape) < sparsity] = 0
    bias = -0.3 if one_bias else rng.standard_normal(outputs)

    out = np.full((outputs + 5, width), np.float32(7))
    rows = rng.permutation(outputs + 5)[:outputs]
    before = rng.random(width) < 0.1
    live = before.copy()
    kernels.fused(
        *(w.indptr, w.indices, w.data, y, bias),
        nonzero_bias=nonzero_bias,
        relu=relu,
        clamp=clamp,
        out=out,
        rows=rows,
        live=live,
        threads=threads,
        route=route,
    )

    right = expected(w, y, bias, nonzero_bias, relu, clamp)
    assert out[rows].tobytes() == right.tobytes()
    assert np.all(np.delete(out, rows, axis=0) == 7), "rows that were not asked for changed"
    assert np.array_equal(live, before | right.any(axis=0))
    if relu:
        assert not np.any(np.signbit(out)), "a negative zero"


@pytest.mark.parametrize("route", ROUTES)
def test_a_split_of_the_rows_changes_no_bit(route: Any) -> None:
    rng = np.random.default_rng(1)
    w = random_layer(rng, 40, 64, rng.integers(0, 64, 40))
    y = rng.standard_normal((64, 33)).astype(np.float32)
    whole = call(route, w, y, -0.3)
    out = np.zeros_like(whole)
    for rank in range(3):
        rows = np.arange(rank, 40, 3)
        call(route, w[rows], y, -0.3, out=out, rows=rows)
    assert out.tobytes() == whole.tobytes()


@pytest.mark.parametrize("route", ROUTES)
def test_a_column_does_not_depend_on_its_neighbours(route: Any) -> None:
    rng = np.random.default_rng(2)
    w = random_layer(rng, 20, 64, rng.integers(0, 64, 20))
    y = rng.standard_normal((64, 77)).astype(np.float32)
    whole = call(route, w, y)
    alone = [call(route, w, np.ascontiguousarray(y[:, [j]])) for j in range(77)]
    assert whole.tobytes() == np.hstack(alone).tobytes()


@pytest.mark.parametrize("route", ROUTES)
def test_infinities_and_nan_are_not_hidden(route: Any) -> None:
    w = sparse.csr_array(np.array([[1, 1], [1, 0], [0, 0]], np.float32))
    y = np.array([[np.inf, np.nan, 3e38], [-np.inf, 1, 3e38]], np.float32)
    live = np.zeros(3, np.uint8)
    out = call(route, w, y, live=live)
    assert np.array_equal(np.isnan(out[0]), [True, True, False])
    assert out[0, 2] == out[1, 0] == np.inf
    assert not out[2].any()
    assert live.tolist() == [1, 1, 1]


@pytest.mark.parametrize("route", ROUTES)
def test_read_only_inputs_and_wide_integers_are_taken(route: Any) -> None:
    rng = np.random.default_rng(3)
    w = random_layer(rng, 9, 20, rng.integers(0, 20, 9))
    y = rng.standard_normal((20, 5)).astype(np.float32)
    right = call(route, w, y)
    wide = sparse.csr_array((w.data, w.indices.astype(np.int64), w.indptr), shape=w.shape)
    for array in (wide.data, wide.indices, wide.indptr, y):
        array.flags.writeable = False
    assert call(route, wide, y).tobytes() == right.tobytes()


@pytest.mark.parametrize("route", ROUTES)
def test_inputs_may_be_unaligned_views_into_a_message(route: Any) -> None:
    w = sparse.csr_array(np.arange(12, dtype=np.float32).reshape(3, 4))
    y = np.arange(20, dtype=np.float32).reshape(4, 5)
    message = b"?" + y.tobytes()
    view = np.frombuffer(message, np.float32, offset=1).reshape(4, 5)
    assert not view.flags.aligned
    assert call(route, w, view).tobytes() == call(route, w, y).tobytes()


@pytest.mark.parametrize("route", ROUTES)
def test_arrays_that_do_not_fit_are_refused(route: Any) -> None:
    w = sparse.csr_array(np.ones((3, 4), np.float32))
    y = np.ones((4, 6), np.float32)
    with pytest.raises(ValueError, match="column index"):
        call(route, w, y[:3])
    with pytest.raises(ValueError, match="row index"):
        call(route, w, y, rows=np.array([0, 1, 3]))
    with pytest.raises(ValueError, match="rows has shape"):
        call(route, w, y, rows=np.array([0, 1]))
    with pytest.raises(ValueError, match="width"):
        call(route, w, y, out=np.empty((3, 5), np.float32))
    with pytest.raises(ValueError, match="width"):
        call(route, w, y, live=np.zeros(5, np.bool_))
    with pytest.raises(ValueError, match="overlaps"):
        call(route, w, y, out=y)
    with pytest.raises(TypeError, match="y must be"):
        call(route, w, y.astype(np.float64))
    with pytest.raises(TypeError, match="y must be"):
        call(route, w, y[:, ::2])
    with pytest.raises(TypeError, match="live"):
        call(route, w, y, live=np.zeros(6))
    with pytest.raises(ValueError, match="unknown kernel route"):
        call("fortran", w, y)


@given(rows=st.integers(0, 5), flags=st.lists(st.booleans(), max_size=40))
def test_expand_undoes_compact(rows: int, flags: list[bool]) -> None:
    live = np.array(flags, np.bool_)
    y = np.arange(1, rows * len(live) + 1, dtype=np.float32).reshape(rows, len(live))
    block = kernels.compact(y, live)
    assert np.array_equal(block, y[:, live])
    assert block.flags.c_contiguous
    assert block.dtype == np.float32
    assert np.array_equal(kernels.expand(block, live), np.where(live, y, 0))
    assert np.array_equal(kernels.compact(y, live.view(np.uint8)), block)


def test_the_module_imports_neither_numba_nor_scipy() -> None:
    source = str(Path(kernels.__file__))
    program = (
        "import runpy, sys; runpy.run_path(sys.argv[1]); "
        "assert not {'numba', 'scipy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program, source], check=True)


@needs_numba
def test_numba_is_loaded_once_scipy_has_taken_as_long() -> None:
    """In a process of its own; `_PATIENCE` is passed by saying so, not by waiting."""
    program = (
        "import sys, numpy as np\n"
        "from fsdray.inference import kernels\n"
        "w = np.array([0, 2]), np.array([0, 1]), np.array([0.1, 0.7], np.float32)\n"
        "y = np.random.default_rng(1).random((2, 9), np.float32)\n"
        "def run():\n"
        "    out = np.empty((1, 9), np.float32)\n"
        "    kernels.fused(*w, y, 0.1, nonzero_bias=False, relu=True, clamp=None, out=out)\n"
        "    return out.tobytes(), 'numba' in sys.modules\n"
        "first, is_loaded = run()\n"
        "assert not is_loaded and 0 < kernels._waited < kernels._PATIENCE\n"
        "kernels._waited = kernels._PATIENCE\n"
        "assert run() == (first, True)\n"
        "kernels._waited = 0.0\n"
        "assert kernels.choose() == 'numba', 'it is there'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@needs_numba
def test_a_processor_that_can_do_less_gives_the_same_bits(tmp_path: Path) -> None:
    """Functions are on whatever processor they are given, with fused multiply-adds or without."""
    rng = np.random.default_rng(4)
    w, y = random_layer(rng, 40, 64, rng.integers(0, 64, 40)), rng.random((64, 1000), np.float32)
    given, made = tmp_path / "given.npz", tmp_path / "made.npy"
    np.savez(given, indptr=w.indptr, indices=w.indices, data=w.data, y=y - np.float32(0.5))
    program = (
        "import sys, numpy as np\n"
        "from fsdray.inference import kernels\n"
        "given = np.load(sys.argv[1])\n"
        "out = np.empty((40, 1000), np.float32)\n"
        "w = given['indptr'], given['indices'], given['data']\n"
        "plain = dict(nonzero_bias=True, relu=False, clamp=None, route='numba')\n"
        "kernels.fused(*w, given['y'], -0.3, out=out, **plain)\n"
        "from numba.core.registry import cpu_target\n"
        "assert 'generic' in cpu_target.target_context.codegen().magic_tuple()\n"
        "np.save(sys.argv[2], out)\n"
    )
    lesser = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program, given, made], env=lesser, check=True)
    here = call("numba", w, y - np.float32(0.5), -0.3, relu=False)
    assert np.load(made).tobytes() == here.tobytes()


WARM = "from fsdray.inference import kernels; kernels.warm(); print(kernels.__file__)"


@needs_numba
def test_many_workers_may_fill_one_cache_at_once(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def worker(_: int) -> int:
        return subprocess.run(
            [sys.executable, "-c", WARM], env=environment, stdout=subprocess.DEVNULL, check=False
        ).returncode

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(worker, range(4))) == [0] * 4
    kept = [p.suffix for p in tmp_path.rglob("*") if p.is_file()]
    assert sorted(kept) == [".nbc", ".nbi"]


@needs_numba
def test_a_worker_with_nowhere_to_write_still_computes(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    everywhere = dict.fromkeys(("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME"), str(blocked))
    program = (
        "import tempfile; tempfile.tempdir = " + repr(str(blocked)) + "; "
        "import numba.core.caching as c; c.CacheImpl._locator_classes = []; " + WARM
    )
    subprocess.run([sys.executable, "-c", program], env=os.environ | everywhere, check=True)


@needs_numba
def test_the_temporary_directory_serves_when_nothing_else_is_writable(tmp_path: Path) -> None:
    program = (
        "import tempfile; tempfile.tempdir = " + repr(str(tmp_path)) + "; "
        "import numba.core.caching as c; "
        "c.CacheImpl._locator_classes = [c.UserProvidedCacheLocator]; " + WARM
    )
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    (own,) = tmp_path.iterdir()
    assert own.name == f"fsdray-numba-{os.getuid()}"
    assert own.stat().st_mode & 0o077 == 0
    assert any(p.suffix == ".nbc" for p in own.rglob("*"))
