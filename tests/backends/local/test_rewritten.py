"""Files that are written again: who reads one has what was there, or nothing."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdray.backends.local import rewritten
from fsdray.backends.local.objects import Files
from fsdray.backends.local.rewritten import Rewritten
from fsdray.services import MIB


def named(directory: Path) -> Callable[[], str]:
    numbers = itertools.count()
    return lambda: f"{directory}/.{next(numbers)}"


def attach(files: Files, key: str, *data: bytes) -> str:
    etag = files.write(key, data, if_absent=True, is_attached=True)
    assert etag is not None
    return etag


@given(st.lists(st.lists(st.binary(max_size=9000), max_size=4), min_size=1, max_size=12))
@settings(max_examples=50)
def test_whatever_was_there_before_what_lies_there_now_is_read(
    tmp_path_factory: pytest.TempPathFactory, written: list[list[bytes]]
) -> None:
    directory = tmp_path_factory.mktemp("files")
    writer, reader = Files(directory), Files(directory)
    etags = set()
    for number, data in enumerate(written):
        whole = b"".join(data)
        etag = attach(writer, str(number), *data)
        etags.add(etag)
        for files in (reader, writer):
            blob = files.read(str(number), None)
            assert blob is not None
            assert (bytes(blob.data), blob.size, blob.etag) == (whole, len(whole), etag)
            part = files.read(str(number), (3, 3000))
            assert part is not None
            assert (bytes(part.data), part.size) == (whole[3:3000], len(whole))
        if number % 3:
            writer.delete([str(number)])
    assert len(etags) == len(written)


def test_what_many_buffers_hold_is_written_whole(tmp_path: Path) -> None:
    files = Files(tmp_path)
    for key in ("first", "again"):
        attach(files, key, *[b"%d," % i for i in range(3000)])
        blob = files.read(key, None)
        assert blob is not None
        assert bytes(blob.data) == b"".join(b"%d," % i for i in range(3000))
        files.delete([key])


def test_a_reader_whose_key_goes_while_it_copies_has_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = Files(tmp_path), Files(tmp_path)
    attach(writer, "a", bytes(MIB))
    assert reader.read("a", None) is not None
    read = reader._rewritten.read

    def late(path: str, status: os.stat_result, span: Any) -> Any:
        writer.delete(["a"])
        attach(writer, "b", b"\1" * MIB)  # into the same file, of which it knows
        return read(path, status, span)

    with monkeypatch.context() as patched:
        patched.setattr(reader._rewritten, "read", late)
        assert reader.read("a", None) is None, "it is of the other key"
    blob = reader.read("b", None)
    assert blob is not None
    assert bytes(blob.data) == b"\1" * MIB


WRITER = """
import os, sys
from pathlib import Path
from fsdray.backends.local.objects import Files
files, size = Files(Path(sys.argv[1])), int(sys.argv[2])
print("ready", flush=True)
for number in range(10**9):
    assert files.write("key", [bytes([number % 251]) * size], if_absent=True, is_attached=True)
    files.delete(["key"])
"""


def test_no_reader_ever_sees_two_that_were_written_one_after_the_other(tmp_path: Path) -> None:
    size = 300_000
    command = [sys.executable, "-c", WRITER, str(tmp_path), str(size)]
    reader = Files(tmp_path)
    seen: set[int] = set()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            writer.stdout.readline()
            for _ in range(20_000):
                blob = reader.read("key", None)
                if blob is not None:
                    data = bytes(blob.data)
                    assert data == data[:1] * size
                    seen.add(data[0])
        finally:
            writer.kill()
    assert len(seen) > 5


def test_few_files_are_mapped_and_none_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewritten, "_MOST", 10 * MIB)
    writer, reader = Files(tmp_path), Files(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(30):
        attach(writer, str(number), bytes(MIB))
        assert reader.read(str(number), None) is not None
        writer.delete([str(number)])
        if number % 4 == 0:  # some stay, so that others are made
            attach(writer, f"stays {number}", b"\1" * MIB)
    for number in range(30, 60):
        attach(writer, str(number), bytes(MIB))
        assert reader.read(str(number), None) is not None
    assert len(os.listdir("/proc/self/fd")) <= before + 2 * 11  # a mapping has one of its own
    assert sum(map(len, reader._rewritten._mapped.values())) <= 11 * MIB


def test_where_there_is_little_room_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewritten, "_ROOM", 1 << 60)
    files = Files(tmp_path)
    for number in range(3):
        attach(files, str(number), b"all of it")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0@", "1@", "2@"]
    blob = files.read("1", None)
    assert blob is not None
    assert bytes(blob.data) == b"all of it"


def test_where_there_is_no_room_at_all_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rewritten.os, "writev", full)
    with pytest.raises(OSError, match="No space"):
        Rewritten(named(tmp_path)).written([b"data"])
    assert list(tmp_path.iterdir()) == []


def test_a_much_smaller_value_does_not_take_a_large_file(tmp_path: Path) -> None:
    files = Files(tmp_path)
    attach(files, "large", bytes(MIB))
    files.delete(["large"])
    attach(files, "small", bytes(10_000))
    assert sorted(path.stat().st_nlink for path in tmp_path.iterdir()) == [1, 2, 2]
