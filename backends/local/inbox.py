"""An inbox as a file that any process of a session maps, writes and reads: a ring of messages.

Nobody stands between who sends and who receives. A lock of the file's is held for the microseconds
that a step takes, and goes with the process that holds it; each step writes what it has made
before it says so, so a process that is killed in the middle leaves an inbox that is whole.

The file is a page that says where things are, and behind it a ring whose size is a power of two.
A message's position counts all bytes ever written before it, so it is also its name. Nothing here
waits: who wants to be woken leaves a number with `Inbox.take`, and whoever sends next is told it.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

_PAGE = 4096
_LEAST = 1 << 16  # bytes of a new ring
_ALIGN = 32  # of messages, so that none's head lies on both sides of the ring's end

_SIZE = struct.Struct("<Q")
_TIME = struct.Struct("<d")
# Where each lies in the page. A position is one of 8 bytes, which are written at once.
_OVER, _CAPACITY, _HEAD, _FRESH, _TAIL, _AGAIN, _WATCHING, _SENT = range(0, 64, 8)
_STATE = struct.Struct("<QQQQQdQ")  # all of these
_WATCHERS = 64
_WATCHER = struct.Struct("<QQ")  # its number, and how many must have been sent until it is told
_MOST_WATCHERS = (_PAGE - _WATCHERS) // _WATCHER.size

_MESSAGE = struct.Struct("<IIIIId")  # bytes in the ring, of the note, of the body, billed; state
_DELIVERY = struct.Struct("<Id")  # its end: how often it was delivered, and until when it is away
_DELIVERY_AT = _MESSAGE.size - _DELIVERY.size
_GONE = 0xFFFFFFFF  # deliveries of a message that was acknowledged
_READY = 0.0
_EVER = (1 << 64) - 1  # more messages than are ever sent


class Posted(NamedTuple):
    """A message as it is written: its billed bytes, its body, and a note for who removes it."""

    billed: int
    body: bytes
    note: bytes = b""


class Taken(NamedTuple):
    """A message as it is read; `receipt` acknowledges this delivery of it."""

    receipt: str
    billed: int
    body: bytes
    note: bytes


class Released(Exception):
    """The inbox is nobody's any more."""


