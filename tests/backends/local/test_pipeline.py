"""The socket that brings calls to a worker: order, what is given back, and who is gone."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdray import loop
from fsdray.backends.local.pipeline import Calls, CallsLost, Intake

Reply = tuple[int, bytes, float, bool]


class Ends:
    """Both ends, and what the driver's was told."""

    def __init__(self) -> None:
        self.told: list[Reply | str] = []
        self.changed = threading.Semaphore(0)
        ours, theirs = socket.socketpair()
        self.intake = Intake(theirs)
        self.theirs = theirs
        self.calls = loop.run(
            Calls.over(
                ours,
                lambda: None,
                lambda *reply: self._tell(reply),
                lambda: None,
                lambda: self._tell("lost"),
            )
        )

    def _tell(self, event: Reply | str) -> None:
        self.told.append(event)
        self.changed.release()

    def send(self, *calls: tuple[int, bytes, float]) -> None:
        async def send() -> None:
            for number, payload, timeout in calls:
                self.calls.send(number, payload, timeout)

        loop.run(send())

    def wait(self, count: int) -> list[Reply | str]:
        for _ in range(count):
            assert self.changed.acquire(timeout=20)
        return self.told

    def close(self) -> None:
        loop.get().call_soon_threadsafe(self.calls.close)
        self.theirs.close()


@given(payloads=st.lists(st.binary(max_size=300), min_size=1, max_size=20))
@settings(max_examples=30)
def test_calls_come_in_their_order_and_so_do_replies(payloads: list[bytes]) -> None:
    ends = Ends()
    ends.send(*((number, payload, 1.5) for number, payload in enumerate(payloads)))
    for expected, payload in enumerate(payloads):
        assert ends.intake.next() == (expected, 1.5, payload)
        assert ends.intake.running == expected
        ends.intake.reply(expected, payload * 2, 0.25, False)
    told = ends.wait(len(payloads))
    assert told == [(number, payload * 2, 0.25, False) for number, payload in enumerate(payloads)]
    ends.close()


def test_a_call_and_a_reply_may_be_as_large_as_a_payload() -> None:
    ends = Ends()
    large = bytes(range(256)) * (6 << 12)
    ends.send((1, large, 1.0), (2, b"", 1.0))
    assert ends.intake.next()[2] == large
    ends.intake.reply(1, large, 0.0, False)
    assert ends.wait(1)[0] == (1, large, 0.0, False)
    assert ends.intake.next() == (2, 1.0, b"")
    ends.close()


def test_what_is_given_back_is_never_begun() -> None:
    ends = Ends()
    ends.send(*((number, b"x", 1.0) for number in (1, 2, 3)))
    assert ends.intake.next()[0] == 1
    assert ends.intake.give_back() == [2, 3]
    assert ends.intake.give_back() == []
    ends.send((4, b"y", 1.0))
    assert ends.intake.next()[0] == 4
    ends.close()


def test_a_process_that_said_it_is_spent_begins_nothing_more() -> None:
    ends = Ends()
    ends.send((1, b"x", 1.0), (2, b"y", 1.0))
    assert ends.intake.next()[0] == 1
    ends.intake.reply(1, b"", 0.0, True)
    begun: list[object] = []

    def begin() -> None:
        try:
            begun.append(ends.intake.next())
        except CallsLost:
            begun.append("lost")

    thread = threading.Thread(target=begin)
    thread.start()
    ends.wait(1)
    loop.get().call_soon_threadsafe(ends.calls.close)
    thread.join(20)
    assert begun == ["lost"]
    ends.theirs.close()


def test_either_end_learns_that_the_other_is_gone() -> None:
    ends = Ends()
    ends.theirs.close()
    assert ends.wait(1) == ["lost"]
    ends = Ends()
    loop.get().call_soon_threadsafe(ends.calls.close)
    with pytest.raises(CallsLost):
        ends.intake.next()
    ends.intake.reply(1, b"nobody hears it", 0.0, False)
    ends.theirs.close()


def test_what_arrives_is_announced_before_it_is_told() -> None:
    events: list[str] = []
    ours, theirs = socket.socketpair()
    intake = Intake(theirs)
    over = threading.Event()

    async def connect() -> Calls:
        return await Calls.over(
            ours,
            lambda: events.append("arriving"),
            lambda *_: events.append("reply"),
            lambda: (events.append("drained"), over.set())[0],
            lambda: None,
        )

    async def both() -> None:
        # Both replies are in the socket before the loop looks at it.
        intake.reply(1, b"a", 0.0, False)
        intake.reply(2, b"b", 0.0, False)
        await asyncio.sleep(0)

    calls = loop.run(connect())
    loop.run(both())
    assert over.wait(20)
    assert events == ["arriving", "reply", "reply", "drained"]
    loop.get().call_soon_threadsafe(calls.close)
    theirs.close()
