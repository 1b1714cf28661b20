"""``runtime_env={"pip": ...}``: what pip is asked for, what is kept, and what calls then import.

The packages are tiny wheels that the tests write; no index is asked.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import fsdray as fsd
from fsdray import environment, modules, packages
from fsdray.backends.local.directory import SessionDirectory
from fsdray.errors import SettingsError
from fsdray.packages import Installer, Requirements, Target, command
from tests.conftest import clean_session

ANY = "py3-none-any"


def wheel(
    folder: Path,
    name: str,
    version: str,
    files: dict[str, str | bytes],
    needs: Sequence[str] = (),
    tag: str = ANY,
) -> Path:
    """A wheel with these files."""
    info = f"{name}-{version}.dist-info"
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    lines += [f"Requires-Dist: {need}" for need in needs]
    whole: dict[str, str | bytes] = {
        **files,
        f"{info}/METADATA": "\n".join(lines) + "\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = io.StringIO()
    for inner, text in whole.items():
        data = text.encode() if isinstance(text, str) else text
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record.write(f"{inner},sha256={digest},{len(data)}\n")
    record.write(f"{info}/RECORD,,\n")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in whole.items():
            archive.writestr(inner, text)
        archive.writestr(f"{info}/RECORD", record.getvalue())
    return path


def tiny(folder: Path, version: str) -> Path:
    """A package with a module inside and a file of data."""
    files: dict[str, str | bytes] = {
        "tiny/__init__.py": f"from .inner import word\nversion = {version!r}\n",
        "tiny/inner.py": f"word = 'of {version}'\n",
        "tiny/data.txt": f"data of {version}",
    }
    return wheel(folder, "tiny", version, files)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test touches the user's own cache, or asks an index."""
    place = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSDRAY_CACHE", str(place))
        patch.setenv("PIP_NO_INDEX", "1")
        patch.delenv("PIP_FIND_LINKS", raising=False)
        yield place


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two versions of a package, and one that needs it."""
    folder = tmp_path_factory.mktemp("wheels")
    tiny(folder, "1.0")
    tiny(folder, "2.0")
    wheel(folder, "friend", "1.0", {"friend.py": "import tiny\nseen = tiny.version\n"}, ["tiny<2"])
    return folder


@pytest.fixture
def pip_runs(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """The calls of pip, which are made."""
    calls: list[Sequence[str]] = []
    really = packages.run_pip

    def run(arguments: Sequence[str], *others: Any) -> None:
        calls.append(arguments)
        really(arguments, *others)

    monkeypatch.setattr(packages, "run_pip", run)
    return calls


def installed(given: Any, cache: Path, installer: Installer | None = None) -> dict[str, bytes]:
    """The files that pip brings, where they are not about the distribution."""
    wanted = Requirements.of(given, is_caller=True)
    assert wanted is not None
    data = (installer or Installer()).bundle(wanted, Target.here(), cache).data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        return {name: archive.read(name) for name in names}


# What is asked for


def test_for_this_machine_pip_may_build_and_for_another_it_takes_wheels_alone() -> None:
    here = command(Target("3.11"), Path("r.txt"), Path("out"))
    assert here[:5] == [sys.executable, "-P", "-m", "pip", "install"]
    assert {"--no-input", "--disable-pip-version-check", "--no-compile"} <= set(here)
    assert "--only-binary=:all:" not in here
    there = command(
        Target("3.12", ("manylinux2014_aarch64", "manylinux_2_28_aarch64")),
        Path("r.txt"),
        Path("out"),
    )
    assert there[: len(here)] == here
    assert there[len(here) :] == [
        *("--only-binary=:all:", "--implementation", "cp", "--python-version", "3.12"),
        *("--platform", "manylinux2014_aarch64", "--platform", "manylinux_2_28_aarch64"),
    ]


def test_pip_itself_takes_the_arguments_for_another_machine(tmp_path: Path, wheels: Path) -> None:
    wheel(wheels, "bound", "1.0", {"bound.py": ""}, tag="cp312-cp312-manylinux2014_aarch64")
    wanted = Requirements.of([f"--find-links {wheels}", "bound"], is_caller=True)
    assert wanted is not None
    there = Target("3.12", ("manylinux2014_aarch64",))
    assert Installer().bundle(wanted, there, tmp_path).digest
    with pytest.raises(SettingsError, match="No matching distribution"):
        Installer().bundle(wanted, Target.here(), tmp_path)


def test_a_list_a_file_and_rays_dict_ask_for_the_same(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wheels / "tiny-1.0-py3-none-any.whl"
    (tmp_path / "more.txt").write_text(f"{path}  # the wheel\n")
    (tmp_path / "requirements.txt").write_text("-r more.txt\n")
    monkeypatch.chdir(tmp_path)
    asked = [
        [str(path)],
        ["-r more.txt"],
        "requirements.txt",
        Path("requirements.txt"),
        {"packages": [str(path)], "pip_check": True, "pip_version": None},
        {"packages": "requirements.txt"},
    ]
    found = [installed(given, tmp_path / "cache") for given in asked]
    assert found == [found[0]] * len(asked)
    assert found[0]["tiny/data.txt"] == b"data of 1.0"


def test_a_source_tree_is_built_and_a_change_of_it_seen(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "setup.py").write_text(
        "from setuptools import setup\nsetup(name='source', version='1', py_modules=['source'])\n"
    )
    given = ["--no-binary :none:", str(tmp_path / "project")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip's word for: do not isolate
        for text in (b"word = 1", b"word = 1000"):
            (tmp_path / "project" / "source.py").write_bytes(text)
            assert installed(given, tmp_path / "cache") == {"source.py": text}


def test_nothing_to_install_is_no_call_of_pip() -> None:
    assert Requirements.of([], is_caller=True) is None


def test_an_editable_install_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"editable.*without it"):
        installed(["-e ./project"], tmp_path)


def test_where_pip_is_not_installed_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An interpreter of no packages: that of this one's, isolated from its site.
    isolated = [sys.executable, "-P", "-S", "-m", "pip", "install"]
    monkeypatch.setattr(packages, "command", lambda *_: isolated)
    with pytest.raises(SettingsError, match="ensurepip"):
        installed(["tiny"], tmp_path)


def test_what_fsdray_has_loaded_cannot_be_another_and_does_not_travel(
    tmp_path: Path, wheels: Path
) -> None:
    pinned, *_ = Target.here().provided
    name, _, version = pinned.partition("==")
    wheel(wheels, name, version, {f"{name}/__init__.py": ""})
    wheel(wheels, name, "0.1", {f"{name}/__init__.py": ""})
    wheel(wheels, "needy", "1.0", {"needy.py": ""}, [name])
    links = f"--find-links {wheels}"
    assert installed([links, "needy"], tmp_path) == {"needy.py": b""}
    with pytest.raises(SettingsError, match=f"imported {name}=={version}"):
        installed([links, f"{name}==0.1"], tmp_path)


# What is kept


def test_what_was_installed_once_is_not_again(
    tmp_path: Path, wheels: Path, pip_runs: list[Sequence[str]]
) -> None:
    given = [str(wheels / "tiny-1.0-py3-none-any.whl")]
    installer = Installer()
    first = installed(given, tmp_path, installer)
    assert installed(given, tmp_path, installer) == first
    assert installed(given, tmp_path) == first, "as in another process"
    assert len(pip_runs) == 1
    installed(given, tmp_path / "elsewhere")
    assert len(pip_runs) == 2


def test_a_wheel_that_was_built_anew_is_installed_anew(tmp_path: Path) -> None:
    installer = Installer()
    for text in (b"word = 1", b"word = 1000"):
        path = wheel(tmp_path, "changing", "1.0", {"changing.py": text})
        assert installed([str(path)], tmp_path / "cache", installer) == {"changing.py": text}


def test_pips_own_variables_are_heard(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installer = Installer()
    with pytest.raises(SettingsError, match="No matching distribution"):
        installed(["tiny==2.0"], tmp_path, installer)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_USER", "1")
    assert installed(["tiny==2.0"], tmp_path, installer)["tiny/data.txt"] == b"data of 2.0"


def test_threads_that_want_the_same_at_once_install_it_once(
    tmp_path: Path, wheels: Path, pip_runs: list[Sequence[str]]
) -> None:
    found: list[dict[str, bytes]] = []
    given = [str(wheels / "tiny-2.0-py3-none-any.whl")]

    def install() -> None:
        found.append(installed(given, tmp_path))

    threads = [threading.Thread(target=install) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [found[0]] * 3
    assert len(pip_runs) == 1


def test_a_failure_leaves_nothing_that_could_be_used(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(SettingsError, match="No matching distribution found for no-such"):
            installed(["no-such-package-anywhere"], tmp_path)
    assert [path.suffix for path in (tmp_path / "pip").iterdir()] == [".lock"]


def test_what_nobody_used_for_long_is_removed_when_something_new_comes(
    tmp_path: Path, wheels: Path
) -> None:
    one, two = (str(wheels / f"tiny-{n}.0-py3-none-any.whl") for n in (1, 2))
    installed([one], tmp_path)
    [old] = (tmp_path / "pip").glob("*.zip")
    (tmp_path / "pip" / ".killed").mkdir()
    for path in (old, tmp_path / "pip" / ".killed"):
        os.utime(path, (0, 0))
    installed([one], tmp_path)
    assert old.stat().st_mtime > 0, "it is in use again"
    os.utime(old, (0, 0))
    installed([two], tmp_path)
    assert len(list((tmp_path / "pip").glob("*.zip"))) == 1
    assert not (tmp_path / "pip" / ".killed").exists()


def test_a_cache_that_cannot_be_written_is_named_with_the_setting(
    tmp_path: Path, wheels: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="FSDRAY_CACHE"):
        installed([str(wheels / "tiny-1.0-py3-none-any.whl")], tmp_path / "file")


def test_what_is_too_large_is_told_with_what_is_largest(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "LIMIT", 1000)
    path = wheel(tmp_path, "heavy", "1.0", {"heavy/weights.bin": bytes(5000), "light.py": ""})
    with pytest.raises(SettingsError, match=r"needs; at most .*: heavy \("):
        installed([str(path)], tmp_path / "cache")


def test_only_what_takes_a_while_is_told_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with packages.telling("quick"):
        pass
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "_QUIET", 0.0)
        said = threading.Event()
        patch.setattr("builtins.print", lambda *args, **_: (sys.stderr.write(args[0]), said.set()))
        with packages.telling("slow"):
            assert said.wait(30)
    assert capfd.readouterr() == ("", "slow ...")


# At the other end


def test_unpacking_needs_no_memory_of_the_bundles_size(tmp_path: Path) -> None:
    import tracemalloc

    wheel(tmp_path, "heavy", "1.0", {"heavy.bin": os.urandom(30_000_000)})
    wanted = Requirements.of([str(tmp_path / "heavy-1.0-py3-none-any.whl")], is_caller=True)
    assert wanted is not None
    tracemalloc.start()
    try:
        bundle = Installer().bundle(wanted, Target.here(), tmp_path / "cache")
        place = environment.unpacked(tmp_path / "out", bundle.digest, lambda _: bundle.data)
        assert tracemalloc.get_traced_memory()[1] < 15_000_000
    finally:
        tracemalloc.stop()
    assert (place / "heavy.bin").stat().st_size == 30_000_000


def test_what_can_be_executed_still_can(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("#!/bin/sh\n")
    (tmp_path / "tool").chmod(0o755)
    (tmp_path / "text").write_text("")
    packed = tmp_path / "packed.zip"
    packages._zip(packed, {name: tmp_path / name for name in ("tool", "text")})
    data = packed.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    place = environment.unpacked(tmp_path / "out", digest, lambda _: data)
    assert (place / "tool").stat().st_mode & stat.S_IXUSR
    assert not (place / "text").stat().st_mode & stat.S_IXUSR


class TestLayers:
    """Packages over what is installed, in this process."""

    @pytest.fixture
    def layers(self, tmp_path: Path) -> Iterator[Callable[[str | None], None]]:
        """Puts a directory of packages before the one with what is installed, or none."""
        for name, word in (("base", "base"), ("one", "1"), ("two", "2")):
            (tmp_path / name).mkdir()
            (tmp_path / name / "lay_under.py").write_text(f"word = {word!r}")
        (tmp_path / "base" / "lay_over.py").write_text(
            "import lay_free\nfrom lay_mid import word\nfree = lay_free"
        )
        (tmp_path / "base" / "lay_mid.py").write_text(
            "import lay_under\nclass Word(str): pass\nword = Word(lay_under.word)"
        )
        (tmp_path / "base" / "lay_free.py").write_text("import json\ncount = []")
        layers, before = environment.Layers(), list(sys.path)

        def change(name: str | None) -> None:
            place = None if name is None else str(tmp_path / name)
            layers.change(place)
            sys.path[:] = [*([place] if place else []), str(tmp_path / "base"), *before]

        change(None)
        yield change
        sys.path[:] = before
        for name in [name for name in sys.modules if name.startswith("lay_")]:
            del sys.modules[name]

    def test_what_refers_to_a_package_is_another_with_it(self, layers: Any) -> None:
        def over() -> Any:
            import lay_over  # type: ignore[import-not-found]

            return lay_over

        base = over()
        layers("one")
        one = over()
        layers("two")
        two = over()
        assert [each.word for each in (base, one, two)] == ["base", "1", "2"]
        layers("one")
        assert over() is one
        layers(None)
        assert over() is base
        assert base.free is one.free is two.free, "it has nothing of the package"

    def test_what_was_first_imported_with_packages_is_not_met_without(self, layers: Any) -> None:
        def over() -> str:
            import lay_over

            return str(lay_over.word)

        layers("two")
        assert over() == "2"
        layers(None)
        assert over() == "base"
        layers("one")
        assert over() == "1"


# Calls


@fsd.remote
def look(*names: str) -> list[Any]:
    """The versions of packages, and who looked."""
    return [os.getpid(), *(__import__(name).version for name in names)]


@pytest.fixture(scope="class")
def session(own_cache: Path) -> Iterator[None]:
    """A session with one worker at a time."""
    with clean_session():
        yield


@pytest.mark.usefixtures("session")
class TestCalls:
    """What only needs a session."""

    def env(self, wheels: Path, *names: str) -> dict[str, Any]:
        return {"pip": [f"--find-links {wheels}", *names]}

    def test_a_package_is_there_with_its_data_and_its_version(self, wheels: Path) -> None:
        @fsd.remote(runtime_env=self.env(wheels, "tiny==1.0"))
        def read() -> tuple[str, str, str]:
            from importlib import metadata

            import tiny  # type: ignore[import-not-found]

            text = Path(tiny.__file__).with_name("data.txt").read_text()
            return tiny.word, text, metadata.version("tiny")

        assert fsd.get(read.remote()) == ("of 1.0", "data of 1.0", "1.0")

    def test_two_versions_each_keep_to_their_calls_in_one_worker(self, wheels: Path) -> None:
        envs = [self.env(wheels, f"tiny=={n}.0") for n in (1, 2)]
        found = [
            fsd.get(look.options(runtime_env=env).remote("tiny"))
            for env in (*envs, *reversed(envs), *envs)
        ]
        assert [version for _, version in found] == ["1.0", "2.0", "2.0", "1.0", "1.0", "2.0"]
        assert len({pid for pid, _ in found}) == 1
        with pytest.raises(ModuleNotFoundError) as raised:
            fsd.get(look.remote("tiny"))
        assert "runtime_env={'pip'" in raised.value.__notes__[0]

    def test_what_a_package_needs_comes_with_it(self, wheels: Path) -> None:
        @fsd.remote(runtime_env=self.env(wheels, "friend"))
        def seen() -> str:
            import friend  # type: ignore[import-not-found]

            return str(friend.seen)

        assert fsd.get(seen.remote()) == "1.0"

    def test_it_comes_before_what_is_installed_and_that_comes_back(self, wheels: Path) -> None:
        wheel(wheels, "tqdm", "0.1", {"tqdm/__init__.py": "version = 'mine'"})

        @fsd.remote
        def which() -> tuple[int, bool]:
            import tqdm

            return os.getpid(), getattr(tqdm, "version", None) == "mine"

        env = self.env(wheels, "tqdm==0.1")
        calls = [which, which.options(runtime_env=env)] * 2
        found = [fsd.get(call.remote()) for call in calls]
        assert [is_mine for _, is_mine in found] == [False, True, False, True]
        assert len({pid for pid, _ in found}) == 1

    @pytest.mark.slow_on_aws
    def test_a_native_module_is_imported(self, tmp_path: Path) -> None:
        include = sysconfig.get_path("include")
        compiler = shutil.which("cc")
        if compiler is None or not Path(include, "Python.h").exists():
            pytest.skip("no compiler, or no headers of Python")
        source = """
            #include <Python.h>
            static PyObject *answer(PyObject *s, PyObject *n) { return PyLong_FromLong(ANSWER); }
            static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""}, {0}};
            static struct PyModuleDef m = {PyModuleDef_HEAD_INIT, "natively", "", -1, methods};
            PyMODINIT_FUNC PyInit_natively(void) { return PyModule_Create(&m); }
            """
        (tmp_path / "natively.c").write_text(source)
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        envs = []
        for number in (42, 43):
            made = tmp_path / f"natively{suffix}"
            subprocess.run(
                [
                    *(compiler, "-shared", "-fPIC", f"-DANSWER={number}", f"-I{include}"),
                    *(str(tmp_path / "natively.c"), "-o", str(made)),
                ],
                check=True,
            )
            files: dict[str, str | bytes] = {made.name: made.read_bytes()}
            path = wheel(tmp_path / str(number), "natively", f"{number}", files)
            envs.append({"pip": [str(path)]})

        @fsd.remote
        def answer() -> tuple[int, int]:
            import natively  # type: ignore[import-not-found]

            return os.getpid(), natively.answer()

        found = [fsd.get(answer.options(runtime_env=env).remote()) for env in envs * 2]
        assert [number for _, number in found] == [42, 43, 42, 43]
        assert len({pid for pid, _ in found}) == 1

    @pytest.mark.slow_on_aws
    def test_calls_that_a_call_makes_have_it_unless_they_say_otherwise(self, wheels: Path) -> None:
        one, two = (self.env(wheels, f"tiny=={n}.0") for n in (1, 2))

        @fsd.remote
        def inner() -> str:
            return str(__import__("tiny").version)

        other = inner.options(runtime_env=two)

        @fsd.remote(runtime_env=one)
        def outer() -> list[str]:
            return fsd.get([inner.remote(), other.remote(), inner.remote()])

        assert fsd.get(outer.remote()) == ["1.0", "2.0", "1.0"]

    def test_gangs_maps_and_executors_have_it(self, wheels: Path) -> None:
        env = self.env(wheels, "tiny==2.0")

        @fsd.remote(world_size=3, runtime_env=env)
        def rank() -> Any:
            import tiny

            return fsd.collective.world().allgather(tiny.version)

        @fsd.remote(runtime_env=env)
        def version(number: int) -> str:
            import tiny

            return f"{number} {tiny.version}"

        assert fsd.get(rank.remote()) == [["2.0"] * 3] * 3
        assert list(version.map(range(3))) == ["0 2.0", "1 2.0", "2 2.0"]
        with fsd.Executor(runtime_env=env) as executor:
            assert executor.submit(version.__wrapped__, 7).result() == "7 2.0"
            assert list(executor.map(version.__wrapped__, [8])) == ["8 2.0"]

    def test_an_exception_that_only_the_package_has_arrives_as_text(self, wheels: Path) -> None:
        wheel(wheels, "angry", "1.0", {"angry.py": "class Angry(Exception): pass"})

        @fsd.remote(runtime_env=self.env(wheels, "angry"))
        def fail() -> None:
            import angry  # type: ignore[import-not-found]

            raise angry.Angry("very")

        with pytest.raises(fsd.errors.TaskError, match=r"Angry.*very"):
            fsd.get(fail.remote())

    def test_pips_failure_is_the_callers_at_once(self, wheels: Path) -> None:
        @fsd.remote(runtime_env=self.env(wheels, "friend", "tiny==2.0"))
        def never() -> None: ...

        with pytest.raises(SettingsError, match=r"(?s)could not install.*friend.*tiny<2"):
            never.remote()

    def test_it_is_stored_once_for_all_calls(self, wheels: Path) -> None:
        env = self.env(wheels, "tiny==1.0", "friend")
        objects = fsd.session.current().backend.objects
        call = look.options(runtime_env=env)
        fsd.get(call.remote("tiny"))
        before = fsd.loop.run(objects.list("modules/"))
        fsd.get([call.remote("tiny") for _ in range(5)])
        assert fsd.loop.run(objects.list("modules/")) == before


@pytest.mark.local_only("on AWS the worker has served other tests of the suite")
def test_workers_have_loaded_no_other_distribution() -> None:
    @fsd.remote
    def loaded() -> list[str]:
        # It uses nothing of this module, whose import would bring pytest's.
        import sys

        import numpy  # noqa: F401  # which the template imports when nobody waits

        return [str(getattr(module, "__file__", "")) for module in list(sys.modules.values())]

    fsd.shutdown()
    fsd.init(concurrency=1)  # in other sessions workers begin with what tests import
    try:
        paths = fsd.get(loaded.remote())
    finally:
        fsd.shutdown()
    known = (*packages.LOADED, "fsdray", "_distutils_hack", "__editable")
    assert not {
        path
        for path in paths
        if modules.INSTALLED & {*Path(path).parts} and not any(f"/{name}" in path for name in known)
    }


def test_a_sessions_runtime_env_is_that_of_all_its_calls(wheels: Path, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("version = 'beside'")
    default = {
        "pip": [f"--find-links {wheels}", "tiny==1.0"],
        "env_vars": {"FSDRAY_TEST_A": "session", "FSDRAY_TEST_B": "session"},
        "py_modules": [tmp_path / "beside.py"],
    }

    @fsd.remote
    def variables() -> tuple[str | None, str | None]:
        return os.environ.get("FSDRAY_TEST_A"), os.environ.get("FSDRAY_TEST_B")

    @fsd.remote
    def outer() -> Any:
        return fsd.get(look.remote("tiny", "beside"))

    with clean_session(runtime_env=default):
        assert fsd.get(outer.remote())[1:] == ["1.0", "beside"]
        own = {
            "pip": [f"--find-links {wheels}", "tiny==2.0"],
            "env_vars": {"FSDRAY_TEST_B": "call"},
        }
        assert fsd.get(look.options(runtime_env=own).remote("tiny", "beside"))[1:] == [
            "2.0",
            "beside",
        ]
        assert fsd.get(variables.options(runtime_env=own).remote()) == ("session", "call")
    with pytest.raises(SettingsError, match="'uv'"):
        fsd.init(runtime_env={"uv": []})
    assert not fsd.is_initialized()


@pytest.mark.local_only("its memory")
def test_where_shared_memory_runs_no_code_modules_lie_elsewhere(
    wheels: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # As Docker mounts it.
    monkeypatch.setattr(SessionDirectory, "runs_code", property(lambda _: False))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))

    @fsd.remote(runtime_env={"pip": [str(wheels / "tiny-1.0-py3-none-any.whl")]})
    def where() -> str:
        import tiny

        return str(tiny.__file__)

    with contextlib.ExitStack() as stack:
        stack.enter_context(clean_session())
        assert fsd.get(where.remote()).startswith(f"{tmp_path}/")
    assert not list(tmp_path.glob("fsdray-*"))
