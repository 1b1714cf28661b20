"""The local messages: exactly what is delivered, exactly what is counted, and what is left."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdray import loop
from fsdray.backends.local import cores
from fsdray.backends.local import messages as local_messages
from fsdray.backends.local.inbox import Inbox as Ring
from fsdray.backends.local.messages import LARGE, Inboxes, LocalMessages
from fsdray.costs.meter import Meter
from fsdray.errors import ServiceError, SettingsError
from fsdray.services import BILLING_UNIT, KIB, Message, MessageLimits, units
from tests.collective import closed, noise

T = TypeVar("T")

HEAD = 25 + 13  # bytes of a message to one inbox beside its body


class Inbox:
    """Messages with one leased inbox and a meter of their own, as one process has them."""

    def __init__(self, limits: MessageLimits) -> None:
        self.meter = Meter()
        self.directory = tempfile.TemporaryDirectory()
        self.inboxes = Inboxes(Path(self.directory.name), limits, lambda _: None)
        self.messages = LocalMessages(self.inboxes, self.meter.add, limits)
        [self.name] = loop.run(self.messages.lease(1))

    def publish(self, *bodies: bytes) -> None:
        loop.run(self.messages.publish([Message(body, (self.name,)) for body in bodies]))

    def receive(self, wait: float = 0) -> list[bytes]:
        return [bytes(d.body) for d in loop.run(self.messages.receive(self.name, wait=wait))]

    def close(self) -> None:
        loop.run(closed(self.inboxes))
        self.directory.cleanup()


@pytest.fixture
def make() -> Iterator[Callable[[MessageLimits], Inbox]]:
    made: list[Inbox] = []

    def one(limits: MessageLimits) -> Inbox:
        made.append(Inbox(limits))
        return made[-1]

    yield one
    for each in made:
        each.close()


@pytest.fixture
def inbox(make: Callable[[MessageLimits], Inbox]) -> Inbox:
    return make(MessageLimits(visibility=0.1))


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


def test_a_receive_brings_at_most_its_bytes(make: Callable[[MessageLimits], Inbox]) -> None:
    inbox = make(MessageLimits(receive=300 * KIB))
    for _ in range(3):
        inbox.publish(bytes(150 * KIB - HEAD))
    assert [len(inbox.receive()) for _ in range(3)] == [2, 1, 0]


def test_a_message_larger_than_a_receive_still_comes(
    make: Callable[[MessageLimits], Inbox],
) -> None:
    inbox = make(MessageLimits(receive=10))
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
    inbox.close()
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


# What goes with a message


def test_an_object_goes_when_all_have_acknowledged_the_message_that_it_is_attached_to(
    tmp_path: Path,
) -> None:
    removed: list[str] = []
    inboxes = Inboxes(tmp_path, MessageLimits(), removed.append)
    messages = LocalMessages(inboxes, Meter().add, MessageLimits())

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
        await messages.publish([Message(b"nobody reads it", (first, second), "c")])
        await messages.release([first, second])
        assert removed == ["a", "b", "c"]
        inboxes.close()

    asyncio.run(use())
    assert list(tmp_path.iterdir()) == []


def bodies_in(directory: Path) -> list[int]:
    """The large bodies that somebody may still read, by their numbers of names."""
    return [path.stat().st_nlink for path in directory.iterdir() if path.name.startswith("body")]


def waiting_in(directory: Path) -> int:
    """Files that wait to be written again."""
    return sum(path.name.startswith(".") for path in directory.iterdir())


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_a_large_body_is_one_file_until_all_have_acknowledged_it(
    tmp_path: Path, readers: int
) -> None:
    body, other = bytes(noise(LARGE)), bytes(noise(LARGE, 1))
    here = Inboxes(tmp_path, MessageLimits(), lambda _: None)
    messages = LocalMessages(here, Meter().add, MessageLimits())

    async def use() -> None:
        names = tuple(await messages.lease(readers))
        for turn in range(5):
            await messages.publish([Message(body, names), Message(b"small", names)])
            for reader in names:
                assert bodies_in(tmp_path) == [2]
                taken = await messages.receive(reader, wait=1)
                assert [bytes(each.body) for each in taken] == [body, b"small"]
                assert taken[0].billed == Message(body, names).billed
                await messages.acknowledge(taken)
                await messages.acknowledge(taken)  # again, which changes nothing
            assert bodies_in(tmp_path) == []
            # Its file waits to be written again, and who has the body keeps it.
            assert waiting_in(tmp_path) == 1
            await messages.publish([Message(other, names)])
            assert bytes(taken[0].body) == body, turn
            for reader in names:
                await messages.acknowledge(await messages.receive(reader, wait=1))
        await messages.publish([Message(body, names)])
        await messages.receive(names[0], wait=1)
        await messages.release(names)
        assert bodies_in(tmp_path) == []
        here.ended(os.getpid())
        here.close()

    asyncio.run(use())
    assert list(tmp_path.iterdir()) == []


def test_where_there_is_no_room_for_a_file_a_body_goes_through_the_ring(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*args: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inbox.inboxes._bodies, "write", no_room)
    body = bytes(noise(LARGE))
    inbox.publish(body)
    assert inbox.receive() == [body]


def test_where_there_is_no_room_in_a_ring_nothing_is_sent(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    inbox.publish(*[bytes(20 * KIB)] * 3)
    with monkeypatch.context() as patched:
        patched.setattr("fsdray.backends.local.inbox.os.pwrite", no_room)
        with pytest.raises(ServiceError, match=r"no room for more messages .*No space left"):
            inbox.publish(bytes(20 * KIB))
        with pytest.raises(ServiceError, match="cannot make 1 inboxes"):
            loop.run(inbox.messages.lease(1))
    assert list(inbox.inboxes.counts()) == [inbox.name], "nothing is left of the other"
    assert len(inbox.receive()) == 3
    inbox.publish(b"there is again")
    assert inbox.receive() == [b"there is again"]


# Between processes


def test_a_reader_is_woken_by_what_another_process_sends(inbox: Inbox) -> None:
    async def run() -> list[bytes]:
        other = Inboxes(Path(inbox.directory.name), MessageLimits(), lambda _: None)
        reader = await waiting(inbox.messages.receive(inbox.name, wait=20))
        other.put([Message(b"from there", (inbox.name,))])
        async with asyncio.timeout(10):
            got = await reader
        later = await waiting(inbox.messages.receive(inbox.name, wait=20))
        other.release([inbox.name])
        other.close()
        with pytest.raises(ServiceError, match="leased"):
            await later
        return [bytes(each.body) for each in got]

    assert loop.run(run()) == [b"from there"]


def test_readers_in_two_processes_share_an_inbox(inbox: Inbox) -> None:
    async def run() -> list[bytes]:
        other = Inboxes(Path(inbox.directory.name), MessageLimits(), lambda _: None)
        mine = await waiting(inbox.inboxes.receive(inbox.name, 20))
        theirs = await waiting(other.receive(inbox.name, 20))
        await inbox.messages.publish([Message(b"a", (inbox.name,))])
        done, (left,) = await asyncio.wait(
            [mine, theirs], timeout=10, return_when=asyncio.FIRST_COMPLETED
        )
        (first,) = done
        inbox.inboxes.drop(inbox.name, [each.receipt for each in first.result()])
        await inbox.messages.publish([Message(b"b", (inbox.name,))])
        async with asyncio.timeout(10):
            second = await left
        other.close()
        return [bytes(each[2]) for each in [*first.result(), *second]]

    assert loop.run(run()) == [b"a", b"b"]


def test_what_a_reader_took_along_when_its_process_ended_comes_to_another(inbox: Inbox) -> None:
    async def run() -> list[bytes]:
        gone = Inboxes(Path(inbox.directory.name), MessageLimits(visibility=0.2), lambda _: None)
        inbox.inboxes.put([Message(b"kept", (inbox.name,))])
        assert len(gone.take(inbox.name)[0]) == 1
        gone.close()
        return [bytes(each.body) for each in await inbox.messages.receive(inbox.name, wait=20)]

    assert loop.run(run()) == [b"kept"]


def test_a_reader_that_is_gone_keeps_nobody_from_sending(inbox: Inbox) -> None:
    async def run() -> list[bytes]:
        gone = Inboxes(Path(inbox.directory.name), MessageLimits(), lambda _: None)
        reader = await waiting(gone.receive(inbox.name, 20))
        reader.cancel()
        await asyncio.wait([reader])
        gone.close()
        await inbox.messages.publish([Message(b"a", (inbox.name,))])
        return [bytes(each.body) for each in await inbox.messages.receive(inbox.name, wait=1)]

    assert loop.run(run()) == [b"a"]


def test_a_process_keeps_few_files_open_however_many_inboxes_it_reaches(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_messages, "_OPEN", 10)
    directory = Path(inbox.directory.name)

    async def run() -> int:
        names = await inbox.messages.lease(100)
        others = [Inboxes(directory, MessageLimits(), lambda _: None) for _ in names]
        readers = [
            await waiting(each.receive(name, 20)) for each, name in zip(others, names, strict=True)
        ]
        before = len(os.listdir("/proc/self/fd"))
        await inbox.messages.publish([Message(b"to all", tuple(names))])
        got = await asyncio.gather(*readers)
        grown = len(os.listdir("/proc/self/fd")) - before
        for each in others:
            each.close()
        assert [len(taken) for taken in got] == [1] * 100
        return grown

    assert loop.run(run()) <= 30


def test_what_is_closed_leaves_no_file_open(inbox: Inbox) -> None:
    async def run() -> None:
        before = sorted(os.listdir("/proc/self/fd"))
        other = Inboxes(Path(inbox.directory.name), MessageLimits(), lambda _: None)
        reader = await waiting(other.receive(inbox.name, 20))
        inbox.inboxes.put([Message(b"a", (inbox.name,))])
        await reader
        other.close()
        inbox.inboxes.close()
        assert len(os.listdir("/proc/self/fd")) <= len(before)

    loop.run(run())


def test_a_ring_is_open_while_somebody_waits_for_it(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though many others are used meanwhile."""
    monkeypatch.setattr(local_messages, "_OPEN", 3)

    async def run() -> list[bytes]:
        reader = await waiting(inbox.messages.receive(inbox.name, wait=20))
        for name in await inbox.messages.lease(20):
            await inbox.messages.publish([Message(b"other", (name,))])
        await inbox.messages.publish([Message(b"mine", (inbox.name,))])
        return [bytes(each.body) for each in await reader]

    assert loop.run(run()) == [b"mine"]
    assert Ring(f"{inbox.directory.name}/{inbox.name}").counts() == (0, 1)


