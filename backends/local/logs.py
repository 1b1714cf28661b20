"""What one worker process writes to stdout and stderr, as lines of the calls that it runs.

Lines are shown at the caller by `fsdray.output`; the last ones are kept for errors.
"""

from __future__ import annotations

import asyncio
import codecs
import socket
from collections import deque
from contextlib import suppress

from fsdray import output

LOG_LINES = 20  # what an error carries of a function's last output
_READ = 64 * 1024  # bytes of one read
_READS = 16  # of one drain: more than a socket holds, and not what comes meanwhile
_LINGER = 0.25  # seconds after which a line that does not end is shown as far as it goes
_LONGEST = 64 * 1024  # characters of one line


class Log:
    """The driver's end of a worker's log.

    Parameters
    ----------
    sock : what the worker's stdout and stderr go to. is_shown : whether the caller sees the lines.
    """

    def __init__(self, sock: socket.socket, is_shown: bool) -> None:
        self._sock = sock
        self._is_shown = is_shown
        self._who = "worker"
        self._last: deque[str] = deque(maxlen=LOG_LINES)
        self._partial = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._loop = asyncio.get_running_loop()
        self._linger: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        self._resume()

    def begin(self, who: str) -> None:
        """From now on lines are those of `who`, a call."""
        self.end()
        self._who = who
        self._last.clear()

    def end(self) -> None:
        """Read all that was written so far, with a line that does not end."""
        for _ in range(_READS):
            if not self._read():
                break
        self._end_line()

    def last_lines(self) -> list[str]:
        """The last lines of the call."""
        return list(self._last)

    def close(self) -> None:
        """Read what is left; there will be no more."""
        self.end()
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def _resume(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock.fileno(), self._ready)

    def _ready(self) -> None:
        self._read()
        if self._is_shown and output.is_full() and self._sock.fileno() >= 0:
            # Who prints more than the caller's terminal takes, waits in its print.
            self._loop.remove_reader(self._sock.fileno())
            output.when_room(self._resume_soon)

    def _resume_soon(self) -> None:
        self._loop.call_soon_threadsafe(self._resume)

    def _read(self) -> bool:
        """Take one read's worth of output; False where there is none."""
        if self._sock.fileno() < 0:
            return False
        data = b""
        with suppress(ConnectionResetError):
            try:
                data = self._sock.recv(_READ)
            except BlockingIOError:
                return False
        if not data:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            return False
        *lines, self._partial = (self._partial + self._decoder.decode(data)).split("\n")
        for line in lines:
            self._show(line)
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if len(self._partial) > _LONGEST:
            self._end_line()
        elif self._partial:
            self._linger = self._loop.call_later(_LINGER, self._end_line)
        return True

    def _end_line(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._partial:
            partial, self._partial = self._partial, ""
            self._show(partial)

    def _show(self, line: str) -> None:
        # Of what was written over, as progress bars are, a terminal would show the last.
        line = line.rstrip("\r").rpartition("\r")[2]
        self._last.append(line)
        if self._is_shown:
            output.show(f"({self._who}) {line}")
