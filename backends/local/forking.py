"""The driver's view of its processes: the template it forks from, and each worker.

Sockets, pids and exit codes are here; which call runs where is in `functions`, what it prints in
`logs`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import fsdray
from fsdray.backends.local.link import Handler, Link
from fsdray.backends.local.logs import Log
from fsdray.backends.local.pipeline import Calls
from fsdray.backends.local.template import CONTROL_BYTES
from fsdray.errors import PlatformError, ServiceError

if TYPE_CHECKING:
    from fsdray.backends.local.pool import LocalCall

_PATIENCE = 5.0  # seconds that the template is given to end
_PAGE = os.sysconf("SC_PAGE_SIZE")

# Where a function has one CPU, libraries that start a thread a core only get in its way.
_ONE_THREAD = {
    f"{library}_NUM_THREADS": "1"
    for library in ("OMP", "OPENBLAS", "MKL", "NUMBA", "NUMEXPR", "BLIS")
}


class Scheduler(Protocol):
    """What is told of a worker's doings."""

    def replied(
        self, worker: Worker, number: int, reply: bytes, seconds: float, is_spent: bool
    ) -> None: ...
    def drained(self) -> None: ...
    def lost(self, worker: Worker) -> None: ...
    def gone(self, worker: Worker) -> None: ...


