"""What crosses between processes comes out as it went in, where it lies, or says why not."""

from __future__ import annotations

import dataclasses
import math
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fsdray import buffers, wire
from fsdray.errors import EnvironmentMismatch, SettingsError
from fsdray.settings import Settings

Array = npt.NDArray[Any]

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary(max_size=100_000)
)
hashables = st.integers() | st.text() | st.booleans() | st.none()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.dictionaries(hashables, inner, max_size=5)
        | st.frozensets(hashables, max_size=5)
    ),
    max_leaves=20,
)
# In this machine's byte order: NumPy itself makes others native when it pickles some arrays.
native = (
    hnp.boolean_dtypes()
    | hnp.integer_dtypes(endianness="=")
    | hnp.unsigned_integer_dtypes(endianness="=")
    | hnp.floating_dtypes(endianness="=")
    | hnp.complex_number_dtypes(endianness="=")
    | hnp.datetime64_dtypes(endianness="=")
    | hnp.timedelta64_dtypes(endianness="=")
    | hnp.byte_string_dtypes(endianness="=", max_len=5)
    | hnp.unicode_string_dtypes(endianness="=", max_len=5)
)
dtypes = native | hnp.array_dtypes(native, max_size=3)


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    """Arrays of any dtype and layout: C, Fortran, transposed, reversed, with gaps, without rows."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    array: Array = draw(hnp.arrays(draw(dtypes), shape, fill=st.nothing()))
    layout = draw(st.sampled_from(["as it is", "fortran", "transposed", "reversed", "gaps"]))
    if layout == "fortran":
        return np.asfortranarray(array)
    if layout == "transposed":
        return array.T
    if layout == "reversed" and array.ndim:
        return array[::-1]
    if layout == "gaps" and array.ndim:
        return array[..., ::2]
    return array


def through(value: Any) -> Any:
    return wire.decode(b"".join(wire.encode(value)))


def aligned(size: int) -> memoryview:
    """Writable memory that starts where a mapping would: at a multiple of 64."""
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw.data[start : start + size]


def placed(value: Any) -> memoryview:
    """The encoded value in writable, aligned memory."""
    data = b"".join(wire.encode(value))
    view = aligned(len(data))
    view[:] = data
    return view


def assert_same(got: Array, sent: Array) -> None:
    assert got.dtype == sent.dtype
    assert got.shape == sent.shape
    assert got.tobytes() == sent.tobytes()


@given(values)
def test_plain_values_come_out_as_they_went_in(value: Any) -> None:
    got = through(value)
    assert got == value
    assert type(got) is type(value)


def test_not_a_number_stays_one() -> None:
    assert math.isnan(through(float("nan")))


@settings(max_examples=60)
@given(arrays())
def test_arrays_of_any_dtype_and_layout_come_out_as_they_went_in(array: Array) -> None:
    assert_same(through(array), array)


@settings(max_examples=30)
@given(arrays())
def test_an_array_whose_like_was_encoded_or_decoded_before_is_the_same(array: Array) -> None:
    wire._starts.clear()
    wire._arrays.clear()
    data = bytearray().join(wire.encode(array))
    assert_same(wire.decode(data), array)
    wire._starts.clear()
    wire._arrays.clear()
    for _ in range(3):  # who receives the first one learns from it
        got = wire.decode(data)
        assert_same(got, array)
        assert got.flags.writeable
        assert got.strides == wire.decode(data).strides
    assert bytearray().join(wire.encode(array)) == data


def test_no_more_kinds_of_arrays_are_remembered_than_are_of_use() -> None:
    for size in range(1, 3000):
        assert wire.decode(b"".join(wire.encode(np.zeros(size, "u1")))).shape == (size,)
        assert len(wire._arrays) == len(wire._starts) <= 1024


@given(st.lists(arrays(), max_size=3), scalars)
def test_arrays_within_values_come_out_as_they_went_in(inner: list[Array], value: Any) -> None:
    got_arrays, got_value = through({"arrays": inner, "value": value}).values()
    assert got_value == value
    for got, sent in zip(got_arrays, inner, strict=True):
        assert_same(got, sent)


TIMES: Any = np.arange(12).astype("M8[s]")
NESTED: Any = np.zeros(300, dtype=[("t", "M8[ns]"), ("s", [("d", "m8[s]", (2,)), ("x", ">f4")])])
NESTED["t"] = np.arange(300)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(5_000)[::2],
        np.arange(5_000.0)[::-1],
        np.broadcast_to(np.float32(2), (400, 5)),
        np.arange(8_000).reshape(20, 20, 20).transpose(1, 0, 2),
        np.arange(3_000).astype("M8[s]"),
        np.asfortranarray(np.arange(1_200).astype("m8[ns]").reshape(30, 40)),
        np.arange(1_200).astype(">M8[s]").reshape(30, 40).T,
        np.arange(3_000).astype("M8[D]")[::3],
        NESTED,
        np.zeros(500, dtype="V20"),
        np.array(["ü" * 100] * 100),
    ],
)
@pytest.mark.parametrize("is_writeable", [True, False])
def test_arrays_are_buffers_and_not_part_of_the_pickle(array: Array, is_writeable: bool) -> None:
    array = array[...]
    if array.flags.writeable:
        array.flags.writeable = is_writeable
    for value in (array, {"in": [array]}):
        head, body, *arrays_ = wire.encode(value)
        assert len(body) < 500
        assert array.nbytes in [memoryview(buffer).nbytes for buffer in arrays_]
        out = wire.decode(bytearray().join([head, body, *arrays_]))
        got = out if value is array else out["in"][0]
        assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes())
        assert got.flags.writeable
        if array.flags.forc:
            assert got.flags.f_contiguous == array.flags.f_contiguous


@pytest.mark.parametrize(
    "array", [TIMES[:0], TIMES[3], np.array(5, "M8[D]"), TIMES[:0].reshape(0, 3)]
)
def test_arrays_of_no_or_one_time_come_out_as_they_went_in(array: Array) -> None:
    got = wire.decode(bytearray().join(wire.encode(array)))
    assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_an_array_of_objects_comes_out_as_it_went_in() -> None:
    array = np.array([{"a": 1}, None, "text"], dtype=object)
    assert through(array).tolist() == array.tolist()


@given(st.lists(st.integers(1, 300), min_size=1, max_size=6), st.text(max_size=100))
def test_every_array_starts_at_a_multiple_of_64_bytes(lengths: list[int], text: str) -> None:
    sent = [np.ones(n, np.uint8) for n in lengths]
    got = wire.decode(placed((text, sent)))[1]
    assert [array.ctypes.data % 64 for array in got] == [0] * len(sent)


def test_a_decoded_array_is_a_view_of_the_bytes() -> None:
    view = placed(np.arange(1000.0))
    array = wire.decode(view)
    assert np.shares_memory(array, np.frombuffer(view, np.uint8))
    array[:] = 7
    assert np.array_equal(wire.decode(view), np.full(1000, 7.0))


def test_an_array_is_writable_where_its_bytes_are() -> None:
    view = placed(np.arange(1000.0))
    assert wire.decode(view).flags.writeable
    read_only = wire.decode(view.toreadonly())
    assert not read_only.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        read_only[0] = 1


def test_encoding_a_large_array_copies_nothing() -> None:
    array = np.arange(100_000.0)
    parts = wire.encode({"in": [array]})
    shared = [p for p in parts if np.shares_memory(np.frombuffer(p, np.uint8), array)]
    assert [memoryview(part).nbytes for part in shared] == [array.nbytes]


def test_a_decoded_array_outlives_the_name_of_its_bytes() -> None:
    array = through(np.arange(1000.0))
    assert np.array_equal(array, np.arange(1000.0))


@given(values)
def test_the_size_is_that_of_the_bytes(value: Any) -> None:
    parts = wire.encode(value)
    assert buffers.size(parts) == len(b"".join(parts))


def test_functions_and_closures_travel_by_value() -> None:
    factor = 3
    assert through(lambda x: x * factor)(14) == 42


@pytest.mark.parametrize(
    ("value", "kind", "reason"),
    [
        (threading.Lock(), "lock", "lock"),
        ({"in": [threading.Lock()]}, "dict", "lock"),
        ((i for i in range(3)), "generator", "generator"),
    ],
)
def test_what_cannot_be_pickled_is_named(value: Any, kind: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=f"a value of type {kind} cannot.*{reason}"):
        wire.encode(value)


class Refuses:
    """Its own __reduce__ raises something of its own."""

    def __reduce__(self) -> Any:
        raise KeyError("from __reduce__")


def test_a_value_whose_own_pickling_fails_is_named() -> None:
    with pytest.raises(SettingsError, match=r"type Refuses cannot.*from __reduce__"):
        wire.encode(Refuses())


def test_an_endlessly_nested_value_is_an_error() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(SettingsError, match="type list cannot"):
        wire.encode(nested)


# Calls


def call() -> wire.Call:
    return wire.Call(
        task="t",
        name="f",
        function=wire.Inline(b"function"),
        arguments=wire.Kept("key", 12),
        holes={0: wire.Inline(b"x"), 1: wire.Kept("other", 3)},
        returns=("t-0",),
        unpack=False,
        memory=1769,
        timeout=1.5,
        settings=Settings(),
        gang=wire.Gang("g", 1, 4, 2, "queue", ("a", "b", "c", "d"), {1: {0: wire.Inline(b"y")}}),
    )


def reply() -> wire.Reply:
    own = wire.RankReply((wire.Inline(b"v"), wire.Kept("k", 2)), {"put": 1.0}, ("w",))
    return wire.Reply({0: own, 3: wire.RankReply(())}, ((1, 2), b"failure"))


@pytest.mark.parametrize(
    ("message", "load"),
    [(call(), wire.load_call), (reply(), wire.load_reply)],
    ids=["call", "reply"],
)
def test_a_message_comes_out_as_it_went_in(
    message: wire.Call | wire.Reply, load: Callable[[Any], Any]
) -> None:
    data = wire.dump(message)
    assert load(data) == message
    assert load(memoryview(bytearray(data))) == message


def test_calls_of_one_function_differ_in_what_is_their_own() -> None:
    first = call()
    changes = {"task": "u", "attempt": 2, "timeout": 9.0, "function": wire.Inline(b"another")}
    for name, value in changes.items():
        other = dataclasses.replace(first, **{name: value})  # type: ignore[arg-type]
        assert wire.load_call(wire.dump(other)) == other != wire.load_call(wire.dump(first))


@pytest.mark.parametrize(
    "theirs",
    [
        "fsdray 0.0.1, Python 3.11, x86_64",
        wire.FINGERPRINT.decode().strip() + "x",
        "fsdray 99.0, Python 3.99, aarch64",
    ],
)
def test_a_message_from_another_environment_says_both_sides(theirs: str) -> None:
    body = wire.dump(call())[len(wire.FINGERPRINT) :]
    with pytest.raises(EnvironmentMismatch) as caught:
        wire.load_call(theirs.encode() + b"\n" + body)
    assert theirs in str(caught.value)
    assert wire.FINGERPRINT.decode().strip() in str(caught.value)
    assert "install the same on both sides" in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\n", b"\xff" * 200, pickle.dumps("something else")])
def test_bytes_that_are_no_message_are_refused_and_never_unpickled(data: bytes) -> None:
    for load in (wire.load_call, wire.load_reply):
        with pytest.raises(EnvironmentMismatch):
            load(data)


def test_the_fingerprint_names_fsdray_python_and_the_architecture() -> None:
    text = wire.FINGERPRINT.decode()
    assert text.startswith("fsdray ")
    assert ", Python 3." in text
    assert text.endswith("\n")
    assert len(text) <= 100, "load looks for it in the first 100 bytes"
