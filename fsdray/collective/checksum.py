"""A frame's checksum: CRC-32 of what is small, and of a sum over what is large.

A CRC-32 takes longer than all else that is done to a large array (zlib: 1 to 2 GB/s); a sum and an
exclusive or of its 64-bit words run as fast as it is read, and no flipped bit or byte escapes them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from fsdray.services import KIB, Buffer

LARGE = 64 * KIB
"""Bytes of a payload from which its words are added up."""

_WORD = 8
_SUMS = struct.Struct("<QQ")


def checksum(head: Buffer, payload: Sequence[Buffer]) -> int:
    """32 bits of a head and of a payload, which may be in pieces anyhow."""
    sofar = zlib.crc32(head)
    if sum(memoryview(part).nbytes for part in payload) >= LARGE:
        return zlib.crc32(_sums(payload), sofar)
    for part in payload:
        sofar = zlib.crc32(part, sofar)
    return sofar


def _sums(payload: Sequence[Buffer]) -> bytes:
    """The sum, modulo 2^64, and the exclusive or of the payload's words, zeros put behind it."""
    import numpy as np  # only who sends arrays waits for it

    total = either = 0
    rest = b""  # less than a word, of what went before
    for part in payload:
        view = memoryview(part).cast("B")
        if rest:
            missing = _WORD - len(rest)
            rest, view = rest + bytes(view[:missing]), view[missing:]
            if len(rest) < _WORD:
                continue
            word = int.from_bytes(rest, "little")
            total, either = total + word, either ^ word
        whole = view.nbytes // _WORD * _WORD
        words = np.frombuffer(view[:whole], "<u8")
        total += int(np.add.reduce(words))
        either ^= int(np.bitwise_xor.reduce(words))
        rest = bytes(view[whole:])
    word = int.from_bytes(rest, "little")
    return _SUMS.pack((total + word) % 2**64, either ^ word)
