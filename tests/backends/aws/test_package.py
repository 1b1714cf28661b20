"""The functions' code: packed from local wheels, the same from the same, within Lambda's limit."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fsdray.backends.aws import late, package
from fsdray.backends.aws.options import Options
from fsdray.backends.aws.package import build, own_files, pins, requirements
from fsdray.backends.aws.wheels import foreign, tags
from fsdray.errors import SettingsError
from fsdray.runtime_env import RuntimeEnv
from tests.test_packages import wheel

ARM = Options(python="3.12", architecture="arm64", extras=())


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory of wheels, in which alone pip looks; functions require nothing else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(package, "REQUIRED", ("tool",))
    # Compiling all of fsdray takes a second, and one test does it.
    monkeypatch.setattr(package, "own_files", lambda: {"fsdray/__init__.py": Path(os.devnull)})
    return folder


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> tuple[package.Package, Path]:
    """fsdray alone, as for the emulator, and its cache."""
    cache = tmp_path_factory.mktemp("cache")
    return build(Options(), cache, is_bare=True), cache


def test_fsdray_itself_is_in_the_package_with_its_bytecode(
    bare: tuple[package.Package, Path], tmp_path: Path
) -> None:
    made, cache = bare
    files = contents(made.path)
    assert set(own_files()) <= set(files)
    assert "fsdray/backends/aws/handler.py" in files
    assert made.is_compiled
    tag = sys.implementation.cache_tag
    code = files[f"fsdray/backends/aws/__pycache__/handler.{tag}.pyc"]
    # Unchecked hashes (PEP 552): the second word is 0b01, and nobody looks at the source.
    assert int.from_bytes(code[4:8], "little") == 1
    assert b"/var/task/fsdray/backends/aws/handler.py" in code
    assert str(cache).encode() not in code
    with zipfile.ZipFile(made.path) as archive:
        archive.extractall(tmp_path)
    script = "import fsdray.backends.aws.handler as h; print(h.__file__, h.__cached__)"
    told = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.startswith(str(tmp_path))
    assert made.unpacked == sum(map(len, files.values()))


def test_the_same_is_packed_once_and_has_one_name(
    bare: tuple[package.Package, Path], tmp_path: Path
) -> None:
    made, cache = bare
    before = made.path.stat().st_ino
    again = build(Options(), cache, is_bare=True)
    assert (again, again.path.stat().st_ino) == (made, before)
    elsewhere = build(Options(), tmp_path, is_bare=True)
    assert elsewhere.key == made.key
    assert elsewhere.path.read_bytes() == made.path.read_bytes()


def test_wheels_are_those_of_lambdas_own_system(wheels: Path, tmp_path: Path) -> None:
    for version, tag in (
        ("1.0", "cp312-cp312-manylinux_2_34_aarch64"),
        ("2.0", "cp312-cp312-manylinux_2_35_aarch64"),  # newer than Amazon Linux 2023
        ("3.0", "cp312-cp312-manylinux_2_17_x86_64"),
        ("4.0", "cp313-cp313-manylinux_2_17_aarch64"),
    ):
        wheel(wheels, "tool", version, {"tool.py": f"version = {version!r}"}, tag=tag)
    made = build(ARM, tmp_path)
    assert contents(made.path)["tool.py"] == b"version = '1.0'"
    assert tags("3.11", "x86_64")[0] == "manylinux_2_26_x86_64"
    with pytest.raises(SettingsError, match=r"functions of Python 3.14 require(.|\n)*tool"):
        build(Options(python="3.14", architecture="arm64", extras=()), tmp_path)


def test_what_a_call_asks_pip_for_is_for_where_functions_run(wheels: Path, tmp_path: Path) -> None:
    of = f"cp{sys.version_info.major}{sys.version_info.minor}"
    for machine in ("x86_64", "aarch64"):
        wheel(
            wheels, "tool", "1.0", {"tool.py": f"machine = {machine!r}"},
            tag=f"{of}-{of}-manylinux_2_17_{machine}",
        )  # fmt: skip
    runtime_env = RuntimeEnv.of({"pip": ["tool"]})
    assert runtime_env is not None
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    for machine, architecture in (("x86_64", "x86_64"), ("aarch64", "arm64")):
        bundle = runtime_env.packages(tmp_path, tags(python, architecture))
        assert bundle is not None
        with zipfile.ZipFile(io.BytesIO(bundle.data)) as archive:
            assert archive.read("tool.py") == f"machine = '{machine}'".encode()
    here = {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
    other = {"arm64": "x86_64", "x86_64": "arm64"}[here]
    assert foreign(python, other) == tags(python, other)
    if sys.platform == "linux":
        assert foreign(python, here) == ()


def test_versions_are_the_drivers_where_there_are_wheels_of_them(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    major = np.__version__.partition(".")[0]
    monkeypatch.setattr(package, "REQUIRED", ("numpy",))
    for version in (f"{major}.0", f"{major}.999", f"{int(major) + 1}.0"):
        wheel(wheels, "numpy", version, {"numpy/version.txt": version})
    # The driver's own has no wheel here: then the newest of the same major version.
    assert contents(build(ARM, tmp_path).path)["numpy/version.txt"] == f"{major}.999".encode()
    wheel(wheels, "numpy", np.__version__, {"numpy/version.txt": "as here"})
    other = build(ARM, tmp_path / "other")
    assert contents(other.path)["numpy/version.txt"] == b"as here"


def test_tests_are_left_out_but_not_what_others_import_from_beside_them(
    wheels: Path, tmp_path: Path
) -> None:
    inside = {"numpy/_core/tests/test_it.py": "", "numpy/_core/tests/data/much.bin": ""}
    needed = {"numpy/_core/tests/_natype.py": "", "tool/tests/test_it.py": ""}
    wheel(wheels, "tool", "1.0", inside | needed)
    files = set(contents(build(ARM, tmp_path).path))
    assert needed.keys() <= files
    assert not inside.keys() & files


def test_what_the_user_says_of_versions_holds() -> None:
    here = f"numpy=={np.__version__}"
    assert here in pins(["numpy"], [])
    assert here in pins(["scipy"], [])  # which requires it
    assert here in pins(["scipy", "numpy"], ["numpy"])
    assert here not in pins(["scipy", "numpy>=2"], ["NumPy >=2"])
    assert pins(["nobody-has-this"], []) == []
    assert requirements(Options(extras=(), requirements=("a==1",)), is_bare=True) == ["a==1"]
    assert "numba" in requirements(Options(), is_bare=False)
    with pytest.raises(SettingsError, match="extras='bench'"):
        requirements(Options(extras=("bench",)), is_bare=False)


def test_what_is_too_large_is_fetched_when_it_is_imported(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "LIMIT", 3 << 20)
    large = os.urandom(2 << 20)
    wheel(wheels, "tool", "1.0", {"tool.py": "import heavy_one"}, ["heavy-one", "heavy-two"])
    for name in ("one", "two"):
        files: dict[str, str | bytes] = {
            f"heavy_{name}/__init__.py": "from pathlib import Path\n"
            f"size = (Path(__file__).parents[1] / 'heavy_{name}.libs' / 'lib.so').stat().st_size\n",
            f"heavy_{name}.libs/lib.so": large + name.encode() * 9,
        }
        wheel(wheels, f"heavy_{name}", "1.0", files)
    made = build(ARM, tmp_path / "cache")
    (key,) = made.late
    assert re.fullmatch(r"code/late-heavy_(one|two)-\w+\.tar\.zst", key)
    assert made.unpacked <= 3 << 20
    name = key.removeprefix("code/late-").partition("-")[0]
    task, temporary = tmp_path / "task", tmp_path / "tmp"
    temporary.mkdir()
    with zipfile.ZipFile(made.path) as archive:
        archive.extractall(task)
    assert not (task / name).exists()

    fresh = f"fresh_{tmp_path.name}"
    (temporary / f"{fresh}.py").write_text("")

    class Bucket:
        def download_fileobj(self, bucket: str, key: str, file: Any) -> None:
            assert bucket == "the-bucket"
            # AWS's clients have threads that import, so no lock of all imports may be held here.
            importer = threading.Thread(target=importlib.import_module, args=(fresh,), daemon=True)
            importer.start()
            importer.join(30)
            assert not importer.is_alive()
            file.write(made.late[key].read_bytes())

    monkeypatch.setattr("boto3.client", lambda *_, **__: Bucket())
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setenv("LAMBDA_TASK_ROOT", str(task))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.setattr(sys, "path", [*sys.path, str(temporary)])
    late.install("the-bucket", "eu-west-1")
    assert importlib.util.find_spec("nobody_has_this") is None
    assert importlib.import_module(name).size > 2 << 20
    monkeypatch.delitem(sys.modules, name)
    shutil.rmtree(task)


def test_a_package_that_cannot_fit_names_its_largest_parts(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "LIMIT", 1 << 20)
    wheel(wheels, "tool", "1.0", {"numpy/lib.so": os.urandom(3 << 20)})
    with pytest.raises(SettingsError, match=r"3 MB, of the 1 MB .*: numpy.*deploy --image URI"):
        build(ARM, tmp_path)


def test_a_package_says_when_it_has_no_bytecode(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(wheels, "tool", "1.0", {"tool.py": ""})
    monkeypatch.setenv("PATH", str(tmp_path))
    other = "3.13" if sys.version_info[:2] == (3, 12) else "3.12"
    made = build(Options(python=other, extras=()), tmp_path)
    assert not made.is_compiled
    shim = tmp_path / f"python{other}"  # as pyenv has them for what is not chosen
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    assert not build(Options(python=other, extras=()), tmp_path / "anew").is_compiled
    assert json.loads(contents(made.path)[late.INDEX]) == {}
