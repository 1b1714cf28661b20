"""Generator functions: a call that streams its items, and the `ObjectRefGenerator` of their refs.

Item i of a task is an object at a known key, put there by the running function; its reader waits
for that key or for the call's end, whichever comes first. Both ends of this are here. How calls run
again, and what a ref stands for, is as for all tasks (`fsdray.session`, `fsdray.values`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fsdray import coroutines, loop, wire
from fsdray.errors import ObjectLost, TaskCancelled
from fsdray.refs import ObjectRef
from fsdray.services import Blob, Buffer
from fsdray.values import Entry, Values, value_key
from fsdray.wire import Call, Inline, Kept

T = TypeVar("T")

_WAIT = 60.0  # seconds of one wait for a key
_END = "-end"  # after a task's id: the ref of the call itself


class ObjectRefGenerator(Generic[T]):
    """The refs of what a generator function yields, as it yields them.

    ``next(gen)`` waits until the next item exists and returns its ref; so does ``await
    anext(gen)``. Where the function raised, or its platform failed, the items before are good, the
    next ref raises that error when it is got, and then the generator is at its end. It can be
    given to `fsdray.wait`, where it is ready when `next` need not wait, and to `fsdray.cancel`. It
    stays in its process: give its refs to other tasks. Threads may share it.

    The function runs ahead of its reader. `close`, or dropping this object, stops it. One that may
    run again (``max_retries``) must yield the same items each time: those that were stored stay.
    """

    def __init__(self, end: ObjectRef[None], ahead: int | None = None) -> None:
        self._stream = Stream(end._entry, ahead)

    def __iter__(self) -> ObjectRefGenerator[T]:
        return self

    def __next__(self) -> ObjectRef[T]:
        stream = self._stream
        while True:
            head = stream.head
            stream.session.settle(head)
            if stream.take(head):
                return ObjectRef(head)
            if _is_end(head):
                raise StopIteration

    def __aiter__(self) -> ObjectRefGenerator[T]:
        return self

    async def __anext__(self) -> ObjectRef[T]:
        stream = self._stream
        while True:
            head = stream.head
            await asyncio.wrap_future(stream.session.settling(head))
            if stream.take(head):
                return ObjectRef(head)
            if _is_end(head):
                raise StopAsyncIteration

    def close(self) -> None:
        """Stop the function, as `fsdray.cancel` does; refs that were taken stay good."""
        self._stream.close(is_stopped=True)

    async def aclose(self) -> None:
        """`close`, for ``contextlib.aclosing``."""
        self.close()

    def completed(self) -> ObjectRef[None]:
        """A ref that is ready when the function has ended: None, or what ended it.

        While this ref is held the function runs on, though the generator be dropped.
        """
        return self._stream.completed()

    def is_finished(self) -> bool:
        """Whether all refs were taken and the function has ended."""
        return self._stream.is_finished()

    def next_ready(self) -> bool:
        """Whether `next` would return a ref at once."""
        stream = self._stream
        head = stream.session.start(stream.head)
        return head.done() and not isinstance(head.exception(), _Ended)

    def task_id(self) -> str:
        """The id of the call."""
        return self._stream.task

    @property
    def _entry(self) -> Entry:
        """What `fsdray.wait` waits for."""
        return self._stream.head

    def __repr__(self) -> str:
        return f"<ObjectRefGenerator of {self._stream.describe()}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "an ObjectRefGenerator stays in the process that made it: pass on its refs, or take "
            "the items where the generator is called"
        )

    def __del__(self) -> None:
        stream = getattr(self, "_stream", None)
        if stream is not None:
            stream.close(is_stopped=False)


class _Ended(Exception):
    """Stands for an item where there is none; never raised."""


class Stream:
    """What the session that called knows of a generator's call.

    Parameters
    ----------
    end : the entry of the call itself. ahead : items that may wait to be taken, if not any number.
    """

    def __init__(self, end: Entry, ahead: int | None) -> None:
        self.session = end.session
        self.task = end.id.removesuffix(_END)
        self.taken = 0
        self._end = end
        self._ahead = ahead
        self._completed: weakref.ref[ObjectRef[None]] | None = None
        self._over: asyncio.Future[None] | None = None  # the end, on fsdray's loop
        self._kept: weakref.WeakValueDictionary[int, Entry] = weakref.WeakValueDictionary()
        self._is_retried = False
        self._is_closed = False
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self.head = self._expected()  # the next item
        self.session.streams[self.task] = self

    def take(self, head: Entry) -> bool:
        """Take the settled head out; False where it is the end, or another thread was faster."""
        with self._lock:
            if head is not self.head or _is_end(head):
                return False
            head.needs = ()
            is_last = head.state() == "failed"
            if not is_last:
                self._kept[self.taken] = head
            self.taken += 1
            self.head = self._at_end() if is_last else self._expected()
        if self._ahead is not None and self.taken % _batch(self._ahead) == 0:
            self.session.go(self._mark(self.taken))
        return True

    def retried(self) -> int:
        """The call runs again; how many items it need not store any more."""
        self._is_retried = True
        return self.taken

    def completed(self) -> ObjectRef[None]:
        with self._lock:
            ref = self._completed() if self._completed is not None else None
            if ref is None:
                ref = ObjectRef(self._end)
                self._completed = weakref.ref(ref)
            return ref

    def is_finished(self) -> bool:
        if not self._end.payload.done():
            return self._is_closed
        head = self.head
        self.session.settle(head)  # one look, now that nothing more is written
        return _is_end(head)

    def close(self, *, is_stopped: bool) -> None:
        """Nobody takes items any more; stop the call, or let it run for who waits for its end."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            head, self.head = self.head, self._at_end()
        self.session.drop(head)
        if self.session.is_closed or self._pid != os.getpid():
            return
        is_exhausted = head.payload.done() and _is_end(head)
        # Who is kept back until items are taken would never come to an end.
        is_wanted = self._ahead is None and (
            self._end.escaped or (self._completed is not None and self._completed() is not None)
        )
        if self._end.work is not None and (is_stopped or not is_wanted):
            self._end.work.cancel()
        if not is_exhausted or self._is_retried or self._ahead is not None:
            self.session.go(self._sweep())

    def describe(self) -> str:
        state = "closed" if self._is_closed else self._end.state().replace("pending", "running")
        return f"{self._end.label} (task {self.task}): {self.taken} taken, {state}"

    # Inside

    def _expected(self) -> Entry:
        """The entry of the next item; looked for when somebody asks."""
        entry = Entry(self.session, f"{self.task}-{self.taken}", self._end.label)
        entry.needs = (self._end,)
        entry.start = self._arrive(entry)
        return entry

    def _at_end(self) -> Entry:
        entry = Entry(self.session, f"{self.task}-{self.taken}", self._end.label)
        entry.payload.set_exception(_Ended())
        return entry

    async def _arrive(self, entry: Entry) -> None:
        """Wait for an item, or for the end."""
        try:
            key = value_key(entry.id)
            blob = await self._item(key)
            if blob is not None:
                entry.view = blob.data
                entry.payload.set_result(Kept(key, blob.size))
            elif (error := self._end.payload.exception()) is not None:
                entry.payload.set_exception(error)
            elif self._end.payload.result().failed:
                entry.payload.set_result(await self._failure())
            else:
                entry.payload.set_exception(_Ended())
        except BaseException as error:
            # Whoever waits for the item must learn that it will not come.
            is_cancelled = isinstance(error, asyncio.CancelledError)
            told = TaskCancelled("the session was shut down") if is_cancelled else error
            if not entry.payload.done():
                entry.payload.set_exception(told)
            raise

    async def _item(self, key: str) -> Blob | None:
        """The object of an item; None where the call ended without it."""
        objects = self.session.backend.objects
        if not self._end.payload.done():
            waiting = asyncio.create_task(_appeared(self.session, key))
            try:
                either: set[asyncio.Future[Any]] = {waiting, self._ending()}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if waiting.done():
                    return waiting.result()
            finally:
                waiting.cancel()
        # All that was written is there now.
        return await objects.get(key)

    def _ending(self) -> asyncio.Future[None]:
        """The call's end, however it ended, as a future of fsdray's loop."""
        if self._over is None:
            here = asyncio.get_running_loop()
            over = self._over = here.create_future()
            self._end.payload.when_done(lambda _: loop.post(over.set_result, None))
        return self._over

    async def _failure(self) -> Inline:
        """What the function raised, as a value that goes by itself."""
        payload = self._end.payload.result()
        if isinstance(payload, Inline):
            return payload
        blob = await self.session.backend.objects.get(payload.key)
        if blob is None:
            raise ObjectLost(f"the failure {payload.key!r} is no longer kept")
        return Inline(bytes(blob.data), failed=True)

    async def _mark(self, taken: int) -> None:
        await self.session.backend.objects.put(_mark_key(self.task, taken), b"")

    async def _sweep(self) -> None:
        """Remove what nobody took, once the call has ended, and what an attempt wrote again."""
        await asyncio.wait({self._ending()})
        objects = self.session.backend.objects
        prefix = value_key(f"{self.task}-")
        numbers = [key.removeprefix(prefix) for key in await objects.list(prefix)]
        unwanted = [
            prefix + number
            for number in numbers
            if number.isdigit() and int(number) not in self._kept
        ]
        if self._ahead is not None:
            step = _batch(self._ahead)
            unwanted += [_mark_key(self.task, n) for n in range(step, self.taken + 1, step)]
        if unwanted:
            await objects.delete(unwanted)


