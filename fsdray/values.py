"""What refs stand for: where a session keeps values, how it waits for them, when they go.

`Values` is the half of a session that knows nothing of calls; `fsdray.session` adds those.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import secrets
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_futures
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from fsdray import failure, loop, wire
from fsdray.errors import FsdrayError, GetTimeout, ObjectLost, RankFailed, SettingsError
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
        # Underway: who stops waiting for it does not cancel it for the others.
        self.payload.set_running_or_notify_cancel()
        self.view: Buffer | None = None  # the bytes, once they were fetched
        self.escaped = False
        self.gang: tuple[str, int] | None = None  # of a gang's rank: its gang and its rank
        self.start: Coroutine[Any, Any, None] | None = None  # how to get it, if nobody asked yet
        self.counts: Mapping[str, float] = {}
        self.work: Future[None] | None = None  # of a task: what makes the value

    def state(self) -> str:
        if not self.payload.done():
            return "pending"
        return "failed" if _is_failed(self.payload) else "finished"

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
        self._waits = 0  # of a task for others, on all threads and coroutines
        self._place = ExitStack()  # holds what gives its place to others meanwhile

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

    def get(
        self, refs: Sequence[ObjectRef[Any]], timeout: float | None
    ) -> tuple[list[Any], BaseException | None]:
        """The values of refs, in order, up to the first failure among them, and that.

        It is returned, to be raised by who was asked: so its traceback shows no frames of ours.
        """
        entries = [ref._entry for ref in refs]
        futures = [self.start(entry) for entry in entries]
        with self._yielded(futures):
            in_time = _all_or_one_failed(futures).wait(timeout)
        there = [entry for entry in entries if entry.payload.done()]
        failed = [entry for entry in there if _is_failed(entry.payload)]
        if not in_time:
            raise GetTimeout(
                f"{len(entries) - len(there)} of {len(entries)} values were not there after "
                f"{timeout} s"
            )
        chosen = failed or entries
        loop.run(self._fetch(chosen))
        values: list[Any] = []
        for entry in chosen:
            value, error = self._outcome(entry)
            if isinstance(error, RankFailed):
                return values, self._root_cause(entries, entry, error)
            if error is not None:
                return values, error
            values.append(value)
        return values, None

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

    def when_there(self, ref: ObjectRef[Any], tell: Callable[[ObjectRef[Any]], None]) -> None:
        """Call `tell` with the ref, on any thread, once its value (or its error) is there."""
        self.start(ref._entry).add_done_callback(lambda _: tell(ref))

    def completed(
        self, refs: Sequence[ObjectRef[Any]], timeout: float | None
    ) -> Iterator[ObjectRef[Any]]:
        """The refs as their values come."""
        there: queue.SimpleQueue[ObjectRef[Any]] = queue.SimpleQueue()
        for ref in refs:
            self.when_there(ref, there.put)
        clock = loop.get().time
        deadline = None if timeout is None else clock() + timeout
        for number in range(len(refs)):
            left = None if deadline is None else max(0.0, deadline - clock())
            try:
                with self._yielded([ref._entry.payload for ref in refs]):
                    ref = there.get(timeout=left)
            except queue.Empty:
                raise GetTimeout(
                    f"{len(refs) - number} of {len(refs)} values were not there after {timeout} s"
                ) from None
            yield ref

    def cancel(self, ref: ObjectRef[Any]) -> None:
        """Stop what makes a value; of a gang, all of it. Nothing happens where it is there."""
        entry = ref._entry
        if entry.payload.done():
            return
        if entry.work is None:
            raise SettingsError(
                f"{entry.label} was not started by this process: cancel it where it was"
            )
        entry.work.cancel()

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
                value, failed = self._outcome(entry)
            except BaseException as error:
                value, failed = None, error
            if failed is None:
                result.set_result(value)
            else:
                result.set_exception(failed)

        loop.submit(resolve())
        return result

    async def awaited(self, ref: ObjectRef[Any]) -> Any:
        """The value, for a coroutine on a loop that is not ours."""
        with self._yielded([self.start(ref._entry)]):
            return await asyncio.wrap_future(self.future(ref))

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
        if self._closed:
            raise ObjectLost(f"the value of {entry.label} went with its session, which is over")
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
        error = self._failed(entry)
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

    def _outcome(self, entry: Entry) -> tuple[Any, BaseException | None]:
        """A finished entry's value, or its failure."""
        error = self._failed(entry)
        if error is not None:
            return None, error
        assert entry.view is not None
        return self.open(entry.view)

    def _failed(self, entry: Entry) -> BaseException | None:
        """What ended a finished entry's call, where that was not the user's code."""
        error = entry.payload.exception()
        # It is told to each who asks: where an earlier one stood is not where this one does.
        return error.with_traceback(None) if isinstance(error, FsdrayError) else error

    def open(self, data: Buffer) -> tuple[Any, BaseException | None]:
        """Decode a value, or the failure that it is; arrays are read-only views."""
        value = wire.decode(memoryview(data).toreadonly())
        if isinstance(value, failure.Failure):
            return None, failure.restore(value)
        return value, None

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
                _, cause = self._outcome(other)
                if cause is not None:
                    return cause
        return error

    def _yielded(self, futures: Sequence[Future[Payload]]) -> AbstractContextManager[None]:
        """Inside a task, waiting for others gives its concurrency to them."""
        if self.is_driver or all(future.done() for future in futures):
            return nullcontext()
        return self._waiting()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Give this task's place to others, until the last wait of those underway is over."""
        with self._lock:
            self._waits += 1
            if self._waits == 1:
                self._place.enter_context(self.backend.functions.yielded())
        try:
            yield
        finally:
            with self._lock:
                self._waits -= 1
                if self._waits == 0:
                    self._place.close()

    def go(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        """Start work that must be over before the session ends, or the task replies."""
        future = loop.submit(work)
        with self._lock:
            self._underway.add(future)
        future.add_done_callback(self._ended)
        return future

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


def _is_failed(payload: Future[Payload]) -> bool:
    """Whether what is there is known to be a failure."""
    return payload.exception() is not None or payload.result().failed


def _all_or_one_failed(futures: Sequence[Future[Payload]]) -> threading.Event:
    """An event that is set when all are there, or one has failed: then waiting is over."""
    over = threading.Event()
    lock = threading.Lock()
    left = len(futures)

    def done(future: Future[Payload]) -> None:
        nonlocal left
        with lock:
            left -= 1
            if left == 0 or _is_failed(future):
                over.set()

    for future in futures:
        future.add_done_callback(done)
    return over


def value_key(entry_id: str) -> str:
    """Where a value lies in objects, for every process of the session."""
    return f"values/{entry_id}"