# What needs no task


def test_what_is_near_comes_to_who_is_called(inbox: Inbox) -> None:
    near = inbox.messages.near

    async def run() -> list[bytes]:
        called: list[int] = []
        assert near.receive(inbox.name, lambda: called.append(1)) == []
        assert near.receive(inbox.name, lambda: called.append(2)) == []
        near.publish([Message(b"a", (inbox.name,))])
        await until(lambda: called == [1])
        (first,) = near.receive(inbox.name, lambda: called.append(3))
        # Some may be left, as far as this one can know.
        await until(lambda: called == [1, 2])
        near.acknowledge([first])
        assert near.receive(inbox.name, lambda: called.append(4)) == []
        assert called == [1, 2]
        return [bytes(first.body)]

    assert run_near(run()) == [b"a"]
    assert inbox.inboxes.counts()[inbox.name] == (0, 0)


def test_who_stops_leaves_what_it_was_called_for_to_the_next(inbox: Inbox) -> None:
    near = inbox.messages.near

    async def run() -> None:
        called: list[str] = []
        stopped, gone, next_one = (partial(called.append, each) for each in ("1", "2", "3"))
        for each in (gone, stopped, next_one):
            assert near.receive(inbox.name, each) == []
        near.publish([Message(b"a", (inbox.name,))])
        await until(lambda: called == ["2"])
        near.stop(inbox.name, gone)
        assert called == ["2", "1"]
        near.stop(inbox.name, stopped)
        assert called == ["2", "1", "3"]
        assert len(near.receive(inbox.name, next_one)) == 1
        near.stop(inbox.name, next_one)

    run_near(run())