def end_id(task: str) -> str:
    """The id of the value that a streaming call itself comes to."""
    return task + _END


def again(call: Call, session: Values) -> Call:
    """The next attempt of a call; of one that streams, without the items that were taken."""
    stream = session.streams.get(call.task)
    items = call.items
    if items is not None and isinstance(stream, Stream):
        items = dataclasses.replace(items, skip=stream.retried())
    return dataclasses.replace(call, attempt=call.attempt + 1, items=items)


# In the worker


def produce(here: Values, call: Call, items: Any) -> None:
    """Store what a generator yields, as it yields it."""
    output = _Output(here, call)
    if isinstance(items, AsyncIterator):
        coroutines.run(here, output.drain(items))
        return
    with closing(items):  # where storing fails, its own ``finally`` blocks run now
        for item in items:
            loop.run(output.store(wire.encode(item)))
            if output.is_ahead():
                with here.yielded():
                    loop.run(output.reached())


class _Output:
    """Items of one call on their way to objects."""

    def __init__(self, here: Values, call: Call) -> None:
        assert call.items is not None
        self._here = here
        self._task = call.task
        self._items = call.items
        self._number = 0  # of the next item
        self._step = _batch(call.items.ahead or 1)
        self._marked = call.items.skip // self._step * self._step  # known to be taken

    async def store(self, parts: list[Buffer]) -> None:
        number, self._number = self._number, self._number + 1
        if number >= self._items.skip:
            # An attempt before this one may have stored it, and its ref may be in use.
            key = value_key(f"{self._task}-{number}")
            await self._here.backend.objects.put(key, parts, if_absent=True)

    def is_ahead(self) -> bool:
        """Whether as many items wait to be taken as may."""
        ahead = self._items.ahead
        return ahead is not None and self._number - self._marked >= ahead

    async def reached(self) -> None:
        """Wait until fewer items wait to be taken than may."""
        while self.is_ahead():
            await _appeared(self._here, _mark_key(self._task, self._marked + self._step))
            self._marked += self._step

    async def drain(self, items: AsyncIterator[Any]) -> None:
        """Store what an asynchronous generator yields; runs on the loop of the user's code."""
        async with aclosing(items):  # type: ignore[type-var]  # all that run here have aclose
            async for item in items:
                await asyncio.wrap_future(loop.submit(self.store(wire.encode(item))))
                if self.is_ahead():
                    with self._here.yielded():
                        await asyncio.wrap_future(loop.submit(self.reached()))


