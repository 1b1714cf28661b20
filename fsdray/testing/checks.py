"""Checks of a backend's three services, one for each guarantee of `fsdray.services`.

A check takes the service (those of functions an object store too, through which their calls
meet), uses inboxes and keys of its own and leaves none behind. Services may deliver twice and in
any order, and so the checks allow it. Checks of redelivery wait for ``limits.visibility``: connect
with a short one where the platform has that. What is special to one backend is in its own tests.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeAlias

import cloudpickle

from fsdray import failure, loop, session, wire
from fsdray.errors import (
    FunctionCrashed,
    FunctionTimeout,
    OutOfMemory,
    PlatformError,
    ServiceError,
    SettingsError,
)
from fsdray.services import (
    MIB,
    Blob,
    Buffer,
    Delivery,
    Functions,
    Message,
    MessageLimits,
    Messages,
    Objects,
)
from fsdray.settings import Settings

MessageCheck: TypeAlias = Callable[[Messages], Coroutine[Any, Any, None]]
ObjectCheck: TypeAlias = Callable[[Objects], Coroutine[Any, Any, None]]
FunctionCheck: TypeAlias = Callable[[Functions, Objects], Coroutine[Any, Any, None]]

PATIENCE = 30.0  # seconds after which something that must happen has not
_SOON = 1.0  # seconds in which whoever waits must have been woken
_MOMENT = 0.2  # seconds given to something that must not happen
_IDLE_SHARE = 0.1  # of a core, above which a wait is a hidden loop


async def check_messages(messages: Messages) -> None:
    """Run all of `MESSAGE_CHECKS`, one after the other."""
    for check in MESSAGE_CHECKS:
        await check(messages)


async def check_objects(objects: Objects) -> None:
    """Run all of `OBJECT_CHECKS`, one after the other."""
    for check in OBJECT_CHECKS:
        await check(objects)


async def check_functions(functions: Functions, objects: Objects) -> None:
    """Run all of `FUNCTION_CHECKS`; `STOP_CHECKS` are for platforms that can stop a call."""
    for check in FUNCTION_CHECKS:
        await check(functions, objects)


# Messages


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


async def a_waiting_reader_is_woken_by_a_publish(messages: Messages) -> None:
    async with _leased(messages, 1) as [inbox]:
        reader = asyncio.create_task(messages.receive(inbox, wait=messages.limits.wait))
        done, _ = await asyncio.wait({reader}, timeout=_MOMENT)
        assert not done, "a receive from an empty inbox returned before its wait was over"
        began = time.monotonic()
        await messages.publish([Message(b"wake", (inbox,))])
        deliveries = await asyncio.wait_for(reader, PATIENCE)
        took = time.monotonic() - began
        assert [bytes(d.body) for d in deliveries] == [b"wake"], f"got {deliveries}"
        assert took < _SOON, f"a waiting reader was woken only after {took:.2f} s"
        await messages.acknowledge(deliveries)


async def an_idle_reader_waits_its_time_and_uses_no_processor(messages: Messages) -> None:
    wait = min(1.0, messages.limits.wait)
    async with _leased(messages, 1) as [inbox]:
        began, used = time.monotonic(), time.process_time()
        deliveries = await messages.receive(inbox, wait=wait)
        took, used = time.monotonic() - began, time.process_time() - used
    assert deliveries == [], f"an empty inbox delivered {deliveries}"
    assert took >= 0.9 * wait, f"a receive with wait={wait} came back after {took:.2f} s"
    assert used < _IDLE_SHARE * wait, f"an idle reader used {used:.2f} s of processor in {took:.2f}"


async def a_receive_without_wait_returns_at_once(messages: Messages) -> None:
    async with _leased(messages, 1) as [inbox]:
        began = time.monotonic()
        deliveries = await messages.receive(inbox, wait=0)
        took = time.monotonic() - began
    assert deliveries == [], f"an empty inbox delivered {deliveries}"
    assert took < _SOON, f"a receive with wait=0 took {took:.2f} s"


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


async def what_one_reader_leaves_reaches_another_that_waits(messages: Messages) -> None:
    limits = messages.limits
    async with _leased(messages, 1) as [inbox]:
        readers = {asyncio.create_task(messages.receive(inbox, wait=limits.wait)) for _ in range(2)}
        await asyncio.wait(readers, timeout=_MOMENT)
        began = time.monotonic()
        await messages.publish([Message(b"left behind", (inbox,))])
        done, waiting = await asyncio.wait(
            readers, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED
        )
        assert done, "neither of two readers was woken"
        if waiting:  # a service that delivers twice may have woken both
            second = await asyncio.wait_for(waiting.pop(), PATIENCE + limits.wait)
            if not second:
                second = await _collect(messages, inbox, [b"left behind"])
            took = time.monotonic() - began
            assert [bytes(d.body) for d in second] == [b"left behind"], f"got {second}"
            late = took - limits.visibility
            assert late < limits.visibility + 2 * _SOON, (
                f"a message that another reader took and left came {late:.2f} s after its "
                f"visibility of {limits.visibility} s had ended, though a reader waited"
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
    largest = bytes(range(256)) * (limits.message // 256) + bytes(limits.message % 256)
    each = limits.batch // limits.batch_messages
    batch = [bytes([i]) * min(each, limits.message) for i in range(limits.batch_messages)]
    async with _leased(messages, 1) as [inbox]:
        await messages.publish([Message(largest, (inbox,))])
        await _collect(messages, inbox, [largest])
        await messages.publish([Message(body, (inbox,)) for body in batch])
        await _collect(messages, inbox, batch)


async def a_receive_keeps_its_limits(messages: Messages) -> None:
    limits = messages.limits
    each = min(limits.message, limits.receive // max(1, limits.receive_messages // 2))
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
            "too large a message": [Message(bytes(limits.message + 1), (inbox,))],
            "too large a view": [Message(_wide_view(limits.message + 4), (inbox,))],
            "too large a batch": [Message(bytes(half), (inbox,))] * 2,
            "too many inboxes": [Message(b"x", tuple(inboxes))],
            "no inbox": [Message(b"x", (inbox,)), Message(b"x", ())],
        }
        for what, batch in beyond.items():
            await _refused(messages.publish(batch), f"a batch with {what}")
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
        await _refused(messages.acknowledge([]), "an acknowledgement of nothing")
        await _refused(
            messages.acknowledge(here[:1] * (messages.limits.acknowledge + 1)),
            "an acknowledgement of too many deliveries",
        )
        await _refused(
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
            left = await messages.receive(inbox, wait=min(_MOMENT, messages.limits.wait))
            assert left == [], f"a new lease held what was there before: {left}"


# Objects


async def a_get_returns_what_was_put(objects: Objects) -> None:
    async with _prefix(objects) as prefix:
        for size in (0, 1, 1000, 64 * 1024 - 1, 64 * 1024, MIB + 1):
            data = _bytes(size)
            etag = await objects.put(prefix + str(size), data)
            blob = await _get(objects, prefix + str(size))
            assert bytes(blob.data) == data, f"an object of {size} bytes came back as another"
            assert blob.size == size, f"an object of {size} bytes said it has {blob.size}"
            assert blob.etag == etag, f"put said etag {etag}, get {blob.etag}"


async def a_sequence_is_written_as_one_object(objects: Objects) -> None:
    parts: list[Buffer] = [b"bytes", bytearray(b"bytearray"), _wide_view(8), b"", bytes(100_000)]
    async with _prefix(objects) as prefix:
        await objects.put(prefix + "parts", parts)
        blob = await _get(objects, prefix + "parts")
        assert bytes(blob.data) == b"".join(parts), "the parts did not become one object"
        await objects.put(prefix + "none", [])
        blob = await _get(objects, prefix + "none")
        assert blob.size == 0, f"an empty sequence became {blob.size} bytes"


async def a_large_object_comes_back_whole(objects: Objects) -> None:
    data = _bytes(32 * MIB)
    async with _prefix(objects) as prefix:
        await objects.put(prefix + "large", data)
        blob = await _get(objects, prefix + "large")
        assert blob.data == data, "32 MB came back as others"
        start = 17 * MIB + 11
        part = await objects.get(prefix + "large", range=(start, start + 100_000))
        assert part is not None, "a range of an object was not found"
        assert part.data == data[start : start + 100_000], "a range of 32 MB came back as another"


async def a_missing_key_is_none(objects: Objects) -> None:
    async with _prefix(objects) as prefix:
        for span in (None, (0, 1)):
            blob = await objects.get(prefix + "missing", range=span)
            assert blob is None, f"a key that was never put held {blob}"


async def a_reader_never_sees_a_mixture(objects: Objects) -> None:
    size = 5 * MIB
    seen: set[int] = set()
    async with _prefix(objects) as prefix:
        key = prefix + "overwritten"
        await objects.put(key, bytes(size))
        is_over = False

        async def read() -> None:
            while not is_over:
                data = (await _get(objects, key)).data
                first = data[0]
                whole = len(data) == size and data == bytes([first]) * size
                assert whole, f"a get during a put saw {len(data)} bytes, not all of them {first}"
                seen.add(first)
                await asyncio.sleep(0)

        readers = [asyncio.create_task(read()) for _ in range(2)]
        for value in range(1, 9):
            await objects.put(key, bytes([value]) * size)
        is_over = True
        await asyncio.gather(*readers)
    assert seen, "no reader saw the object"


async def a_put_is_seen_at_once(objects: Objects) -> None:
    async with _prefix(objects) as prefix:
        for value in (b"first", b"second", b"the third and longest"):
            await objects.put(prefix + "key", value)
            blob = await _get(objects, prefix + "key")
            assert bytes(blob.data) == value, f"after a put of {value!r} a get saw {blob.data!r}"
            listed = await objects.list(prefix)
            assert listed == [prefix + "key"], f"after a put a list saw {listed}"


async def every_put_changes_the_etag(objects: Objects) -> None:
    async with _prefix(objects) as prefix:
        etags = [await objects.put(prefix + "key", b"same size %3d" % i) for i in range(50)]
    assert len(set(etags)) == 50, f"50 puts of other bytes had {len(set(etags))} etags"


async def put_if_absent_has_one_winner(objects: Objects) -> None:
    async with _prefix(objects) as prefix:
        etags = await asyncio.gather(
            *(objects.put(prefix + "key", b"%d" % i, if_absent=True) for i in range(20))
        )
        winners = [i for i, etag in enumerate(etags) if etag is not None]
        assert len(winners) == 1, f"{len(winners)} of 20 conditional puts at once succeeded"
        blob = await _get(objects, prefix + "key")
        assert bytes(blob.data) == b"%d" % winners[0], "a put that failed has written all the same"
        assert blob.etag == etags[winners[0]], "the winner was told another etag"


async def put_if_absent_works_again_after_a_delete(objects: Objects) -> None:
    async with _prefix(objects) as prefix:
        await objects.put(prefix + "key", b"first")
        late = await objects.put(prefix + "key", b"late", if_absent=True)
        assert late is None, "a put with if_absent replaced an object"
        await objects.delete([prefix + "key"])
        etag = await objects.put(prefix + "key", b"new", if_absent=True)
        assert etag is not None, "a put with if_absent failed though the key was deleted"


async def put_if_match_replaces_only_what_was_read(objects: Objects) -> None:
    async with _prefix(objects) as prefix:
        key = prefix + "key"
        missing = await objects.put(key, b"x", if_match="never-an-etag")
        assert missing is None, "a put with if_match wrote a key that was not there"
        assert await objects.get(key) is None, "a put whose condition failed has written"
        old = await objects.put(key, b"one")
        new = await objects.put(key, b"two", if_match=old)
        assert new is not None, "a put with the etag of the object failed"
        stale = await objects.put(key, b"six", if_match=old)
        assert stale is None, "a put with the etag of an older object succeeded"
        blob = await _get(objects, key)
        assert bytes(blob.data) == b"two", (
            f"expected what the matching put wrote, got {blob.data!r}"
        )


async def put_if_match_has_one_winner(objects: Objects) -> None:
    async with _prefix(objects) as prefix:
        key = prefix + "key"
        etag = await objects.put(key, b"start")
        for round_ in range(3):
            etags = await asyncio.gather(
                *(objects.put(key, b"%d-%d" % (round_, i), if_match=etag) for i in range(10))
            )
            winners = [i for i, each in enumerate(etags) if each is not None]
            assert len(winners) == 1, f"{len(winners)} of 10 puts with one etag succeeded"
            blob = await _get(objects, key)
            assert bytes(blob.data) == b"%d-%d" % (round_, winners[0]), "a loser has written"
            etag = blob.etag


async def a_range_is_cut_at_the_end(objects: Objects) -> None:
    data = _bytes(100_000)
    spans = [(0, 100_000), (0, 1), (99_999, 100_000), (10, 20), (1, 70_000), (4096, 99_000)]
    spans += [(0, 200_000), (99_000, 200_000)]  # past the end
    spans += [(0, 0), (50, 50), (100_000, 100_000), (100_000, 100_010), (500_000, 600_000)]  # empty
    async with _prefix(objects) as prefix:
        await objects.put(prefix + "key", data)
        for start, end in spans:
            blob = await objects.get(prefix + "key", range=(start, end))
            assert blob is not None, f"range {(start, end)} of an object was not found"
            expected = data[start:end]
            assert bytes(blob.data) == expected, (
                f"range {(start, end)} of 100,000 bytes: {len(blob.data)} bytes came, "
                f"{len(expected)} were expected, or others"
            )
            assert blob.size == len(data), f"range {(start, end)} said the object has {blob.size}"
        await objects.put(prefix + "empty", b"")
        for span in ((0, 0), (0, 10), (5, 10)):
            blob = await objects.get(prefix + "empty", range=span)
            assert blob is not None, f"range {span} of an empty object was not found"
            assert (len(blob.data), blob.size) == (0, 0), "an empty object held bytes"


async def a_waiting_reader_is_woken_by_a_put(objects: Objects) -> None:
    async with _prefix(objects) as prefix:
        key = prefix + "late"
        whole = asyncio.create_task(objects.get(key, wait=PATIENCE))
        part = asyncio.create_task(objects.get(key, range=(1, 3), wait=PATIENCE))
        done, _ = await asyncio.wait({whole, part}, timeout=_MOMENT)
        assert not done, "a get with wait came back before the key was there"
        await objects.put(prefix + "another", b"not this one")
        began = time.monotonic()
        await objects.put(key, b"here")
        blobs = await asyncio.wait_for(asyncio.gather(whole, part), PATIENCE)
        took = time.monotonic() - began
        got = [bytes(blob.data) if blob is not None else None for blob in blobs]
        assert got == [b"here", b"er"], f"two readers that waited for b'here' got {got}"
        assert took < 2 * _SOON, f"readers that waited were woken only after {took:.2f} s"


async def a_wait_ends_with_none(objects: Objects) -> None:
    async with _prefix(objects) as prefix:
        began, used = time.monotonic(), time.process_time()
        blob = await objects.get(prefix + "never", wait=0.5)
        took, used = time.monotonic() - began, time.process_time() - used
        assert blob is None, f"a key that was never put held {blob}"
        assert 0.4 < took < PATIENCE, f"a get with wait=0.5 took {took:.2f} s"
        assert used < _IDLE_SHARE, f"a get that waited used {used:.2f} s of processor"
        await objects.put(prefix + "there", b"x")
        began = time.monotonic()
        blob = await objects.get(prefix + "there", wait=PATIENCE)
        assert blob is not None, "a get with wait missed a key that was there"
        assert time.monotonic() - began < _SOON, "a get with wait waited for a key that was there"


async def a_list_is_sorted_and_has_the_prefix_alone(objects: Objects) -> None:
    names = ["b", "a", "ab", "a/b", "a/", "a//b", "a.b", "aé", "B", "10", "9", "a-b"]
    async with _prefix(objects) as prefix:
        for name in names:
            await objects.put(prefix + name, b"")
        for start in ("", "a", "a/", "ab", "missing", "é"):
            listed = await objects.list(prefix + start)
            expected = sorted(prefix + name for name in names if name.startswith(start))
            assert listed == expected, f"prefix {start!r}: got {listed}, expected {expected}"


async def any_key_is_kept_apart(objects: Objects) -> None:
    names = [
        "a",
        "a/b",
        "a/b/c",
        "a/",
        "a//",
        "a//b",
        "/",
        "//",
        "/a",
        ".",
        "..",
        "../x",
        "...",
        "@",
    ]
    names += [
        "a@",
        "a+",
        "a+/b",
        "a%2Fb",
        "%",
        "%%",
        "a b",
        " ",
        "ключ",
        "鍵",
        "🔑",
        "e\u0301",
        "é",
    ]
    names += [
        "lock",
        "objects",
        ".replace",
        "~",
        "-rf",
        "*",
        "?",
        "[a]",
        "\\",
        "'",
        '"',
        "A",
        "#&=",
    ]
    names += ["." * 300, "x" * 300, "é" * 300, "d/" * 300]
    async with _prefix(objects) as prefix:
        for name in names:
            await objects.put(prefix + name, name.encode())
        for name in names:
            blob = await _get(objects, prefix + name)
            assert bytes(blob.data) == name.encode(), f"key {name!r} held {bytes(blob.data)!r}"
        listed = await objects.list(prefix)
        assert listed == sorted(prefix + name for name in names), (
            f"listed and never put: {sorted(set(listed) - {prefix + name for name in names})}; "
            f"put and not listed: {sorted({prefix + name for name in names} - set(listed))}"
        )
        await objects.delete([prefix + "a"])
        assert await objects.get(prefix + "a") is None, "a deleted key is still there"
        await _get(objects, prefix + "a/b")


async def a_key_may_have_as_many_bytes_as_the_limit(objects: Objects) -> None:
    async with _prefix(objects) as prefix:
        room = objects.limits.key - len(prefix.encode())
        fill = {"x": "x" * room, "é": "é" * (room // 2), "/": "/" * room, ".": "." * room}
        for name, rest in fill.items():
            await objects.put(prefix + rest, name.encode())
        for name, rest in fill.items():
            blob = await _get(objects, prefix + rest)
            assert bytes(blob.data) == name.encode(), f"the longest key of {name!r} held another's"
        longer = prefix + "é" * (room // 2 + 1)
        await _refused(objects.put(longer, b""), "a put of too long a key")
        await _refused(objects.get(longer), "a get of too long a key")
        await _refused(objects.put("", b""), "a put of an empty key")


async def a_list_and_a_delete_have_no_limit(objects: Objects) -> None:
    async with _prefix(objects) as prefix:
        keys = [f"{prefix}{i:05}" for i in range(objects.limits.delete_keys + 100)]
        for start in range(0, len(keys), 50):
            await asyncio.gather(*(objects.put(key, b"") for key in keys[start : start + 50]))
        listed = await objects.list(prefix)
        assert listed == keys, f"of {len(keys)} keys {len(listed)} were listed"
        await objects.delete(keys)
        listed = await objects.list(prefix)
        assert listed == [], f"of {len(keys)} deleted keys {len(listed)} are still there"


async def a_deleted_key_is_gone_and_a_missing_one_no_error(objects: Objects) -> None:
    async with _prefix(objects) as prefix:
        await objects.put(prefix + "one", b"1")
        await objects.put(prefix + "two", b"2")
        await objects.delete([prefix + "never", prefix + "one"])
        await objects.delete([prefix + "one"])
        await objects.delete([])
        assert await objects.get(prefix + "one") is None, "a deleted key is still there"
        listed = await objects.list(prefix)
        assert listed == [prefix + "two"], f"after the delete of one of two keys: {listed}"


async def a_blob_is_private_to_its_reader(objects: Objects) -> None:
    async with _prefix(objects) as prefix:
        for size in (100, 500_000):
            key, data = f"{prefix}{size}", _bytes(size)
            await objects.put(key, data)
            mine, other = await _get(objects, key), await _get(objects, key)
            assert not mine.data.readonly, f"a blob of {size} bytes cannot be written to"
            mine.data[:50] = bytes(50)
            assert bytes(other.data) == data, "what one reader wrote another saw"
            assert bytes((await _get(objects, key)).data) == data, "a reader changed the object"


async def a_blob_outlives_its_key(objects: Objects) -> None:
    async with _prefix(objects) as prefix:
        for size in (100, 500_000):
            key, data = f"{prefix}{size}", _bytes(size)
            await objects.put(key, data)
            blob = await _get(objects, key)
            await objects.put(key, bytes(size // 2))
            await objects.delete([key])
            assert bytes(blob.data) == data, "a blob changed when its key was replaced or deleted"


# Functions


async def a_call_replies_with_its_value(functions: Functions, objects: Objects) -> None:
    value = {"numbers": list(range(1000)), "text": "ß" * 1000, "bytes": _bytes(100_000)}
    assert await call_function(functions, _same, value) == value, "a reply held another value"


async def what_a_call_raises_is_a_reply(functions: Functions, objects: Objects) -> None:
    try:
        value = await call_function(functions, _raise_key_error, "nobody")
    except KeyError as error:
        raised = error.args
    else:
        raise AssertionError(f"a function that raised replied with {value!r}")
    assert raised == ("nobody",), f"the user's own error came back with {raised}"


async def calls_run_at_one_time(functions: Functions, objects: Objects) -> None:
    count = min(4, functions.limits.concurrency)
    async with _prefix(objects) as prefix:
        environments = await asyncio.gather(
            *(call_function(functions, _meet, prefix, i, count) for i in range(count))
        )
    assert None not in environments, f"of {count} calls not all ran at one time"
    assert len(set(environments)) == count, "two calls ran in one environment at one time"


async def environments_are_reused(functions: Functions, objects: Objects) -> None:
    calls = 6
    environments = {await call_function(functions, _environment) for _ in range(calls)}
    assert len(environments) < calls, f"{calls} calls in turn had {len(environments)} environments"


async def a_payload_as_large_as_the_limit_is_run(functions: Functions, objects: Objects) -> None:
    room = functions.limits.payload - len(encode_call(_length, b""))
    fill = bytes(room - 1000)
    assert await call_function(functions, _length, fill) == len(fill)


async def a_payload_beyond_the_limit_is_refused(functions: Functions, objects: Objects) -> None:
    large = bytes(functions.limits.payload + 1)
    await _refused(functions.invoke(large, memory=_MEMORY, timeout=_TIMEOUT), "too large a payload")
    await _refused(
        functions.invoke(memoryview(large), memory=_MEMORY, timeout=_TIMEOUT), "too large a view"
    )


async def memory_and_time_beyond_the_limits_are_refused(
    functions: Functions, objects: Objects
) -> None:
    least, most = functions.limits.memory
    payload = encode_call(_environment)
    for memory in (0, -1, least - 1, most + 1):
        await _refused(
            functions.invoke(payload, memory=memory, timeout=_TIMEOUT), f"memory={memory}"
        )
    for timeout in (0, -1, functions.limits.timeout + 1, float("nan")):
        await _refused(
            functions.invoke(payload, memory=_MEMORY, timeout=timeout), f"timeout={timeout}"
        )


async def an_exit_is_a_crash_with_the_last_log_lines(
    functions: Functions, objects: Objects
) -> None:
    error = await _death(functions, FunctionCrashed, _exit, 3)
    assert "3" in str(error), f"the error does not say exit status 3: {error}"
    _assert_logged(error)


async def a_signal_is_a_crash_with_the_last_log_lines(
    functions: Functions, objects: Objects
) -> None:
    error = await _death(functions, FunctionCrashed, _signal)
    _assert_logged(error)


async def the_memory_limit_is_kept(functions: Functions, objects: Objects) -> None:
    memory = max(256, functions.limits.memory[0])
    error = await _death(functions, OutOfMemory, _eat, 2 * memory, memory=memory)
    assert str(memory) in str(error), f"the error does not say the limit of {memory} MB: {error}"
    _assert_logged(error)


async def the_time_limit_is_kept(functions: Functions, objects: Objects) -> None:
    began = time.monotonic()
    error = await _death(functions, FunctionTimeout, _hang, timeout=1)
    took = time.monotonic() - began
    assert took < PATIENCE / 2, f"a call with timeout=1 was ended after {took:.1f} s"
    assert "1 s" in str(error), f"the error does not say the limit of 1 s: {error}"
    _assert_logged(error)


async def a_death_leaves_other_calls_alone(functions: Functions, objects: Objects) -> None:
    async with _prefix(objects) as prefix:
        neighbour = asyncio.create_task(call_function(functions, _until, prefix))
        started = await objects.get(prefix + "started", wait=PATIENCE)
        assert started is not None, "a call did not start"
        await _death(functions, FunctionCrashed, _exit, 1)
        await objects.put(prefix + "go", b"")
        assert await neighbour == prefix, "a call did not survive the death of another"
        assert await call_function(functions, _same, "next") == "next"


async def a_gang_waits_until_it_can_be_whole(functions: Functions, objects: Objects) -> None:
    everything = functions.limits.concurrency
    entered = asyncio.Event()

    async def enter() -> None:
        async with functions.admitted(1):
            entered.set()

    async with functions.admitted(everything):
        waiting = asyncio.create_task(enter())
        await asyncio.wait({waiting}, timeout=_MOMENT)
        assert not entered.is_set(), f"{everything} + 1 calls were admitted of {everything}"
    await asyncio.wait_for(waiting, PATIENCE)
    assert entered.is_set()


async def a_gang_that_ended_in_an_error_makes_room(functions: Functions, objects: Objects) -> None:
    everything = functions.limits.concurrency
    for _ in range(2):
        try:
            async with asyncio.timeout(PATIENCE), functions.admitted(everything):
                raise KeyError("in the gang")
        except KeyError:
            continue


async def a_gang_that_gave_up_is_not_in_the_way(functions: Functions, objects: Objects) -> None:
    everything = functions.limits.concurrency

    async def enter(count: int) -> None:
        async with functions.admitted(count):
            pass

    async with functions.admitted(everything - 1):
        large = asyncio.create_task(enter(everything))
        small = asyncio.create_task(enter(1))
        await asyncio.wait({large}, timeout=_MOMENT)
        assert not large.done(), "a gang was admitted that cannot be whole yet"
        large.cancel()
        done, _ = await asyncio.wait({small}, timeout=PATIENCE)
        assert done, "a gang that would fit still waits behind one that was cancelled"
    await small


async def a_gang_that_never_can_be_whole_is_refused(functions: Functions, objects: Objects) -> None:
    async def enter() -> None:
        async with functions.admitted(functions.limits.concurrency + 1):
            raise AssertionError("a gang larger than the concurrency was admitted")

    await _refused(enter(), "a gang larger than the concurrency")


async def a_hint_that_fails_does_no_harm(functions: Functions, objects: Objects) -> None:
    functions.prepare(["string", "no_such_module_at_all", "string:no_such_function"])
    assert await call_function(functions, _same, 1) == 1


# Stopping, for platforms that can


async def a_cancelled_call_stops(functions: Functions, objects: Objects) -> None:
    async with _prefix(objects) as prefix:
        call = asyncio.create_task(call_function(functions, _until, prefix))
        started = await objects.get(prefix + "started", wait=PATIENCE)
        assert started is not None, "a call did not start"
        call.cancel()
        await asyncio.wait({call}, timeout=PATIENCE)
        assert call.cancelled(), "a cancelled invoke did not end"
        await objects.put(prefix + "go", b"")
        after = await objects.get(prefix + "after", wait=_SOON)
        assert after is None, "a cancelled call ran on"
        assert await call_function(functions, _same, "next") == "next"


async def calls_cancelled_before_they_start_free_their_place(
    functions: Functions, objects: Objects
) -> None:
    for turns in range(8):
        call = asyncio.create_task(call_function(functions, _same, turns))
        for _ in range(turns):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call}, timeout=PATIENCE)
        assert call.done(), f"an invoke cancelled after {turns} turns did not end"
    count = min(4, functions.limits.concurrency)
    async with _prefix(objects) as prefix:
        environments = await asyncio.gather(
            *(call_function(functions, _meet, prefix, i, count) for i in range(count))
        )
    assert None not in environments, "cancelled calls still hold the concurrency of others"


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

OBJECT_CHECKS: tuple[ObjectCheck, ...] = (
    a_get_returns_what_was_put,
    a_sequence_is_written_as_one_object,
    a_large_object_comes_back_whole,
    a_missing_key_is_none,
    a_reader_never_sees_a_mixture,
    a_put_is_seen_at_once,
    every_put_changes_the_etag,
    put_if_absent_has_one_winner,
    put_if_absent_works_again_after_a_delete,
    put_if_match_replaces_only_what_was_read,
    put_if_match_has_one_winner,
    a_range_is_cut_at_the_end,
    a_waiting_reader_is_woken_by_a_put,
    a_wait_ends_with_none,
    a_list_is_sorted_and_has_the_prefix_alone,
    any_key_is_kept_apart,
    a_key_may_have_as_many_bytes_as_the_limit,
    a_list_and_a_delete_have_no_limit,
    a_deleted_key_is_gone_and_a_missing_one_no_error,
    a_blob_is_private_to_its_reader,
    a_blob_outlives_its_key,
)

FUNCTION_CHECKS: tuple[FunctionCheck, ...] = (
    a_call_replies_with_its_value,
    what_a_call_raises_is_a_reply,
    calls_run_at_one_time,
    environments_are_reused,
    a_payload_as_large_as_the_limit_is_run,
    a_payload_beyond_the_limit_is_refused,
    memory_and_time_beyond_the_limits_are_refused,
    an_exit_is_a_crash_with_the_last_log_lines,
    a_signal_is_a_crash_with_the_last_log_lines,
    the_memory_limit_is_kept,
    the_time_limit_is_kept,
    a_death_leaves_other_calls_alone,
    a_gang_waits_until_it_can_be_whole,
    a_gang_that_ended_in_an_error_makes_room,
    a_gang_that_gave_up_is_not_in_the_way,
    a_gang_that_never_can_be_whole_is_refused,
    a_hint_that_fails_does_no_harm,
)

STOP_CHECKS: tuple[FunctionCheck, ...] = (
    a_cancelled_call_stops,
    calls_cancelled_before_they_start_free_their_place,
)


# Payloads, as `fsdray.session` makes them and `fsdray.worker` runs them

_MEMORY = 512  # MB
_TIMEOUT = 60.0  # seconds


def encode_call(
    function: Callable[..., Any], *args: Any, settings: Settings | None = None
) -> bytes:
    """The payload of a call ``function(*args)``, all of it inline."""
    return wire.dump(
        wire.Call(
            task=f"check-{secrets.token_hex(4)}",
            name=getattr(function, "__name__", "check"),
            function=wire.Inline(cloudpickle.dumps(function, protocol=5)),
            arguments=wire.Inline(b"".join(wire.encode((args, {})))),
            holes={},
            returns=(f"check-{secrets.token_hex(8)}",),
            unpack=False,
            memory=_MEMORY,
            timeout=_TIMEOUT,
            settings=settings or Settings(),
        )
    )


def decode_reply(reply: Buffer) -> Any:
    """The value in a reply to `encode_call`; what the function raised is raised here."""
    [payload] = wire.load(reply).ranks[0].values
    assert isinstance(payload, wire.Inline), "the reply was large and went to objects"
    value = wire.decode(payload.data)
    if isinstance(value, failure.Failure):
        raise failure.restore(value)
    return value


async def call_function(
    functions: Functions,
    function: Callable[..., Any],
    *args: Any,
    memory: int = _MEMORY,
    timeout: float = _TIMEOUT,
) -> Any:
    """Run ``function(*args)`` as one call and return its value."""
    reply = await functions.invoke(
        encode_call(function, *args), memory=memory, timeout=timeout, label=function.__name__
    )
    return decode_reply(reply)


# What the calls run

_environments: dict[int, str] = {}


def _same(value: Any) -> Any:
    return value


def _length(value: bytes) -> int:
    return len(value)


def _raise_key_error(name: str) -> NoReturn:
    raise KeyError(name)


def _environment() -> str:
    """A name of this environment: made when first asked for, since pids may repeat."""
    return _environments.setdefault(os.getpid(), secrets.token_hex(8))


def _meet(prefix: str, number: int, count: int) -> str | None:
    """Wait until `count` calls are here at one time; None where they never are."""
    objects = session.current().backend.objects
    loop.run(objects.put(f"{prefix}{number}", b""))
    for other in range(count):
        if loop.run(objects.get(f"{prefix}{other}", wait=PATIENCE)) is None:
            return None
    return _environment()


def _until(prefix: str) -> str:
    """Say that it started, wait until it may go, and say that it ran on."""
    objects = session.current().backend.objects
    loop.run(objects.put(prefix + "started", b""))
    loop.run(objects.get(prefix + "go", wait=PATIENCE))
    loop.run(objects.put(prefix + "after", b""))
    return prefix


def _log() -> None:
    """Thirty lines, half to stdout and half to stderr."""
    for line in range(15):
        print("out", line)
        print("err", line, file=sys.stderr)
    print("the last line")


def _exit(status: int) -> NoReturn:
    _log()
    sys.stdout.flush()
    os._exit(status)


def _signal() -> None:
    _log()
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGSEGV)
    threading.Event().wait()


def _eat(megabytes: int) -> None:
    _log()
    eaten = [b"x" * (8 * MIB) for _ in range(megabytes // 8)]
    threading.Event().wait()
    print(len(eaten))


def _hang() -> None:
    _log()
    threading.Event().wait()


# How it is seen


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


@asynccontextmanager
async def _prefix(objects: Objects) -> AsyncIterator[str]:
    """A prefix that nobody else uses; what is below it is deleted."""
    prefix = f"checks-{secrets.token_hex(6)}/"
    try:
        yield prefix
    finally:
        await objects.delete(await objects.list(prefix))


async def _get(objects: Objects, key: str) -> Blob:
    blob = await objects.get(key)
    assert blob is not None, f"key {key!r} was put and is not there"
    return blob


async def _refused(use: Coroutine[Any, Any, Any], what: str) -> None:
    try:
        await use
    except SettingsError:
        return
    raise AssertionError(f"{what} raised no SettingsError")


async def _death(
    functions: Functions,
    kind: type[PlatformError],
    function: Callable[..., Any],
    *args: Any,
    memory: int = _MEMORY,
    timeout: float = _TIMEOUT,
) -> PlatformError:
    """The error of a call that must die in this way."""
    try:
        value = await call_function(functions, function, *args, memory=memory, timeout=timeout)
    except PlatformError as error:
        told = error
    else:
        raise AssertionError(f"a call that must end in {kind.__name__} replied {value!r}")
    assert type(told) is kind, f"expected {kind.__name__}, got {told!r}"
    return told


def _assert_logged(error: PlatformError) -> None:
    """The last lines of `_log` came along, in the order in which they were written."""
    lines = [line.strip() for line in error.log]
    assert "the last line" in lines, f"the last log line did not come along: {lines}"
    tail = [x for x in lines if x.startswith(("out", "err"))]
    written = [f"{stream} {line}" for line in range(15) for stream in ("out", "err")]
    assert tail, f"only the very last log line came along: {lines}"
    assert tail == written[-len(tail) :], f"the log lines came in another order: {lines}"


def _bytes(size: int) -> bytes:
    """The same random bytes on every run."""
    return random.Random(size).randbytes(size)


def _wide_view(size: int) -> memoryview:
    """A view whose items are four bytes: its length is not its size."""
    return memoryview(bytes(size)).cast("I")
