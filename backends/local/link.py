"""Requests and replies between two processes of one session, over one socket, both ways.

A frame is a length and a pickled tuple; the socket is one end of a private pair handed down by
the driver, so both ends trust each other. Nothing here knows what the requests mean.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from collections.abc import Callable, Mapping
from inspect import iscoroutinefunction
from typing import Any, cast

_LENGTH = struct.Struct("<Q")
_REQUEST, _TELL, _OK, _ERROR, _CANCEL = range(5)

Handler = Callable[..., Any]
"""Serves a request: a coroutine function, or a plain one that returns its value."""


class LinkLost(ConnectionError):
    """The other process is gone, or the link was closed."""


class Link(asyncio.Protocol):
    """One end. Requests that wait when the link is lost fail with `LinkLost`.

    Parameters
    ----------
    handlers : by request name; an exception they raise is raised by the other end's `request`,
        so it must pickle. Plain ones are called where the request is read: they take no time.
    lost : called once, when the other end is gone.
    """

    def __init__(
        self, handlers: Mapping[str, Handler], lost: Callable[[], None] = lambda: None
    ) -> None:
        self._handlers = handlers
        self._coroutines = {name for name, each in handlers.items() if iscoroutinefunction(each)}
        self._on_lost = lost
        self._next = 0
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._received = bytearray()
        self._outgoing: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self.is_lost = False

    @classmethod
    async def over(
        cls,
        sock: socket.socket,
        handlers: Mapping[str, Handler],
        lost: Callable[[], None] = lambda: None,
    ) -> Link:
        """A link over a connected socket, on the running loop."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        _, link = await loop.create_unix_connection(lambda: cls(handlers, lost), sock=sock)
        return link

    async def request(self, name: str, *args: Any) -> Any:
        """Run handler `name` at the other end and return, or raise, what it does.

        Cancelling this cancels the handler too.
        """
        if self.is_lost:
            raise LinkLost("the other process is gone")
        self._next += 1
        number = self._next
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            self._send(_REQUEST, number, name, args)
            return await answer
        except asyncio.CancelledError:
            if number in self._asked:
                self._send(_CANCEL, number, None, None)
            raise
        finally:
            self._asked.pop(number, None)

    def tell(self, name: str, *args: Any) -> None:
        """Run handler `name` at the other end without an answer; lost with the link."""
        if not self.is_lost:
            self._send(_TELL, 0, name, args)

    def close(self) -> None:
        """Close this end; the other sees its link lost."""
        if self._transport is not None:
            self._write()
            self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # A driver may hand out many payloads at once; what is queued here is already in memory.
        self._transport.set_write_buffer_limits(high=1 << 30)

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        at = 0
        with memoryview(received) as view:
            while len(received) - at >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(view, at)
                end = at + _LENGTH.size + length
                if len(received) < end:
                    break
                with view[at + _LENGTH.size : end] as body:
                    message = pickle.loads(body)
                at = end
                self._dispatch(*message)
        if at:
            del received[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(LinkLost("the other process is gone"))
        self._asked.clear()
        for serving in list(self._serving.values()):
            serving.cancel()
        self._on_lost()

    def _send(self, kind: int, number: int, name: str | None, value: Any) -> None:
        body = pickle.dumps((kind, number, name, value), protocol=5)
        if not self._outgoing:
            # One write, and one waking of the other side, for all of this turn of the loop.
            asyncio.get_running_loop().call_soon(self._write)
        self._outgoing += (_LENGTH.pack(len(body)), body)

    def _write(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if outgoing and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(outgoing))

    def _dispatch(self, kind: int, number: int, name: str, value: Any) -> None:
        if kind in (_OK, _ERROR):
            answer = self._asked.get(number)
            if answer is not None and not answer.done():
                if kind == _OK:
                    answer.set_result(value)
                else:
                    answer.set_exception(value)
        elif kind == _CANCEL:
            serving = self._serving.pop(number, None)
            if serving is not None:
                serving.cancel()
        else:
            self._begin(kind, number, name, value)

    def _begin(self, kind: int, number: int, name: str, args: tuple[Any, ...]) -> None:
        if name in self._coroutines:
            task = asyncio.get_running_loop().create_task(self._serve(kind, number, name, args))
            key = -id(task) if kind == _TELL else number
            self._serving[key] = task
            task.add_done_callback(lambda _: self._serving.pop(key, None))
            return
        try:
            value = self._handlers[name](*args)
        except Exception as error:  # as in `_serve`
            if kind == _TELL:
                raise
            self._answer(_ERROR, number, error)
            return
        if kind == _REQUEST:
            self._answer(_OK, number, value)

    async def _serve(self, kind: int, number: int, name: str, args: tuple[Any, ...]) -> None:
        try:
            value = await self._handlers[name](*args)
            if kind == _REQUEST:
                self._answer(_OK, number, value)
        except Exception as error:
            # Whatever it is, it is raised again by the one who asked.
            if kind == _TELL:
                raise
            self._answer(_ERROR, number, error)

    def _answer(self, kind: int, number: int, value: Any) -> None:
        if not self.is_lost:
            self._send(kind, number, None, value)
