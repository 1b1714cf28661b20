"""What refs stand for: where a session keeps values, how it waits for them, when they go.

`Values` is the half of a session that knows nothing of calls; `fsdray.session` adds those.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import threading
from collections.abc import Coroutine, Mapping, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_futures
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from fsdray import failure, loop, wire
from fsdray.errors import GetTimeout, ObjectLost, RankFailed
from fsdray.refs import ObjectRef
from fsdray.services import Backend, Buffer
from fsdray.settings import Settings
from fsdray.wire import Inline, Kept, Payload

_FOREIGN_WAIT = 60.0  # seconds of one wait for a value that another process makes


class Entry:
    """What a session knows of one value."""

    def __init__(self, session: Values, entry_id: str, label: str) -> None:
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


class Values:
    """Entries by ref, on one backend. `is_driver` is False inside a task."""

    def __init__(self, backend: Backend, settings: Settings, is_driver: bool) -> None:
        self.backend = backend
        self.settings = settings
        self.is_driver = is_driver
        self._ids = itertools.count()
        self._prefix = secrets.token_hex(6)
        self._underway: set[Future[None]] = set()
        self._foreign: dict[str, Entry] = {}
        # Reentrant: an entry may be collected, and forgotten, while this thread holds it.
        self._lock = threading.RLock()
        self._closed = False

    def put(self, value: Any) -> ObjectRef[Any]:
        """Store a value in objects and return its ref."""
        if isinstance(value, ObjectRef):
            raise TypeError("put takes a value, not an ObjectRef: it is stored already")
        entry = Entry(self, self.new_id(), "put")
        with wire.collecting_modules() as modules:
            parts = wire.encode(value)
        self.need(modules)
        entry.payload.set_result(self.keep(value_key(entry.id), parts))
        return ObjectRef(entry)

    def need(self, modules: Set[str]) -> None:
        """Values refer to these modules: calls that are given them must have those."""

    def get(self, refs: Sequence[ObjectRef[Any]], timeout: float | None) -> list[Any]:
        """The values of refs, in order; the first failure among them is raised."""
        entries = [ref._entry for ref in refs]
        futures = [self.start(entry) for entry in entries]
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
        futures = {self.start(ref._entry): ref for ref in refs}
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
                await asyncio.wrap_future(self.start(entry))
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
        self.go(self._publish(entry))

    def forget(self, key: str) -> None:
        """Remove an object that nothing refers to any more."""
        if not self._closed:
            self.go(self.backend.objects.delete([key]))

    async def flush(self) -> None:
        """Wait until all that was submitted or published here has ended."""
        while self._underway:
            await asyncio.wait([asyncio.wrap_future(future) for future in list(self._underway)])

    # Inside

    async def resolved(self, entry: Entry) -> Payload:
        """An entry's payload, once it is there; its failure where it failed."""
        return await asyncio.wrap_future(self.start(entry))

    def start(self, entry: Entry) -> Future[Payload]:
        """The future of an entry's payload; what comes from elsewhere is waited for from now on."""
        with self._lock:
            start, entry.start = entry.start, None
        if start is not None:
            self.go(start)
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
        future = self.start(entry)
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

    def go(self, work: Coroutine[Any, Any, None]) -> None:
        """Start work that must be over before the session ends, or the task replies."""
        future = loop.submit(work)
        with self._lock:
            self._underway.add(future)
        future.add_done_callback(self._ended)

    def _ended(self, future: Future[None]) -> None:
        with self._lock:
            self._underway.discard(future)

    def keep(self, key: str, parts: Sequence[Buffer]) -> Kept:
        """Write encoded bytes to objects now: the caller may change what they came from."""
        loop.run(self.backend.objects.put(key, parts))
        return Kept(key, wire.size(parts))

    def new_id(self) -> str:
        """A name for a task or value that nothing else in the session has."""
        return f"{self._prefix}-{next(self._ids)}"


def value_key(entry_id: str) -> str:
    """Where a value lies in objects, for every process of the session."""
    return f"values/{entry_id}"
