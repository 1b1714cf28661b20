"""The local inboxes: exactly what is delivered, and exactly what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdray import loop
from fsdray.backends.local.messages import Inboxes, LocalMessages
from fsdray.costs.meter import Meter
from fsdray.errors import ServiceError, SettingsError
from fsdray.services import BILLING_UNIT, KIB, Message, MessageLimits, units

T = TypeVar("T")

HEAD = 25 + 13  # bytes of a message to one inbox beside its body


class Inbox:
    """Messages with one leased inbox and a meter of their own, without any process."""

    def __init__(self, limits: MessageLimits) -> None:
        self.meter = Meter()
        self.messages = LocalMessages(Inboxes(limits), self.meter.add, limits)
        [self.name] = loop.run(self.messages.lease(1))

    def publish(self, *bodies: bytes) -> None:
        loop.run(self.messages.publish([Message(body, (self.name,)) for body in bodies]))

    def receive(self, wait: float = 0) -> list[bytes]:
        return [bytes(d.body) for d in loop.run(self.messages.receive(self.name, wait=wait))]


@pytest.fixture
def inbox() -> Inbox:
    return Inbox(MessageLimits(visibility=0.1))


async def waiting(reader: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """The reader as a task that has come to where it waits."""
    task = asyncio.create_task(reader)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    return task


def test_a_message_is_delivered_once_and_in_order_where_nothing_fails(inbox: Inbox) -> None:
    bodies = [b"%d" % i for i in range(10)]
    inbox.publish(*bodies)
    assert inbox.receive() == bodies
    assert inbox.receive() == []


def test_a_receive_brings_at_most_ten_messages(inbox: Inbox) -> None:
    for i in range(12):
        inbox.publish(b"%d" % i)
    assert [len(inbox.receive()) for _ in range(3)] == [10, 2, 0]


def test_a_receive_brings_at_most_its_bytes() -> None:
    inbox = Inbox(MessageLimits(receive=300 * KIB))
    for _ in range(3):
        inbox.publish(bytes(150 * KIB - HEAD))
    assert [len(inbox.receive()) for _ in range(3)] == [2, 1, 0]


def test_a_message_larger_than_a_receive_still_comes() -> None:
    inbox = Inbox(MessageLimits(receive=10))
    inbox.publish(bytes(100))
    inbox.publish(b"small")
    assert [len(inbox.receive()) for _ in range(3)] == [1, 1, 0]


def test_two_waiting_readers_are_each_given_a_message(inbox: Inbox) -> None:
    async def run() -> list[bytes]:
        messages = inbox.messages
        readers = [await waiting(messages.receive(inbox.name, wait=20)) for _ in range(2)]
        await messages.publish([Message(b"a", (inbox.name,))])
        first = await readers[0]
        assert not readers[1].done()
        await messages.publish([Message(b"b", (inbox.name,))])
        return [bytes(d.body) for d in [*first, *await readers[1]]]

    assert loop.run(run()) == [b"a", b"b"]


def test_a_cancelled_reader_takes_nothing_with_it(inbox: Inbox) -> None:
    async def run() -> list[bytes]:
        messages = inbox.messages
        first = await waiting(messages.receive(inbox.name, wait=20))
        second = await waiting(messages.receive(inbox.name, wait=20))
        # Woken for the message and cancelled before it runs again.
        await messages.publish([Message(b"for whoever is left", (inbox.name,))])
        first.cancel()
        async with asyncio.timeout(10):  # half of what its visibility would take
            return [bytes(d.body) for d in await second]

    assert loop.run(run()) == [b"for whoever is left"]


def test_a_reader_of_a_released_inbox_is_told(inbox: Inbox) -> None:
    async def run() -> None:
        reader = await waiting(inbox.messages.receive(inbox.name, wait=20))
        await inbox.messages.release([inbox.name])
        await reader

    with pytest.raises(ServiceError, match=r"no inbox 'inbox-0' is leased: its gang has ended"):
        loop.run(run())


def test_nothing_of_a_batch_is_sent_where_one_inbox_is_not_leased(inbox: Inbox) -> None:
    batch = [Message(b"x", (inbox.name,)), Message(b"y", (inbox.name, "inbox-99"))]
    with pytest.raises(ServiceError, match="inbox-99"):
        loop.run(inbox.messages.publish(batch))
    assert inbox.receive() == []


def test_to_release_twice_or_what_was_never_leased_is_no_error(inbox: Inbox) -> None:
    loop.run(inbox.messages.release([inbox.name, inbox.name, "inbox-99"]))
    with pytest.raises(ServiceError):
        inbox.receive()


def test_an_acknowledgement_after_the_release_is_no_error(inbox: Inbox) -> None:
    inbox.publish(b"x")
    deliveries = loop.run(inbox.messages.receive(inbox.name, wait=0))
    loop.run(inbox.messages.release([inbox.name]))
    loop.run(inbox.messages.acknowledge(deliveries))
    assert inbox.meter.counts()["acknowledge"] == 1


def test_a_late_acknowledgement_does_not_take_the_later_delivery_away(inbox: Inbox) -> None:
    inbox.publish(b"x")
    early = loop.run(inbox.messages.receive(inbox.name, wait=0))
    assert inbox.receive(wait=5) == [b"x"]  # its second delivery
    loop.run(inbox.messages.acknowledge(early))
    assert inbox.receive(wait=5) == [b"x"], "SQS ends a delivery by its own receipt alone"


@pytest.mark.parametrize("wait", [-1, 20.1, float("inf"), float("nan")])
def test_a_long_poll_beyond_its_limits_is_refused(inbox: Inbox, wait: float) -> None:
    with pytest.raises(SettingsError, match=r"wait=.*0 to 20"):
        inbox.receive(wait=wait)


# What is counted


@pytest.mark.parametrize(
    ("sizes", "billed"),
    [
        ([0], 1),
        ([1], 1),
        ([BILLING_UNIT - HEAD], 1),
        ([BILLING_UNIT - HEAD + 1], 2),
        ([40 * KIB, 40 * KIB], 2),
        ([64 * KIB - HEAD] * 4, 4),
        ([1] * 10, 1),
    ],
)
def test_a_batch_for_one_inbox_is_one_send_billed_by_its_bytes_together(
    inbox: Inbox, sizes: list[int], billed: int
) -> None:
    inbox.publish(*(bytes(size) for size in sizes))
    assert inbox.meter.counts() == {
        "send": 1,
        "send_units": billed,
        "send_bytes": sum(sizes) + HEAD * len(sizes),
    }


def test_a_multicast_is_one_publish_however_many_it_reaches(inbox: Inbox) -> None:
    inboxes = loop.run(inbox.messages.lease(100))
    loop.run(inbox.messages.publish([Message(bytes(1000), tuple(inboxes))]))
    size = 1000 + 25 + 100 * 13
    assert inbox.meter.counts() == {"publish": 1, "publish_units": 1, "publish_bytes": size}


def test_a_batch_that_mixes_targets_is_one_publish(inbox: Inbox) -> None:
    [other] = loop.run(inbox.messages.lease(1))
    batch = [Message(b"", (inbox.name,)), Message(b"", (other,))]
    loop.run(inbox.messages.publish(batch))
    size = 2 * HEAD
    assert inbox.meter.counts() == {"publish": 1, "publish_units": 1, "publish_bytes": size}


@given(st.lists(st.integers(0, 25 * KIB), min_size=1, max_size=10))
def test_what_is_published_at_once_is_received_at_once_for_the_same_units(sizes: list[int]) -> None:
    inbox = Inbox(MessageLimits())
    inbox.publish(*(bytes(size) for size in sizes))
    assert len(inbox.receive()) == len(sizes)
    counts = inbox.meter.counts()
    assert counts["receive"] == 1
    billed = sum(sizes) + HEAD * len(sizes)
    assert counts["receive_units"] == counts["send_units"] == units(billed)


def test_an_empty_receive_is_counted(inbox: Inbox) -> None:
    inbox.receive()
    inbox.receive()
    assert inbox.meter.counts() == {"receive": 2, "receive_units": 2}


def test_up_to_ten_messages_are_one_acknowledgement(inbox: Inbox) -> None:
    inbox.publish(*[b"x"] * 10)
    loop.run(inbox.messages.acknowledge(loop.run(inbox.messages.receive(inbox.name, wait=0))))
    assert inbox.meter.counts()["acknowledge"] == 1


def test_what_is_refused_is_not_counted(inbox: Inbox) -> None:
    for batch in ([], [Message(bytes(257 * KIB), (inbox.name,))], [Message(b"", ())]):
        with pytest.raises(SettingsError):
            loop.run(inbox.messages.publish(batch))
    with pytest.raises(SettingsError):
        loop.run(inbox.messages.acknowledge([]))
    assert inbox.meter.counts() == {}


def test_leases_are_free(inbox: Inbox) -> None:
    loop.run(inbox.messages.release(loop.run(inbox.messages.lease(10))))
    assert inbox.meter.counts() == {}


def test_an_object_goes_when_all_have_acknowledged_the_message_that_it_is_attached_to() -> None:
    removed: list[str] = []
    messages = LocalMessages(
        Inboxes(MessageLimits(), remove=removed.append), Meter().add, MessageLimits()
    )

    async def use() -> None:
        first, second = await messages.lease(2)
        await messages.publish([Message(b"both", (first, second), "a"), Message(b"", (first,))])
        await messages.acknowledge(await messages.receive(first, wait=1))
        assert removed == []
        got = await messages.receive(second, wait=1)
        assert removed == [], "it was received, and may still be read"
        await messages.acknowledge(got)
        await messages.acknowledge(got)
        assert removed == ["a"]
        await messages.publish([Message(b"nobody reads it", (first,), "b")])
        await messages.release([first, second])
        assert removed == ["a", "b"]

    loop.run(use())
