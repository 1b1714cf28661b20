"""Bytes that lie in several buffers, as one: where messages are copied, they are copied here."""

from __future__ import annotations

from collections.abc import Sequence

from fsdray.services import Buffer


def size(parts: Sequence[Buffer]) -> int:
    """Bytes of all parts."""
    total = 0
    for part in parts:
        total += len(part) if type(part) is bytes else memoryview(part).nbytes
    return total


def joined(parts: Sequence[Buffer]) -> bytes:
    """Parts one behind the other, to be read; bytes alone are what they are."""
    if len(parts) == 1 and type(parts[0]) is bytes:
        return parts[0]
    return b"".join(parts)


def own(parts: Sequence[Buffer]) -> bytearray:
    """Parts one behind the other, for one reader, who may write them."""
    return bytearray().join(parts)
