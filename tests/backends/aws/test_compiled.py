"""Compiled kernels in the bucket: put there once, found by who comes later, never in the way."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from fsdray.backends.aws.compiled import Compiled

FILES = {
    "inference_ab12/kernels._fused_rows-1.py311.nbi": b"an index",
    "inference_ab12/kernels._fused_rows-1.py311.1.nbc": b"machine code",
}


class Bucket:
    """An S3 that holds some objects, or refuses."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.refusal = ""

    def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803 - as boto3's
        self._check("GetObject")
        if Key not in self.objects:
            raise ClientError({"Error": {"Code": "NoSuchKey"}}, "GetObject")
        return {"Body": io.BytesIO(self.objects[Key])}

    def put_object(self, Bucket: str, Key: str, Body: bytes, IfNoneMatch: str) -> None:  # noqa: N803
        self._check("PutObject")
        assert (Bucket, IfNoneMatch, Key not in self.objects) == ("the-bucket", "*", True)
        self.objects[Key] = Body

    def _check(self, operation: str) -> None:
        if self.refusal:
            raise ClientError({"Error": {"Code": self.refusal}}, operation)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    source = tmp_path / "task" / "fsdray" / "inference"
    source.mkdir(parents=True)
    (source / "kernels.py").write_text("")
    made = Bucket()
    monkeypatch.setattr("boto3.client", lambda *_, **__: made)
    monkeypatch.setenv("LAMBDA_TASK_ROOT", str(tmp_path / "task"))
    return made


def environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Compiled:
    """A new one, with a disk of its own."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return Compiled("the-bucket", "eu-west-1")


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / "fsdray-numba" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def found(folder: Path) -> dict[str, bytes]:
    place = folder / "fsdray-numba"
    return {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}


def test_what_one_environment_compiles_others_load(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    first = environment(one, monkeypatch)
    first.keep()
    first.fetch()
    first.keep()
    assert bucket.objects == {}, "it had compiled nothing"
    write(one, FILES | {"users_cd34/theirs.f-1.py311.nbi": b"", "users_cd34/theirs.1.nbc": b""})
    first.keep()
    assert [name.partition("-")[0] for name in bucket.objects] == ["code/kernels"]
    first.keep()  # once: a second put would not be refused by this bucket, but fail the test

    second = environment(two, monkeypatch)
    second.fetch()
    assert found(two) == FILES
    second.keep()

    source = tmp_path / "task" / "fsdray" / "inference" / "kernels.py"
    source.write_text("# another\n")
    environment(three, monkeypatch).fetch()
    assert not (three / "fsdray-numba").exists()


def test_a_bucket_that_refuses_costs_time_alone(
    bucket: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bucket.refusal = "AccessDenied"
    compiled = environment(tmp_path, monkeypatch)
    compiled.fetch()
    write(tmp_path, FILES)
    compiled.keep()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "fetching compiled kernels" in said[0]
    assert "others will compile again" in said[1]
    assert bucket.objects == {}
