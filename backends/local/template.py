"""The process from which workers are forked, so that a new one costs milliseconds.

It has imported what every worker needs, runs no threads and no user code, and reports each
worker's end to the driver. When the driver is gone, however it went, it kills the workers and
removes the session's directory. What a worker does is in `process`.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

from fsdray.environment import only_installed
from fsdray.services import MIB

_LULL = 0.1  # seconds without a request, after which nobody is waiting
_KEPT = {-3: 32 * MIB, -1: 64 * MIB, -2: 1 * MIB}
"""Of glibc's malloc.h: M_MMAP_THRESHOLD, from which on (bytes) memory is mapped, at its largest;
M_TRIM_THRESHOLD, above which free memory is given back; M_TOP_PAD, taken more than is asked for."""
CONTROL_BYTES = 64 * 1024  # one control message


def serve(control_fd: int, config: str) -> None:
    """Fork workers as the driver asks, until it closes the control socket."""
    control = socket.socket(fileno=control_fd)
    # Ctrl-C is the driver's to handle; it reaches the group of the terminal, not this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake_read, wake_write = socket.socketpair()
    wake_read.setblocking(False)
    wake_write.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write.fileno())

    only_installed()
    _keep_memory()
    _prepare(["fsdray.backends.local.process", "fsdray.loop:lend"])
    later = ["numpy"]  # once nobody waits: the first call should not wait for it
    workers: set[int] = set()
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select(_LULL if later else None)]
            if not ready:
                _prepare(later)
                later = []
            if wake_read in ready:
                wake_read.recv(4096)
                _reap(workers, control)
            if control in ready:
                message, fds, _, _ = socket.recv_fds(control, CONTROL_BYTES, 3)
                if not message:
                    break
                request: dict[str, Any] = json.loads(message)
                if "prepare" in request:
                    _prepare(request["prepare"])
                else:
                    pid = _fork(fds, config, (control, wake_read, wake_write))
                    workers.add(pid)
                    _tell(control, {"worker": request["worker"], "pid": pid})
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    while workers:
        pid, _ = os.wait()
        workers.discard(pid)
    told = json.loads(config)
    for directory in {told["directory"], told["modules"]}:
        shutil.rmtree(directory, ignore_errors=True)


def _keep_memory() -> None:
    """Have the workers' allocator keep what large messages free, for the next ones.

    To give it back to the system and take it again costs more than all else that is done to a
    message of a megabyte: a fault for each page. Where the C library is no glibc, nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    for parameter, size in _KEPT.items():
        mallopt(parameter, size)


def _prepare(names: list[str]) -> None:
    """Import modules (``package.module``) or call functions (``package.module:function``)."""
    for name in names:
        module, _, function = name.partition(":")
        try:
            loaded = importlib.import_module(module)
            if function:
                getattr(loaded, function)()
        except Exception:
            # A hint that fails must not: the call that needs the module says what is wrong.
            traceback.print_exc()
    gc.collect()
    gc.freeze()  # the workers share these pages as long as no collection touches them


def _fork(fds: list[int], config: str, inherited: tuple[socket.socket, ...]) -> int:
    pid = os.fork()
    if pid == 0:
        _become_worker(fds, config, inherited)
    for fd in fds:
        os.close(fd)
    return pid


def _become_worker(fds: list[int], config: str, inherited: tuple[socket.socket, ...]) -> NoReturn:
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for sock in inherited:
            sock.close()
        from fsdray.backends.local import process

        process.main(socket.socket(fileno=fds[0]), socket.socket(fileno=fds[1]), fds[2], config)
        status = 0
    except SystemExit as stop:
        if stop.code is not None and not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)  # as Python does for sys.exit("text")
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _reap(workers: set[int], control: socket.socket) -> None:
    while workers:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid in workers:
            workers.discard(pid)
            _tell(control, {"exit": pid, "code": os.waitstatus_to_exitcode(status)})


def _tell(control: socket.socket, message: dict[str, Any]) -> None:
    try:
        control.send(json.dumps(message).encode())
    except (BrokenPipeError, ConnectionResetError):
        return  # the driver is gone: the next read of the control socket says so
