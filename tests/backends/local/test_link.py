"""The link between two processes: both ways, errors, cancelling, loss, any size in any pieces."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdray import loop
from fsdray.backends.local.link import Handler, Link, LinkLost
from fsdray.errors import FunctionCrashed
from fsdray.services import MIB


async def echo(*values: Any) -> Any:
    return values


async def fail(error: Exception) -> None:
    raise error


@asynccontextmanager
async def linked(
    here: Mapping[str, Handler], there: Mapping[str, Handler]
) -> AsyncIterator[tuple[Link, Link]]:
    """Two ends over a socket pair; what each serves."""
    ours, theirs = socket.socketpair()
    one, other = await Link.over(ours, here), await Link.over(theirs, there)
    try:
        yield one, other
    finally:
        one.close()
        other.close()


def test_both_ends_ask_and_answer() -> None:
    async def run() -> Any:
        async def here(x: int) -> str:
            return f"here {x}"

        async def there(x: int) -> str:
            return f"there {x}"

        async with linked({"who": here}, {"who": there}) as (one, other):
            return await asyncio.gather(one.request("who", 1), other.request("who", 2))

    assert list(loop.run(run())) == ["there 1", "here 2"]


def test_an_answer_may_need_a_question_back() -> None:
    async def run() -> Any:
        ends: list[Link] = []

        async def ask_back(x: int) -> Any:
            return await ends[1].request("double", x) + 1

        async def double(x: int) -> int:
            return 2 * x

        async with linked({"double": double}, {"ask_back": ask_back}) as pair:
            ends += pair
            return await pair[0].request("ask_back", 20)

    assert loop.run(run()) == 41


def test_requests_answer_in_the_order_in_which_they_finish() -> None:
    async def run() -> list[str]:
        gate = asyncio.Event()
        finished: list[str] = []

        async def slow() -> str:
            await gate.wait()
            return "slow"

        async def ask(link: Link, name: str) -> None:
            finished.append(await link.request(name))

        async def quick() -> str:
            return "quick"

        async with linked({}, {"slow": slow, "quick": quick}) as (link, _):
            first = asyncio.create_task(ask(link, "slow"))
            await ask(link, "quick")
            gate.set()
            await first
        return finished

    assert loop.run(run()) == ["quick", "slow"]


def test_what_a_handler_raises_is_raised_where_it_was_asked() -> None:
    async def run(error: Exception) -> None:
        async with linked({}, {"fail": fail}) as (link, _):
            await link.request("fail", error)

    with pytest.raises(KeyError, match="x"):
        loop.run(run(KeyError("x")))
    with pytest.raises(FunctionCrashed) as caught:
        loop.run(run(FunctionCrashed("died", ["a line"])))
    assert caught.value.log == ("a line",)


def test_a_request_that_nobody_serves_is_an_error() -> None:
    async def run() -> None:
        async with linked({}, {}) as (link, _):
            await link.request("unknown")

    with pytest.raises(KeyError, match="unknown"):
        loop.run(run())


def test_a_request_that_cannot_be_pickled_is_an_error_and_harms_no_other() -> None:
    async def run() -> Any:
        async with linked({}, {"echo": echo}) as (link, _):
            with pytest.raises((TypeError, AttributeError)):
                await link.request("echo", (i for i in range(3)))
            return await link.request("echo", 1)

    assert loop.run(run()) == (1,)


def test_an_answer_that_cannot_be_pickled_is_an_error_and_no_hang() -> None:
    async def bad() -> Any:
        return (i for i in range(3))

    async def run() -> None:
        async with linked({}, {"bad": bad}) as (link, _):
            await asyncio.wait_for(link.request("bad"), 5)

    with pytest.raises((TypeError, AttributeError), match="pickle"):
        loop.run(run())


def test_cancelling_a_request_cancels_its_handler() -> None:
    async def run() -> bool:
        started, stopped = asyncio.Event(), asyncio.Event()

        async def wait_for_ever() -> None:
            started.set()
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                stopped.set()
                raise

        async with linked({}, {"wait": wait_for_ever, "echo": echo}) as (link, _):
            request = asyncio.create_task(link.request("wait"))
            await started.wait()
            request.cancel()
            await asyncio.wait_for(stopped.wait(), 5)
            assert await link.request("echo", "after") == ("after",)
            return request.cancelled()

    assert loop.run(run())


def test_a_tell_runs_its_handler_without_an_answer() -> None:
    async def run() -> list[Any]:
        told: list[Any] = []
        done = asyncio.Event()

        async def hear(*values: Any) -> None:
            told.extend(values)
            done.set()

        async with linked({}, {"hear": hear}) as (link, _):
            link.tell("hear", 1, "two")
            await asyncio.wait_for(done.wait(), 5)
        return told

    assert loop.run(run()) == [1, "two"]


def test_what_is_sent_in_turn_is_served_in_turn() -> None:
    async def run() -> list[int]:
        seen: list[int] = []

        async def hear(number: int) -> None:
            seen.append(number)

        async with linked({}, {"hear": hear, "echo": echo}) as (link, _):
            for number in range(100):
                link.tell("hear", number)
            await link.request("echo")
        return seen

    assert loop.run(run()) == list(range(100))


def test_requests_that_wait_when_the_link_is_lost_fail() -> None:
    async def run() -> list[Any]:
        lost: list[str] = []
        stopped = asyncio.Event()
        started = asyncio.Event()

        async def wait_for_ever() -> None:
            started.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                stopped.set()

        ours, theirs = socket.socketpair()
        one = await Link.over(ours, {}, lambda: lost.append("one"))
        other = await Link.over(theirs, {"wait": wait_for_ever}, lambda: lost.append("other"))
        requests = [asyncio.create_task(one.request("wait")) for _ in range(3)]
        await started.wait()
        other.close()
        answers = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), 5)
        await asyncio.wait_for(stopped.wait(), 5)
        assert sorted(lost) == ["one", "other"]
        assert one.is_lost
        with pytest.raises(LinkLost):
            await one.request("wait")
        one.tell("wait")  # which is nothing, then
        return answers

    assert [type(answer) for answer in loop.run(run())] == [LinkLost] * 3


def test_what_was_sent_before_a_close_still_arrives() -> None:
    async def run() -> list[int]:
        seen: list[int] = []
        gone = asyncio.Event()

        async def hear(number: int) -> None:
            seen.append(number)

        ours, theirs = socket.socketpair()
        one = await Link.over(ours, {})
        await Link.over(theirs, {"hear": hear}, gone.set)
        for number in range(10):
            one.tell("hear", number)
        one.close()
        await asyncio.wait_for(gone.wait(), 5)
        return seen

    assert loop.run(run()) == list(range(10))


def test_a_thousand_requests_at_once_each_have_their_own_answer() -> None:
    async def run() -> list[Any]:
        async with linked({"echo": echo}, {"echo": echo}) as ends:
            return await asyncio.gather(
                *(ends[number % 2].request("echo", number) for number in range(1000))
            )

    assert loop.run(run()) == [(number,) for number in range(1000)]


def test_twenty_megabytes_arrive_whole_both_ways_at_once() -> None:
    here, there = bytes(range(256)) * (20 * MIB // 256), b"\x01\xfe" * (10 * MIB)

    async def run() -> Any:
        async with linked({"echo": echo}, {"echo": echo}) as (one, other):
            return await asyncio.gather(one.request("echo", here), other.request("echo", there))

    assert list(loop.run(run())) == [(here,), (there,)]


class Wire(asyncio.Transport):
    """A transport that keeps what is written, to be fed to the other end in pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """It has no limits."""

    def close(self) -> None:
        """Nothing to close."""


