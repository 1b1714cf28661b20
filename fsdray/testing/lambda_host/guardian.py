"""The parent of all execution environments: it starts them, watches their memory, and ends them.

A small process of its own, so that nothing is left behind however the host ends: when the host's
side of the channel closes, killed or not, it kills whatever descends from it, removes the host's
directory and exits. It runs as a script of the standard library alone; who talks to it is in
`processes`.

Messages are JSON, one a packet. To it: ``{"start": id, "argv", "env", "cwd", "memory"}`` with the
descriptor that becomes stdout and stderr, ``{"end": id}``, ``{"forget": id}``, and ``{"watch": id,
"is_on"}``: what is frozen takes no memory, and need not be looked at. From it:
``{"started": id, "pid"}``, ``{"exited": id, "status", "oom", "peak"}``. A process that has exited
keeps its id, as a zombie, until the host forgets it: so the host never signals a stranger.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import socket
import sys
import time
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_FILES = 1024  # descriptors an environment may have open (Lambda quotas)
_SHORTEST_LOOK = 0.01  # seconds between two looks at memory
_SHARE = 20  # a look may take one part in so many of the time
_PAGE = os.sysconf("SC_PAGE_SIZE")

_libc = ctypes.CDLL(None, use_errno=True)


class _Child:
    def __init__(self, pid: int, memory: int) -> None:
        self.pid = pid
        self.memory = memory  # bytes that it may use
        self.pidfd = os.pidfd_open(pid)
        self.peak = 0  # bytes, of what was seen
        self.is_watched = True
        self.has_exited = False
        self.is_over = False  # it used more than it may


class Guardian:
    """Environments by their ids, from their start until they are forgotten."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._children: dict[int, _Child] = {}
        self._by_pidfd: dict[int, int] = {}
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._next_look = 0.0

    def run(self) -> None:
        """Serve until the host has gone."""
        while True:
            watched = any(child.is_watched for child in self._children.values())
            wait = max(0.0, self._next_look - time.monotonic()) * 1000 if watched else None
            for fd, _ in self._poll.poll(wait):
                if fd != self._channel.fileno():
                    self._exited(self._by_pidfd[fd])
                elif not self._receive():
                    return
            if watched and time.monotonic() >= self._next_look:
                began = time.monotonic()
                self._look()
                took = time.monotonic() - began
                self._next_look = began + max(_SHORTEST_LOOK, took * _SHARE)

    def end_all(self) -> None:
        """Kill whatever descends from here, adopted orphans too, until there is nothing."""
        while children := _children(os.getpid()):
            for pid in children:
                _kill(pid)
            for pid in children:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)

    def _receive(self) -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(self._channel, 1 << 20, 1)
        except ConnectionError:
            return False
        if not data:
            return False
        message = json.loads(data)
        if "start" in message:
            self._start(message, fds[0])
        elif "end" in message:
            self._end(message["end"])
        elif "watch" in message:
            self._watch(message["watch"], message["is_on"])
        else:
            self._forget(message["forget"])
        return True

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):  # a host that has gone is seen by `run`
            self._channel.send(json.dumps(message).encode())

    def _start(self, message: dict[str, Any], output: int) -> None:
        pid = os.fork()
        if pid == 0:
            _become(message, output)
        os.close(output)
        child = _Child(pid, message["memory"])
        self._children[message["start"]] = child
        self._by_pidfd[child.pidfd] = message["start"]
        self._poll.register(child.pidfd, select.POLLIN)
        self._send({"started": message["start"], "pid": pid})

    def _end(self, number: int) -> None:
        child = self._children.get(number)
        if child is not None and not child.has_exited:
            self._kill_all_of(child)

    def _watch(self, number: int, is_on: bool) -> None:
        child = self._children.get(number)
        if child is not None and not child.has_exited:
            child.is_watched = is_on

    def _exited(self, number: int) -> None:
        child = self._children[number]
        found = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if found is None:
            return
        self._poll.unregister(child.pidfd)
        child.has_exited, child.is_watched = True, False
        self._kill_all_of(child)
        status = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        self._send({"exited": number, "status": status, "oom": child.is_over, "peak": child.peak})

    def _forget(self, number: int) -> None:
        child = self._children.pop(number, None)
        if child is None:
            return
        del self._by_pidfd[child.pidfd]
        os.close(child.pidfd)
        if not child.has_exited:
            self._poll.unregister(child.pidfd)
            self._kill_all_of(child)
        os.waitpid(child.pid, 0)

    def _kill_all_of(self, child: _Child) -> None:
        """Kill an environment with all that it started: its tree, its session's orphans."""
        of_it = _descendants(child.pid)
        ours = {known.pid for known in self._children.values()}
        for pid in _children(os.getpid()):
            if pid not in ours and _session(pid) == child.pid:
                of_it += [pid, *_descendants(pid)]
        for pid in [child.pid, *of_it]:
            _kill(pid)

    def _look(self) -> None:
        """Kill whoever uses more memory than it may, as Lambda's kernel would."""
        ours = set()
        for child in self._children.values():
            ours.add(child.pid)
            if not child.is_watched:
                continue
            tree = [child.pid, *_descendants(child.pid)]
            # What is resident bounds what is used, and is cheap to read.
            resident = sum(map(_resident, tree))
            child.peak = max(child.peak, resident)
            if resident > child.memory and sum(map(_used, tree)) > child.memory:
                child.is_over = True
                self._kill_all_of(child)
        for pid in _children(os.getpid()):
            if pid not in ours:  # an adopted orphan
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)


def _become(message: dict[str, Any], output: int) -> None:
    """In the forked child: become the environment's process."""
    try:
        os.setsid()
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = _FILES if most == resource.RLIM_INFINITY else min(_FILES, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.closerange(3, 1 << 16)
        os.chdir(message["cwd"])
        os.execve(message["argv"][0], message["argv"], message["env"])
    except BaseException as error:  # nothing of the guardian may run on in the child
        os.write(2, f"cannot start {message['argv'][0]}: {error}\n".encode())
    finally:
        os._exit(127)


def _children(pid: int) -> list[int]:
    """The processes that `pid`'s threads started or adopted."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # it has gone
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found.extend(map(int, file.read().split()))
    return found


def _descendants(pid: int) -> list[int]:
    found = _children(pid)
    for child in found:  # it grows as it is read
        found.extend(_children(child))
    return found


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0  # it has gone


def _used(pid: int) -> int:
    """Bytes that the kernel cannot take back: what a limit on memory counts."""
    used = 0
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:  # or it has gone
        for line in file:
            if line.startswith(("RssAnon", "RssShmem")):
                used += int(line.split()[1]) * 1024
    return used


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def main() -> None:
    """``python guardian.py FD DIRECTORY``: serve the channel, then leave nothing."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    os.setsid()  # what interrupts the host is not for us: it tells us when it ends
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    guardian = Guardian(channel)
    try:
        guardian.run()
    finally:
        guardian.end_all()
        shutil.rmtree(sys.argv[2], ignore_errors=True)


if __name__ == "__main__":
    main()
