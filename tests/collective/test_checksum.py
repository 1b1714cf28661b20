"""A checksum is that of the bytes, however they are cut, and no damaged bit escapes it."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdray.collective.checksum import checksum
from tests.collective import noise


@given(
    size=st.sampled_from([0, 1, 239, 240, 241, 1000, 65_537, 200_003]),
    cuts=st.lists(st.floats(0, 1), max_size=6),
)
@settings(max_examples=60)
def test_it_does_not_depend_on_how_a_payload_is_cut(size: int, cuts: list[float]) -> None:
    payload = bytes(noise(size))
    places = [0, *sorted(int(cut * size) for cut in cuts), size]
    parts = [payload[a:b] for a, b in itertools.pairwise(places)]
    assert checksum([b"head", *parts]) == checksum([b"head" + payload])
    assert checksum([b"Head", *parts]) != checksum([b"head", payload])


@pytest.mark.parametrize("size", [100, 1000, 65_541])
def test_a_flipped_bit_or_a_lost_byte_changes_it(size: int) -> None:
    payload = bytearray(noise(size))
    right = checksum([payload])
    draw = random.Random(size)
    for at in (0, size - 1, *draw.sample(range(size), 20)):
        bit = 1 << draw.randrange(8)
        payload[at] ^= bit
        assert checksum([payload]) != right
        payload[at] ^= bit
    assert checksum([payload]) == right
    assert checksum([payload[:-1]]) != right
