"""Which call runs in which worker, and when: the scheduler of a session, in its driver.

It hands calls to workers, keeps concurrency, time and memory, and turns each kind of death into
its own error. How a worker is made is in `forking`, how calls reach it in `pipeline`, and what it
does with them in `process`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from fsdray.backends.local.forking import Template, Worker
from fsdray.backends.local.link import LinkLost
from fsdray.errors import (
    FunctionCrashed,
    FunctionTimeout,
    OutOfMemory,
    PlatformError,
    ServiceError,
)
from fsdray.services import MIB, FunctionLimits

_LOOK = 0.1  # seconds between looks at a running call's memory
_LOOK_CLOSELY = 0.02  # the same, when one is above half of its limit
_PATIENCE = 0.02  # seconds in which no worker becomes free, after which there are more than cores
_ORPHAN = 1.0  # seconds that a dead caller's calls are given to see its gang's abort
_AHEAD = 16  # calls that may wait in a worker for their turn
_AHEAD_SECONDS = 0.001  # what they may take in all: less than it takes to notice an idle worker
_NAMES = 1024  # functions whose seconds are remembered

Outcome = tuple[float, bytes | None, PlatformError | None]
"""A call's billed seconds and its reply or its error."""


def ahead(seconds: float | None) -> int:
    """How many calls that take so long may wait in a busy worker; None if that is not known.

    Only short ones: what waits in one worker is late if another becomes free before it.
    """
    if seconds is None:
        return 0
    return _AHEAD if seconds * _AHEAD <= _AHEAD_SECONDS else int(_AHEAD_SECONDS / seconds)


def expected(before: float | None, seconds: float) -> float:
    """What calls of a name take, after one more took `seconds`; it forgets long ones slowly."""
    if before is None or seconds > before:
        return seconds
    return 0.9 * before + 0.1 * seconds


class LocalCall:
    """One call, from its coming to its outcome."""

    __slots__ = (
        "began",
        "is_unwanted",
        "label",
        "memory",
        "name",
        "number",
        "outcome",
        "payload",
        "timeout",
        "worker",
    )

    def __init__(
        self, number: int, payload: bytes, memory: int, timeout: float, label: str
    ) -> None:
        self.number = number
        self.payload = payload
        self.memory = memory  # MB
        self.timeout = timeout
        self.label = label
        self.name = _name(label)
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.worker: Worker | None = None  # whose turn it waits for, or who runs it
        self.began = 0.0  # the loop's time
        self.is_unwanted = False

    def settle(self, seconds: float, reply: bytes | None, error: PlatformError | None) -> None:
        if not self.outcome.done():
            self.outcome.set_result((seconds, reply, error))


