"""Packing loses nothing, and is left alone where it would not pay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdray.collective import codec
from fsdray.collective.frames import Codec, Corrupted
from tests.collective import noise


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=4), st.integers(1, 200))
@settings(max_examples=100)
def test_what_is_packed_is_unpacked_to_the_same_bytes(parts: list[bytes], repeat: int) -> None:
    payload = [part * repeat for part in parts]
    kind, packed = codec.encode(payload)
    whole = b"".join(packed)
    assert len(whole) <= sum(map(len, payload))
    assert bytes(codec.decode(kind, whole)) == b"".join(payload)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 65_536, 65_537, 300_000])
def test_zeros_and_noise_of_any_size_come_back(size: int) -> None:
    for data in (bytes(size), noise(size).tobytes()):
        kind, packed = codec.encode([data[: size // 3], data[size // 3 :]])
        assert bytes(codec.decode(kind, b"".join(packed))) == data


def test_what_compresses_well_is_sent_smaller() -> None:
    activations = np.zeros(100_000, np.float32)
    activations[::7] = 32
    kind, packed = codec.encode([activations.data])
    assert kind == Codec.ZSTD
    assert sum(map(len, packed)) < activations.nbytes / 10


def test_noise_and_small_payloads_are_sent_as_they_are_without_a_copy() -> None:
    for payload in ([b"a" * 4000], [b"head", noise(1_000_000).data], [noise(9000).data]):
        kind, packed = codec.encode(payload)
        assert kind == Codec.RAW
        assert packed is payload


@pytest.mark.parametrize(("ranks", "least"), [(1, 4096), (16, 4096), (64, 1024), (1000, 66)])
def test_what_all_send_is_packed_from_where_it_is_billed_as_more_than_one(
    ranks: int, least: int
) -> None:
    assert codec.encode([bytes(least - 1)], ranks)[0] == Codec.RAW
    assert codec.encode([bytes(least)], ranks)[0] == Codec.ZSTD


def test_what_was_unpacked_can_be_written() -> None:
    kind, (packed,) = codec.encode([bytes(10_000)])
    assert not memoryview(codec.decode(kind, packed)).readonly


def test_what_cannot_be_unpacked_is_corrupted() -> None:
    with pytest.raises(Corrupted, match="unpacked"):
        codec.decode(Codec.ZSTD, b"this was never compressed")
