"""What one worker process writes to stdout and stderr, as lines of the calls that it runs.

In what it writes, marks say which call writes from there on. Lines are shown at the caller by
`fsdray.output`; a call's last ones are kept for its error.
"""

from __future__ import annotations

import asyncio
import codecs
import socket
from collections import deque
from collections.abc import Callable

from fsdray import output

LOG_LINES = 20  # what an error carries of a function's last output
_MARK = "\x1e"
_READ = 64 * 1024  # bytes of one read
_READS = 16  # of one drain: more than a socket holds, and not what comes meanwhile
_LINGER = 0.25  # seconds after which a line that does not end is shown as far as it goes
_LONGEST = 64 * 1024  # characters of one line


def mark(number: int) -> bytes:
    """What a worker writes before the first line of its call `number`: it ends a line, too."""
    return f"{_MARK}{number}\n".encode()


class Log:
    """The driver's end of a worker's log.

    Parameters
    ----------
    sock : what the worker's stdout and stderr go to. is_shown : whether the caller sees the lines.
    writer : who the call of a number is, for people.
    """

    def __init__(self, sock: socket.socket, is_shown: bool, writer: Callable[[int], str]) -> None:
        self._sock = sock
        self._is_shown = is_shown
        self._writer = writer
        self._marked = 0
        self._last: deque[str] = deque(maxlen=LOG_LINES)
        self._partial = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._loop = asyncio.get_running_loop()
        self._linger: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        self._resume()

    def begin(self, number: int) -> None:
        """The worker's next call has its turn; what it wrote may be here already."""
        if self._marked != number and self._last:
            self._last.clear()

    def drain(self) -> None:
        """Read all that was written so far."""
        for _ in range(_READS):
            if not self._read():
                return

    def last_lines(self) -> list[str]:
        """The last lines of the call."""
        return list(self._last)

    def close(self) -> None:
        """Read what is left; there will be no more."""
        self.drain()
        self._end_line()
        self._close()

    def _resume(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock.fileno(), self._ready)

    def _resume_soon(self) -> None:
        self._loop.call_soon_threadsafe(self._resume)

    def _ready(self) -> None:
        # Not all that there is: who prints without end must not hold the loop.
        self._read()
        if self._is_shown and output.is_full() and self._sock.fileno() >= 0:
            # Who prints more than the caller's terminal takes, waits in its print.
            self._loop.remove_reader(self._sock.fileno())
            output.when_room(self._resume_soon)

    def _read(self) -> bool:
        """Take one read's worth of output; False where there is none."""
        if self._sock.fileno() < 0:
            return False
        try:
            data = self._sock.recv(_READ)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            data = b""
        if not data:
            self._close()
            return False
        *lines, self._partial = (self._partial + self._decoder.decode(data)).split("\n")
        self._take(lines)
        if len(self._partial) > _LONGEST:
            self._end_line()
        elif not self._partial:
            self._stop_lingering()
        elif self._linger is None:
            self._linger = self._loop.call_later(_LINGER, self._end_line)
        return True

    def _close(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def _stop_lingering(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None

    def _end_line(self) -> None:
        self._stop_lingering()
        if self._partial and not self._partial.startswith(_MARK):  # half a mark says nothing yet
            partial, self._partial = self._partial, ""
            self._take([partial])

    def _take(self, lines: list[str]) -> None:
        shown: list[str] = []
        who = self._writer(self._marked)
        for line in lines:
            before, is_mark, number = line.partition(_MARK)
            if not (is_mark and number.isdigit()):
                before, is_mark = line, ""
            if before or not is_mark:  # before a mark: a line that the call before did not end
                # Of what was written over, as progress bars are, a terminal would show the last.
                text = before.rstrip("\r").rpartition("\r")[2]
                self._last.append(text)
                shown.append(f"({who}) {text}")
            if is_mark and self._marked != int(number):
                self._marked = int(number)
                self._last.clear()
                who = self._writer(self._marked)
        if self._is_shown and shown:
            output.show(shown)
