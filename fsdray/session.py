"""One user's connection to one backend: submits calls, keeps what refs stand for, resolves them.

The same class serves the driver and, inside a task, the worker. What runs a call at the other end
is `fsdray.worker`; how a gang is started and watched is `fsdray.gang`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import itertools
import os
import secrets
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_futures
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from fsdray import failure, gang, loop, wire
from fsdray.collective import channels
from fsdray.costs.meter import metering
from fsdray.errors import (
    FsdrayError,
    GetTimeout,
    ObjectLost,
    RankFailed,
    SettingsError,
    TaskCancelled,
)
from fsdray.refs import ObjectRef
from fsdray.services import Backend, Buffer
from fsdray.settings import Settings
from fsdray.wire import Call, Gang, Hole, Inline, Kept, Payload

_FOREIGN_WAIT = 60.0  # seconds of one wait for a value that another process makes


class PerRank:
    """An argument that is another one for each rank; made by `per_rank`."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = tuple(values)


def per_rank(values: Sequence[Any]) -> Any:
    """An argument of a gang's function of which rank r is given ``values[r]``.

    Each value (a ref is resolved) travels to its rank alone. Give it as an argument itself, not
    inside another; it must have as many values as the gang has ranks.
    """
    return PerRank(values)


class Entry:
    """What a session knows of one value."""

    def __init__(self, session: Session, entry_id: str, label: str) -> None:
        self.session = session
        self.id = entry_id
        self.label = label
        self.payload: Future[Payload] = Future()
        self.view: Buffer | None = None  # the bytes, once they were fetched
        self.escaped = False
        self.gang: tuple[str, int] | None = None  # of a gang's rank: its gang and its rank
        self.start: Coroutine[Any, Any, None] | None = None  # how to get it, if nobody asked yet
        self.counts: Mapping[str, float] = {}

    def state(self) -> str:
        if not self.payload.done():
            return "pending"
        return "failed" if self.payload.exception() else "finished"

    def __del__(self) -> None:
        if self.start is not None:
            self.start.close()
        if self.payload.done() and not self.escaped and self.payload.exception() is None:
            payload = self.payload.result()
            if isinstance(payload, Kept):
                self.session.forget(payload.key)


@dataclass(frozen=True)
class Submission:
    """One call of a remote function, before it became calls of the platform."""

    name: str
    function: bytes
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    num_returns: int
    memory: int
    timeout: float
    world_size: int | None
    channel: str
    preload: tuple[str, ...] = ()


