"""The wheel holds the whole library, and every module of it imports from there."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

IMPORT_ALL = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import fsdray
names = ["fsdray"] + [m.name for m in pkgutil.walk_packages(fsdray.__path__, "fsdray.")]
for name in names:
    if name.rpartition(".")[2] != "__main__":
        module = importlib.import_module(name)
        assert module.__file__.startswith(sys.argv[1]), (name, module.__file__)
print("\\n".join(sorted(names)))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the checkout, so that nothing old is packed with it."""
    pytest.importorskip("build", reason="the test extra has it")
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    source.mkdir()
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, tracked)):
        if (ROOT / name).is_symlink() or (ROOT / name).exists():
            copy = source / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_symlink():
                copy.symlink_to((ROOT / name).readlink())
            else:
                copy.write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), "."],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = folder.glob("*.whl")
    return built


def test_the_wheel_has_types_prices_and_backends(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "fsdray/py.typed" in names
    assert any(n.startswith("fsdray/costs/") and n.endswith(".json") for n in names)
    assert "fsdray/backends/local/__init__.py" in names
    assert not any(name.startswith(("backends/", "tests/", "benchmarks/")) for name in names)


def test_the_wheel_has_every_module_of_the_checkout(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    written = {
        "fsdray" / path.relative_to(ROOT / base)
        for base, pattern in (("fsdray", "**/*.py"),)
        for path in (ROOT / base).glob(pattern)
        if "backends" not in path.parts
    } | {
        Path("fsdray/backends") / path.relative_to(ROOT / "backends")
        for path in (ROOT / "backends").glob("**/*.py")
    }
    missing = {str(path) for path in written} - packed
    assert missing == set(), "these are in no package that setup.cfg lists"


def test_every_module_imports_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_ALL, str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    imported = done.stdout.split()
    assert "fsdray.backends.local.process" in imported
    assert "fsdray.testing.object_checks" in imported


def test_the_wheel_names_its_entry_points_and_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [points] = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        text = archive.read(points).decode()
        assert any(name.endswith("LICENSE") for name in archive.namelist())
    assert "fsdray = fsdray.cli:main" in text
    assert "local = fsdray.backends.local:connect" in text


def test_backends_are_a_symlink_in_the_checkout() -> None:
    link = ROOT / "fsdray" / "backends"
    assert link.is_symlink()
    assert link.readlink() == Path("../backends")
