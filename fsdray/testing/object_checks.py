"""Checks of `fsdray.services.Objects`, one for each guarantee.

A check uses inboxes, keys and calls of its own and leaves none behind. Services may deliver twice
and in any order, and so the checks allow it. What is special to one backend is in its own tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from fsdray.services import (
    MIB,
    Blob,
    Buffer,
    Objects,
)
from fsdray.testing.expect import (
    IDLE_SHARE,
    MOMENT,
    PATIENCE,
    SOON,
    in_time,
    now,
    own_prefix,
    refused,
    some_bytes,
    tried_again,
    waited,
    wide_view,
)

ObjectCheck: TypeAlias = Callable[[Objects], Coroutine[Any, Any, None]]


async def check_objects(objects: Objects) -> None:
    """Run all of `OBJECT_CHECKS`, one after the other."""
    for check in OBJECT_CHECKS:
        await check(objects)


async def a_get_returns_what_was_put(objects: Objects) -> None:
    async with own_prefix(objects) as prefix:
        for size in (0, 1, 1000, 64 * 1024 - 1, 64 * 1024, MIB + 1):
            data = some_bytes(size)
            etag = await objects.put(prefix + str(size), data)
            blob = await _get(objects, prefix + str(size))
            assert bytes(blob.data) == data, f"an object of {size} bytes came back as another"
            assert blob.size == size, f"an object of {size} bytes said it has {blob.size}"
            assert blob.etag == etag, f"put said etag {etag}, get {blob.etag}"


async def a_sequence_is_written_as_one_object(objects: Objects) -> None:
    parts: list[Buffer] = [b"bytes", bytearray(b"bytearray"), wide_view(8), b"", bytes(100_000)]
    async with own_prefix(objects) as prefix:
        await objects.put(prefix + "parts", parts)
        blob = await _get(objects, prefix + "parts")
        assert bytes(blob.data) == b"".join(parts), "the parts did not become one object"
        await objects.put(prefix + "none", [])
        blob = await _get(objects, prefix + "none")
        assert blob.size == 0, f"an empty sequence became {blob.size} bytes"


async def a_large_object_comes_back_whole(objects: Objects) -> None:
    data = some_bytes(32 * MIB)
    async with own_prefix(objects) as prefix:
        await objects.put(prefix + "large", data)
        blob = await _get(objects, prefix + "large")
        assert blob.data == data, "32 MB came back as others"
        start = 17 * MIB + 11
        part = await objects.get(prefix + "large", range=(start, start + 100_000))
        assert part is not None, "a range of an object was not found"
        assert part.data == data[start : start + 100_000], "a range of 32 MB came back as another"


async def a_missing_key_is_none(objects: Objects) -> None:
    async with own_prefix(objects) as prefix:
        for span in (None, (0, 1)):
            blob = await objects.get(prefix + "missing", range=span)
            assert blob is None, f"a key that was never put held {blob}"


async def a_reader_never_sees_a_mixture(objects: Objects) -> None:
    size = 5 * MIB
    seen: set[int] = set()
    async with own_prefix(objects) as prefix:
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
    async with own_prefix(objects) as prefix:
        for value in (b"first", b"second", b"the third and longest"):
            await objects.put(prefix + "key", value)
            blob = await _get(objects, prefix + "key")
            assert bytes(blob.data) == value, f"after a put of {value!r} a get saw {blob.data!r}"
            listed = await objects.list(prefix)
            assert listed == [prefix + "key"], f"after a put a list saw {listed}"


async def every_put_changes_the_etag(objects: Objects) -> None:
    async with own_prefix(objects) as prefix:
        etags = [await objects.put(prefix + "key", b"same size %3d" % i) for i in range(50)]
    assert len(set(etags)) == 50, f"50 puts of other bytes had {len(set(etags))} etags"


async def put_if_absent_has_one_winner(objects: Objects) -> None:
    async with own_prefix(objects) as prefix:
        etags = await asyncio.gather(
            *(objects.put(prefix + "key", b"%d" % i, if_absent=True) for i in range(20))
        )
        winners = [i for i, etag in enumerate(etags) if etag is not None]
        assert len(winners) == 1, f"{len(winners)} of 20 conditional puts at once succeeded"
        blob = await _get(objects, prefix + "key")
        assert bytes(blob.data) == b"%d" % winners[0], "a put that failed has written all the same"
        assert blob.etag == etags[winners[0]], "the winner was told another etag"


async def put_if_absent_works_again_after_a_delete(objects: Objects) -> None:
    async with own_prefix(objects) as prefix:
        await objects.put(prefix + "key", b"first")
        late = await objects.put(prefix + "key", b"late", if_absent=True)
        assert late is None, "a put with if_absent replaced an object"
        await objects.delete([prefix + "key"])
        etag = await objects.put(prefix + "key", b"new", if_absent=True)
        assert etag is not None, "a put with if_absent failed though the key was deleted"


async def put_if_match_replaces_only_what_was_read(objects: Objects) -> None:
    async with own_prefix(objects) as prefix:
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
    async with own_prefix(objects) as prefix:
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
    data = some_bytes(100_000)
    spans = [(0, 100_000), (0, 1), (99_999, 100_000), (10, 20), (1, 70_000), (4096, 99_000)]
    spans += [(0, 200_000), (99_000, 200_000)]  # past the end
    spans += [(0, 0), (50, 50), (100_000, 100_000), (100_000, 100_010), (500_000, 600_000)]  # empty
    async with own_prefix(objects) as prefix:
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


@tried_again
async def a_waiting_reader_is_woken_by_a_put(objects: Objects) -> None:
    async with own_prefix(objects) as prefix:
        key = prefix + "late"
        whole = asyncio.create_task(objects.get(key, wait=PATIENCE))
        part = asyncio.create_task(objects.get(key, range=(1, 3), wait=PATIENCE))
        done, _ = await asyncio.wait({whole, part}, timeout=MOMENT)
        assert not done, "a get with wait came back before the key was there"
        await objects.put(prefix + "another", b"not this one")
        began = now()
        await objects.put(key, b"here")
        blobs = await asyncio.wait_for(asyncio.gather(whole, part), PATIENCE)
        took = now() - began
        got = [bytes(blob.data) if blob is not None else None for blob in blobs]
        assert got == [b"here", b"er"], f"two readers that waited for b'here' got {got}"
        in_time(took, 2 * SOON, "readers that waited were woken only")


@tried_again
async def a_wait_ends_with_none(objects: Objects) -> None:
    async with own_prefix(objects) as prefix:
        blob, took, used = await waited(lambda: objects.get(prefix + "never", wait=0.5))
        assert blob is None, f"a key that was never put held {blob}"
        assert 0.4 < took < PATIENCE, f"a get with wait=0.5 took {took:.2f} s"
        assert used < IDLE_SHARE, f"a get that waited used {used:.2f} s of processor"
        await objects.put(prefix + "there", b"x")
        began = now()
        blob = await objects.get(prefix + "there", wait=PATIENCE)
        assert blob is not None, "a get with wait missed a key that was there"
        in_time(now() - began, SOON, "a get with wait of a key that was there returned")


async def a_list_is_sorted_and_has_the_prefix_alone(objects: Objects) -> None:
    names = ["b", "a", "ab", "a/b", "a/", "a//b", "a.b", "aé", "B", "10", "9", "a-b"]
    async with own_prefix(objects) as prefix:
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
    async with own_prefix(objects) as prefix:
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
    async with own_prefix(objects) as prefix:
        room = objects.limits.key - len(prefix.encode())
        fill = {"x": "x" * room, "é": "é" * (room // 2), "/": "/" * room, ".": "." * room}
        for name, rest in fill.items():
            await objects.put(prefix + rest, name.encode())
        for name, rest in fill.items():
            blob = await _get(objects, prefix + rest)
            assert bytes(blob.data) == name.encode(), f"the longest key of {name!r} held another's"
        longer = prefix + "é" * (room // 2 + 1)
        await refused(objects.put(longer, b""), "a put of too long a key")
        await refused(objects.get(longer), "a get of too long a key")
        await refused(objects.put("", b""), "a put of an empty key")


async def a_list_and_a_delete_have_no_limit(objects: Objects) -> None:
    async with own_prefix(objects) as prefix:
        keys = [f"{prefix}{i:05}" for i in range(objects.limits.delete_keys + 100)]
        for start in range(0, len(keys), 50):
            await asyncio.gather(*(objects.put(key, b"") for key in keys[start : start + 50]))
        listed = await objects.list(prefix)
        assert listed == keys, f"of {len(keys)} keys {len(listed)} were listed"
        await objects.delete(keys)
        listed = await objects.list(prefix)
        assert listed == [], f"of {len(keys)} deleted keys {len(listed)} are still there"


async def a_deleted_key_is_gone_and_a_missing_one_no_error(objects: Objects) -> None:
    async with own_prefix(objects) as prefix:
        await objects.put(prefix + "one", b"1")
        await objects.put(prefix + "two", b"2")
        await objects.delete([prefix + "never", prefix + "one"])
        await objects.delete([prefix + "one"])
        await objects.delete([])
        assert await objects.get(prefix + "one") is None, "a deleted key is still there"
        listed = await objects.list(prefix)
        assert listed == [prefix + "two"], f"after the delete of one of two keys: {listed}"


async def a_blob_is_private_to_its_reader(objects: Objects) -> None:
    async with own_prefix(objects) as prefix:
        for size in (100, 500_000):
            key, data = f"{prefix}{size}", some_bytes(size)
            await objects.put(key, data)
            mine, other = await _get(objects, key), await _get(objects, key)
            assert not mine.data.readonly, f"a blob of {size} bytes cannot be written to"
            mine.data[:50] = bytes(50)
            assert bytes(other.data) == data, "what one reader wrote another saw"
            assert bytes((await _get(objects, key)).data) == data, "a reader changed the object"


async def a_blob_outlives_its_key(objects: Objects) -> None:
    async with own_prefix(objects) as prefix:
        for size in (100, 500_000):
            key, data = f"{prefix}{size}", some_bytes(size)
            await objects.put(key, data)
            blob = await _get(objects, key)
            await objects.put(key, bytes(size // 2))
            await objects.delete([key])
            assert bytes(blob.data) == data, "a blob changed when its key was replaced or deleted"


async def _get(objects: Objects, key: str) -> Blob:
    blob = await objects.get(key)
    assert blob is not None, f"key {key!r} was put and is not there"
    return blob


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