@dataclass(frozen=True)
class FirstItems:
    """A generator function as a function that returns a list of its first `count` items.

    With none wanted it is run to its end, for what it does beside yielding.
    """

    function: Callable[..., Any]
    count: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        items = self.function(*args, **kwargs)
        if isinstance(items, AsyncIterator):
            return self._drained(items)
        with closing(items):
            first = list(itertools.islice(items, self.count))
            if self.count == 0:
                for _ in items:
                    pass
        return self._returned(first)

    async def _drained(self, items: AsyncIterator[Any]) -> Any:
        first: list[Any] = []
        async with aclosing(items):  # type: ignore[type-var]  # all that run here have aclose
            async for item in items:
                if self.count:
                    first.append(item)
                    if len(first) == self.count:
                        break
        return self._returned(first)

    def _returned(self, first: list[Any]) -> Any:
        if len(first) < self.count:
            name = getattr(self.function, "__name__", "the function")
            raise ValueError(f"{name} has num_returns={self.count}, but yielded {len(first)} items")
        return first[0] if self.count == 1 else first


def _is_end(head: Entry) -> bool:
    return isinstance(head.payload.exception(), _Ended)


async def _appeared(here: Values, key: str) -> Blob:
    """An object, once it is there."""
    blob = None
    while blob is None:
        blob = await here.backend.objects.get(key, wait=_WAIT)
    return blob


def _batch(ahead: int) -> int:
    """Items that are taken until the function hears of it, where `ahead` may wait to be taken.

    Half of them: it is told before it must wait, and for one put and one get in so many items.
    """
    return max(1, ahead // 2)


def _mark_key(task: str, taken: int) -> str:
    return f"taken/{task}-{taken}"
