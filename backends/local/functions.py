"""Calls in warm worker processes of this machine, under the limits that Lambda would set.

`Pool` lives in the driver: it hands calls to workers, keeps concurrency, time and memory, and
turns each kind of death into its own error. `LocalFunctions` is what any process of the session
uses. How a worker is made is in `forking`, what it does in `process`.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

from fsdray import loop
from fsdray.backends.local.forking import Template, Worker
from fsdray.backends.local.link import LinkLost
from fsdray.errors import (
    FunctionCrashed,
    FunctionTimeout,
    OutOfMemory,
    PlatformError,
    ServiceError,
    SettingsError,
)
from fsdray.services import MIB, Buffer, Count, FunctionLimits

_LOOK = 0.1  # seconds between looks at a running call's memory
_LOOK_CLOSELY = 0.02  # the same, when one is above half of its limit
_SCALE_OUT = 0.02  # seconds in which no worker becomes free, after which there are more than cores
_ORPHAN = 1.0  # seconds that a dead caller's calls are given to see its gang's abort

Outcome = tuple[float, bytes | None, PlatformError | None]
"""A call's billed seconds and its reply or its error."""


class Runner(Protocol):
    """What `LocalFunctions` needs of `Pool`, or of a link to it."""

    async def run(self, payload: bytes, memory: int, timeout: float, label: str) -> Outcome: ...
    async def admit(self, count: int) -> None: ...
    async def dismiss(self, count: int) -> None: ...
    def waiting(self, is_waiting: bool) -> None: ...
    def prepare(self, names: Sequence[str]) -> None: ...


