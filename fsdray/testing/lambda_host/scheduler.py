"""Which environment runs which call, and when: reuse, concurrency, init, retries of async calls.

Environments run one call at a time and are reused, the warmest first; a call that finds none gets
a new one. The limits on concurrency are kept here, before anything runs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fsdray.testing.lambda_host import logs
from fsdray.testing.lambda_host.environment import (
    Answer,
    Environment,
    Invocation,
    Surroundings,
    all_cleared,
)
from fsdray.testing.lambda_host.faults import ApiFault, throttled
from fsdray.testing.lambda_host.functions import Version
from fsdray.testing.lambda_host.limits import (
    ASYNCHRONOUS_RETRIES,
    EVENT_SECONDS,
    INIT_SECONDS,
    HostSettings,
)


@dataclass(frozen=True)
class Finished:
    """A call that ran."""

    answer: Answer
    billed: int  # milliseconds
    was_cold: bool


@dataclass(frozen=True)
class _Start:
    """An environment that is there for a call, and what it took."""

    environment: Environment
    init_seconds: float | None = None  # of an init before the call
    spent: float = 0.0  # seconds of the call's own time
    failure: Answer | None = None


class Concurrency:
    """Executions under way: the account's, and each function's with a reservation of its own."""

    def __init__(self, account: int) -> None:
        self.account = account
        self._reserved: dict[str, int] = {}
        self._running: dict[str, int] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def unreserved(self) -> int:
        return self.account - sum(self._reserved.values())

    def reserve(self, name: str, count: int | None) -> None:
        if count is None:
            self._reserved.pop(name, None)
        else:
            self._reserved[name] = count
        self._wake()

    def enter(self, name: str) -> None:
        """Begin an execution of the function.

        Raises
        ------
        ApiFault : there are as many as there may be.
        """
        running = self._running.get(name, 0)
        if name in self._reserved:
            if running >= self._reserved[name]:
                raise throttled("ReservedFunctionConcurrentInvocationLimitExceeded")
        elif self._sharing() >= self.unreserved:
            raise throttled("ConcurrentInvocationLimitExceeded")
        self._running[name] = running + 1

    def leave(self, name: str) -> None:
        self._running[name] -= 1
        self._wake()

    async def enter_when_free(self, name: str) -> None:
        """`enter`, after waiting for as long as that takes."""
        while True:
            try:
                return self.enter(name)
            except ApiFault:
                turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.append(turn)
                await turn

    def _sharing(self) -> int:
        return sum(n for name, n in self._running.items() if name not in self._reserved)

    def _wake(self) -> None:
        # All of them: which may enter depends on their functions.
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)


class Scheduler:
    """The environments of a host."""

    def __init__(self, around: Surroundings, settings: HostSettings) -> None:
        self._around = around
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._idle: dict[str, list[Environment]] = {}  # by revision, the warmest last
        self._environments: set[Environment] = set()
        self._retired: set[str] = set()  # revisions
        self._tasks: set[asyncio.Task[Any]] = set()
        self.concurrency = Concurrency(settings.concurrency)
        self._spawn(self._end_idle())

    async def call(self, version: Version, invocation: Invocation) -> Finished:
        """Run a call now.

        Raises
        ------
        ApiFault : too many run already.
        """
        self.concurrency.enter(version.name)
        return await self._run(version, invocation)

    def call_later(
        self,
        name: str,
        resolve: Callable[[], Version | None],
        invocation: Invocation,
        config: Mapping[str, Any],
    ) -> None:
        """Run a call as soon as one more may run, and again if it fails, as often as is set.

        `resolve` gives the version at the time of each attempt, or None if there is none any more.
        """
        self._spawn(self._run_with_retries(name, resolve, invocation, config))

    def retire(self, version: Version) -> None:
        """No call will run in this version's environments any more."""
        self._retired.add(version.revision)
        for environment in self._idle.pop(version.revision, []):
            self._end(environment)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for environment in list(self._environments):
            self._end(environment)
        await all_cleared()

    async def _run_with_retries(
        self,
        name: str,
        resolve: Callable[[], Version | None],
        invocation: Invocation,
        config: Mapping[str, Any],
    ) -> None:
        retries = config.get("MaximumRetryAttempts", ASYNCHRONOUS_RETRIES)
        oldest = self._loop.time() + config.get("MaximumEventAgeInSeconds", EVENT_SECONDS)
        for attempt in range(retries + 1):
            if attempt:
                await asyncio.sleep(self._settings.retry_waits[attempt - 1])
            await self.concurrency.enter_when_free(name)
            version = resolve()
            if version is None or self._loop.time() > oldest:
                self.concurrency.leave(name)
                return
            invocation.tail = logs.Tail()
            finished = await self._run(version, invocation)
            if not finished.answer.is_error:
                return

    async def _run(self, version: Version, invocation: Invocation) -> Finished:
        """Run a call that has entered."""
        environment: Environment | None = None
        try:
            environment = self._warm(version)
            start = _Start(environment) if environment else await self._start(version, invocation)
            environment = start.environment
            environment.log.tail = invocation.tail
            request_id = invocation.request_id
            began = self._loop.time() - start.spent
            environment.log.platform(logs.start(request_id, version))
            answer = start.failure
            if answer is None:
                answer = await environment.run(invocation, version.timeout, start.spent)
            environment.log.platform(logs.end(request_id))
            line, billed = logs.report(
                request_id,
                version,
                self._loop.time() - began,
                start.init_seconds,
                environment.peak_mb(),
                answer.status,
            )
            environment.log.platform(line)
            return Finished(answer, billed, start.init_seconds is not None)
        finally:
            self.concurrency.leave(version.name)
            if environment is not None:
                self._release(environment)

    async def _start(self, version: Version, invocation: Invocation) -> _Start:
        """A new environment. An init that failed is done again, in the call's own time."""
        environment, failure = await self._initialised(version, invocation, INIT_SECONDS)
        seconds = environment.init_seconds
        if failure is None:
            return _Start(environment, seconds)
        environment.log.platform(logs.init_report(seconds, "init", str(failure.status)))
        self._end(environment)
        environment, failure = await self._initialised(version, invocation, version.timeout)
        seconds = environment.init_seconds
        if failure is not None:
            environment.log.platform(logs.init_report(seconds, "invoke", str(failure.status)))
        return _Start(environment, None, seconds, failure)

    async def _initialised(
        self, version: Version, invocation: Invocation, seconds: float
    ) -> tuple[Environment, Answer | None]:
        environment = Environment(version, self._around, invocation.tail)
        self._environments.add(environment)
        try:
            return environment, await environment.initialise(invocation, seconds)
        except BaseException:  # the host closes, or the machine has no more to give
            self._end(environment)
            raise

    def _warm(self, version: Version) -> Environment | None:
        idle = self._idle.get(version.revision)
        while idle:
            environment = idle.pop()
            if environment.is_ready:
                return environment
            self._end(environment)
        return None

    def _release(self, environment: Environment) -> None:
        revision = environment.version.revision
        if environment.is_ready and revision not in self._retired:
            environment.rest()
            self._idle.setdefault(revision, []).append(environment)
        else:
            self._end(environment)

    def _end(self, environment: Environment) -> None:
        self._environments.discard(environment)
        environment.end()

    async def _end_idle(self) -> None:
        while True:
            await asyncio.sleep(self._settings.idle / 4)
            oldest = self._loop.time() - self._settings.idle
            for idle in self._idle.values():
                while idle and idle[0].idle_since < oldest:
                    self._end(idle.pop(0))

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
