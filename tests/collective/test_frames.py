"""Frames come out as they went in, or are refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdray.collective.frames import (
    Codec,
    Corrupted,
    Frame,
    Operation,
    head_size,
    operation_in,
    overhead,
    pack,
    pack_parts,
    split,
    unpack,
)

UINT32 = st.integers(0, 2**32 - 1)
FRAMES = st.builds(
    Frame,
    epoch=st.binary(min_size=16, max_size=16),
    operation=st.sampled_from(Operation),
    codec=st.sampled_from(Codec),
    communicator=UINT32,
    number=st.integers(0, 2**64 - 1),
    source=UINT32,
    destinations=st.lists(UINT32, max_size=12).map(tuple),
    tag=st.integers(0, 2**63 - 1),
    part=UINT32,
    parts=UINT32,
    payload=st.binary(max_size=300),
    incarnation=st.integers(0, 255),
    is_pointer=st.booleans(),
)


@given(FRAMES)
@settings(max_examples=100)
def test_a_frame_comes_out_as_it_went_in(frame: Frame) -> None:
    data = pack(frame)
    assert len(data) == overhead(len(frame.destinations)) + len(frame.payload)
    assert unpack(data) == frame
    assert unpack(memoryview(bytearray(data))) == frame


@given(FRAMES, st.data())
@settings(max_examples=100)
def test_any_flipped_bit_is_refused(frame: Frame, data: st.DataObject) -> None:
    packed = bytearray(pack(frame))
    bit = data.draw(st.integers(0, 8 * len(packed) - 1))
    packed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Corrupted):
        unpack(packed)


def test_every_flipped_bit_of_one_frame_is_refused() -> None:
    frame = Frame(bytes(range(16)), Operation.SCATTER, Codec.ZSTD, 0, 7, 3, (1, 2), 5, 0, 1, b"abc")
    packed = bytearray(pack(frame))
    for bit in range(8 * len(packed)):
        packed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupted):
            unpack(packed)
        packed[bit // 8] ^= 1 << bit % 8
    assert unpack(packed) == frame


@given(FRAMES, st.data())
@settings(max_examples=100)
def test_a_frame_cut_short_or_with_more_behind_it_is_refused(
    frame: Frame, data: st.DataObject
) -> None:
    packed = pack(frame)
    with pytest.raises(Corrupted):
        unpack(packed[: data.draw(st.integers(0, len(packed) - 1))])
    with pytest.raises(Corrupted):
        unpack(packed + data.draw(st.binary(min_size=1, max_size=20)))


@given(st.binary(max_size=200))
@settings(max_examples=100)
def test_other_bytes_are_no_frame(data: bytes) -> None:
    with pytest.raises(Corrupted):
        unpack(data)


@given(FRAMES, st.lists(st.binary(max_size=50), max_size=5))
@settings(max_examples=50)
def test_a_payload_in_several_buffers_makes_the_same_frame(
    frame: Frame, buffers: list[bytes]
) -> None:
    whole = unpack(b"".join(pack_parts(frame, buffers)))
    assert bytes(whole.payload) == b"".join(buffers)
    assert whole.key == frame.key


@given(FRAMES)
@settings(max_examples=50)
def test_the_operation_can_be_read_from_a_frames_start(frame: Frame) -> None:
    packed = pack(frame)
    assert operation_in(packed) == frame.operation
    assert operation_in(packed[: head_size(0)]) == frame.operation
    assert operation_in(packed[: head_size(0) - 1]) is None


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4), st.integers(1, 40))
@settings(max_examples=100)
def test_a_split_payload_has_all_its_bytes_in_full_pieces(payload: list[bytes], limit: int) -> None:
    pieces = split(payload, limit)
    assert b"".join(pieces) == b"".join(payload)
    assert all(len(piece) == limit for piece in pieces[:-1])
    assert len(pieces[-1]) <= limit
    assert len(pieces) == max(1, -(-sum(map(len, payload)) // limit))


def test_sends_and_collectives_of_one_number_have_two_keys() -> None:
    send, bcast = (
        Frame(bytes(16), operation, Codec.RAW, 0, 4, 1, (0,), 0, 0, 1, b"")
        for operation in (Operation.SEND, Operation.BCAST)
    )
    assert send.key != bcast.key
