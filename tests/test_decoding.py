"""Unpickling runs user code: it may wait and fail, and the session goes on meanwhile."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import fsdray as fsd
from fsdray import decoding
from fsdray.errors import FsdrayError

pytestmark = pytest.mark.usefixtures("session")

SOON = 60  # seconds: what should come at once, on a busy machine
_opened = threading.Event()


@fsd.remote
def add(left: int, right: int = 1) -> int:
    return left + right


class Rebuilt:
    """A value that `how`, called where it is unpickled, gives."""

    def __init__(self, how: Any) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        return _called, (self.how,)


def _called(how: Any) -> Any:
    return how()


def _new_call() -> Any:
    return fsd.get(add.remote(40, 2))


def _new_future() -> Any:
    return add.remote(40, 2).future().result(SOON)


def _awaited() -> Any:
    async def main() -> Any:
        return await add.remote(40, 2)

    return asyncio.run(main())


def _nested_futures() -> Any:
    return rebuilt.remote(_new_future).future().result(SOON)


def _blocked() -> Any:
    assert _opened.wait(SOON)
    return 42


def _broken() -> Any:
    raise KeyError("broken")


@fsd.remote
def rebuilt(how: Any) -> Any:
    return Rebuilt(how)


@pytest.mark.parametrize("how", [_new_call, _new_future, _awaited, _nested_futures])
def test_unpickling_may_wait_for_other_values(how: Any) -> None:
    # More at one time than there are threads: none may wait for another's.
    refs = [rebuilt.remote(how) for _ in range(8)]
    assert [ref.future().result(SOON) for ref in refs] == [42] * 8
    assert fsd.get(refs[0], timeout=SOON) == 42

    async def main() -> list[Any]:
        return await asyncio.wait_for(asyncio.gather(*refs), SOON)

    assert asyncio.run(main()) == [42] * 8


def test_unpickling_that_blocks_holds_up_nothing_but_its_own_value() -> None:
    _opened.clear()
    blocked = rebuilt.remote(_blocked).future()
    assert fsd.get(add.remote(1), timeout=SOON) == 2
    assert add.remote(1).future().result(SOON) == 2
    _opened.set()
    assert blocked.result(SOON) == 42


def test_what_unpickling_raises_is_the_futures_exception() -> None:
    with pytest.raises(KeyError, match="broken"):
        rebuilt.remote(_broken).future().result(SOON)
    with pytest.raises(KeyError, match="broken"):
        fsd.get(rebuilt.remote(_broken))


def test_an_exception_whose_unpickling_waits_can_be_retried_and_awaited() -> None:
    class Waits(Exception):
        def __reduce__(self) -> Any:
            return _waits, (type(self), *self.args)

    def _waits(kind: Any, *args: Any) -> Any:
        return kind(*args, fsd.get(add.remote(40, 2)))

    @fsd.remote(retry_exceptions=True, max_retries=1)
    def fail() -> None:
        raise Waits("told")

    with pytest.raises(fsd.errors.TaskError, match="told"):
        fail.remote().future().result(SOON)
    with pytest.raises(fsd.errors.TaskError, match="told"):
        fsd.get(fail.remote(), timeout=SOON)


def test_plain_code_on_the_loop_is_refused_and_does_not_hang() -> None:
    async def on_the_loop() -> None:
        with pytest.raises(FsdrayError, match="event loop"):
            fsd.get(waiting)
        with pytest.raises(FsdrayError, match="event loop"):
            fsd.wait([waiting])

    waiting = fsd.remote(lambda: threading.Event().wait()).remote()
    fsd.loop.run(on_the_loop())
    fsd.cancel(waiting)


def test_work_of_a_thread_of_ours_does_not_wait_for_the_others() -> None:
    count = 40
    done = threading.Semaphore(0)
    gate = threading.Barrier(count + 1)

    def work() -> None:
        assert decoding.is_here()
        gate.wait(SOON)
        done.release()

    for _ in range(count):
        decoding.submit(work, is_nested=True)
    gate.wait(SOON)
    for _ in range(count):
        assert done.acquire(timeout=SOON)
    assert not decoding.is_here()
