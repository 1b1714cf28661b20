"""Messages between the processes of a session, with SNS's and SQS's limits and what those bill.

Inboxes are files (`inbox`), so a message goes from process to process and the driver has no part
in it. `Inboxes` is one process's use of them, and where it waits; `LocalMessages` checks limits and
counts.

A process that waits has a pipe with a name, its number; who sends writes a byte there. A body that
is large lies in a file of its own, which its publisher writes again when all have acknowledged it.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import math
import os
import pickle
import secrets
import select
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fsdray.backends.local import cores
from fsdray.backends.local.inbox import Inbox, Posted, Released
from fsdray.backends.local.objects import Files
from fsdray.errors import ServiceError
from fsdray.services import (
    KIB,
    Buffer,
    Count,
    Delivery,
    Message,
    MessageLimits,
    NearMessages,
    count_publish,
    count_receive,
    is_direct,
)

LARGE = 32 * KIB
"""Bytes of a body, times its inboxes, from which one file costs less than copies in their rings."""

_OPEN = 100  # inboxes, and pipes to others, that a process keeps open: of 1,024 files, three each


class _Note(NamedTuple):
    """What goes with a message: a body's file, an attached object, and who counts its inboxes."""

    body: str | None
    attached: str | None
    counter: str | None


class Inboxes:
    """This process's use of the inboxes below a directory; on one loop.

    Parameters
    ----------
    remove : removes the object of a key, whose readers have all acknowledged their messages.
    process : what names begin with that this process gives, and no other of the session.
    """

    def __init__(
        self,
        directory: Path,
        limits: MessageLimits,
        remove: Callable[[str], None],
        process: str = "",
    ) -> None:
        self._directory = str(directory)
        self._limits = limits
        self._remove = remove
        self._process = process
        self._number = secrets.randbits(63)
        self._names = itertools.count()
        self._bodies = Files(directory)
        self._open: dict[str, Inbox] = {}  # the first opened first, as below
        self._pipes: dict[int, int] = {}  # to those who wait
        self._waiting: dict[str, deque[Callable[[], object]]] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._own_pipe = -1
        self._hearing = select.poll()
        self._listening: asyncio.AbstractEventLoop | None = None

    def lease(self, count: int) -> list[str]:
        names = [f"inbox-{self._process}{next(self._names)}" for _ in range(count)]
        made: list[str] = []
        try:
            for name in names:
                Inbox.create(self._path(name))
                made.append(name)
        except OSError as error:
            self.release(made)
            raise ServiceError(f"cannot make {count} inboxes: {error}") from error
        return names

    def release(self, names: Sequence[str]) -> None:
        for name in names:
            with suppress(ServiceError, Released):
                watchers, notes = self._inbox(name).release()
                self._wake(watchers)
                self._end(notes)
            self._forget(name)

    def put(self, messages: Sequence[Message]) -> None:
        if len(messages) > 1 or len(messages[0].inboxes) > 1:  # none is sent unless all can be
            for message in messages:
                for name in message.inboxes:
                    self._check(name)
        posted: dict[str, list[Posted]] = {}
        for message in messages:
            each = self._posted(message)
            for name in message.inboxes:
                posted.setdefault(name, []).append(each)
        watchers: set[int] = set()
        for name, some in posted.items():
            try:
                watchers.update(self._inbox(name).put(some))
            except Released:
                self._forget(name)
                raise _not_leased(name) from None
            except OSError as error:
                raise ServiceError(
                    f"no room for more messages of inbox {name!r}: {error}"
                ) from error
        self._wake(watchers)

    def take(self, name: str, watch: int = 0) -> tuple[list[Delivery], float]:
        """Messages that are there, and when others come again.

        Where there is nothing, this process may `watch` until so many are sent.
        """
        limits = self._limits
        number = self._number if watch else None
        now = time.monotonic()
        try:
            taken, again = self._inbox(name).take(
                limits.receive_messages, limits.receive, now, limits.visibility, number, watch
            )
        except Released:
            self._forget(name)
            raise _not_leased(name) from None
        found = []
        for receipt, billed, body, note in taken:
            whole = self._body(body, note) if note else body
            if whole is not None:
                found.append(Delivery(name, receipt, whole, billed))
        return found, again

    def take_or_watch(self, name: str, ready: Callable[[], object]) -> list[Delivery]:
        """What is there; where nothing is, `ready` is called, once, when there may be something.

        Of several who watch an inbox the first is called; who is called and does not look is to
        `stop`, which calls the next.
        """
        loop = asyncio.get_running_loop()
        self._listen(loop)
        cores.give_way(self._inbox(name).is_empty, 1)
        taken, again = self.take(name, 1)
        if not taken:
            self._waiting.setdefault(name, deque()).append(ready)
            self._look_at(again, loop)
            return []
        if name in self._waiting:  # some may be left for them
            loop.call_soon(self._call_first, name)
        return taken

    def wait(self, name: str, seconds: float, enough: int) -> list[Delivery]:
        """What is there; where nothing is, what is there when `enough` have come.

        Or after so many seconds, or when another was called instead. It takes the loop's thread.
        """
        self._listen(asyncio.get_running_loop())
        cores.keep()
        cores.give_way(self._inbox(name).is_empty)
        taken, again = self.take(name, enough)
        if taken:
            return taken
        if again < math.inf:
            seconds = max(0.0, min(seconds, again - time.monotonic()))
        if self._hearing.poll(1e3 * seconds):
            self._heard()
        return self.take(name)[0]

    def stop(self, name: str, ready: Callable[[], object]) -> None:
        """Who watched, or was called, looks no more: the next one is called."""
        waiting = self._waiting.get(name)
        if waiting is not None:
            with suppress(ValueError):
                waiting.remove(ready)
            self._call_first(name)

    async def receive(self, name: str, wait: float) -> list[Delivery]:
        """What is there, or is within so many seconds."""
        if wait <= 0:
            return self.take(name)[0]
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while True:
            woken: asyncio.Future[None] = loop.create_future()
            ready = partial(_wake, woken)
            taken = self.take_or_watch(name, ready)
            if taken:
                return taken
            timer = loop.call_at(deadline, ready)
            try:
                await woken
            except BaseException:
                self.stop(name, ready)
                raise
            finally:
                timer.cancel()
            if loop.time() >= deadline:
                self.stop(name, ready)
                return self.take(name)[0]

    def drop(self, name: str, receipts: Sequence[str]) -> None:
        with suppress(ServiceError):  # its gang has ended, and with it all that was there
            self._end(self._inbox(name).drop(receipts))

    def counts(self) -> dict[str, tuple[int, int]]:
        """Of each inbox that somebody has: messages that are ready, and that are delivered."""
        names = sorted(name for name in os.listdir(self._directory) if name.startswith("inbox-"))
        return {name: self._inbox(name).counts() for name in names}

    def ended(self, pid: int) -> None:
        """A process is gone, who would have written its files again."""
        self._bodies.ended(pid)

    def close(self) -> None:
        """Close what is open."""
        for name in list(self._open):
            self._forget(name)
        for pipe in self._pipes.values():
            os.close(pipe)
        self._pipes.clear()
        if self._listening is not None:
            if not self._listening.is_closed():
                self._listening.remove_reader(self._own_pipe)
            self._listening = None
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._own_pipe >= 0:
            self._hearing.unregister(self._own_pipe)
            os.close(self._own_pipe)
            self._own_pipe = -1
            with suppress(FileNotFoundError):  # so is the session's directory
                os.unlink(self._pipe(self._number))

    # What is large

    def _posted(self, message: Message) -> Posted:
        """A message as it goes to each of its inboxes."""
        body, inboxes = message.body, len(message.inboxes)
        name = counter = None
        if memoryview(body).nbytes * inboxes >= LARGE:
            name = f"body-{self._process}{next(self._names)}"
            try:
                self._bodies.write(name, [body], if_absent=True, is_attached=True)
                body = b""
            except OSError:  # there is no room for a file: it goes the other way
                name = None
        if name is None and message.attached is None:
            return Posted(message.billed, bytes(body))
        if inboxes > 1:
            counter = f"{self._directory}/counter-{self._process}{next(self._names)}"
            _write(counter, bytes(inboxes))
        return Posted(
            message.billed,
            bytes(body),
            pickle.dumps(tuple(_Note(name, message.attached, counter))),
        )

    def _body(self, body: bytes, noted: bytes) -> Buffer | None:
        """A body; None where all others have acknowledged it meanwhile."""
        note = _Note(*pickle.loads(noted))
        if note.body is None:
            return body
        blob = self._bodies.read(note.body, None)
        return None if blob is None else blob.data.toreadonly()

    def _end(self, notes: Iterable[bytes]) -> None:
        """One inbox less has these messages."""
        for noted in notes:
            note = _Note(*pickle.loads(noted))
            if note.counter is not None and not _is_last(note.counter):
                continue
            if note.body is not None:
                self._bodies.delete([note.body])
            if note.attached is not None:
                self._remove(note.attached)

    # Waiting

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have this process's pipe be heard on this loop."""
        if self._listening is loop:
            return
        if self._own_pipe < 0:
            path = self._pipe(self._number)
            os.mkfifo(path, 0o600)
            # For writing too, so that it never ends.
            self._own_pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            self._hearing.register(self._own_pipe, select.POLLIN)
        elif self._listening is not None and not self._listening.is_closed():
            self._listening.remove_reader(self._own_pipe)
        self._alarm = None  # of the other loop
        loop.add_reader(self._own_pipe, self._hear)
        self._listening = loop

    def _hear(self) -> None:
        """Somebody has sent, and others who are about to go first: one receive brings both."""
        cores.give_way(lambda: True, 1)
        self._heard()

    def _heard(self) -> None:
        """Somebody has sent: the first who waits of each inbox looks."""
        with suppress(BlockingIOError):
            os.read(self._own_pipe, 4096)
        if self._waiting:
            for name in list(self._waiting):
                self._call_first(name)

    def _call_first(self, name: str) -> None:
        waiting = self._waiting.get(name)
        if waiting:
            ready = waiting.popleft()
            if not waiting:
                del self._waiting[name]
            ready()

    def _look_at(self, when: float, loop: asyncio.AbstractEventLoop) -> None:
        """Have those who wait look at that time at the latest: a message comes again then.

        An earlier alarm stays: it sets the next one.
        """
        if self._alarm is not None:
            if self._alarm.when() <= when:
                return
            self._alarm.cancel()
        self._alarm = None if when == math.inf else loop.call_at(when, self._rung)

    def _rung(self) -> None:
        self._alarm = None
        for name in list(self._waiting):
            self._call_first(name)

    def _wake(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            try:
                pipe = self._pipes.get(number)
                if pipe is None:
                    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
                    pipe = self._pipes[number] = os.open(self._pipe(number), flags)
                    if len(self._pipes) > _OPEN:
                        os.close(self._pipes.pop(next(iter(self._pipes))))
                os.write(pipe, b"\0")
            except BlockingIOError:
                continue  # it is full of bytes that wake
            except OSError:  # its process has ended
                gone = self._pipes.pop(number, None)
                if gone is not None:
                    os.close(gone)

    # Inside

    def _check(self, name: str) -> None:
        try:
            self._inbox(name).check()
        except Released:
            self._forget(name)
            raise _not_leased(name) from None

    def _inbox(self, name: str) -> Inbox:
        inbox = self._open.get(name)
        if inbox is not None:
            return inbox
        try:
            inbox = self._open[name] = Inbox(self._path(name))
        except FileNotFoundError:
            raise _not_leased(name) from None
        if len(self._open) > _OPEN:
            self._forget(next(iter(self._open)))
        return inbox

    def _forget(self, name: str) -> None:
        inbox = self._open.pop(name, None)
        if inbox is not None:
            inbox.close()

    def _path(self, name: str) -> str:
        return f"{self._directory}/{name}"

    def _pipe(self, number: int) -> str:
        return f"{self._directory}/pipe-{number:x}"


class LocalMessages:
    """`fsdray.services.Messages` over `Inboxes`; it checks the limits and counts requests."""

    def __init__(
        self, inboxes: Inboxes, count: Count, limits: MessageLimits = MessageLimits()
    ) -> None:
        self._inboxes = inboxes
        self._count = count
        self.limits = limits
        self.near: NearMessages = _Near(inboxes, count, limits)

    async def lease(self, count: int) -> list[str]:
        return self._inboxes.lease(count)

    async def release(self, inboxes: Sequence[str], *, is_broken: bool = False) -> None:
        self._inboxes.release(inboxes)

    async def publish(self, messages: Sequence[Message]) -> None:
        self.near.publish(messages)

    async def receive(self, inbox: str, *, wait: float) -> list[Delivery]:
        self.limits.check_wait(wait)
        deliveries = await self._inboxes.receive(inbox, wait)
        count_receive(self._count, deliveries)
        return deliveries

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        self.near.acknowledge(deliveries)


class _Near:
    """`fsdray.services.NearMessages` over `Inboxes`."""

    def __init__(self, inboxes: Inboxes, count: Count, limits: MessageLimits) -> None:
        self._inboxes = inboxes
        self._count = count
        self._limits = limits
        self._since: dict[str, float] = {}  # when those who wait for an inbox began

    def publish(self, messages: Sequence[Message]) -> None:
        self._limits.check_publish(messages)
        count_publish(self._count, messages, direct=is_direct(messages))
        self._inboxes.put(messages)

    def receive(self, inbox: str, ready: Callable[[], object]) -> list[Delivery]:
        return self._counted(inbox, self._inboxes.take_or_watch(inbox, ready))

    def _counted(self, inbox: str, deliveries: list[Delivery]) -> list[Delivery]:
        if not deliveries:
            self._since.setdefault(inbox, time.monotonic())
            return deliveries
        since = self._since.pop(inbox, None)
        if since is not None:
            for _ in range(int((time.monotonic() - since) / self._limits.wait)):
                count_receive(self._count, ())  # as long polls that come back empty
        count_receive(self._count, deliveries)
        return deliveries

    def wait(self, inbox: str, seconds: float, enough: int = 1) -> list[Delivery]:
        return self._counted(inbox, self._inboxes.wait(inbox, seconds, enough))

    def stop(self, inbox: str, ready: Callable[[], object]) -> None:
        self._since.pop(inbox, None)
        self._inboxes.stop(inbox, ready)

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        self._limits.check_acknowledge(deliveries)
        self._count("acknowledge", 1)
        self._inboxes.drop(deliveries[0].inbox, [d.receipt for d in deliveries])


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _is_last(counter: str) -> bool:
    """Count one down in a file that has a byte for each; whether it was the last."""
    try:
        fd = os.open(counter, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX)
        left = os.fstat(fd).st_size - 1
        os.ftruncate(fd, max(0, left))
    finally:
        os.close(fd)
    if left <= 0:
        os.unlink(counter)
    return left <= 0


def _not_leased(name: str) -> ServiceError:
    return ServiceError(f"no inbox {name!r} is leased: its gang has ended")
