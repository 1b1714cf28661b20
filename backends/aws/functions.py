"""`fsdray.services.Functions` over Lambda: one Invoke for each call, and never two.

What crosses is in `calls`, what runs it in `handler`. A call that was refused is sent again; one
that may have begun is not, whatever became of its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any

import tenacity

from fsdray.backends.aws import border, calls
from fsdray.backends.aws.admission import Admission
from fsdray.backends.aws.calls import Answer, Event
from fsdray.backends.aws.clients import Clients
from fsdray.errors import (
    FsdrayError,
    FunctionCrashed,
    FunctionTimeout,
    OutOfMemory,
    SettingsError,
    Throttled,
)
from fsdray.services import MIB, Buffer, FunctionLimits, Objects

DEPTH = 64
"""Calls that may wait for one another in a chain. Lambda itself would stop a chain of 16 as a loop
where `RecursiveLoop` were not allowed; each waiting one is billed and takes a concurrency."""

LOOK = 1.0  # seconds after which a call begins to look whether it was cancelled
_REACHES = 5  # times that a connection is tried
_SLACK = 20.0  # seconds after its time in which a call's end must have been told

NOT_RUN = {
    "EC2ThrottledException",
    "EC2UnexpectedException",
    "EFSMountConnectivityException",
    "EFSMountTimeoutException",
    "ENILimitReachedException",
    "KMSThrottlingException",
    "ResourceConflictException",
    "ResourceNotReadyException",
    "SnapStartNotReadyException",
    "SnapStartTimeoutException",
    "SubnetIPAddressLimitReachedException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}
"""Errors of Invoke that say that nothing ran and that it may pass (Lambda's API reference). Not
``ServiceException``: a failure inside Lambda, of which nobody knows what it did."""

CANCELS = "cancel/"
"""What the keys of marks begin with: those of calls that died stay until they expire."""

DEATHS = (FunctionCrashed, FunctionTimeout, OutOfMemory)
"""After these a call that its function made may run on."""

Show = Callable[[Sequence[tuple[str, str]]], None]
"""Takes lines that calls printed, each with who printed it."""


def cancel_key(call: str) -> str:
    """The object whose being there says that a call, and what it called, is not wanted any more."""
    return f"{CANCELS}{call}"


def rung(ladder: Mapping[int, str], memory: int) -> tuple[int, str]:
    """Memory in MB and name of the smallest function that has so much.

    Raises
    ------
    SettingsError : none has.
    """
    fitting = [each for each in ladder if each >= memory]
    if not fitting:
        raise SettingsError(
            f"memory={memory} MB: the functions of this stack have {', '.join(map(str, ladder))} "
            "MB. Ask for less, or deploy larger ones: `fsdray deploy --help` says how"
        )
    least = min(fitting)
    return least, ladder[least]


class AwsFunctions:
    """Calls of one session from this process.

    Parameters
    ----------
    ladder : functions by their memory in MB. session : whose calls these are.
    objects : where a call finds that it was cancelled. show : takes what calls print.
    storage : as in `fsdray.settings.Settings`, for the calls' own objects.
    settle : takes what they know of inboxes.
    above : ids of the call that runs in this process, last, and of those that wait for it.
    """

    def __init__(
        self,
        clients: Clients,
        ladder: Mapping[int, str],
        session: str,
        objects: Objects,
        limits: FunctionLimits,
        show: Show,
        settle: Callable[[Sequence[Sequence[int]]], None],
        storage: str = "standard",
        above: tuple[str, ...] = (),
    ) -> None:
        self._clients = clients
        self._ladder = ladder
        self._session = session
        self._objects = objects
        self._show = show
        self._storage = storage
        self._settle = settle
        self.above = above
        self._admission = Admission(limits.concurrency)
        self._running: dict[str, asyncio.Task[bytes]] = {}
        self._cancelled: set[str] = set()  # of those
        self._telling: set[asyncio.Task[None]] = set()
        self._clearing: set[asyncio.Task[None]] = set()
        self._paused: set[str] = set()  # that were refused, and not sent again yet
        self.limits = limits

    async def invoke(
        self, payload: Buffer, *, memory: int, timeout: float, label: str = ""
    ) -> bytes:
        self.limits.check(memory, timeout)
        size = memoryview(payload).nbytes
        if size > self.limits.payload:
            raise SettingsError(f"a payload of {size:,} bytes: at most {self.limits.payload:,}")
        if len(self.above) >= DEPTH:
            raise SettingsError(
                f"{calls.name_of(label)} would be the {DEPTH + 1}th of calls that wait for one "
                "another: recursion this deep keeps a function waiting, and billed, at each level. "
                "Return refs instead of waiting for them, or recurse within a call"
            )
        rung(self._ladder, memory)
        call = secrets.token_hex(6)
        is_alone = not self._admission.is_of_gang()
        if is_alone:
            await self._admission.enter()
        event = Event(
            session=self._session,
            call=call,
            label=label,
            timeout=timeout,
            concurrency=self.limits.concurrency,
            above=self.above,
            storage=self._storage,
            sent=time.time(),
            payload=payload,
        )
        running = asyncio.create_task(self._run(event, memory))
        if is_alone:  # one that is cancelled has its place until it ends
            running.add_done_callback(lambda _: self._admission.leave())
        self._running[call] = running
        running.add_done_callback(lambda _: self._forget(call))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if not running.done():
                self._tell(call, running)
            raise

    def admitted(self, count: int) -> AbstractAsyncContextManager[None]:
        return self._admission.gang(count)

    @contextmanager
    def yielded(self) -> Iterator[None]:
        # Lambda has no way to give a waiting call's concurrency to another.
        yield

    def prepare(self, names: Sequence[str]) -> None:
        """Environments are Lambda's to make."""

    @property
    def is_telling(self) -> bool:
        """Whether calls that were cancelled cannot find that out yet."""
        return bool(self._telling)

    async def told(self) -> None:
        """Return when all calls that were cancelled can find that out."""
        if self._telling:
            await asyncio.wait(self._telling)

    async def tell_all(self) -> None:
        """Cancel all that runs: return when each call can find that out."""
        for call, running in list(self._running.items()):
            if call not in self._cancelled:
                self._tell(call, running, at_once=True)
        await self.told()

    async def cancelled_have_ended(self, patience: float) -> None:
        """Return when all calls that were cancelled until now have ended, or time is up (s)."""
        ending = [self._running[call] for call in self._cancelled]
        if ending:
            await asyncio.wait(ending, timeout=patience)

    async def stop(self, patience: float) -> bool:
        """Cancel all that runs and wait up to `patience` seconds for its end; whether all ended."""
        with contextlib.suppress(FsdrayError):  # what cannot be told ends by its own time
            await self.tell_all()
        if self._running:
            await asyncio.wait(self._running.values(), timeout=patience)
        left = list(self._running.values())
        for task in (*left, *self._clearing):
            task.cancel()
        if left or self._clearing:
            await asyncio.wait((*left, *self._clearing))
        if self._telling:  # of what calls that died meanwhile had made
            _, late = await asyncio.wait(self._telling, timeout=patience)
            for telling in late:
                telling.cancel()
        return not left

    def _forget(self, call: str) -> None:
        del self._running[call]
        self._paused.discard(call)
        self._cancelled.discard(call)

    def _tell(self, call: str, running: asyncio.Task[bytes], at_once: bool = False) -> None:
        """Have a call stop that nobody waits for any more."""
        self._cancelled.add(call)
        if call in self._paused:
            running.cancel()
            return
        running.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._telling_goes_on(self._mark(call, running, at_once))

    def _tell_below(self, call: str) -> None:
        """Have the calls of one that died stop: they find no other who could tell them."""
        self._telling_goes_on(self._put_mark(call))

    def _telling_goes_on(self, marking: Coroutine[Any, Any, None]) -> None:
        telling = asyncio.create_task(marking)
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)
        telling.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _put_mark(self, call: str) -> None:
        await self._objects.put(cancel_key(call), b"")

    async def _mark(self, call: str, running: asyncio.Task[bytes], at_once: bool) -> None:
        if not at_once:
            # It does not look before; most have ended by then.
            await asyncio.wait({running}, timeout=LOOK / 2)
        if not running.done():
            await self._put_mark(call)
            clearing = asyncio.create_task(self._unmark(call, running))
            self._clearing.add(clearing)
            clearing.add_done_callback(self._clearing.discard)
            clearing.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _unmark(self, call: str, running: asyncio.Task[bytes]) -> None:
        await asyncio.wait({running})
        await self._objects.delete([cancel_key(call)])

    async def _run(self, event: Event, asked: int) -> bytes:
        call, label, timeout = event.call, event.label, event.timeout
        memory, function = rung(self._ladder, asked)
        client = await self._clients.get("lambda")
        name = calls.name_of(label)
        told = event.dump()
        clock = asyncio.get_running_loop().time
        began = clock()

        async def send() -> tuple[Mapping[str, Any], bytes]:
            nonlocal began
            began = clock()
            async with asyncio.timeout(timeout + _SLACK):
                answer = await client.invoke(
                    FunctionName=function,
                    LogType="Tail",
                    # aiohttp takes long bytes as a file only, which it sends piece by piece.
                    Payload=told if len(told) < MIB else io.BytesIO(told),
                )
                async with answer["Payload"] as reply:  # closed also where it breaks off
                    return answer, await reply.read()

        try:
            try:
                answer, body = await send()
            except Exception as error:
                if not _is_refusal(error):
                    raise
                answer, body = await self._retrying(call, timeout)(send)
        except asyncio.CancelledError:
            if call not in self._paused:
                self._count_seconds(memory, clock() - began)
            raise
        except Exception as error:
            lost = self._lost(error, name, memory, timeout, clock() - began)
            if isinstance(lost, DEATHS):  # or it runs on, and is not wanted
                self._tell_below(call)
            raise lost from error
        seconds = clock() - began
        log = calls.read_log(answer.get("LogResult"))
        if log.gb_seconds is None:
            self._count_seconds(memory, seconds)
        else:
            self._clients.count("gb_seconds", log.gb_seconds)
        if "FunctionError" in answer:
            self._show([(label, line) for line in log.lines])
            failure = calls.failure_of(
                body,
                log,
                name=name,
                memory=asked,
                given=memory,
                timeout=timeout,
                seconds=seconds,
            )
            if call in self._cancelled or log.is_cancelled:
                # Who waits for it yet is about to end too (a call may find its caller's mark
                # first), and is to make nothing of this end: a rank would tell its gang, whose
                # inboxes nobody reads any more.
                raise asyncio.CancelledError
            if isinstance(failure, DEATHS):
                self._tell_below(call)
            raise failure
        replied = Answer.load(body)
        if replied.printed:
            self._show(replied.printed)
        if replied.mail:
            self._settle(replied.mail)
        return bytes(replied.reply)

    def _retrying(self, call: str, seconds: float) -> tenacity.AsyncRetrying:
        """Sends a refused call again, after waits that grow and that chance spreads."""

        async def pause(seconds: float) -> None:
            self._paused.add(call)
            if call in self._cancelled:
                raise asyncio.CancelledError
            await asyncio.sleep(seconds)
            self._paused.discard(call)

        def stop(state: tenacity.RetryCallState) -> bool:
            assert state.outcome is not None
            if border.status_of(state.outcome.exception() or Exception()):
                return (state.seconds_since_start or 0.0) >= seconds
            return state.attempt_number >= _REACHES  # AWS was not even reached

        return tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(_is_refusal),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=5.0),
            stop=stop,
            sleep=pause,
            reraise=True,
        )

    def _lost(
        self, error: Exception, name: str, memory: int, timeout: float, seconds: float
    ) -> Exception:
        """What to raise for a call whose answer did not come."""
        what = f"calling {name}"
        if _is_refusal(error) and border.status_of(error):
            return Throttled(
                f"{name} found no free concurrency within its timeout of {timeout:g} s "
                f"({border.code_of(error)}): start less at one time (the setting concurrency), or "
                "ask AWS for a higher quota; `fsdray doctor` shows yours"
            )
        why = border.translated(error, what)
        if why is None:
            return error
        if (
            _is_refusal(error)
            or 0 < border.status_of(error) < 500
            or isinstance(why, SettingsError)
        ):
            return why
        # It was sent, and may have run: it is billed as if it had, and not sent again.
        self._count_seconds(memory, seconds)
        if isinstance(error, TimeoutError) and seconds > timeout:
            return FunctionTimeout(
                f"{name} did not end within its timeout of {timeout:g} s, and Lambda did not say "
                "why: give it more with the option timeout=SECONDS"
            )
        return FunctionCrashed(
            f"what became of {name} is not known, since its answer was lost ({why}). It may have "
            "run, or be running, so it was not sent again: max_retries says whether it may be"
        )

    def _count_seconds(self, memory: int, seconds: float) -> None:
        """What Lambda bills for a call, where its log did not say: whole milliseconds."""
        self._clients.count("gb_seconds", memory / 1024 * math.ceil(seconds * 1000) / 1000)


def _is_refusal(error: BaseException) -> bool:
    """Whether a call is known not to have run, and may run later."""
    if border.code_of(error):
        return border.code_of(error) in NOT_RUN
    from aiohttp import ClientConnectorError
    from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError

    # aiobotocore gives the second name to connections that broke later, too.
    return isinstance(error, ConnectTimeoutError) or (
        isinstance(error, EndpointConnectionError)
        and isinstance(error.kwargs.get("error"), ClientConnectorError)
    )