class Session:
    """See the module. `is_driver` is False inside a task."""

    def __init__(self, backend: Backend, settings: Settings, is_driver: bool) -> None:
        self.backend = backend
        self.settings = settings
        self.is_driver = is_driver
        self._ids = itertools.count()
        self._prefix = secrets.token_hex(6)
        self._underway: set[Future[None]] = set()
        self._functions: dict[str, Kept] = {}
        self._foreign: dict[str, Entry] = {}
        # Reentrant: an entry may be collected, and forgotten, while this thread holds it.
        self._lock = threading.RLock()
        self._closed = False

    # Values

    def put(self, value: Any) -> ObjectRef[Any]:
        """Store a value in objects and return its ref."""
        if isinstance(value, ObjectRef):
            raise TypeError("put takes a value, not an ObjectRef: it is stored already")
        entry = Entry(self, self._new_id(), "put")
        parts = wire.encode(value)
        entry.payload.set_result(self._keep(value_key(entry.id), parts))
        return ObjectRef(entry)

    def get(self, refs: Sequence[ObjectRef[Any]], timeout: float | None) -> list[Any]:
        """The values of refs, in order; the first failure among them is raised."""
        entries = [ref._entry for ref in refs]
        futures = [self._start(entry) for entry in entries]
        with self._yielded(futures):
            _, pending = wait_futures(futures, timeout)
        if pending:
            raise GetTimeout(
                f"{len(pending)} of {len(futures)} values were not there after {timeout} s"
            )
        loop.run(self._fetch(entries))
        values: list[Any] = []
        for entry in entries:
            try:
                values.append(self._value(entry))
            except RankFailed as error:
                raise self._root_cause(entries, entry, error) from error.__cause__
        return values

    def wait(
        self, refs: Sequence[ObjectRef[Any]], num_returns: int, timeout: float | None
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        """Split refs into ready and not ready, once `num_returns` are or time is up."""
        futures = {self._start(ref._entry): ref for ref in refs}
        pending = set(futures)
        clock = loop.get().time
        deadline = None if timeout is None else clock() + timeout
        with self._yielded(list(futures)):
            while len(refs) - len(pending) < num_returns:
                left = None if deadline is None else max(0.0, deadline - clock())
                done, pending = wait_futures(pending, left, FIRST_COMPLETED)
                if not done:
                    break
        ready = [ref for future, ref in futures.items() if future.done()][:num_returns]
        chosen = set(ready)
        return ready, [ref for ref in refs if ref not in chosen]

    def future(self, ref: ObjectRef[Any]) -> Future[Any]:
        """A future of the value itself."""
        entry = ref._entry
        result: Future[Any] = Future()

        async def resolve() -> None:
            if not result.set_running_or_notify_cancel():
                return
            try:
                await asyncio.wrap_future(self._start(entry))
                await self._fetch([entry])
                result.set_result(self._value(entry))
            except BaseException as error:
                result.set_exception(error)

        loop.submit(resolve())
        return result

    def receive(self, entry_id: str, label: str) -> ObjectRef[Any]:
        """A ref to a value that another process holds or makes."""
        with self._lock:
            entry = self._foreign.get(entry_id)
            if entry is None:
                entry = Entry(self, entry_id, label)
                entry.escaped = True
                entry.start = self._receive(entry)
                self._foreign[entry_id] = entry
        return ObjectRef(entry)

    def escape(self, entry: Entry) -> None:
        """A ref is leaving this process: keep its value in objects until the session ends."""
        with self._lock:
            if entry.escaped:
                return
            entry.escaped = True
            # Held until the end: the process that the ref goes to may come back with it.
            self._foreign[entry.id] = entry
        self._go(self._publish(entry))

    def forget(self, key: str) -> None:
        """Remove an object that nothing refers to any more."""
        if not self._closed:
            self._go(self.backend.objects.delete([key]))

    # Calls

    def submit(self, submission: Submission) -> list[ObjectRef[Any]]:
        """Start a call, or a gang of them; one ref for each value, or each rank."""
        if self._closed:
            raise FsdrayError("this session was shut down; call fsdray.init() for a new one")
        self.backend.functions.limits.check(submission.memory, submission.timeout)
        task = self._new_id()
        size = submission.world_size
        args, kwargs, holes, given = _dig(submission)
        if size is not None and size > self.backend.functions.limits.concurrency:
            raise SettingsError(
                f"a gang of {size} cannot be whole: "
                f"{self.backend.functions.limits.concurrency} calls may run at one time. "
                f"Start fewer ranks, or fsdray.init(concurrency={size})"
            )
        if submission.preload:
            self.backend.functions.prepare(submission.preload)
        arguments = self._send(f"arguments/{task}", wire.encode((args, kwargs)))
        function = self._send_function(submission.function)
        sent = self._send_given(task, given, size or 1)
        count = submission.num_returns if size is None else size
        entries = [
            Entry(self, f"{task}-{i}", f"{submission.name}[{i}]" if size else submission.name)
            for i in range(count)
        ]
        call = Call(
            task=task,
            name=submission.name,
            function=function,
            arguments=arguments,
            holes={},
            returns=tuple(entry.id for entry in entries),
            unpack=size is None and submission.num_returns != 1,
            memory=submission.memory,
            timeout=submission.timeout,
            settings=self.settings,
        )
        if size is None:
            self._go_for(entries, [arguments], self._run_task(call, holes, entries))
        else:
            for rank, entry in enumerate(entries):
                entry.gang = (task, rank)
            kept = [v for of_rank in sent for v in of_rank.values() if isinstance(v, Kept)]
            work = self._run_gang(call, submission.channel, holes, sent, entries)
            self._go_for(entries, [arguments, *kept], work)
        return [ObjectRef(entry) for entry in entries]

    async def flush(self) -> None:
        """Wait until all that was submitted or published here has ended."""
        while self._underway:
            await asyncio.wait([asyncio.wrap_future(future) for future in list(self._underway)])

    async def close(self) -> None:
        """End the session; what still runs is stopped where the platform can."""
        self._closed = True
        underway = [asyncio.wrap_future(future) for future in list(self._underway)]
        for future in list(self._underway):
            future.cancel()
        if underway:
            await asyncio.wait(underway, timeout=5)
        await self.backend.close()

    # Inside

    async def _run_task(
        self, call: Call, holes: Mapping[int, Entry], entries: Sequence[Entry]
    ) -> None:
        filled = {number: await _resolved(entry) for number, entry in holes.items()}
        call = await self._fitting(dataclasses.replace(call, holes=filled))
        with metering() as meter:
            data = await self.backend.functions.invoke(
                wire.dump(call), memory=call.memory, timeout=call.timeout, label=call.name
            )
            reply = wire.load(data).ranks[0]
            meter.merge(reply.counts)
        # A call that could not even be decoded has one failure for all its values.
        values = reply.values if len(reply.values) == len(entries) else reply.values * len(entries)
        for entry, value in zip(entries, values, strict=True):
            entry.counts = meter.counts()
            entry.payload.set_result(value)

    async def _run_gang(
        self,
        call: Call,
        channel: str,
        holes: Mapping[int, Entry],
        given: Sequence[Mapping[int, Payload | Entry]],
        entries: Sequence[Entry],
    ) -> None:
        size = len(entries)
        filled = {number: await _resolved(entry) for number, entry in holes.items()}
        values = {
            rank: {
                number: await _resolved(value) if isinstance(value, Entry) else value
                for number, value in of_rank.items()
            }
            for rank, of_rank in enumerate(given)
        }
        async with self.backend.functions.admitted(size):
            place = await channels.prepare(self.backend, channel, size)
            written: list[str] = []
            is_whole = False
            try:
                spec = Gang(
                    id=place.gang,
                    rank=-1,
                    size=size,
                    branching=self.settings.branching,
                    channel=channel,
                    inboxes=place.inboxes,
                    given=values,
                )
                whole = await self._fitting(dataclasses.replace(call, holes=filled, gang=spec))
                with metering() as meter:
                    result = await gang.run(self.backend, whole)
                    for reply in result.ranks.values():
                        meter.merge(reply.counts)
                        written += reply.written
                is_whole = result.broken is None
            finally:
                await channels.clear(self.backend, place, written, not is_whole)
        for rank, entry in enumerate(entries):
            if result.broken is not None:
                entry.payload.set_exception(gang.rank_failed(result.broken))
                continue
            entry.counts = result.ranks[rank].counts
            entry.payload.set_result(result.ranks[rank].values[0])

    def _go_for(
        self, entries: Sequence[Entry], garbage: Sequence[Payload], work: Coroutine[Any, Any, None]
    ) -> None:
        """Run a call's coroutine; its error becomes that of its values."""

        async def run() -> None:
            try:
                await work
            except BaseException as error:
                # Platform errors and bugs of ours alike must reach whoever waits for the values.
                cancelled = isinstance(error, asyncio.CancelledError)
                told = TaskCancelled("the session was shut down") if cancelled else error
                for entry in entries:
                    if not entry.payload.done():
                        entry.payload.set_exception(told)
                if cancelled:
                    raise
            finally:
                keys = [payload.key for payload in garbage if isinstance(payload, Kept)]
                if keys and not self._closed:
                    await self.backend.objects.delete(keys)

        self._go(run())

    def _go(self, work: Coroutine[Any, Any, None]) -> None:
        future = loop.submit(work)
        with self._lock:
            self._underway.add(future)
        future.add_done_callback(self._ended)

    def _ended(self, future: Future[None]) -> None:
        with self._lock:
            self._underway.discard(future)

    # Payloads

    def _keep(self, key: str, parts: Sequence[Buffer]) -> Kept:
        """Write encoded bytes to objects now: the caller may change what they came from."""
        loop.run(self.backend.objects.put(key, parts))
        return Kept(key, wire.size(parts))

    def _send(self, key: str, parts: list[Buffer]) -> Payload:
        """Encoded bytes to go with a call: inline where they are few."""
        if wire.size(parts) <= self.settings.inline_limit:
            return Inline(b"".join(parts))
        return self._keep(key, parts)

    def _send_function(self, pickled: bytes) -> Payload:
        """A function's bytes: stored once, however often it is called, if they are many."""
        if len(pickled) <= self.settings.inline_limit:
            return Inline(pickled)
        digest = hashlib.sha256(pickled).hexdigest()
        with self._lock:
            known = self._functions.get(digest)
        if known is None:
            known = self._keep(f"functions/{digest}", [pickled])
            with self._lock:
                self._functions[digest] = known
        return known

    def _send_given(
        self, task: str, given: Mapping[int, PerRank], size: int
    ) -> list[dict[int, Payload | Entry]]:
        """For each rank what its holes are filled with; what is large goes to objects."""
        room = self.backend.functions.limits.payload // 2 // size
        sent: list[dict[int, Payload | Entry]] = [{} for _ in range(size)]
        for number, per_rank_values in given.items():
            for rank, value in enumerate(per_rank_values.values):
                if isinstance(value, ObjectRef):
                    sent[rank][number] = value._entry
                    continue
                parts = wire.encode(value)
                if wire.size(parts) <= min(room, self.settings.inline_limit):
                    sent[rank][number] = Inline(b"".join(parts))
                else:
                    sent[rank][number] = self._keep(f"given/{task}/{number}/{rank}", parts)
        return sent

    async def _fitting(self, call: Call) -> Call:
        """The call, with inline values moved to objects until a payload can hold it."""
        room = self.backend.functions.limits.payload - len(wire.dump(call))
        holes = dict(call.holes)
        for number, payload in sorted(
            holes.items(), key=lambda item: -len(item[1].data) if isinstance(item[1], Inline) else 0
        ):
            if room >= 0 or not isinstance(payload, Inline):
                break
            key = f"arguments/{call.task}/{number}"
            await self.backend.objects.put(key, payload.data)
            holes[number] = Kept(key, len(payload.data))
            room += len(payload.data)
        return dataclasses.replace(call, holes=holes)

    # Values

    def _start(self, entry: Entry) -> Future[Payload]:
        with self._lock:
            start, entry.start = entry.start, None
        if start is not None:
            self._go(start)
        return entry.payload

    async def _receive(self, entry: Entry) -> None:
        """Wait for a value that another process makes."""
        try:
            blob = None
            while blob is None:
                blob = await self.backend.objects.get(value_key(entry.id), wait=_FOREIGN_WAIT)
            entry.view = blob.data
            if blob.size <= self.settings.inline_limit:
                entry.payload.set_result(Inline(bytes(blob.data)))
            else:
                entry.payload.set_result(Kept(value_key(entry.id), blob.size))
        except BaseException as error:
            # Whoever waits for the value must learn that it will not come.
            entry.payload.set_exception(error)
            raise

    async def _publish(self, entry: Entry) -> None:
        """Store what an escaped ref stands for, once it is there."""
        future = self._start(entry)
        await asyncio.wait([asyncio.wrap_future(future)])
        error = future.exception()
        if error is not None:
            data = failure.encode(failure.capture(error, entry.label))
        else:
            payload = future.result()
            if isinstance(payload, Kept):
                return
            data = bytes(payload.data)
        await self.backend.objects.put(value_key(entry.id), data, if_absent=True)

    async def _fetch(self, entries: Sequence[Entry]) -> None:
        """Bring the bytes of finished values here."""

        async def fetch(entry: Entry, key: str) -> None:
            blob = await self.backend.objects.get(key)
            if blob is None:
                raise ObjectLost(f"the value of {entry.label} is no longer kept")
            entry.view = blob.data

        wanted = {}
        for entry in entries:
            if entry.view is None and entry.payload.exception() is None:
                payload = entry.payload.result()
                if isinstance(payload, Inline):
                    entry.view = payload.data
                else:
                    wanted[entry.id] = fetch(entry, payload.key)
        await asyncio.gather(*wanted.values())

    def _value(self, entry: Entry) -> Any:
        error = entry.payload.exception()
        if error is not None:
            raise error
        assert entry.view is not None
        return self.open(entry.view)

    def open(self, data: Buffer) -> Any:
        """Decode a value, or raise the failure that it is; arrays are read-only views."""
        value = wire.decode(memoryview(data).toreadonly())
        if isinstance(value, failure.Failure):
            raise failure.restore(value)
        return value

    def _root_cause(
        self, entries: Sequence[Entry], entry: Entry, error: RankFailed
    ) -> BaseException:
        """Where one rank's code raised, that error says more than what it did to the others."""
        for other in entries:
            is_culprit = (
                entry.gang is not None
                and other.gang is not None
                and other.gang[0] == entry.gang[0]
                and other.gang[1] in error.ranks
            )
            if is_culprit and other is not entry:
                try:
                    self._value(other)
                except BaseException as cause:
                    # Whatever it is, it is what the user asked to get.
                    return cause
        return error

    def _yielded(self, futures: Sequence[Future[Payload]]) -> AbstractContextManager[None]:
        """Inside a task, waiting for others gives its concurrency to them."""
        if self.is_driver or all(future.done() for future in futures):
            return nullcontext()
        return self.backend.functions.yielded()

    def _new_id(self) -> str:
        return f"{self._prefix}-{next(self._ids)}"


def _dig(
    submission: Submission,
) -> tuple[list[Any], dict[str, Any], dict[int, Entry], dict[int, PerRank]]:
    """Arguments with holes, and what the holes are filled with: refs, and per-rank values."""
    holes: dict[int, Entry] = {}
    given: dict[int, PerRank] = {}
    size = submission.world_size

    def dig(value: Any) -> Any:
        number = len(holes) + len(given)
        if isinstance(value, ObjectRef):
            holes[number] = value._entry
        elif isinstance(value, PerRank):
            if size is None:
                raise SettingsError(
                    f"per_rank is for gangs: give {submission.name} a world_size, or the value"
                )
            if len(value.values) != size:
                raise SettingsError(
                    f"per_rank has {len(value.values)} values for a gang of {size} ranks"
                )
            given[number] = value
        else:
            return value
        return Hole(number)

    args = [dig(value) for value in submission.args]
    kwargs = {name: dig(value) for name, value in submission.kwargs.items()}
    return args, kwargs, holes, given


def value_key(entry_id: str) -> str:
    """Where a value lies in objects, for every process of the session."""
    return f"values/{entry_id}"


async def _resolved(entry: Entry) -> Payload:
    """An argument's payload; its failure where it failed."""
    return await asyncio.wrap_future(entry.session._start(entry))


# The session of this process

_current: Session | None = None


def current() -> Session:
    """The session of this process; a driver that has none yet starts one."""
    if _current is None:
        from fsdray import api

        api.init()
    assert _current is not None
    return _current


def set_current(session: Session | None) -> None:
    """Make `session` the one that `current` returns."""
    global _current
    _current = session


def is_open() -> bool:
    """Whether this process has a session."""
    return _current is not None


def enter(backend: Backend, settings: Settings) -> Session:
    """The session of a worker, for the call that it begins."""
    if _current is None or _current.backend is not backend:
        set_current(Session(backend, settings, is_driver=False))
    assert _current is not None
    _current.settings = settings
    return _current


# A forked child has none of its parent's processes: it starts a session of its own.
os.register_at_fork(after_in_child=lambda: set_current(None))