def test_a_thread_that_waits_has_what_comes_and_sleeps_meanwhile(inbox: Inbox) -> None:
    near = inbox.messages.near
    other = Inboxes(Path(inbox.directory.name), MessageLimits(), lambda _: None)

    async def run() -> None:
        began, used = time.monotonic(), time.thread_time()
        assert near.wait(inbox.name, 0.2) == []
        assert 0.2 <= time.monotonic() - began < 5
        assert time.thread_time() - used < 0.1
        began = time.monotonic()
        thread = threading.Timer(0.1, other.put, [[Message(b"a", (inbox.name,))]])
        thread.start()
        (got,) = near.wait(inbox.name, 10)
        assert 0.1 <= time.monotonic() - began < 5
        thread.join()
        near.acknowledge([got])

    run_near(run())
    other.close()


def test_a_thread_that_waits_for_several_is_woken_once(inbox: Inbox) -> None:
    near = inbox.messages.near
    other = Inboxes(Path(inbox.directory.name), MessageLimits(), lambda _: None)

    def send() -> None:
        for body in (b"a", b"b", b"c"):
            time.sleep(0.02)
            other.put([Message(body, (inbox.name,))])

    async def run() -> list[bytes]:
        thread = threading.Thread(target=send)
        thread.start()
        got = near.wait(inbox.name, 10, 3)
        thread.join()
        return [bytes(each.body) for each in got]

    assert run_near(run()) == [b"a", b"b", b"c"]
    other.close()


