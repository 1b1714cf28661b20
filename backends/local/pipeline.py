"""Calls and their replies between the driver and one worker, over a socket of their own.

Several calls may be on their way to a worker; it runs them in their order and replies to each
before it begins the next, so that its death leaves no doubt which of them never began. What it has
not begun it gives back when asked. Which call goes to which worker is decided in `pool`.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from typing import cast

_CALL = struct.Struct("<QQd")  # number, bytes of the payload, timeout
_REPLY = struct.Struct("<QQd?")  # number, bytes of the reply, seconds that it took, is_spent
_READ = 256 * 1024


class CallsLost(ConnectionError):
    """The other end is gone."""


class Intake:
    """The worker's end. `next` is for its main thread alone, the rest for any."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._ready = select.poll()
        self._ready.register(sock, select.POLLIN)
        self._lock = threading.Lock()  # of what is read and not begun
        self._sending = threading.Lock()
        self._received = bytearray()
        self._calls: deque[tuple[int, float, bytes]] = deque()
        self._is_spent = False
        self.running = 0  # the number of the call that this process runs, or ran last

    def next(self) -> tuple[int, float, bytes]:
        """The next call, once there is one: its number, timeout and payload.

        Raises
        ------
        CallsLost
            where the driver is gone.
        """
        while True:
            with self._lock:
                if not self._calls or self._is_spent:
                    self._read()
                if self._calls and not self._is_spent:
                    call = self._calls.popleft()
                    self.running = call[0]
                    return call
            self._ready.poll()

    def give_back(self) -> list[int]:
        """Numbers of the calls that were not begun, and now never will be."""
        with self._lock:
            self._read()
            unbegun = [number for number, _, _ in self._calls]
            self._calls.clear()
        return unbegun

    def reply(self, number: int, reply: bytes, seconds: float, is_spent: bool) -> None:
        """Send a call's reply; a driver that is gone needs none.

        A process that says it is spent begins nothing more.
        """
        if is_spent:
            with self._lock:
                self._is_spent = True
        left = memoryview(_REPLY.pack(number, len(reply), seconds, is_spent) + reply)
        with self._sending:
            while left:
                try:
                    left = left[self._socket.send(left) :]
                except BlockingIOError:
                    select.select([], [self._socket], [])
                except (BrokenPipeError, ConnectionResetError):
                    return

    def _read(self) -> None:
        received = self._received
        while True:
            try:
                data = self._socket.recv(_READ)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            if not data:
                raise CallsLost("the driver is gone")
            received += data
            if len(data) < _READ:
                break
        at = 0
        while len(received) - at >= _CALL.size:
            number, length, timeout = _CALL.unpack_from(received, at)
            end = at + _CALL.size + length
            if len(received) < end:
                break
            self._calls.append((number, timeout, bytes(received[at + _CALL.size : end])))
            at = end
        if at:
            del received[:at]


class Calls(asyncio.Protocol):
    """The driver's end, on the loop.

    Parameters
    ----------
    arriving : called when something came, before any of it is looked at.
    replied : told of each reply: number, bytes, seconds, and whether the process is spent.
    drained : called when all replies that had come together were told.
    lost : called once, when the worker is gone.
    """

    def __init__(
        self,
        arriving: Callable[[], None],
        replied: Callable[[int, bytes, float, bool], None],
        drained: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        self._arriving = arriving
        self._replied = replied
        self._drained = drained
        self._lost = lost
        self._received = bytearray()
        self._outgoing: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def over(
        cls,
        sock: socket.socket,
        arriving: Callable[[], None],
        replied: Callable[[int, bytes, float, bool], None],
        drained: Callable[[], None],
        lost: Callable[[], None],
    ) -> Calls:
        """The end at a connected socket, on the running loop."""
        sock.setblocking(False)
        _, calls = await asyncio.get_running_loop().create_unix_connection(
            lambda: cls(arriving, replied, drained, lost), sock=sock
        )
        return calls

    def send(self, number: int, payload: bytes, timeout: float) -> None:
        """Hand a call over; several in one turn of the loop are one write."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._write)
        self._outgoing += (_CALL.pack(number, len(payload), timeout), payload)

    def close(self) -> None:
        """Close this end; a worker without it ends."""
        if self._transport is not None:
            self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # What is queued here is in memory already.
        self._transport.set_write_buffer_limits(high=1 << 30)

    def data_received(self, data: bytes) -> None:
        self._arriving()
        received = self._received
        received += data
        at = 0
        while len(received) - at >= _REPLY.size:
            number, length, seconds, is_spent = _REPLY.unpack_from(received, at)
            end = at + _REPLY.size + length
            if len(received) < end:
                break
            self._replied(number, bytes(received[at + _REPLY.size : end]), seconds, is_spent)
            at = end
        if at:
            del received[:at]
            self._drained()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()

    def _write(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if outgoing and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(outgoing))
