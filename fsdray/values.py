"""What refs stand for: where a session keeps values, how it waits for them, when they go.

`Values` is the half of a session that knows nothing of calls; `fsdray.session` adds those.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import queue
import secrets
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

from fsdray import buffers, coroutines, decoding, failure, loop, output, promise, wire
from fsdray.costs.prices import Prices, prices_of
from fsdray.errors import FsdrayError, GetTimeout, ObjectLost, RankFailed, SettingsError
from fsdray.loop import Job, Turnstile
from fsdray.promise import Promise
from fsdray.refs import ObjectRef
from fsdray.services import Backend, Buffer
from fsdray.settings import Settings
from fsdray.wire import Inline, Kept, Payload

T = TypeVar("T")

_FOREIGN_WAIT = 60.0  # seconds of one wait for a value that another process makes


class Entry:
    """What a session knows of one value."""

    def __init__(self, session: Values, entry_id: str, label: str) -> None:
        self.session = session
        self.id = entry_id
        self.label = label
        self.payload: Promise[Payload] = Promise()
        self.view: Buffer | None = None  # the bytes, once they were fetched
        self.escaped = False
        self.gang: tuple[str, int] | None = None  # of a gang's rank: its gang and its rank
        self.start: Coroutine[Any, Any, None] | None = None  # how to get it, if nobody asked yet
        self.counts: Mapping[str, float] = {}
        self.work: Job | None = None  # of a task: what makes the value
        self.needs: Sequence[Entry] = ()  # of a task under way: values that it was given by ref

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


class Streaming(Protocol):
    """A call of a generator function, for what a session must know of it (`fsdray.streams`)."""

    def close(self, *, is_stopped: bool) -> None: ...


class Values:
    """Entries by ref, on one backend. `is_driver` is False inside a task."""

    def __init__(self, backend: Backend, settings: Settings, is_driver: bool) -> None:
        self.backend = backend
        self.settings = settings
        self.is_driver = is_driver
        self._ids = itertools.count()
        self._prefix = secrets.token_hex(6)
        self._underway: set[Job] = set()
        self._flushing: list[asyncio.Future[None]] = []
        self._foreign: dict[str, Entry] = {}
        # Reentrant: an entry may be collected, and forgotten, while this thread holds it.
        self._lock = threading.RLock()
        self._closed = False
        self._waits = 0  # that are under way and gave this call's concurrency to others
        self._given_back: AbstractContextManager[None] | None = None
        self.streams: WeakValueDictionary[str, Streaming] = WeakValueDictionary()  # by task

    @cached_property
    def prices(self) -> Prices:
        """What receipts are priced by. Raises `SettingsError` where a table cannot be read."""
        return prices_of(self.settings, self.backend.functions.limits.architecture)

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
        An interrupt is such a failure, and stops what was waited for.
        """
        try:
            with self._stopped_by_interrupt(refs):
                return self._get([ref._entry for ref in refs], timeout)
        except KeyboardInterrupt as interrupt:
            return [], interrupt.with_traceback(None)

    def _get(
        self, entries: Sequence[Entry], timeout: float | None
    ) -> tuple[list[Any], BaseException | None]:
        promises = [self.start(entry) for entry in entries]
        pending = [promise for promise in promises if not promise.done()]
        in_time = True
        if pending and not any(each.done() and _is_failed(each) for each in promises):
            with self._yielded():
                in_time = promise.wait(pending, len(pending), timeout, _is_failed)
        there = [entry for entry in entries if entry.payload.done()]
        failed = [entry for entry in there if _is_failed(entry.payload)]
        if not in_time:
            raise GetTimeout(
                f"{len(entries) - len(there)} of {len(entries)} values were not there after "
                f"{timeout} s"
            )
        chosen = failed or entries
        self._fetch_now(chosen)
        output.flush()  # what the tasks printed comes before what the caller says of their values
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
        promises = [self.start(ref._entry) for ref in refs]
        pending = [promise for promise in promises if not promise.done()]
        missing = num_returns - (len(refs) - len(pending))
        if missing > 0:
            with self._stopped_by_interrupt(refs), self._yielded():
                promise.wait(pending, missing, timeout)
        there = (ref for ref, each in zip(refs, promises, strict=True) if each.done())
        ready = list(itertools.islice(there, num_returns))
        chosen = set(ready)
        return ready, [ref for ref in refs if ref not in chosen]

    def when_there(self, ref: ObjectRef[Any], tell: Callable[[ObjectRef[Any]], None]) -> None:
        """Call `tell` with the ref, on any thread, once its value (or its error) is there."""
        self.start(ref._entry).when_done(lambda _: tell(ref))

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
                with self._stopped_by_interrupt(refs), self._yielded(there.empty()):
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

    def stop(self, refs: Iterable[ObjectRef[Any]]) -> int:
        """Cancel the tasks that make these values, and those that they wait for; how many.

        What this process did not start goes on, as does what is done.
        """
        entries = [ref._entry for ref in refs]
        seen: set[str] = set()
        works: set[Job] = set()
        for entry in entries:  # it grows meanwhile
            if entry.id not in seen and not entry.payload.done():
                seen.add(entry.id)
                entries += entry.needs
                if entry.work is not None:
                    works.add(entry.work)
        for work in works:
            work.cancel()
        return len(works)

    @contextmanager
    def _stopped_by_interrupt(self, refs: Iterable[ObjectRef[Any]]) -> Iterator[None]:
        """A Ctrl-C while these are waited for stops what makes them; the session goes on."""
        try:
            yield
        except KeyboardInterrupt as interrupt:
            if count := self.stop(refs):
                what = "the task" if count == 1 else f"{count} tasks"
                verb = "was" if count == 1 else "were"
                interrupt.add_note(f"{what} that this waited for {verb} cancelled")
            raise

    def future(self, ref: ObjectRef[Any], gives_back: bool = True) -> Future[Any]:
        """A future of the value itself.

        With `gives_back`, a task's concurrency is that of others until it is done.
        """
        entry = ref._entry
        result: Future[Any] = Future()
        is_nested = decoding.is_here()

        def settle(failed: BaseException | None) -> None:
            value = None
            if failed is None:
                try:
                    value, failed = self._outcome(entry)
                except BaseException as error:
                    # What the value's own unpickling raises is for who asked.
                    failed = error
            if failed is None:
                result.set_result(value)
            else:
                result.set_exception(failed)

        async def resolve() -> None:
            if not result.set_running_or_notify_cancel():
                return
            failed: BaseException | None = None
            try:
                # How it is waited for is not known: inside a task, as if nothing else were done.
                with self._yielded(gives_back and not entry.payload.done()):
                    await self.start(entry).there()
                await self._fetch([entry])
            except BaseException as error:
                # Whatever it is, it is for who asked.
                failed = error
            work = partial(contextvars.copy_context().run, settle, failed)
            decoding.submit(work, is_nested=is_nested)

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
        if self._closed:
            raise ObjectLost(f"the value of {entry.label} went with its session, which is over")
        with self._lock:
            if entry.escaped:
                return
            entry.escaped = True
            # Held until the end: the process that the ref goes to may come back with it.
            self._foreign[entry.id] = entry
        self.go(self._publish(entry))

    def forget(self, *keys: str) -> None:
        """Remove objects that nothing refers to any more."""
        if not self._closed:
            self.go(self.backend.objects.delete(keys))

    def forget_foreign(self) -> None:
        """In a worker, between calls: who has refs of an earlier one keeps their values himself."""
        self._foreign.clear()

    def settle(self, entry: Entry) -> None:
        """Wait until an entry's value, or its failure, is there."""
        pending = self.start(entry)
        if not pending.done():
            with self._stopped_by_interrupt([ObjectRef(entry)]), self._yielded():
                promise.wait([pending], 1, None)

    def settling(self, entry: Entry) -> Future[None]:
        """`settle` as a future; to cancel it is no matter for the entry."""
        settled: Future[None] = Future()

        def tell(_: Promise[Payload]) -> None:
            if settled.set_running_or_notify_cancel():
                settled.set_result(None)

        self.start(entry).when_done(tell)
        return self.awaited(settled)

    def awaited(self, future: Future[T]) -> Future[T]:
        """A future that the running loop will wait for: see `_yielded`."""
        if not (self.is_driver or future.done() or coroutines.gives_back()):
            self._begin_wait()
            future.add_done_callback(lambda _: self._end_wait())
        return future

    @contextmanager
    def yielded(self) -> Iterator[None]:
        """Entered, by any number of threads, while this call only waits for other calls."""
        self._begin_wait()
        try:
            yield
        finally:
            self._end_wait()

    def is_waiting(self) -> bool:
        """Whether something is under way that other processes do."""
        return bool(self._underway)

    def drop(self, entry: Entry) -> None:
        """Nobody will ask for this entry any more."""
        with self._lock:
            start, entry.start = entry.start, None
        if start is not None:
            start.close()

    @property
    def is_closed(self) -> bool:
        return self._closed

    async def flush(self) -> None:
        """Wait until all that was submitted or published here has ended.

        Whoever took items from a generator's call is over, so that is stopped.
        """
        for stream in list(self.streams.values()):
            stream.close(is_stopped=False)
        await self._over()

    async def _over(self) -> None:
        while self._underway:
            over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._flushing.append(over)
            await over

    def is_flushed(self) -> bool:
        """Whether `flush` has nothing to do."""
        return not self._underway and not self.streams

    # Inside

    async def all_resolved(self, entries: Mapping[int, Entry]) -> dict[int, Payload]:
        """Entries' payloads, once all are there; of one that failed before, that alone."""
        promises = {number: self.start(entry) for number, entry in entries.items()}
        if not all(each.done() for each in promises.values()):
            await promise.settled(list(promises.values()), _is_failed)
        for number, each in promises.items():
            if each.done() and _is_failed(each):
                return {number: each.result()}
        return {number: each.result() for number, each in promises.items()}

    async def resolved(self, entry: Entry) -> Payload:
        """An entry's payload, once it is there; its failure where it failed."""
        return await self.start(entry).there()

    def start(self, entry: Entry) -> Promise[Payload]:
        """The promise of an entry's payload; what comes from elsewhere is waited for from now."""
        if entry.start is not None:
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
        await self.start(entry).settled()
        error = self._failed(entry)
        if error is not None:
            data = failure.encode(failure.capture(error, entry.label))
        else:
            payload = entry.payload.result()
            if isinstance(payload, Kept):
                return
            data = bytes(payload.data)
        await self.backend.objects.put(value_key(entry.id), data, if_absent=True)

    def _fetch_now(self, entries: Sequence[Entry]) -> None:
        """`_fetch` for plain code, which need not wait for what travelled with a reply."""
        for entry in entries:
            if entry.view is None and entry.payload.exception() is None:
                payload = entry.payload.result()
                if not isinstance(payload, Inline):
                    loop.run(self._fetch(entries))
                    return
                entry.view = payload.data

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
                if not other.payload.done():
                    # All of a gang are set in one go: whoever saw the first waits a moment.
                    promise.wait([other.payload], 1, None, _is_failed)
                self._fetch_now([other])
                _, cause = self._outcome(other)
                if cause is not None:
                    return cause
        return error

    def _yielded(self, waits: bool = True) -> AbstractContextManager[None]:
        """Inside a task, waiting for others gives its concurrency to them."""
        if self.is_driver or not waits:
            return nullcontext()
        return self.yielded()

    def _begin_wait(self) -> None:
        with self._lock:
            self._waits += 1
            if self._waits == 1:
                self._given_back = self.backend.functions.yielded()
                self._given_back.__enter__()

    def _end_wait(self) -> None:
        with self._lock:
            self._waits -= 1
            if self._waits == 0 and self._given_back is not None:
                self._given_back.__exit__(None, None, None)
                self._given_back = None

    def go(
        self,
        work: Coroutine[Any, Any, None],
        ended: Callable[[BaseException | None], object] | None = None,
        turnstile: Turnstile | None = None,
    ) -> Job:
        """Start work that must be over before the session ends, or the task replies.

        `ended` is told on the loop what it raised, if anything, however early it was cancelled.
        """

        def over(job: Job, error: BaseException | None) -> None:
            if ended is not None:
                ended(error)
            if turnstile is not None:
                turnstile.leave()
            with self._lock:
                self._underway.discard(job)
            if not self._underway:
                waiting, self._flushing = self._flushing, []
                for future in waiting:
                    if not future.done():
                        future.set_result(None)

        job = Job(work, over)
        with self._lock:
            self._underway.add(job)
        if turnstile is not None:
            turnstile.start(job)
        else:
            job.start()
        return job

    def keep(self, key: str, parts: Sequence[Buffer]) -> Kept:
        """Write encoded bytes to objects now: the caller may change what they came from."""
        loop.run(self.backend.objects.put(key, parts))
        return Kept(key, buffers.size(parts))

    def new_id(self) -> str:
        """A name for a task or value that nothing else in the session has."""
        return f"{self._prefix}-{next(self._ids)}"


def _is_failed(payload: Promise[Payload]) -> bool:
    """Whether what is there is known to be a failure."""
    return payload.exception() is not None or payload.result().failed


def value_key(entry_id: str) -> str:
    """Where a value lies in objects, for every process of the session."""
    return f"values/{entry_id}"