messages = st.lists(
    st.one_of(st.binary(max_size=2000), st.text(), st.integers(), st.lists(st.floats(0, 1))),
    min_size=1,
    max_size=8,
)


@given(messages, st.lists(st.integers(1, 300), min_size=1, max_size=40), st.booleans())
def test_frames_may_come_in_any_pieces(
    values: list[Any], pieces: list[int], is_whole: bool
) -> None:
    async def run() -> list[Any]:
        heard: list[Any] = []

        async def hear(value: Any) -> None:
            heard.append(value)

        sender, receiver = Link({}), Link({"hear": hear})
        wire = Wire()
        sender.connection_made(wire)
        receiver.connection_made(Wire())
        for value in values:
            sender.tell("hear", value)
        await asyncio.sleep(0)  # it writes once a turn of the loop
        rest = bytes(wire.written)
        sizes = iter(pieces)
        while rest:
            size = len(rest) if is_whole else next(sizes, len(rest))
            receiver.data_received(rest[:size])
            rest = rest[size:]
        await asyncio.sleep(0)
        return heard

    assert loop.run(run()) == values


def test_a_frame_that_comes_byte_by_byte_is_one_frame() -> None:
    async def run() -> list[Any]:
        heard: list[Any] = []

        async def hear(value: Any) -> None:
            heard.append(value)

        sender, receiver = Link({}), Link({"hear": hear})
        wire = Wire()
        sender.connection_made(wire)
        receiver.connection_made(Wire())
        sender.tell("hear", "in pieces")
        await asyncio.sleep(0)
        for byte in wire.written:
            assert heard == []
            receiver.data_received(bytes([byte]))
        await asyncio.sleep(0)
        return heard

    assert loop.run(run()) == ["in pieces"]
