"""The local objects: shared memory without copies, between processes, and what is counted."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fsdray as fsd
from fsdray import loop, session
from fsdray.backends.local.objects import Files, LocalObjects, Watchers
from fsdray.costs.meter import Meter
from fsdray.errors import ServiceError, SettingsError
from fsdray.services import MIB, Pace
from fsdray.testing.calls import call_function
from tests.backends.local import connected, small_filesystem


class Kept:
    """Objects with a meter of their own in a directory, without any process."""

    def __init__(self, root: Path) -> None:
        self.meter = Meter()
        files = Files(root)
        self.objects = LocalObjects(files, Watchers(files.exists), self.meter.add)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


# Without a copy


def test_an_array_comes_back_as_a_read_only_view_of_shared_memory(session: None) -> None:
    array = np.arange(1_000_000.0)
    got = fsd.get(fsd.put(array))
    assert np.array_equal(got, array)
    assert not got.flags.writeable
    assert not got.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        got[0] = 1


def test_what_is_got_twice_is_mapped_and_not_copied(session: None) -> None:
    def anonymous() -> int:
        text = Path("/proc/self/smaps_rollup").read_text()
        [line] = [line for line in text.splitlines() if line.startswith("Anonymous:")]
        return int(line.split()[1]) * 1024

    array = np.ones(64 * MIB, np.uint8)
    ref = fsd.put(array)
    before = anonymous()
    views = [fsd.get(ref) for _ in range(3)]
    assert sum(int(view[:: 4 * MIB].sum()) for view in views) == 3 * 16
    assert all(int(view.max()) == 1 for view in views)
    assert anonymous() - before < 16 * MIB, "three reads of 64 MB have been copied"


def test_an_array_starts_where_vector_loads_are_fast(session: None) -> None:
    arrays: list[Any] = fsd.get(fsd.put([np.ones(100_001, np.uint8), np.ones(50_000)]))
    assert [array.ctypes.data % 64 for array in arrays] == [0, 0]


def write_versions(key: str, count: int, size: int) -> None:
    objects = session_of_worker()
    for version in range(count):
        loop.run(objects.put(key, bytes([version]) * size))


def session_of_worker() -> LocalObjects:
    objects = session.current().backend.objects
    assert isinstance(objects, LocalObjects)
    return objects


def test_a_reader_never_sees_half_of_what_another_process_writes() -> None:
    size, count = 2 * MIB, 30

    async def read_while_written() -> list[int]:
        writer = asyncio.create_task(
            call_function(backend.functions, write_versions, "key", count, size)
        )
        seen: list[int] = []
        while not seen or seen[-1] < count - 1:
            blob = await backend.objects.get("key", wait=20)
            assert blob is not None
            version = blob.data[0]
            assert blob.data == bytes([version]) * size
            seen.append(version)
            await asyncio.sleep(0)
        await writer
        return seen

    with connected() as backend:
        seen = loop.run(read_while_written())
    assert seen == sorted(seen), "an older version came after a newer one"


def win(key: str, number: int) -> bool:
    return loop.run(session_of_worker().put(key, b"%d" % number, if_absent=True)) is not None


def add_one(key: str, times: int) -> None:
    """Add to a number in an object, again and again until no other came between."""
    objects = session_of_worker()
    done = 0
    while done < times:
        blob = loop.run(objects.get(key))
        assert blob is not None
        value = b"%d" % (int(bytes(blob.data)) + 1)
        done += loop.run(objects.put(key, value, if_match=blob.etag)) is not None


def test_of_several_processes_one_wins_a_key() -> None:
    async def compete() -> list[Any]:
        return await asyncio.gather(
            *(call_function(backend.functions, win, "key", number) for number in range(6))
        )

    with connected() as backend:
        assert sum(loop.run(compete())) == 1


def test_processes_that_add_to_one_object_lose_no_addition() -> None:
    async def add() -> int:
        await backend.objects.put("sum", b"0")
        await asyncio.gather(
            *(call_function(backend.functions, add_one, "sum", 25) for _ in range(4))
        )
        blob = await backend.objects.get("sum")
        assert blob is not None
        return int(bytes(blob.data))

    with connected() as backend:
        assert loop.run(add()) == 100


# Written again


def taken_away(kept: Kept, key: str) -> None:
    """Its readers have all acknowledged the message that it was attached to."""
    loop.run(kept.objects.delete([key]))


def test_the_file_of_what_was_attached_is_written_again_and_who_read_it_keeps_it(
    kept: Kept, tmp_path: Path
) -> None:
    def put(key: str, byte: int, size: int = MIB) -> None:
        parts = [bytes([byte]) * (size - 1000), b"", bytes([byte]) * 1000]
        assert loop.run(kept.objects.put(key, parts, if_absent=True, is_attached=True))

    def got(key: str) -> Any:
        blob = loop.run(kept.objects.get(key))
        assert blob is not None
        return np.frombuffer(blob.data, np.uint8)

    def there() -> set[int]:
        return {path.stat().st_ino for path in tmp_path.iterdir()}

    put("a", 1)
    first = got("a")
    put("b", 2)  # while the first can still be read
    assert len(there()) == 2
    taken_away(kept, "a")
    used = there()
    put("c", 3, MIB // 2)
    assert there() == used, "it took new pages"
    assert (first == 1).all()
    assert (got("b") == 2).all()
    assert len(got("c")) == MIB // 2, "it ends where the one before did"
    assert (got("c") == 3).all()
    taken_away(kept, "b")
    taken_away(kept, "c")
    put("d", 4, 2 * MIB)
    assert (got("d") == 4).all()
    assert len(got("d")) == 2 * MIB
    assert loop.run(kept.objects.list("")) == ["d"]
    blob = loop.run(kept.objects.get("d", range=(MIB - 5, 2 * MIB + 5)))
    assert blob is not None
    assert (len(blob.data), blob.size) == (MIB + 5, 2 * MIB)


def test_what_is_attached_and_stays_costs_no_room_for_ever(kept: Kept, tmp_path: Path) -> None:
    for number in range(40):
        loop.run(kept.objects.put(str(number), bytes(MIB), if_absent=True, is_attached=True))
    for number in range(40):
        taken_away(kept, str(number))
    left = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 8 * MIB <= left <= 17 * MIB


def test_of_two_who_put_the_same_the_second_leaves_nothing(kept: Kept, tmp_path: Path) -> None:
    first = kept.objects.put("key", b"first", if_absent=True, is_attached=True)
    assert loop.run(first) is not None
    for _ in range(5):
        second = kept.objects.put("key", b"second", if_absent=True, is_attached=True)
        assert loop.run(second) is None
    # But for one file, to write the next into.
    assert len(list(tmp_path.iterdir())) == 3
    blob = loop.run(kept.objects.get("key"))
    assert blob is not None
    assert bytes(blob.data) == b"first"


def test_files_of_a_process_that_ended_are_removed(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.write("key", [b"x"], if_absent=True, is_attached=True)
    files.ended(os.getpid() + 1)
    assert len(list(tmp_path.iterdir())) == 2
    files.ended(os.getpid())
    assert len(list(tmp_path.iterdir())) == 1
    assert files.exists("key")
    files.delete(["key"])
    files.write("other", [b"y"], if_absent=True, is_attached=True)  # it finds its own file gone
    blob = files.read("other", None)
    assert blob is not None
    assert bytes(blob.data) == b"y"


def test_a_process_with_the_number_of_one_that_ended_writes_into_none_of_its_files(
    tmp_path: Path,
) -> None:
    ended, new = Files(tmp_path), Files(tmp_path)
    ended.write("key", [b"the first's"], if_absent=True, is_attached=True)
    for key in ("put", "attached"):
        new.write(key, [b"another's"], if_absent=True, is_attached=key == "attached")
    blob = new.read("key", None)
    assert blob is not None
    assert bytes(blob.data) == b"the first's"


def noisy(rank: int, number: int) -> Any:
    """An array of 1.6 MB that does not compress."""
    return np.random.default_rng(rank).random(200_000) + number


def exchange(rounds: int) -> list[tuple[int, int]]:
    """The rounds and ranks whose array is not what came, or is not that any more at the end."""
    comm = fsd.collective.world()
    came = [comm.allgather(noisy(comm.rank, number)) for number in range(rounds)]
    return [
        (number, rank)
        for number, arrays in enumerate(came)
        for rank, array in enumerate(arrays)
        if not np.array_equal(array, noisy(rank, number))
    ]


def test_a_long_exchange_of_large_arrays_mixes_nothing(session: None) -> None:
    gang = fsd.remote(world_size=3, channel="auto")(exchange)
    assert fsd.get(gang.remote(40)) == [[], [], []]


# A full disk


def test_a_full_shared_memory_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with small_filesystem(tmp_path, "4m"), connected(directory=str(tmp_path)) as backend:
        with pytest.raises(ServiceError, match=r"no space left.*fsdray\.init\(directory=") as small:
            loop.run(backend.objects.put("large", bytes(6 * MIB)))
        assert "FSDRAY_DIRECTORY" in str(small.value)
        assert loop.run(backend.objects.get("large")) is None
        # What could not be written is gone, so there is room again.
        loop.run(backend.objects.put("fits", bytes(3 * MIB)))
        blob = loop.run(backend.objects.get("fits"))
        assert blob is not None
        assert blob.size == 3 * MIB


# Conditions and keys


def test_two_conditions_at_once_are_refused(kept: Kept) -> None:
    with pytest.raises(SettingsError, match="exclude each other"):
        loop.run(kept.objects.put("key", b"", if_absent=True, if_match="x"))


@pytest.mark.parametrize("span", [(-1, 2), (3, 2)])
def test_a_range_that_is_none_is_refused(kept: Kept, span: tuple[int, int]) -> None:
    with pytest.raises(SettingsError, match="range="):
        loop.run(kept.objects.get("key", range=span))


@given(
    st.lists(st.text(min_size=1, max_size=40).filter(lambda key: key.isprintable()), unique=True)
)
def test_any_set_of_keys_is_listed_as_it_was_put(keys: list[str]) -> None:
    with connected_files() as kept:
        for key in keys:
            loop.run(kept.objects.put(key, key.encode()))
        assert loop.run(kept.objects.list("")) == sorted(keys)
        for key in keys:
            blob = loop.run(kept.objects.get(key))
            assert blob is not None
            assert bytes(blob.data) == key.encode()


@contextmanager
def connected_files() -> Iterator[Kept]:
    with tempfile.TemporaryDirectory() as folder:
        yield Kept(Path(folder))


def test_who_finds_a_key_written_tells_those_who_wait_for_it(tmp_path: Path) -> None:
    files = Files(tmp_path)
    objects = LocalObjects(files, Watchers(files.exists), Meter().add)

    async def wait() -> bytes:
        waiting = asyncio.create_task(objects.get("key", wait=60))
        await asyncio.sleep(0)
        files.write("key", [b"first"], True, None)  # by one who dies before it can say so
        assert await objects.put("key", b"second", if_absent=True) is None
        blob = await waiting
        assert blob is not None
        return bytes(blob.data)

    assert asyncio.run(asyncio.wait_for(wait(), 20)) == b"first"


def test_a_failed_write_leaves_nothing_behind(kept: Kept, tmp_path: Path) -> None:
    loop.run(kept.objects.put("key", b"x"))
    before = sorted(tmp_path.iterdir())
    assert loop.run(kept.objects.put("key", b"y", if_absent=True)) is None
    with pytest.raises(TypeError):
        loop.run(kept.objects.put("other", [b"part", "text"]))  # type: ignore[list-item]
    assert sorted(tmp_path.iterdir()) == before


# What is counted


def test_each_request_is_counted_with_its_bytes(kept: Kept) -> None:
    objects = kept.objects
    loop.run(objects.put("key", [bytes(100), bytes(23)]))
    loop.run(objects.get("key"))
    loop.run(objects.get("key", range=(100, 200)))
    loop.run(objects.list(""))
    loop.run(objects.delete(["key", "other"]))
    assert kept.meter.counts() == {
        "put": 1,
        "put_bytes": 123,
        "get": 2,
        "get_bytes": 123 + 23,
        "list": 1,
        "delete": 1,
    }


def test_a_key_that_is_not_there_is_a_miss_and_no_get(kept: Kept) -> None:
    loop.run(kept.objects.get("key"))
    assert kept.meter.counts() == {"miss": 1}


def test_a_put_whose_condition_fails_is_billed_all_the_same(kept: Kept) -> None:
    loop.run(kept.objects.put("key", b"abc"))
    loop.run(kept.objects.put("key", b"abc", if_absent=True))
    loop.run(kept.objects.put("key", b"abc", if_match="another"))
    assert kept.meter.counts() == {"put": 3, "put_bytes": 9}


def test_a_delete_is_a_request_for_each_thousand_keys(kept: Kept) -> None:
    loop.run(kept.objects.delete([str(i) for i in range(2001)]))
    loop.run(kept.objects.delete([]))
    assert kept.meter.counts() == {"delete": 3}


def test_what_is_refused_is_not_counted(kept: Kept) -> None:
    for key in ("", "x" * 1025):
        with pytest.raises(SettingsError):
            loop.run(kept.objects.put(key, b""))
        with pytest.raises(SettingsError):
            loop.run(kept.objects.get(key))
    assert kept.meter.counts() == {}


def test_waiting_in_vain_counts_the_looks_that_its_pace_makes(kept: Kept) -> None:
    pace = Pace(first=0.1, factor=1, ceiling=0.1)
    loop.run(kept.objects.get("key", wait=0.25, pace=pace))
    counts = kept.meter.counts()
    # At 0, 0.1 and 0.2 s; a busy machine may end the wait later.
    assert 3 <= counts["miss"] <= 10
    assert set(counts) == {"miss"}


def test_waiting_counts_the_looks_before_the_key_came(kept: Kept) -> None:
    async def put_while_waiting() -> float:
        clock = asyncio.get_running_loop().time
        began = clock()
        reader = asyncio.create_task(
            kept.objects.get("key", wait=20, pace=Pace(first=0.001, factor=1, ceiling=0.001))
        )
        await asyncio.wait({reader}, timeout=0.05)
        await kept.objects.put("key", b"abc")
        assert await reader is not None
        return clock() - began

    waited = loop.run(put_while_waiting())
    counts = kept.meter.counts()
    assert (counts["get"], counts["get_bytes"]) == (1, 3)
    assert 45 <= counts["miss"] <= waited / 0.001 + 1


def test_a_cancelled_wait_counts_its_looks_too(kept: Kept) -> None:
    async def cancel() -> None:
        reader = asyncio.create_task(kept.objects.get("key", wait=20))
        await asyncio.wait({reader}, timeout=0.05)
        reader.cancel()
        await asyncio.wait({reader})

    loop.run(cancel())
    assert kept.meter.counts()["miss"] >= 2  # at 0 and 25 ms
