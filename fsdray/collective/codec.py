"""Packing a message's payload so that fewer bytes are billed; lossless."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import zstandard

from fsdray.collective.frames import Codec, Corrupted
from fsdray.services import Buffer

LEVEL = 1  # STACK figures: level 1 packs activations as small as others do, several times faster
_SMALL = 512  # bytes: below this nothing is billed less for being smaller
_SAMPLE = 16 * 1024
_WORTH = 0.85  # a sample that keeps more than this is sent as it is


class _Zstd(threading.local):
    """Of each thread: to make one takes longer than to pack a kilobyte with it."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_zstd = _Zstd()


def encode(payload: Sequence[Buffer]) -> tuple[Codec, Sequence[Buffer]]:
    """Compress a payload where a sample of it says that this is worth it."""
    size = sum(memoryview(part).nbytes for part in payload)
    if size < _SMALL:
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