class Pool:
    """The workers of a session and the calls that they run."""

    def __init__(self, template: Template, limits: FunctionLimits) -> None:
        self._template = template
        self._concurrency = limits.concurrency
        self._cores = len(os.sched_getaffinity(0))
        self._idle: list[Worker] = []  # the warmest last
        self._running: set[Worker] = set()
        self._for_worker: deque[asyncio.Future[Worker]] = deque()
        self._forking = 0  # workers under way
        self._last_free = 0.0  # the loop's time when a worker last became free
        self._scaling: asyncio.Task[None] | None = None
        self._slots = 0  # held by calls that run and do not only wait for others
        self._for_slot: deque[asyncio.Future[None]] = deque()
        self._admitted = 0  # ranks of all gangs that were let in
        self._for_admission: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._memory_watch: asyncio.Task[None] | None = None

    def prepare(self, names: Sequence[str]) -> None:
        """Have workers that are forked from now on start with these modules loaded."""
        self._template.prepare(names)

    async def run(self, payload: bytes, memory: int, timeout: float, label: str) -> Outcome:
        loop = asyncio.get_running_loop()
        await self._take_slot()
        worker: Worker | None = None
        try:
            worker = await self._take_worker()
            worker.start(label, memory * MIB)
            self._running.add(worker)
            self._watch_memory()
            began = loop.time()
            try:
                reply = await self._call(worker, payload, timeout)
            except PlatformError as error:
                return loop.time() - began, None, error
            return loop.time() - began, reply, None
        finally:
            if worker is not None:
                self._running.discard(worker)
                self._put_back(worker)
            if worker is None or not worker.is_waiting:
                self._give_slot()

    async def run_for(
        self, caller: Worker, payload: bytes, memory: int, timeout: float, label: str
    ) -> Outcome:
        """`run` for a worker: what it started outlives it for a moment, to see its abort."""
        call = asyncio.create_task(self.run(payload, memory, timeout, label))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            orphaned = caller.link is None or caller.link.is_lost
            asyncio.get_running_loop().call_later(_ORPHAN if orphaned else 0, call.cancel)
            raise

    def waiting(self, worker: Worker, is_waiting: bool) -> None:
        """A call that only waits for others gives its slot to them."""
        if worker not in self._running or worker.is_waiting == is_waiting:
            return
        worker.is_waiting = is_waiting
        if is_waiting:
            self._give_slot()
        else:
            self._slots += 1  # over the limit for a moment, rather than a deadlock

    async def admit(self, count: int) -> None:
        """Wait until `count` calls can run at one time beside the gangs that are already in."""
        if not self._for_admission and self._fits(count):
            self._admitted += count
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._for_admission.append((count, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                await self.dismiss(count)
            else:
                self._admit_next()  # it may have been in the way of smaller gangs
            raise

    async def dismiss(self, count: int) -> None:
        """The gang of `count` has ended."""
        self._admitted -= count
        self._admit_next()

    def gone(self, worker: Worker) -> None:
        """A worker died: the gangs that it had let in have no caller any more."""
        self._admitted -= worker.admitted
        worker.admitted = 0
        if worker in self._idle:
            self._idle.remove(worker)
        self._admit_next()

    def _fits(self, count: int) -> bool:
        waiting = sum(worker.is_waiting for worker in self._running)
        return self._admitted - min(waiting, self._admitted) + count <= self._concurrency

    def _admit_next(self) -> None:
        while self._for_admission:
            count, turn = self._for_admission[0]
            if not turn.done():
                if not self._fits(count):
                    return
                self._admitted += count
                turn.set_result(None)
            self._for_admission.popleft()

    async def _take_slot(self) -> None:
        if self._slots < self._concurrency:
            self._slots += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._for_slot.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_slot()
            raise

    def _give_slot(self) -> None:
        self._slots -= 1
        while self._for_slot and self._slots < self._concurrency:
            turn = self._for_slot.popleft()
            if not turn.done():
                self._slots += 1
                turn.set_result(None)
        self._admit_next()

    async def _take_worker(self) -> Worker:
        while self._idle:
            worker = self._idle.pop()
            # One that has just died may not have been heard of yet; a dead process has no memory.
            if not worker.is_dead and worker.resident():
                return worker
        busy = sum(not worker.is_waiting for worker in self._running) + self._forking
        if busy < self._cores:
            self._forking += 1
            try:
                return await self._template.fork()
            finally:
                self._forking -= 1
        turn: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._for_worker.append(turn)
        if self._scaling is None or self._scaling.done():
            self._scaling = asyncio.create_task(self._scale_out())
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._hand_on(turn.result())
            raise

    async def _scale_out(self) -> None:
        """Fork more workers than there are cores, while calls wait and none becomes free.

        Short calls are served best by as many workers as cores; long ones should not wait.
        """
        clock = asyncio.get_running_loop().time
        while self._for_worker:
            await asyncio.sleep(_SCALE_OUT)
            while self._for_worker and clock() - self._last_free >= _SCALE_OUT:
                if self._forking:
                    break  # the first workers are not up yet
                try:
                    self._hand_on(await self._template.fork())
                except (ServiceError, LinkLost) as error:
                    for turn in self._for_worker:
                        if not turn.done():
                            turn.set_exception(error)
                    self._for_worker.clear()

    def _put_back(self, worker: Worker) -> None:
        """A worker's call is over."""
        if not worker.is_dead:
            self._last_free = asyncio.get_running_loop().time()
            self._hand_on(worker)

    def _hand_on(self, worker: Worker) -> None:
        """Give a worker to whoever waits for one."""
        while self._for_worker:
            turn = self._for_worker.popleft()
            if not turn.done():
                turn.set_result(worker)
                return
        self._idle.append(worker)

    async def _call(self, worker: Worker, payload: bytes, timeout: float) -> bytes:
        assert worker.link is not None
        alarm = asyncio.get_running_loop().call_later(
            timeout, worker.kill, FunctionTimeout(_timed_out(worker.label, timeout))
        )
        try:
            reply, is_spent = await worker.link.request("run", payload, timeout)
        except LinkLost:
            code = await worker.ended
            worker.close_log()
            raise _death(worker, code) from None
        except asyncio.CancelledError:
            worker.kill(None)  # nothing else stops a process for certain
            raise
        finally:
            alarm.cancel()
        worker.drain_log()
        if is_spent:
            worker.kill(None)
        assert isinstance(reply, bytes)
        return reply

    def _watch_memory(self) -> None:
        if self._memory_watch is None or self._memory_watch.done():
            self._memory_watch = asyncio.create_task(self._keep_memory())

    async def _keep_memory(self) -> None:
        """Kill calls over their memory; runs only while calls do."""
        while self._running:
            worst = 0.0
            for worker in list(self._running):
                used = worker.resident()
                worst = max(worst, used / worker.memory)
                if used > worker.memory:
                    worker.kill(OutOfMemory(_out_of_memory(worker.label, used, worker.memory)))
            await asyncio.sleep(_LOOK_CLOSELY if worst > 0.5 else _LOOK)


class LocalFunctions:
    """`fsdray.services.Functions` over a `Runner`; it checks the limits and counts requests."""

    def __init__(self, runner: Runner, count: Count, limits: FunctionLimits) -> None:
        self._runner = runner
        self._count = count
        self.limits = limits

    async def invoke(
        self, payload: Buffer, *, memory: int, timeout: float, label: str = ""
    ) -> bytes:
        self.limits.check(memory, timeout)
        size = memoryview(payload).nbytes
        if size > self.limits.payload:
            raise SettingsError(f"a payload of {size:,} bytes: at most {self.limits.payload:,}")
        self._count("invoke", 1)
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            seconds, reply, error = await self._runner.run(bytes(payload), memory, timeout, label)
        except asyncio.CancelledError:
            # How long it waited for a place is not known here: at most this is what it ran.
            self._count("gb_seconds", _gb_seconds(memory, clock() - began))
            raise
        self._count("gb_seconds", _gb_seconds(memory, seconds))
        if error is not None:
            raise error
        assert reply is not None
        return reply

    @asynccontextmanager
    async def admitted(self, count: int) -> AsyncIterator[None]:
        if count > self.limits.concurrency:
            raise SettingsError(
                f"a gang of {count} cannot be whole: {self.limits.concurrency} calls may run at "
                f"one time. Start fewer ranks, or fsdray.init(concurrency={count})"
            )
        await self._runner.admit(count)
        try:
            yield
        finally:
            await self._runner.dismiss(count)

    @contextmanager
    def yielded(self) -> Iterator[None]:
        self._runner.waiting(True)
        try:
            yield
        finally:
            self._runner.waiting(False)

    def prepare(self, names: Sequence[str]) -> None:
        # From any thread, and what it speaks to lives on the loop.
        loop.get().call_soon_threadsafe(self._runner.prepare, list(names))


def _gb_seconds(memory: int, seconds: float) -> float:
    """What Lambda bills for a call: whole milliseconds."""
    return memory / 1024 * math.ceil(seconds * 1000) / 1000


def _death(worker: Worker, code: int | None) -> PlatformError:
    """Which of the three deaths it was; the log comes along."""
    if worker.killed is not None:
        return type(worker.killed)(worker.killed.message, worker.last_lines())
    if code is None:
        how = "ended, how is not known since the process that forks workers died too,"
    elif code < 0:
        how = f"was killed by signal {-code} ({signal.Signals(-code).name})"
        if -code == signal.SIGKILL:
            how += ", by someone else or by the machine for want of memory"
    else:
        how = f"exited with status {code}"
    return FunctionCrashed(
        f"the process of {worker.label or 'a call'} (pid {worker.pid}) {how} before it replied",
        worker.last_lines(),
    )


def _timed_out(label: str, timeout: float) -> str:
    return (
        f"{label or 'a call'} ran longer than its timeout of {timeout:g} s and was stopped; "
        "give it more with the option timeout=SECONDS"
    )


def _out_of_memory(label: str, used: int, limit: int) -> str:
    return (
        f"{label or 'a call'} used {used // MIB} MB, more than its memory of {limit // MIB} MB, "
        "and was stopped; give it more with the option memory=MB"
    )
