"""Requests: operations that were started and are waited for later, under mpi4py's names.

`AsyncRequest` is the real one, on the loop; `Request` is the plain façade that tasks use. What an
operation does is not here: a request only holds the task that does it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from fsdray import loop
from fsdray.collective.endpoint import Chance, never_again, seen
from fsdray.collective.envelope import UNDEFINED, Status
from fsdray.errors import SettingsError

T = TypeVar("T")

GLANCE = 0.0005
"""Seconds that a `test` or `iprobe` that finds nothing takes: a loop around it neither starves
the loop that moves the messages nor keeps a core busy."""


class AsyncRequest:
    """One operation under way; `await request` is ``await request.wait()``.

    Once its result was given out, by `wait` or a `test` that found it done, a request is spent:
    it counts as done, with None as its result.

    Parameters
    ----------
    work : does the operation.
    status : what `work` fills in.
    hurry : what is to be done before anybody waits.
    give_up : takes back what was not begun yet and says whether it could; None where it never can.
    chance : told of what would not be the same if its rank ran again.
    """

    def __init__(
        self,
        work: asyncio.Future[Any],
        status: Status | None = None,
        hurry: Callable[[], None] | None = None,
        give_up: Callable[[], bool] | None = None,
        chance: Chance = never_again,
    ) -> None:
        self._work: asyncio.Future[Any] | None = work
        work.add_done_callback(seen)
        self._status = status if status is not None else Status()
        self._hurry = hurry
        self._give_up = give_up
        self._chance = chance

    async def wait(self, status: Status | None = None) -> Any:
        """Wait until it is done; what a receive took, or a collective came to."""
        if self._work is not None:
            await _until([self], asyncio.ALL_COMPLETED)
        return self._taken(status)

    async def test(self, status: Status | None = None) -> tuple[bool, Any]:
        """Whether it is done, and then its result."""
        if not await _glance([self], asyncio.ALL_COMPLETED):
            return False, None
        return True, self._taken(status)

    async def get_status(self, status: Status | None = None) -> bool:
        """Whether it is done; its result stays to be taken."""
        is_done = await _glance([self], asyncio.ALL_COMPLETED)
        if is_done and status is not None:
            status.fill(self._status)
        return is_done

    def cancel(self) -> None:
        """Give up a receive that has no message yet; anything else goes on, as in MPI.

        The request is to be waited for all the same: its status then says `cancelled`.

        Raises
        ------
        SettingsError
            for a collective: the other ranks count on this one.
        """
        if self._give_up is None:
            raise SettingsError("a collective cannot be cancelled: the other ranks wait for it")
        self._chance("cancel")
        if self._work is not None and not self._work.done() and self._give_up():
            self._status.cancelled = True

    def free(self) -> None:
        """Forget it; the operation goes on."""
        self._hurry_up()
        self._work = None

    @staticmethod
    async def waitall(
        requests: Sequence[AsyncRequest], statuses: list[Status] | None = None
    ) -> list[Any]:
        """Wait for all; their results. `statuses` is filled, and made as long as it must be."""
        await _until(requests, asyncio.FIRST_EXCEPTION)
        return _all_taken(requests, statuses)

    @staticmethod
    async def waitany(
        requests: Sequence[AsyncRequest], status: Status | None = None
    ) -> tuple[int, Any]:
        """Wait for one; its place and its result. ``(UNDEFINED, None)`` where all are spent."""
        _by_chance(requests, "waitany")
        await _until(requests, asyncio.FIRST_COMPLETED)
        return _any_taken(requests, status)

    @staticmethod
    async def waitsome(
        requests: Sequence[AsyncRequest], statuses: list[Status] | None = None
    ) -> tuple[list[int] | None, list[Any] | None]:
        """Wait for one; the places and results of all that are done. None where all are spent."""
        _by_chance(requests, "waitsome")
        await _until(requests, asyncio.FIRST_COMPLETED)
        return _some_taken(requests, statuses)

    @staticmethod
    async def testall(
        requests: Sequence[AsyncRequest], statuses: list[Status] | None = None
    ) -> tuple[bool, list[Any] | None]:
        """Whether all are done, and then their results."""
        if not await _glance(requests, asyncio.ALL_COMPLETED):
            return False, None
        return True, _all_taken(requests, statuses)

    @staticmethod
    async def testany(
        requests: Sequence[AsyncRequest], status: Status | None = None
    ) -> tuple[int, bool, Any]:
        """Place, whether one is done, result; ``(UNDEFINED, True, None)`` where all are spent."""
        if not await _glance(requests, asyncio.FIRST_COMPLETED):
            return UNDEFINED, False, None
        place, result = _any_taken(requests, status)
        return place, True, result

    @staticmethod
    async def testsome(
        requests: Sequence[AsyncRequest], statuses: list[Status] | None = None
    ) -> tuple[list[int] | None, list[Any] | None]:
        """The places and results of all that are done, maybe none; None where all are spent."""
        await _glance(requests, asyncio.FIRST_COMPLETED)
        return _some_taken(requests, statuses)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.wait().__await__()

    def __bool__(self) -> bool:
        return self._work is not None

    def __repr__(self) -> str:
        if self._work is None:
            return "<AsyncRequest spent>"
        return f"<AsyncRequest {'done' if self._work.done() else 'under way'}>"

    @property
    def _is_done(self) -> bool:
        return self._work is not None and self._work.done()

    def _hurry_up(self) -> None:
        if self._hurry is not None:
            self._hurry()

    def _taken(self, status: Status | None) -> Any:
        """The result, which is given out once."""
        if status is not None:
            status.fill(self._status if self._work is not None else Status())
        if self._work is None:
            return None
        work, self._work = self._work, None
        return work.result()


class Request:
    """`AsyncRequest` for plain code; names, arguments and results are mpi4py's."""

    def __init__(self, inner: AsyncRequest) -> None:
        self._inner = inner

    def wait(self, status: Status | None = None) -> Any:
        """See `AsyncRequest.wait`."""
        return loop.run(self._inner.wait(status))

    def test(self, status: Status | None = None) -> tuple[bool, Any]:
        """See `AsyncRequest.test`."""
        return loop.run(self._inner.test(status))

    def get_status(self, status: Status | None = None) -> bool:
        """See `AsyncRequest.get_status`."""
        return loop.run(self._inner.get_status(status))

    def cancel(self) -> None:
        """See `AsyncRequest.cancel`."""
        loop.run(_called(self._inner.cancel))

    def free(self) -> None:
        """See `AsyncRequest.free`."""
        loop.run(_called(self._inner.free))

    @classmethod
    def waitall(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> list[Any]:
        """See `AsyncRequest.waitall`."""
        return loop.run(AsyncRequest.waitall(_inner(requests), statuses))

    @classmethod
    def waitany(cls, requests: Sequence[Request], status: Status | None = None) -> tuple[int, Any]:
        """See `AsyncRequest.waitany`."""
        return loop.run(AsyncRequest.waitany(_inner(requests), status))

    @classmethod
    def waitsome(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> tuple[list[int] | None, list[Any] | None]:
        """See `AsyncRequest.waitsome`."""
        return loop.run(AsyncRequest.waitsome(_inner(requests), statuses))

    @classmethod
    def testall(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> tuple[bool, list[Any] | None]:
        """See `AsyncRequest.testall`."""
        return loop.run(AsyncRequest.testall(_inner(requests), statuses))

    @classmethod
    def testany(
        cls, requests: Sequence[Request], status: Status | None = None
    ) -> tuple[int, bool, Any]:
        """See `AsyncRequest.testany`."""
        return loop.run(AsyncRequest.testany(_inner(requests), status))

    @classmethod
    def testsome(
        cls, requests: Sequence[Request], statuses: list[Status] | None = None
    ) -> tuple[list[int] | None, list[Any] | None]:
        """See `AsyncRequest.testsome`."""
        return loop.run(AsyncRequest.testsome(_inner(requests), statuses))

    def __bool__(self) -> bool:
        return bool(self._inner)

    def __getattr__(self, name: str) -> Any:
        lower = name.lower()
        if name != lower and hasattr(Request, lower):
            raise AttributeError(f"{name}() is mpi4py's name for buffers; here use {lower}()")
        raise AttributeError(f"a request has no {name!r}")

    def __repr__(self) -> str:
        return repr(self._inner).replace("AsyncRequest", "Request")


async def _called(function: Callable[[], T]) -> T:
    return function()


def _inner(requests: Sequence[Request]) -> list[AsyncRequest]:
    return [request._inner for request in requests]


async def _until(requests: Sequence[AsyncRequest], what: str, timeout: float | None = None) -> None:
    """Wait for the work of those that are not spent."""
    for request in requests:
        request._hurry_up()
    # Waiting for a work may be given up, and leaves the work as it is.
    work = {request._work for request in requests if request._work is not None}
    if work:
        await asyncio.wait(work, timeout=timeout, return_when=what)


def _by_chance(requests: Sequence[AsyncRequest], what: str) -> None:
    """Which of several is done first is not the same each time."""
    open_ones = [request for request in requests if request._work is not None]
    if len(open_ones) > 1:
        open_ones[0]._chance(what)


async def _glance(requests: Sequence[AsyncRequest], what: str) -> bool:
    """Whether all (or, FIRST_COMPLETED, any) are done; the spent count as done."""
    open_ones = [request for request in requests if request._work is not None]
    if open_ones:
        open_ones[0]._chance("a test of requests")
        await _until(open_ones, what, timeout=GLANCE)
    are_done = [request._is_done for request in open_ones]
    if what == asyncio.FIRST_COMPLETED:
        return any(are_done) or not are_done
    return all(are_done)


def _all_taken(requests: Sequence[AsyncRequest], statuses: list[Status] | None) -> list[Any]:
    """The results of all; the first error of those that are done is raised instead."""
    for request in requests:
        if request._is_done:
            work = request._work
            assert work is not None
            error = work.exception()
            if error is not None:
                raise error
    _lengthen(statuses, len(requests))
    return [
        request._taken(statuses[i] if statuses is not None else None)
        for i, request in enumerate(requests)
    ]


def _any_taken(requests: Sequence[AsyncRequest], status: Status | None) -> tuple[int, Any]:
    for i, request in enumerate(requests):
        if request._is_done:
            return i, request._taken(status)
    return UNDEFINED, None


def _some_taken(
    requests: Sequence[AsyncRequest], statuses: list[Status] | None
) -> tuple[list[int] | None, list[Any] | None]:
    if not any(requests):
        return None, None
    places = [i for i, request in enumerate(requests) if request._is_done]
    _lengthen(statuses, len(places))
    return places, [
        requests[i]._taken(statuses[nth] if statuses is not None else None)
        for nth, i in enumerate(places)
    ]


def _lengthen(statuses: list[Status] | None, count: int) -> None:
    if statuses is not None:
        statuses += [Status() for _ in range(count - len(statuses))]
