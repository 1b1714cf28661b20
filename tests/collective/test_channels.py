"""How channels turn operations into requests: batches, multicast, parts, ranges, receipts."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdray.collective import AsyncCommunicator, channels, combined
from fsdray.collective.channels import Channel, Rendezvous, queue
from fsdray.collective.frames import Codec, Corrupted, Frame, Key, Operation, pack, unpack
from fsdray.collective.mailbox import Mailbox
from fsdray.collective.parcels import Outgoing, Parcel, frames
from fsdray.errors import CollectiveError, MismatchedCollective, RankFailed
from fsdray.services import KIB, Message, MessageLimits
from tests.collective import CHANNELS, Services, noise, services

GANG = "ab" * 16
EPOCH = bytes.fromhex(GANG)


def outgoing(
    *parcels: tuple[Sequence[int], bytes], operation: Operation = Operation.SCATTER, number: int = 0
) -> Outgoing:
    made = [Parcel.of(tuple(ranks), Codec.RAW, [payload]) for ranks, payload in parcels]
    return Outgoing(operation, 0, number, 0, made)


async def meet(here: Services, channel: str, size: int) -> Rendezvous:
    meeting = await channels.prepare(here, channel, size)  # type: ignore[arg-type]
    return dataclasses.replace(meeting, gang=GANG)


def join(here: Services, meeting: Rendezvous, rank: int, size: int) -> tuple[Channel, Mailbox]:
    def aborted(why: bytes) -> None:
        mailbox.fail(lambda: RankFailed([int(why)]))

    mailbox = Mailbox(EPOCH, rank, aborted)
    return channels.open_channel(here, meeting, rank, size, mailbox), mailbox  # type: ignore[arg-type]


def key(number: int = 0, source: int = 0) -> Key:
    return Key(0, False, number, source)


# Queue


@given(
    sizes=st.lists(st.integers(0, 950), max_size=60),
    limits=st.builds(
        MessageLimits, batch=st.integers(1000, 2500), batch_messages=st.integers(1, 10)
    ),
)
@settings(max_examples=100)
def test_batches_hold_every_message_once_within_the_limits_and_first_fit(
    sizes: list[int], limits: MessageLimits
) -> None:
    messages = [Message(bytes(size), (f"inbox-{i}",)) for i, size in enumerate(sizes)]
    made = list(queue.batches(messages, limits))
    assert sorted(m.inboxes for batch in made for m in batch) == sorted(m.inboxes for m in messages)
    used = [sum(m.billed for m in batch) for batch in made]
    assert all(total <= limits.batch for total in used)
    assert all(1 <= len(batch) <= limits.batch_messages for batch in made)
    for i, batch in enumerate(made):
        for later in made[i + 1 :]:
            is_full = len(batch) == limits.batch_messages
            assert is_full or all(used[i] + m.billed > limits.batch for m in later)


def test_no_messages_are_no_batches() -> None:
    assert list(queue.batches([], MessageLimits())) == []


class Recorder:
    """`Inboxes` that keep what is published."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.published: list[list[tuple[bytes, tuple[str, ...]]]] = []
        self.acknowledged: list[int] = []
        self.has_acknowledged = asyncio.Event()

    def put(self, messages: Sequence[Message]) -> None:
        self.published.append([(bytes(each.body), each.inboxes) for each in messages])
        self._inner.put(messages)

    def drop(self, inbox: str, receipts: Sequence[str]) -> None:
        self.acknowledged.append(len(receipts))
        self.has_acknowledged.set()
        self._inner.drop(inbox, receipts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def record(here: Services) -> Recorder:
    recorder = Recorder(here.inboxes)
    for messages in here.messages, here.messages.near:
        messages._inboxes = recorder  # type: ignore[union-attr]
    return recorder


def test_a_multicast_beyond_the_fanout_is_split_and_reaches_everybody_once() -> None:
    limits = MessageLimits(fanout=4)

    async def program(comm: AsyncCommunicator) -> Any:
        return await comm.bcast({"from": comm.rank}, root=2)

    with services(limits) as here:
        recorder = record(here)
        assert here.run("queue", 12, program) == [{"from": 2}] * 12
        sent = [names for batch in recorder.published for _, names in batch]
        assert sorted(len(names) for names in sent) == [3, 4, 4]
        assert len({name for names in sent for name in names}) == 11
        assert here.count("publish") == 3  # a topic reaches one group


def test_a_multicast_to_more_than_two_hundred_goes_to_two_topics() -> None:
    async def post() -> None:
        meeting = await meet(here, "queue", 202)
        channel, _ = join(here, meeting, 0, 202)
        await channel.post(outgoing((range(1, 202), b"all of you"), operation=Operation.BCAST))
        await channel.close()

    with services() as here:
        recorder = record(here)
        asyncio.run(post())
        ((first,), (second,)) = sorted(recorder.published, key=lambda batch: -len(batch[0][1]))
        assert [len(names) for _, names in (first, second)] == [199, 2]
        assert unpack(second[0]).destinations == (200, 201)


def test_a_large_payload_travels_in_parts_that_fill_their_messages() -> None:
    data = noise(1_000_000).tobytes()

    async def exchange() -> bytes:
        meeting = await meet(here, "queue", 2)
        (sender, _), (receiver, mailbox) = (join(here, meeting, rank, 2) for rank in range(2))
        await sender.post(outgoing(([1], data)))
        await receiver.collect([key()])
        letter = mailbox.take(key())
        await receiver.close()
        return bytes(letter.payload)

    with services() as here:
        recorder = record(here)
        assert asyncio.run(exchange()) == data
        bodies = [body for batch in recorder.published for body, _ in batch]
        limit = here.messages.limits.room(1)
        assert sorted(map(len, bodies))[1:] == [limit] * 3
        assert sorted(unpack(body).part for body in bodies) == [0, 1, 2, 3]
        assert all(sum(len(b) for b, _ in batch) <= limit for batch in recorder.published)
        assert max(map(len, bodies)) == limit


def test_one_batch_mixes_ten_targets() -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        return await comm.scatter([rank * 100 for rank in range(comm.size)])

    with services() as here:
        recorder = record(here)
        assert here.run("queue", 12, program) == [rank * 100 for rank in range(12)]
        assert [len(batch) for batch in recorder.published] == [10, 1]


async def deliver(here: Services, bodies: Sequence[bytes], count: int) -> tuple[Channel, Mailbox]:
    """Publish bodies to rank 1, which collects `count` messages, numbered from 0."""
    meeting = await meet(here, "queue", 2)
    for body in bodies:
        await here.messages.publish([Message(body, (meeting.inboxes[1],))])
    channel, mailbox = join(here, meeting, 1, 2)
    while missing := [key(i) for i in range(count) if not mailbox.has(key(i))]:
        await channel.collect(missing)
    return channel, mailbox


def bodies(count: int) -> list[bytes]:
    made = [outgoing(([1], b"%d" % i), number=i) for i in range(count)]
    return [pack(frame) for each in made for frame in frames(EPOCH, 0, each, each.parcels[0], 100)]


def test_deliveries_are_acknowledged_by_ten_and_the_rest_at_the_end() -> None:
    async def receive() -> None:
        channel, _ = await deliver(here, bodies(25), 25)
        await asyncio.sleep(0)  # what was started is done: acknowledging does not wait
        assert recorder.acknowledged == [10, 10]
        await channel.close()
        assert recorder.acknowledged == [10, 10, 5]
        assert here.inboxes.counts()["inbox-1"] == (0, 0)

    with services() as here:
        recorder = record(here)
        asyncio.run(receive())
        assert here.count("acknowledge") == 3


def test_the_rest_is_acknowledged_before_it_would_come_again() -> None:
    async def receive() -> None:
        channel, _ = await deliver(here, bodies(3), 3)
        assert recorder.acknowledged == []
        async with asyncio.timeout(5):
            await recorder.has_acknowledged.wait()
        assert recorder.acknowledged == [3]
        await channel.close()

    with services(MessageLimits(visibility=0.3)) as here:
        recorder = record(here)
        asyncio.run(receive())
        assert here.count("receive") == 1


def test_a_damaged_frame_is_refused_and_its_intact_delivery_taken() -> None:
    (good,) = bodies(1)
    bad = bytearray(good)
    bad[-20] ^= 4

    async def receive() -> None:
        channel, mailbox = await deliver(here, [bytes(bad), b"rubbish", good, good], 1)
        assert bytes(mailbox.take(key()).payload) == b"0"
        assert isinstance(channel, queue.QueueChannel)
        assert channel.corrupted == 2
        await channel.close()
        # Refused is not acknowledged: the service keeps both until they come again.
        assert recorder.acknowledged == [2]

    with services() as here:
        recorder = record(here)
        asyncio.run(receive())


def test_who_waits_long_asks_once_for_all_who_wait() -> None:
    async def wait() -> None:
        meeting = await meet(here, "queue", 2)
        channel, _ = join(here, meeting, 1, 2)
        waits = [asyncio.create_task(channel.collect([key(i)])) for i in range(5)]
        for _ in range(20):
            await asyncio.sleep(0)
        for body in bodies(5):
            await here.messages.publish([Message(body, (meeting.inboxes[1],))])
        await asyncio.wait(waits)
        await channel.close()
        assert here.count("receive") <= 5

    with services() as here:
        asyncio.run(wait())


# Objects


def test_an_operation_is_one_object_and_a_small_message_one_read() -> None:
    async def exchange() -> None:
        meeting = await meet(here, "object", 4)
        sender, _ = join(here, meeting, 0, 4)
        await sender.post(outgoing(*(([rank], b"for %d" % rank) for rank in (1, 2, 3))))
        assert here.count("put") == len(sender.written) == 1
        for rank in (1, 2, 3):
            channel, mailbox = join(here, meeting, rank, 4)
            await channel.collect([key()])
            assert bytes(mailbox.take(key()).payload) == b"for %d" % rank
            await channel.close()
            assert here.count("get") == rank
        assert here.files.list("") == list(sender.written)

    with services() as here:
        asyncio.run(exchange())
        assert here.count("list") == here.count("miss") == 0


@pytest.mark.parametrize("size", [70 * KIB, 1024 * KIB])
def test_a_large_message_is_the_head_and_one_range(size: int) -> None:
    parts = {rank: noise(size, rank).tobytes() for rank in range(1, 5)}

    async def exchange() -> None:
        meeting = await meet(here, "object", 5)
        sender, _ = join(here, meeting, 0, 5)
        await sender.post(outgoing(*(([rank], data) for rank, data in parts.items())))
        for rank, data in parts.items():
            channel, mailbox = join(here, meeting, rank, 5)
            before = here.count("get"), here.count("get_bytes")
            await channel.collect([key()])
            assert bytes(mailbox.take(key()).payload) == data
            await channel.close()
            assert here.count("get") - before[0] == 2
            assert here.count("get_bytes") - before[1] < combined.HEAD + size + 1000

    with services() as here:
        asyncio.run(exchange())
        assert here.count("put") == 1


def test_an_index_larger_than_the_first_read_is_read_to_its_end() -> None:
    size = 4000

    async def exchange() -> None:
        meeting = await meet(here, "object", size)
        sender, _ = join(here, meeting, 0, size)
        await sender.post(outgoing(*(([rank], b"%d" % rank) for rank in range(1, size))))
        for rank in (1, size // 2, size - 1):
            channel, mailbox = join(here, meeting, rank, size)
            await channel.collect([key()])
            assert bytes(mailbox.take(key()).payload) == b"%d" % rank
            await channel.close()
        assert here.count("get") <= 9

    with services() as here:
        asyncio.run(exchange())


def test_who_finds_nothing_for_himself_learns_what_the_other_called() -> None:
    async def exchange() -> None:
        meeting = await meet(here, "object", 3)
        sender, _ = join(here, meeting, 0, 3)
        await sender.post(outgoing(([1], b"for 1"), operation=Operation.GATHER))
        channel, _ = join(here, meeting, 2, 3)
        with pytest.raises(MismatchedCollective, match="rank 0 called gather, which sends nothing"):
            await channel.collect([key()])
        await channel.close()

    with services() as here:
        asyncio.run(exchange())


def test_a_damaged_object_is_an_error_that_names_it() -> None:
    async def exchange() -> None:
        meeting = await meet(here, "object", 2)
        sender, _ = join(here, meeting, 0, 2)
        await sender.post(outgoing(([1], b"whole")))
        (path,) = sender.written
        blob = await here.objects.get(path)
        assert blob is not None
        damaged = bytearray(blob.data)
        damaged[-21] ^= 1
        await here.objects.put(path, damaged)
        channel, _ = join(here, meeting, 1, 2)
        with pytest.raises(CollectiveError, match="damaged"):
            await channel.collect([key()])
        await channel.close()

    with services() as here:
        asyncio.run(exchange())


@given(sizes=st.lists(st.integers(0, 30_000), min_size=1, max_size=5))
@settings(max_examples=20)
def test_payloads_of_a_combined_object_are_aligned(sizes: list[int]) -> None:
    parts = [bytes([i]) * size for i, size in enumerate(sizes)]
    each = outgoing(*(([i], part) for i, part in enumerate(parts)))
    buffers, placed = combined.combine(EPOCH, 9, each, each.parcels)
    whole = b"".join(buffers)
    assert placed.size == len(whole)
    for part in filter(None, parts):
        assert any(whole[at : at + len(part)] == part for at in range(0, len(whole), 64))


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("count", [10, 1_000, 6_000, 10_000, 100_000])
def test_received_arrays_are_aligned_for_fast_loads(channel: str, count: int) -> None:
    async def program(comm: AsyncCommunicator) -> list[bool]:
        mine = noise(8 * count, comm.rank).view(np.float64)
        got = await comm.neighbor_alltoall(dict.fromkeys(range(comm.size), mine), range(comm.size))
        return [array.flags.aligned and array.flags.writeable for array in got.values()]

    with services() as here:
        assert here.run(channel, 3, program) == [[True] * 3] * 3


# Both


@pytest.mark.parametrize("channel", CHANNELS)
def test_the_reason_of_an_abort_may_be_longer_than_a_message(channel: str) -> None:
    why = bytes(noise(5000))

    async def wait() -> None:
        heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        meeting = await meet(here, channel, 3)
        mailbox = Mailbox(meeting.epoch, 1, heard.set_result)
        channel_1 = channels.open_channel(here, meeting, 1, 3, mailbox)  # type: ignore[arg-type]
        await channels.announce(here, meeting, 0, 3, why)  # type: ignore[arg-type]
        waiting = asyncio.create_task(channel_1.collect([key(0, 2)]))
        async with asyncio.timeout(10):
            assert await heard == why
        waiting.cancel()
        await channel_1.close()

    with services(MessageLimits(message=1000, batch=1000)) as here:
        asyncio.run(wait())


@pytest.mark.parametrize("channel", CHANNELS)
def test_an_abort_ends_the_wait_of_those_who_wait(channel: str) -> None:
    async def wait() -> None:
        meeting = await meet(here, channel, 3)
        channel_1, mailbox = join(here, meeting, 1, 3)
        mailbox.close_below(0, 5)  # as after some operations
        waits = [asyncio.create_task(channel_1.collect([key(5 + i, 2)])) for i in range(2)]
        await channels.announce(here, meeting, 0, 3, b"2")  # type: ignore[arg-type]
        async with asyncio.timeout(10):
            done, _ = await asyncio.wait(waits)
        errors = [task.exception() for task in done]
        assert [type(error) for error in errors] == [RankFailed] * 2
        assert errors[0] is not errors[1]
        await channel_1.close()
        await channels.clear(here, meeting, [], is_broken=True)  # type: ignore[arg-type]
        assert here.files.list("") == []

    with services() as here:
        asyncio.run(wait())


@pytest.mark.parametrize("channel", CHANNELS)
def test_nothing_to_send_is_no_request(channel: str) -> None:
    async def post() -> None:
        meeting = await meet(here, channel, 2)
        alone, _ = join(here, meeting, 0, 2)
        await alone.post(outgoing())
        await alone.close()

    with services() as here:
        asyncio.run(post())
        assert here.meter.counts() == {}


def test_a_frame_of_a_twin_is_the_same_frame() -> None:
    each = outgoing(([1], b"payload" * 100))
    first, second = (
        [pack(frame) for frame in frames(EPOCH, 0, each, each.parcels[0], 100)] for _ in range(2)
    )
    assert first == second
    assert combined.combine(EPOCH, 0, each, each.parcels) == combined.combine(
        EPOCH, 0, each, each.parcels
    )


def test_a_frame_to_nobody_known_is_refused_before_it_is_kept() -> None:
    with pytest.raises(Corrupted):
        unpack(pack(Frame(EPOCH, Operation.SEND, Codec.RAW, 0, 0, 0, (1,), 0, 0, 1, b""))[:-1])