class Pool:
    """The workers of a session and the calls that they run.

    A worker's first call runs; short ones may wait behind it, so that neither side waits for the
    other between two of them. A call takes a slot of the concurrency while it runs and does not
    only wait for others.

    Parameters
    ----------
    ended : told the process id of each worker that is gone.
    """

    def __init__(
        self,
        template: Template,
        limits: FunctionLimits,
        ended: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._template = template
        self._ended = ended
        self._concurrency = limits.concurrency
        self._cores = len(os.sched_getaffinity(0))
        self._numbers = itertools.count(1)
        self._queue: deque[LocalCall] = deque()  # in no worker yet
        self._idle: list[Worker] = []  # the warmest last
        self._running: dict[Worker, None] = {}  # in the order in which they began
        self._slots = 0  # of running workers that do not only wait
        self._forking = 0  # workers under way
        self._last_free = 0.0  # the loop's time when a worker last became free
        self._seconds: OrderedDict[str, float] = OrderedDict()  # by name, what calls take
        self._balancing: asyncio.Task[None] | None = None
        self._memory_watch: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._admitted = 0  # ranks of all gangs that were let in
        self._for_admission: deque[tuple[int, asyncio.Future[None]]] = deque()

    def prepare(self, names: Sequence[str]) -> None:
        """Have workers that are forked from now on start with these modules loaded."""
        self._template.prepare(names)

    async def run(self, payload: bytes, memory: int, timeout: float, label: str) -> Outcome:
        call = LocalCall(next(self._numbers), payload, memory, timeout, label)
        self._queue.append(call)
        self._dispatch()
        try:
            return await call.outcome
        except asyncio.CancelledError:
            self._withdraw(call)
            raise

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

    def waiting(self, worker: Worker, number: int, is_waiting: bool) -> None:
        """Call `number`, which only waits for others, gives its slot to them."""
        if not worker.calls or worker.calls[0].number != number or worker.is_waiting == is_waiting:
            return  # it has ended meanwhile
        worker.is_waiting = is_waiting
        if is_waiting:
            self._slots -= 1
            self._recall(worker)
            self._dispatch()
            self._admit_next()
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
        """A worker's link is lost: the gangs that it had let in have no caller any more."""
        self._admitted -= worker.admitted
        worker.admitted = 0
        if worker in self._idle:
            self._idle.remove(worker)
        self._ended(worker.pid)
        self._admit_next()

    def _fits(self, count: int) -> bool:
        waiting = len(self._running) - self._slots
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

    # Who runs what

    def _dispatch(self) -> None:
        """Give the calls that wait to workers, as far as may be."""
        queue = self._queue
        while queue:
            call = queue[0]
            if call.outcome.done():  # it was cancelled
                queue.popleft()
                continue
            worker = self._worker_for(call)
            if worker is None:
                break
            queue.popleft()
            self._hand(call, worker)
        if queue:
            self._balance()

    def _worker_for(self, call: LocalCall) -> Worker | None:
        has_slot = self._slots < self._concurrency
        if has_slot and self._slots + self._forking < self._cores:
            worker = self._take_idle()
            if worker is None:
                self._forking += 1
                self._spawn(self._fork())
            else:
                return worker
        limit = ahead(self._seconds.get(call.name))
        if limit:
            now = asyncio.get_running_loop().time()
            best = None
            for worker in self._running:
                waiting = len(worker.calls)
                if waiting <= limit and self._may_wait(worker, now):
                    if waiting == 1:
                        return worker
                    if best is None or waiting < len(best.calls):
                        best = worker
            if best is not None:
                return best
        return self._take_idle() if has_slot else None

    def _may_wait(self, worker: Worker, now: float) -> bool:
        """Whether what a worker runs is short, too."""
        first = worker.calls[0]
        return (
            not (worker.is_waiting or worker.is_recalled or worker.is_dead)
            and now - first.began < _PATIENCE
            and ahead(self._seconds.get(first.name)) > 0
        )

    def _take_idle(self) -> Worker | None:
        while self._idle:
            worker = self._idle.pop()
            # One that has just died may not have been heard of yet; a dead process has no memory.
            if not worker.is_dead and worker.resident():
                return worker
        return None

    def _hand(self, call: LocalCall, worker: Worker) -> None:
        call.worker = worker
        worker.calls.append(call)
        assert worker.pipeline is not None
        worker.pipeline.send(call.number, call.payload, call.timeout)
        if len(worker.calls) == 1:
            self._running[worker] = None
            self._slots += 1
            self._begin(worker)
            if self._memory_watch is None or self._memory_watch.done():
                self._memory_watch = asyncio.create_task(self._keep_memory())
        else:
            self._balance()

    def _begin(self, worker: Worker) -> None:
        """A worker's first call has its turn."""
        call = worker.calls[0]
        if call.is_unwanted:
            worker.kill(None)
        clock = asyncio.get_running_loop()
        call.began = clock.time()
        worker.start(call.number, call.label, call.memory * MIB)
        alarm = worker.alarm
        if alarm is None or alarm.when() > call.began + call.timeout:
            if alarm is not None:
                alarm.cancel()
            worker.alarm = clock.call_later(call.timeout, self._time_is_up, worker)

    def _time_is_up(self, worker: Worker) -> None:
        """An alarm may be that of an earlier call: setting one for each would cost more."""
        worker.alarm = None
        if worker.calls and not worker.is_dead:
            call = worker.calls[0]
            loop = asyncio.get_running_loop()
            if loop.time() >= call.began + call.timeout:
                worker.kill(FunctionTimeout(_timed_out(call.label, call.timeout)))
            else:
                worker.alarm = loop.call_at(call.began + call.timeout, self._time_is_up, worker)

    def replied(
        self, worker: Worker, number: int, reply: bytes, seconds: float, is_spent: bool
    ) -> None:
        """A worker's first call is over."""
        call = worker.calls.popleft()
        assert call.number == number, "a worker replies in the order of its calls"
        self._learn(call.name, seconds)
        self._last_free = asyncio.get_running_loop().time()
        call.settle(seconds, reply, None)
        if is_spent:
            worker.kill(None)
            self._requeue(worker.calls)
            worker.calls.clear()
        self._advance(worker)

    def drained(self) -> None:
        """All replies that came together were told."""
        self._dispatch()
        if self._for_admission:
            self._admit_next()

    def _advance(self, worker: Worker) -> None:
        """A worker's first call is no more: the next has its turn, or the worker none."""
        self._slots -= not worker.is_waiting
        worker.is_waiting = False
        if worker.calls:
            self._slots += 1
            self._begin(worker)
            return
        del self._running[worker]
        if not worker.is_dead:
            self._idle.append(worker)

    def _learn(self, name: str, seconds: float) -> None:
        self._seconds[name] = expected(self._seconds.get(name), seconds)
        if len(self._seconds) > _NAMES:
            self._seconds.popitem(last=False)

    def _withdraw(self, call: LocalCall) -> None:
        """Nobody wants this call any more; what is in no worker yet is never begun."""
        worker = call.worker
        if worker is None or call not in worker.calls:
            return
        if worker.calls[0] is call:
            worker.kill(None)  # nothing else stops a process for certain
        else:
            call.is_unwanted = True
            self._recall(worker)

    def _recall(self, worker: Worker) -> None:
        """Have a worker give back what it has not begun."""
        if len(worker.calls) > 1 and not worker.is_recalled:
            worker.is_recalled = True
            self._spawn(self._take_back(worker))

    async def _take_back(self, worker: Worker) -> None:
        assert worker.link is not None
        try:
            unbegun = set(await worker.link.request("give_back"))
        except LinkLost:
            return  # its calls come back as those of a dead worker
        finally:
            worker.is_recalled = False
        if unbegun:
            first = worker.calls[0]
            kept = [call for call in worker.calls if call.number not in unbegun]
            self._requeue([call for call in worker.calls if call.number in unbegun])
            worker.calls = deque(kept)
            if first.number in unbegun:  # the reply to the one before it has come meanwhile
                self._advance(worker)
            self._dispatch()

    def _requeue(self, calls: Iterable[LocalCall]) -> None:
        """Calls that never began wait again, before all others."""
        for call in reversed(list(calls)):
            call.worker = None
            self._queue.appendleft(call)

    def lost(self, worker: Worker) -> None:
        """A worker is gone, and with it the call that it ran."""
        if worker.alarm is not None:
            worker.alarm.cancel()
            worker.alarm = None
        if worker.calls:
            self._spawn(self._bury(worker))

    async def _bury(self, worker: Worker) -> None:
        code = await worker.ended
        worker.close_log()
        first = worker.calls.popleft()
        now = asyncio.get_running_loop().time()
        first.settle(now - first.began, None, _death(worker, code))
        self._requeue(worker.calls)
        worker.calls.clear()
        self._advance(worker)
        self._dispatch()
        self._admit_next()

    # More workers, and memory

    async def _fork(self) -> None:
        try:
            worker = await self._template.fork(self)
        except (ServiceError, LinkLost) as error:
            self._fail(error)
            return
        finally:
            self._forking -= 1
        self._idle.insert(0, worker)  # it is the coldest: who has run something goes before it
        self._dispatch()

    def _fail(self, error: Exception) -> None:
        """No worker can be had: nor can the calls that wait for one."""
        waiting, self._queue = self._queue, deque()
        for call in waiting:
            if not call.outcome.done():
                call.outcome.set_exception(error)

    def _balance(self) -> None:
        if self._balancing is None or self._balancing.done():
            self._balancing = asyncio.create_task(self._keep_balance())

    async def _keep_balance(self) -> None:
        """Fork workers while calls wait and none becomes free; take back what waits too long.

        Short calls are served best by as many workers as cores; long ones should not wait.
        """
        clock = asyncio.get_running_loop().time
        while self._queue or any(len(worker.calls) > 1 for worker in self._running):
            await asyncio.sleep(_PATIENCE)
            for worker in list(self._running):
                if len(worker.calls) > 1 and clock() - worker.calls[0].began >= _PATIENCE:
                    self._recall(worker)
            while (
                self._queue
                and not self._forking  # the first workers may not be up yet
                and self._slots < self._concurrency
                and clock() - self._last_free >= _PATIENCE
            ):
                self._forking += 1
                await self._fork()

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

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


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
        f"the process of {_name(worker.label)} (pid {worker.pid}) {how} before it replied",
        worker.last_lines(),
    )


def _timed_out(label: str, timeout: float) -> str:
    return (
        f"{_name(label)} ran longer than its timeout of {timeout:g} s and was stopped; "
        "give it more with the option timeout=SECONDS"
    )


def _out_of_memory(label: str, used: int, limit: int) -> str:
    return (
        f"{_name(label)} used {used // MIB} MB, more than its memory of {limit // MIB} MB, "
        "and was stopped; give it more with the option memory=MB"
    )


def _name(label: str) -> str:
    """The function's name in a label, which ends in the call's id."""
    return label.rpartition(" ")[0] or label or "a call"