class Worker:
    """One worker process; `pipeline` brings calls to it, `link` is for all else."""

    def __init__(self, log: socket.socket, log_to_caller: bool) -> None:
        loop = asyncio.get_running_loop()
        self.pid = 0
        self.link: Link | None = None
        self.pipeline: Calls | None = None
        self.calls: deque[LocalCall] = deque()  # the first runs
        self.is_recalled = False  # whether it was asked to give back what it has not begun
        self.alarm: asyncio.TimerHandle | None = None
        self.started: asyncio.Future[None] = loop.create_future()
        # None where nobody can tell how it ended: its template had died before.
        self.ended: asyncio.Future[int | None] = loop.create_future()
        # Of the call that it runs:
        self.number = 0
        self.label = ""
        self.memory = 0
        self.is_waiting = False
        self.admitted = 0  # ranks of the gangs that this call has let in
        self.killed: PlatformError | None = None  # what its caller will be told
        self._is_killed = False
        self._statm: int | None = None
        self._log = Log(log, log_to_caller, self._writer)

    @property
    def is_dead(self) -> bool:
        return self._is_killed or self.link is None or self.link.is_lost or self.ended.done()

    def start(self, number: int, label: str, memory: int) -> None:
        """A new call: `label` names it in the log, `memory` is its limit in bytes."""
        self.number, self.label, self.memory, self.killed = number, label, memory, None
        self._log.begin(number)

    def kill(self, why: PlatformError | None) -> None:
        """End the process; `why` is what its caller will be told."""
        self.killed = self.killed or why
        self._is_killed = True
        if self.pid and not self.ended.done():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def resident(self) -> int:
        """Bytes of anonymous memory that the process has in RAM; 0 where it is gone."""
        try:
            if self._statm is None:
                # Kept open, since it is read ten times a second.
                self._statm = os.open(f"/proc/{self.pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
            _, resident, shared, *_ = os.pread(self._statm, 256, 0).split()
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return 0
        return (int(resident) - int(shared)) * _PAGE

    def last_lines(self) -> list[str]:
        return self._log.last_lines()

    def drain_log(self) -> None:
        """Read all that the call has written to stdout and stderr."""
        self._log.drain()

    def close_log(self) -> None:
        if self._statm is not None:
            os.close(self._statm)
            self._statm = None
        self._log.close()

    def _writer(self, number: int) -> str:
        """Who writes, for its reader: the call of that number, or else the one that runs."""
        named = (call.label for call in self.calls if call.number == number)
        return f"{next(named, self.label) or 'worker'}, pid {self.pid}"


class Template:
    """Starts the template process, forks workers through it, and learns how they ended.

    Parameters
    ----------
    config : what `process` needs to know; ``config["directory"]`` is the session's directory.
    handlers : makes what a new worker's link serves.
    log_to_caller : whether what workers write appears on the driver's stderr.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        handlers: Callable[[Worker], Mapping[str, Handler]],
        log_to_caller: bool,
    ) -> None:
        self._config = json.dumps(config)
        self._handlers = handlers
        self._log_to_caller = log_to_caller
        self._numbers = itertools.count()
        self._workers: dict[int, Worker] = {}
        self._orphans: set[Worker] = set()  # workers of a template that died
        self._unsent: deque[tuple[bytes, Sequence[socket.socket]]] = deque()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._prepared: list[str] = []
        self._is_closed = False
        self._gone_for_good: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self) -> None:
        """Start the process; it gets ready by itself."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # The template keeps of the caller's path what is installed, and not what happens to lie
        # around the caller. Where fsdray itself is not installed, only it is found there.
        place = os.path.dirname(os.path.dirname(os.path.abspath(fsdray.__file__)))
        code = (
            f"import sys; sys.path.insert(0, {place!r}); "
            f"from fsdray.backends.local import template; sys.path[:] = {sys.path!r}; "
            f"template.serve({theirs.fileno()}, {self._config!r})"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,  # the driver's stdout is the user's own
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | _ONE_THREAD,
            start_new_session=True,
        )
        theirs.close()
        ours.setblocking(False)
        self._control = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._hear)
        if self._prepared:
            self._send({"prepare": self._prepared})

    def prepare(self, names: Sequence[str]) -> None:
        """Load modules into the template, so that workers forked later start with them."""
        new = [name for name in names if name not in self._prepared]
        self._prepared += new
        if new and self._control is not None:
            self._send({"prepare": new})

    async def fork(self, scheduler: Scheduler) -> Worker:
        """A new worker process, ready for a call."""
        if self._is_closed:
            raise ServiceError("this session was shut down")
        if self._control is None:
            self.start()
        calls, their_calls = socket.socketpair()
        link, their_link = socket.socketpair()
        log, their_log = socket.socketpair()
        number = next(self._numbers)
        worker = Worker(log, self._log_to_caller)
        self._workers[number] = worker
        self._send({"worker": number}, [their_calls, their_link, their_log])
        try:
            worker.pipeline = await Calls.over(
                calls,
                worker.drain_log,
                partial(scheduler.replied, worker),
                scheduler.drained,
                partial(scheduler.lost, worker),
            )
            worker.link = await Link.over(
                link, self._handlers(worker), lambda: self._link_lost(worker, scheduler)
            )
            await asyncio.shield(worker.started)
        except BaseException:
            # Nobody will use it: without its sockets it ends by itself, or never begins.
            for end, sock in ((worker.pipeline, calls), (worker.link, link)):
                (end or sock).close()
            raise
        return worker

    async def close(self) -> None:
        """Have the template kill all workers and remove the directory; wait until it has."""
        self._is_closed = True
        if orphans := list(self._orphans):
            for worker in orphans:
                worker.kill(None)
            await asyncio.wait([worker.ended for worker in orphans], timeout=_PATIENCE)
        control, process = self._control, self._process
        if control is None or process is None:
            return
        # It reads the end of this, does its work and ends, which we read in turn. No thread may
        # be started here: the interpreter may be shutting down.
        control.shutdown(socket.SHUT_WR)
        try:
            await asyncio.wait_for(asyncio.shield(self._gone_for_good), _PATIENCE)
        except TimeoutError:
            process.kill()
            await self._gone_for_good

    def _send(self, message: dict[str, Any], ends: Sequence[socket.socket] = ()) -> None:
        """Send a control message with sockets, which are closed here once they are sent."""
        self._unsent.append((json.dumps(message).encode(), ends))
        if len(self._unsent) == 1:
            self._send_rest()

    def _send_rest(self) -> None:
        assert self._control is not None
        loop = asyncio.get_running_loop()
        while self._unsent:
            data, ends = self._unsent[0]
            try:
                socket.send_fds(self._control, [data], [end.fileno() for end in ends])
            except BlockingIOError:
                # The template is busy, and the socket full of requests for workers.
                loop.add_writer(self._control.fileno(), self._send_rest)
                return
            except (BrokenPipeError, ConnectionResetError):
                self._died()
                return
            self._unsent.popleft()
            for end in ends:
                end.close()
        loop.remove_writer(self._control.fileno())

    def _hear(self) -> None:
        assert self._control is not None
        while True:
            try:
                data = self._control.recv(CONTROL_BYTES)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self._died()
                return
            message = json.loads(data)
            if "pid" in message:
                worker = self._workers[message["worker"]]
                worker.pid = message["pid"]
                if not worker.started.done():
                    worker.started.set_result(None)
            else:
                self._ended(message["exit"], message["code"])

    def _ended(self, pid: int, code: int) -> None:
        for number, worker in self._workers.items():
            if worker.pid == pid and not worker.ended.done():
                worker.ended.set_result(code)
                del self._workers[number]
                return

    def _died(self) -> None:
        """The template is gone: nobody will tell how its workers end."""
        process = self._process
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            asyncio.get_running_loop().remove_writer(self._control.fileno())
            self._control.close()
        self._control = self._process = None
        for _, ends in self._unsent:
            for end in ends:
                end.close()
        self._unsent.clear()
        code = process.wait() if process is not None else 0
        for worker in self._workers.values():
            if not worker.started.done():
                worker.started.set_exception(
                    ServiceError(f"the process that forks workers ended with status {code}")
                )
            if worker.link is None or worker.link.is_lost:
                self._end_unknown(worker)
            else:
                self._orphans.add(worker)
            if self._is_closed:
                worker.close_log()
                self._end_unknown(worker)
        self._workers.clear()
        if self._is_closed:
            self._gone_for_good.set_result(None)

    def _link_lost(self, worker: Worker, scheduler: Scheduler) -> None:
        scheduler.gone(worker)
        if worker in self._orphans:
            self._orphans.discard(worker)
            self._end_unknown(worker)
            if self._is_closed:
                worker.close_log()

    def _end_unknown(self, worker: Worker) -> None:
        if not worker.ended.done():
            worker.ended.set_result(None)
