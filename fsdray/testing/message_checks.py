"""Checks of `fsdray.services.Messages`, one for each guarantee.

A check uses inboxes, keys and calls of its own and leaves none behind. Services may deliver twice
and in any order, and so the checks allow it. What is special to one backend is in its own tests.
Checks of redelivery wait for ``limits.visibility``: connect with a short one where one can.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from fsdray.errors import (
    ServiceError,
)
from fsdray.services import (
    Buffer,
    Delivery,
    Message,
    MessageLimits,
    Messages,
)
from fsdray.testing.expect import (
    IDLE_SHARE,
    MOMENT,
    PATIENCE,
    SOON,
    in_time,
    now,
    refused,
    tried_again,
    waited,
    wide_view,
)
from fsdray.testing.near import ThroughNear

MessageCheck: TypeAlias = Callable[[Messages], Coroutine[Any, Any, None]]


async def check_messages(messages: Messages) -> None:
    """Run all of `MESSAGE_CHECKS`, one after the other; where messages are near, that way too."""
    ways = [messages] if messages.near is None else [messages, ThroughNear(messages)]
    for way in ways:
        for check in MESSAGE_CHECKS:
            await check(way)


async def a_message_arrives_as_it_was_sent(messages: Messages) -> None:
    bodies: list[Buffer] = [b"bytes", bytearray(b"bytearray"), memoryview(b"memoryview"), b"\0\xff"]
    async with _leased(messages, 1) as [inbox]:
        for body in bodies:
            await messages.publish([Message(body, (inbox,))])
            await _collect(messages, inbox, [bytes(body)])


async def an_empty_body_arrives(messages: Messages) -> None:
    async with _leased(messages, 1) as [inbox]:
        await messages.publish([Message(b"", (inbox,))])
        await _collect(messages, inbox, [b""])


async def one_message_reaches_each_of_its_inboxes_and_no_other(messages: Messages) -> None:
    async with _leased(messages, 4) as inboxes:
        await messages.publish([Message(b"to three", tuple(inboxes[:3]))])
        await messages.publish([Message(b"to one", (inboxes[3],))])
        for inbox in inboxes[:3]:
            await _collect(messages, inbox, [b"to three"])
        await _collect(messages, inboxes[3], [b"to one"])


async def a_batch_may_mix_targets(messages: Messages) -> None:
    async with _leased(messages, 3) as [first, second, third]:
        await messages.publish(
            [
                Message(b"1", (first,)),
                Message(b"23", (second, third)),
                Message(b"13", (third, first)),
            ]
        )
        await _collect(messages, first, [b"1", b"13"])
        await _collect(messages, second, [b"23"])
        await _collect(messages, third, [b"23", b"13"])


async def an_inbox_keeps_what_comes_before_its_reader(messages: Messages) -> None:
    bodies = [b"early %d" % i for i in range(5)]
    async with _leased(messages, 1) as [inbox]:
        for body in bodies:
            await messages.publish([Message(body, (inbox,))])
        await _collect(messages, inbox, bodies)


@tried_again
async def a_waiting_reader_is_woken_by_a_publish(messages: Messages) -> None:
    async with _leased(messages, 1) as [inbox]:
        reader = asyncio.create_task(messages.receive(inbox, wait=messages.limits.wait))
        done, _ = await asyncio.wait({reader}, timeout=MOMENT)
        assert not done, "a receive from an empty inbox returned before its wait was over"
        began = now()
        await messages.publish([Message(b"wake", (inbox,))])
        deliveries = await asyncio.wait_for(reader, PATIENCE)
        took = now() - began
        assert [bytes(d.body) for d in deliveries] == [b"wake"], f"got {deliveries}"
        await messages.acknowledge(deliveries)
        in_time(took, SOON, "a waiting reader was woken only")


async def an_idle_reader_waits_its_time_and_uses_no_processor(messages: Messages) -> None:
    wait = min(1.0, messages.limits.wait)
    async with _leased(messages, 1) as [inbox]:
        deliveries, took, used = await waited(lambda: messages.receive(inbox, wait=wait))
    assert deliveries == [], f"an empty inbox delivered {deliveries}"
    assert took >= 0.9 * wait, f"a receive with wait={wait} came back after {took:.2f} s"
    assert used < IDLE_SHARE * wait, f"an idle reader used {used:.2f} s of processor in {took:.2f}"


@tried_again
async def a_receive_without_wait_returns_at_once(messages: Messages) -> None:
    async with _leased(messages, 1) as [inbox]:
        began = now()
        deliveries = await messages.receive(inbox, wait=0)
        took = now() - began
    assert deliveries == [], f"an empty inbox delivered {deliveries}"
    in_time(took, SOON, "a receive with wait=0 returned")


async def what_is_not_acknowledged_comes_again(messages: Messages) -> None:
    async with _leased(messages, 1) as [inbox]:
        await messages.publish([Message(b"again", (inbox,))])
        first = await _collect(messages, inbox, [b"again"], acknowledge=False)
        second = await _collect(messages, inbox, [b"again"])
        seen = {d.receipt for d in first} & {d.receipt for d in second}
        assert not seen, f"two deliveries of one message had one receipt: {seen}"


async def what_is_acknowledged_does_not_come_again(messages: Messages) -> None:
    async with _leased(messages, 1) as [inbox]:
        await messages.publish([Message(body, (inbox,)) for body in (b"kept", b"1", b"2")])
        deliveries = await _collect(messages, inbox, [b"kept", b"1", b"2"], acknowledge=False)
        await messages.acknowledge([d for d in deliveries if bytes(d.body) != b"kept"])
        clock = asyncio.get_running_loop().time
        until = clock() + 2 * messages.limits.visibility
        came: list[bytes] = []
        while (left := until - clock()) > 0:
            again = await messages.receive(inbox, wait=min(left, messages.limits.wait))
            came += [bytes(delivery.body) for delivery in again]
        assert set(came) == {b"kept"}, f"1 and 2 were acknowledged, kept was not; came: {came}"


@tried_again
async def what_one_reader_leaves_reaches_another_that_waits(messages: Messages) -> None:
    limits = messages.limits
    async with _leased(messages, 1) as [inbox]:
        readers = {asyncio.create_task(messages.receive(inbox, wait=limits.wait)) for _ in range(2)}
        await asyncio.wait(readers, timeout=MOMENT)
        began = now()
        await messages.publish([Message(b"left behind", (inbox,))])
        done, waiting = await asyncio.wait(
            readers, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED
        )
        assert done, "neither of two readers was woken"
        if waiting:  # a service that delivers twice may have woken both
            second = await asyncio.wait_for(waiting.pop(), PATIENCE + limits.wait)
            if not second:
                second = await _collect(messages, inbox, [b"left behind"])
            took = now() - began
            assert [bytes(d.body) for d in second] == [b"left behind"], f"got {second}"
            in_time(
                took,
                2 * limits.visibility + 2 * SOON,
                f"a message that another reader took and left, with a visibility of "
                f"{limits.visibility} s, came to one who waited",
            )


async def readers_of_one_inbox_share_it(messages: Messages) -> None:
    bodies = {b"shared %d" % i for i in range(40)}
    seen: set[bytes] = set()

    async with _leased(messages, 1) as [inbox]:

        async def read() -> None:
            while seen < bodies:
                deliveries = await messages.receive(inbox, wait=min(1.0, messages.limits.wait))
                seen.update(bytes(delivery.body) for delivery in deliveries)
                await _acknowledge(messages, deliveries)

        readers = [asyncio.create_task(read()) for _ in range(4)]
        await _publish(messages, inbox, sorted(bodies))
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*readers)
    assert seen == bodies, f"four readers of one inbox missed {sorted(bodies - seen)}"


async def many_messages_all_arrive(messages: Messages) -> None:
    bodies = [b"%d of many" % i for i in range(500)]
    async with _leased(messages, 1) as [inbox]:
        await _publish(messages, inbox, bodies)
        await _collect(messages, inbox, bodies)


async def messages_as_large_as_the_limits_arrive(messages: Messages) -> None:
    limits = messages.limits
    room = limits.room(1)
    largest = bytes(range(256)) * (room // 256) + bytes(room % 256)
    each = min(room, limits.batch // limits.batch_messages - (limits.message - room))
    batch = [bytes([i]) * each for i in range(limits.batch_messages)]
    async with _leased(messages, 1) as [inbox]:
        await messages.publish([Message(largest, (inbox,))])
        await _collect(messages, inbox, [largest])
        await messages.publish([Message(body, (inbox,)) for body in batch])
        await _collect(messages, inbox, batch)


async def a_receive_keeps_its_limits(messages: Messages) -> None:
    limits = messages.limits
    each = min(limits.room(1), limits.receive // max(1, limits.receive_messages // 2))
    bodies = [bytes([i]) * each for i in range(2 * limits.receive_messages)]
    async with _leased(messages, 1) as [inbox]:
        for body in bodies:
            await messages.publish([Message(body, (inbox,))])
        await _collect(messages, inbox, bodies)  # which looks at the size of each receive


async def a_batch_beyond_the_limits_is_refused_whole(messages: Messages) -> None:
    limits = messages.limits
    half = limits.batch // 2 + 1
    async with _leased(messages, limits.fanout + 1) as inboxes:
        inbox = inboxes[0]
        beyond: dict[str, list[Message]] = {
            "no message": [],
            "too many messages": [Message(b"x", (inbox,))] * (limits.batch_messages + 1),
            "too large a message": [Message(bytes(limits.room(1) + 1), (inbox,))],
            "too large a view": [Message(wide_view(limits.room(1) // 4 * 4 + 4), (inbox,))],
            "too large a batch": [Message(bytes(half), (inbox,))] * 2,
            "too many inboxes": [Message(b"x", tuple(inboxes))],
            "no inbox": [Message(b"x", (inbox,)), Message(b"x", ())],
        }
        for what, batch in beyond.items():
            await refused(messages.publish(batch), f"a batch with {what}")
        await messages.publish([Message(b"the only one", (inbox,))])
        await _collect(messages, inbox, [b"the only one"])


async def as_many_inboxes_as_the_fanout_are_reached(messages: Messages) -> None:
    async with _leased(messages, messages.limits.fanout) as inboxes:
        await messages.publish([Message(b"to all", tuple(inboxes))])
        for inbox in inboxes:
            await _collect(messages, inbox, [b"to all"])


async def acknowledgements_beyond_the_limits_are_refused(messages: Messages) -> None:
    async with _leased(messages, 2) as [first, second]:
        await messages.publish([Message(b"both", (first, second))])
        here = await _collect(messages, first, [b"both"], acknowledge=False)
        there = await _collect(messages, second, [b"both"], acknowledge=False)
        await refused(messages.acknowledge([]), "an acknowledgement of nothing")
        await refused(
            messages.acknowledge(here[:1] * (messages.limits.acknowledge + 1)),
            "an acknowledgement of too many deliveries",
        )
        await refused(
            messages.acknowledge([here[0], there[0]]), "one acknowledgement for two inboxes"
        )


async def an_inbox_that_is_not_leased_is_refused(messages: Messages) -> None:
    [inbox] = await messages.lease(1)
    await messages.release([inbox])
    for what, use in {
        "publish to": messages.publish([Message(b"x", (inbox,))]),
        "receive from": messages.receive(inbox, wait=0),
    }.items():
        try:
            await use
        except ServiceError:
            continue
        raise AssertionError(f"a {what} an inbox that was released raised no ServiceError")


async def leased_inboxes_are_distinct_and_empty(messages: Messages) -> None:
    inboxes = await messages.lease(3)
    assert len(set(inboxes)) == 3, f"three inboxes were asked for: {inboxes}"
    await messages.publish([Message(b"left in it", tuple(inboxes))])
    await messages.release(inboxes)
    async with _leased(messages, 3) as later:
        for inbox in later:
            left = await messages.receive(inbox, wait=min(MOMENT, messages.limits.wait))
            assert left == [], f"a new lease held what was there before: {left}"


@asynccontextmanager
async def _leased(messages: Messages, count: int) -> AsyncIterator[list[str]]:
    inboxes = await messages.lease(count)
    assert len(inboxes) == count, f"{count} inboxes were asked for, {len(inboxes)} leased"
    try:
        yield inboxes
    finally:
        await messages.release(inboxes)


async def _publish(messages: Messages, inbox: str, bodies: Sequence[bytes]) -> None:
    """Publish many, a batch at a time, with several batches under way."""
    most = messages.limits.batch_messages
    batches = [bodies[start : start + most] for start in range(0, len(bodies), most)]
    await asyncio.gather(
        *(messages.publish([Message(body, (inbox,)) for body in batch]) for batch in batches)
    )


async def _collect(
    messages: Messages, inbox: str, expected: Sequence[bytes], *, acknowledge: bool = True
) -> list[Delivery]:
    """Receive until each of `expected`, which differ, has come; nothing else may come."""
    limits = messages.limits
    clock = asyncio.get_running_loop().time
    deadline = clock() + PATIENCE + limits.visibility
    found: dict[bytes, Delivery] = {}
    missing = set(expected)
    while missing:
        assert clock() < deadline, f"{len(missing)} of {len(expected)} messages did not come"
        deliveries = await messages.receive(inbox, wait=min(5.0, limits.wait))
        _assert_within(limits, deliveries)
        for delivery in deliveries:
            body = bytes(delivery.body)
            assert delivery.inbox == inbox, f"{inbox} delivered for {delivery.inbox}"
            assert body in expected, f"a message came that was not sent here: {body[:80]!r}"
            missing.discard(body)
            found[body] = delivery
        if acknowledge:
            await _acknowledge(messages, deliveries)
    return list(found.values())


def _assert_within(limits: MessageLimits, deliveries: Sequence[Delivery]) -> None:
    size = sum(len(delivery.body) for delivery in deliveries)
    assert len(deliveries) <= limits.receive_messages, f"one receive brought {len(deliveries)}"
    assert size <= max(limits.receive, limits.message), f"one receive brought {size} bytes"


async def _acknowledge(messages: Messages, deliveries: Sequence[Delivery]) -> None:
    most = messages.limits.acknowledge
    for start in range(0, len(deliveries), most):
        await messages.acknowledge(deliveries[start : start + most])


MESSAGE_CHECKS: tuple[MessageCheck, ...] = (
    a_message_arrives_as_it_was_sent,
    an_empty_body_arrives,
    one_message_reaches_each_of_its_inboxes_and_no_other,
    a_batch_may_mix_targets,
    an_inbox_keeps_what_comes_before_its_reader,
    a_waiting_reader_is_woken_by_a_publish,
    an_idle_reader_waits_its_time_and_uses_no_processor,
    a_receive_without_wait_returns_at_once,
    what_is_not_acknowledged_comes_again,
    what_is_acknowledged_does_not_come_again,
    what_one_reader_leaves_reaches_another_that_waits,
    readers_of_one_inbox_share_it,
    many_messages_all_arrive,
    messages_as_large_as_the_limits_arrive,
    a_receive_keeps_its_limits,
    a_batch_beyond_the_limits_is_refused_whole,
    as_many_inboxes_as_the_fanout_are_reached,
    acknowledgements_beyond_the_limits_are_refused,
    an_inbox_that_is_not_leased_is_refused,
    leased_inboxes_are_distinct_and_empty,
)
