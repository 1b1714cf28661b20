"""Packing a message's payload so that fewer bytes are billed; lossless."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import zstandard

from fsdray import buffers
from fsdray.collective.frames import Codec, Corrupted
from fsdray.services import BILLING_UNIT, Buffer

LEVEL = 1  # STACK figures: level 1 packs activations as small as others do, several times faster
_TOGETHER = 16  # messages, or more where there are more ranks, that share a request at most
_SAMPLE = 16 * 1024
_WORTH = 0.85  # a sample that keeps more than this is sent as it is


class _Zstd(threading.local):
    """Of each thread: to make one takes longer than to pack a kilobyte with it."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_zstd = _Zstd()


def encode(payload: Sequence[Buffer], ranks: int = 1) -> tuple[Codec, Sequence[Buffer]]:
    """Compress a payload where a sample of it says that this is worth it.

    Parameters
    ----------
    ranks : whose messages may come to one request: if so many of this size are not billed as more
        than one unit, to make this one smaller saves nothing.
    """
    size = buffers.size(payload)
    if size * max(ranks, _TOGETHER) < BILLING_UNIT:
        return Codec.RAW, payload
    compressor = _zstd.compressor
    if size > 4 * _SAMPLE:
        largest = memoryview(max(payload, key=lambda part: memoryview(part).nbytes)).cast("B")
        middle = largest.nbytes // 2
        sample = largest[middle : middle + _SAMPLE]
        if len(compressor.compress(sample)) > _WORTH * sample.nbytes:
            return Codec.RAW, payload
    packed = compressor.compress(b"".join(payload))
    return (Codec.ZSTD, [packed]) if len(packed) < size else (Codec.RAW, payload)


def decode(codec: Codec, payload: Buffer) -> Buffer:
    """The payload as it was; writable where it had to be unpacked."""
    if codec == Codec.RAW:
        return payload
    try:
        return bytearray(_zstd.decompressor.decompress(payload))
    except zstandard.ZstdError as error:
        raise Corrupted(f"a payload that cannot be unpacked: {error}") from error