class Inbox:
    """One process's view of an inbox; for one thread.

    Parameters
    ----------
    path : of its file; `create` makes it.

    Raises
    ------
    FileNotFoundError
        where there is none.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        # The lock belongs to this opening of the file, which a mapping has too: to close a mapping
        # gives no lock away, as it would with POSIX's own locks.
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(self._fd, 0)
        except BaseException:
            os.close(self._fd)
            raise

    @staticmethod
    def create(path: str) -> None:
        """Make an empty one.

        Raises
        ------
        OSError
            where there is one of this name, or no room.
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _reserve(fd, 0, _PAGE + _LEAST)
            os.pwrite(fd, _STATE.pack(0, _LEAST, 0, 0, 0, math.inf, 0), 0)
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(fd)

    def close(self) -> None:
        """Forget it here; others keep it."""
        self._map.close()
        os.close(self._fd)

    def check(self) -> None:
        """Raise `Released` if it is."""
        if self._map[_OVER]:
            raise Released

    def is_empty(self) -> bool:
        """Whether there is nothing that was not taken: an answer that may be old already."""
        now = self._map
        return now[_FRESH : _FRESH + _SIZE.size] == now[_TAIL : _TAIL + _SIZE.size]

    def put(self, messages: Sequence[Posted]) -> list[int]:
        """Add messages; the numbers of those who are to be woken now.

        Raises
        ------
        Released
            and nothing is added.
        OSError
            where there is no room, and nothing is added.
        """
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            over, capacity, head, _, tail, _, watching = _STATE.unpack_from(self._map)
            if over:
                raise Released
            sizes = [_room(len(each.note) + len(each.body)) for each in messages]
            if tail + sum(sizes) - head > capacity:
                capacity = self._grow(capacity, tail + sum(sizes) - head)
            self._fit(capacity)
            for size, (billed, body, note) in zip(sizes, messages, strict=True):
                at = _PAGE + tail % capacity
                _MESSAGE.pack_into(self._map, at, size, len(note), len(body), billed, 0, _READY)
                self._write(tail + _MESSAGE.size, note + body if note else body, capacity)
                tail += size
            _SIZE.pack_into(self._map, _TAIL, tail)
            sent = self._sent() + len(messages)
            _SIZE.pack_into(self._map, _SENT, sent)
            return self._watchers(watching, sent) if watching else []
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def take(
        self,
        most: int,
        room: int,
        now: float,
        visibility: float,
        watcher: int | None = None,
        enough: int = 1,
    ) -> tuple[list[Taken], float]:
        """Messages that are ready, which others are not given for `visibility` seconds.

        And when those come again that are away; where nothing is ready, the `watcher` is told,
        once, when something is sent.

        Parameters
        ----------
        most, room : how many, and their billed bytes; the first comes however large it is.
        now : seconds of the clock that all processes share.
        enough : how many messages must have been sent for the watcher to be told.

        Raises
        ------
        Released
        """
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            over, capacity, head, fresh, tail, again, watching = _STATE.unpack_from(self._map)
            if over:
                raise Released
            if fresh == tail and again > now:
                if watcher is not None:
                    again = self._watch(watcher, enough, watching, again, now)
                return [], again
            self._fit(capacity)
            if again <= now:
                fresh, again = head, self._come_again(head, tail, now, capacity)
            # Said first: who is killed in between has it looked for too soon, rather than never.
            soonest = min(again, now + visibility) if fresh < tail else again
            _TIME.pack_into(self._map, _AGAIN, soonest)
            taken: list[Taken] = []
            while fresh < tail and len(taken) < most:
                at = _PAGE + fresh % capacity
                size, noted, length, billed, count, away = _MESSAGE.unpack_from(self._map, at)
                if count != _GONE and away == _READY:
                    room -= billed
                    if taken and room < 0:
                        break
                    _DELIVERY.pack_into(self._map, at + _DELIVERY_AT, count + 1, now + visibility)
                    begin = fresh + _MESSAGE.size
                    note = self._read(begin, noted, capacity) if noted else b""
                    body = self._read(begin + noted, length, capacity)
                    taken.append(Taken(f"{fresh}.{count + 1}", billed, body, note))
                fresh += size
            _SIZE.pack_into(self._map, _FRESH, fresh)
            if not taken and watcher is not None:
                soonest = self._watch(watcher, enough, watching, soonest, now)
            return taken, soonest
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def drop(self, receipts: Sequence[str]) -> list[bytes]:
        """Remove delivered messages; the notes of those that had not been removed before."""
        notes: list[bytes] = []
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            over, capacity, head, fresh, tail, _, _ = _STATE.unpack_from(self._map)
            if over:
                return []
            self._fit(capacity)
            for receipt in receipts:
                position, count = map(int, receipt.split("."))
                at = _PAGE + position % capacity
                # Where it is gone already, others may lie there.
                if position < head or count != self._count(at):
                    continue
                notes += self._remove(position, capacity)
            while head < fresh and self._count(_PAGE + head % capacity) == _GONE:
                head += _MESSAGE.unpack_from(self._map, _PAGE + head % capacity)[0]
            _SIZE.pack_into(self._map, _HEAD, head)
            if head == tail:
                _TIME.pack_into(self._map, _AGAIN, math.inf)
            return notes
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def release(self) -> tuple[list[int], list[bytes]]:
        """It is nobody's from now on: who is to be woken, and the notes of what was in it.

        Raises
        ------
        Released
            where it was nobody's before.
        """
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            over, capacity, head, _, tail, _, watching = _STATE.unpack_from(self._map)
            if over:
                raise Released
            self._fit(capacity)
            notes: list[bytes] = []
            while head < tail:
                at = _PAGE + head % capacity
                if self._count(at) != _GONE:
                    notes += self._remove(head, capacity)
                head += _MESSAGE.unpack_from(self._map, at)[0]
            _SIZE.pack_into(self._map, _OVER, 1)
            os.unlink(self._path)
            return self._watchers(watching, _EVER), notes
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def counts(self) -> tuple[int, int]:
        """How many messages are ready, and how many are delivered and not acknowledged."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            _, capacity, head, _, tail, _, _ = _STATE.unpack_from(self._map)
            self._fit(capacity)
            ready = away = 0
            while head < tail:
                at = _PAGE + head % capacity
                size, _, _, _, count, until = _MESSAGE.unpack_from(self._map, at)
                ready += count != _GONE and until == _READY
                away += count != _GONE and until != _READY
                head += size
            return ready, away
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    # Inside, under the lock

    def _watch(self, number: int, enough: int, watching: int, soonest: float, now: float) -> float:
        """Note who is to be told; when to look in any case."""
        for i in range(watching):
            if _WATCHER.unpack_from(self._map, _WATCHERS + _WATCHER.size * i)[0] == number:
                break
        else:
            i = watching
            # Those for whom there is no place look again by and by.
            if i == _MOST_WATCHERS:
                return min(soonest, now + 0.01)
        _WATCHER.pack_into(self._map, _WATCHERS + _WATCHER.size * i, number, self._sent() + enough)
        if i == watching:
            _SIZE.pack_into(self._map, _WATCHING, watching + 1)
        return soonest

    def _watchers(self, watching: int, sent: int) -> list[int]:
        """Who is told now that so many were sent; the others stay."""
        found: list[int] = []
        left = 0
        for i in range(watching):
            number, until = _WATCHER.unpack_from(self._map, _WATCHERS + _WATCHER.size * i)
            if until <= sent:
                found.append(number)
                continue
            if left < i:
                _WATCHER.pack_into(self._map, _WATCHERS + _WATCHER.size * left, number, until)
            left += 1
        _SIZE.pack_into(self._map, _WATCHING, left)
        return found

    def _sent(self) -> int:
        """How many messages were ever put."""
        (sent,) = _SIZE.unpack_from(self._map, _SENT)
        return int(sent)

    def _come_again(self, at: int, tail: int, now: float, capacity: int) -> float:
        """Make overdue messages ready; when the next one is."""
        soonest = math.inf
        while at < tail:
            where = _PAGE + at % capacity
            size, _, _, _, count, away = _MESSAGE.unpack_from(self._map, where)
            if count != _GONE and away != _READY:
                if away <= now:
                    _DELIVERY.pack_into(self._map, where + _DELIVERY_AT, count, _READY)
                else:
                    soonest = min(soonest, away)
            at += size
        return soonest

    def _count(self, at: int) -> int:
        (count, _) = _DELIVERY.unpack_from(self._map, at + _DELIVERY_AT)
        return int(count)

    def _remove(self, position: int, capacity: int) -> list[bytes]:
        """Mark a message as gone; its note, if it has one."""
        at = _PAGE + position % capacity
        noted = _MESSAGE.unpack_from(self._map, at)[1]
        _DELIVERY.pack_into(self._map, at + _DELIVERY_AT, _GONE, _READY)
        return [self._read(position + _MESSAGE.size, noted, capacity)] if noted else []

    def _grow(self, capacity: int, used: int) -> int:
        """Make the ring twice as large until so much is in it."""
        while capacity < used:
            _reserve(self._fd, _PAGE + capacity, capacity)
            self._fit(2 * capacity)
            # Each position is now in one of two places, and both have what was in the one.
            self._map[_PAGE + capacity : _PAGE + 2 * capacity] = self._map[_PAGE : _PAGE + capacity]
            capacity *= 2
            _SIZE.pack_into(self._map, _CAPACITY, capacity)
        return capacity

    def _fit(self, capacity: int) -> None:
        """See all of a ring that somebody has made larger."""
        if len(self._map) < _PAGE + capacity:
            self._map.close()
            self._map = mmap.mmap(self._fd, _PAGE + capacity)

    def _read(self, position: int, length: int, capacity: int) -> bytes:
        begin = position % capacity
        beyond = begin + length - capacity
        if beyond <= 0:
            return self._map[_PAGE + begin : _PAGE + begin + length]
        return self._map[_PAGE + begin : _PAGE + capacity] + self._map[_PAGE : _PAGE + beyond]

    def _write(self, position: int, data: bytes, capacity: int) -> None:
        begin = position % capacity
        beyond = begin + len(data) - capacity
        if beyond <= 0:
            self._map[_PAGE + begin : _PAGE + begin + len(data)] = data
        else:
            fits = len(data) - beyond
            self._map[_PAGE + begin : _PAGE + capacity] = data[:fits]
            self._map[_PAGE : _PAGE + beyond] = data[fits:]


def _room(length: int) -> int:
    """Bytes of the ring that a message with so many bytes behind its head takes."""
    return -(-(_MESSAGE.size + length) // _ALIGN) * _ALIGN


def _reserve(fd: int, at: int, size: int) -> None:
    """Have a file be that long, of pages that are there: to write to others ends the process."""
    while size:
        written = os.pwrite(fd, bytes(min(size, 1 << 20)), at)
        at, size = at + written, size - written