def test_who_waits_while_others_of_the_process_do_calls_them(inbox: Inbox) -> None:
    near = inbox.messages.near

    async def run() -> None:
        [elsewhere] = await inbox.messages.lease(1)
        reader = await waiting(inbox.messages.receive(elsewhere, wait=20))
        other = Inboxes(Path(inbox.directory.name), MessageLimits(), lambda _: None)
        threading.Timer(0.05, other.put, [[Message(b"to them", (elsewhere,))]]).start()
        began = time.monotonic()
        assert near.wait(inbox.name, 10) == []
        assert time.monotonic() - began < 5
        assert [bytes(each.body) for each in await reader] == [b"to them"]
        other.close()

    run_near(run())


def test_to_wait_near_is_billed_as_long_polls_are(make: Callable[[MessageLimits], Inbox]) -> None:
    inbox = make(MessageLimits(wait=0.1))
    near = inbox.messages.near

    async def run() -> None:
        for _ in range(3):
            assert near.wait(inbox.name, 0.03) == []
        assert inbox.meter.counts().get("receive", 0) == 0
        near.publish([Message(b"soon", (inbox.name,))])
        assert len(near.wait(inbox.name, 1)) == 1
        assert inbox.meter.counts()["receive"] == 1
        for _ in range(5):
            assert near.wait(inbox.name, 0.05) == []
        near.publish([Message(b"late", (inbox.name,))])
        assert len(near.wait(inbox.name, 1)) == 1

    run_near(run())
    assert inbox.meter.counts()["receive"] >= 4


def test_limits_and_leases_hold_for_what_is_near(inbox: Inbox) -> None:
    near = inbox.messages.near

    async def run() -> None:
        with pytest.raises(SettingsError, match="a batch has 1 to 10"):
            near.publish([])
        with pytest.raises(SettingsError, match="acknowledged at once"):
            near.acknowledge([])
        await inbox.messages.release([inbox.name])
        for call in (
            lambda: near.publish([Message(b"x", (inbox.name,))]),
            lambda: near.receive(inbox.name, lambda: None),
            lambda: near.wait(inbox.name, 1),
        ):
            with pytest.raises(ServiceError, match="its gang has ended"):
                call()

    run_near(run())


def run_near(program: Coroutine[Any, Any, T]) -> T:
    """Run it on the loop, whose thread may wait; it is scheduled as before then."""

    async def run() -> T:
        try:
            return await program
        finally:
            cores.as_usual()

    return loop.run(run())


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for what happens within a few turns of the loop."""
    for _ in range(10_000):
        if is_so():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not happen")


def test_who_keeps_its_core_gives_it_back() -> None:
    usual = os.sched_getscheduler(0)
    cores.keep()
    cores.keep()
    kept = os.sched_getscheduler(0)
    cores.as_usual()
    assert os.sched_getscheduler(0) == usual
    assert {usual, kept} <= {os.SCHED_OTHER, os.SCHED_BATCH}
    cores.as_usual()
    assert os.sched_getscheduler(0) == usual
