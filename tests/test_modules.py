"""Modules of the user's own: which they are, what is followed and packed, and what workers get."""

from __future__ import annotations

import io
import json
import keyword
import os
import subprocess
import sys
import textwrap
import threading
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fsdray as fsd
from fsdray import environment, modules, wire
from fsdray.errors import ServiceError, SettingsError, TaskError
from fsdray.runtime_env import RuntimeEnv
from tests import on_aws

LOCK = threading.Lock()
ROOT = Path(__file__).resolve().parent.parent

NAMES = st.from_regex(r"[a-z]{1,4}", fullmatch=True).filter(lambda n: not keyword.iskeyword(n))
DOTTED = st.lists(NAMES, min_size=1, max_size=3).map(".".join)


def write(folder: Path, files: dict[str, str]) -> Path:
    """Source files by their paths without the suffix."""
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return folder


def run(folder: Path, code: str, **variables: str) -> Any:
    """What a script in `folder` prints as JSON, after ``import fsdray as fsd``."""
    script = folder / "script.py"
    script.write_text("import json, sys\nimport fsdray as fsd\n" + textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# Whose a module is


@pytest.mark.parametrize(
    "name", ["os", "sys", "json.decoder", "numpy", "numpy.linalg", "fsdray.wire", "__main__"]
)
def test_what_is_installed_or_the_standard_library_or_ours_is_not_the_users(name: str) -> None:
    assert not modules.is_own(name)


def test_a_module_that_lies_outside_of_what_is_installed_is_the_users() -> None:
    assert modules.is_own("tests.test_modules")
    assert not modules.is_own("no_such_module_anywhere")


@pytest.mark.parametrize(
    ("path", "own"),
    [
        (json.__file__, False),
        (np.__file__, False),
        ("/usr/lib/python3/dist-packages/six.py", False),
        ("/home/me/project/helper.py", True),
        (__file__, True),
    ],
)
def test_whose_a_file_is_follows_from_where_it_lies(path: str, own: bool) -> None:
    assert modules.is_own_file(path) is own


# What code imports


@given(DOTTED, st.integers(0, 4), st.one_of(st.just(""), DOTTED))
def test_relative_names_are_those_of_the_importer_itself(
    name: str, level: int, package: str
) -> None:
    found = modules.absolute(name, level, package)
    try:
        expected = importlib_absolute(name, level, package)
    except ImportError:
        expected = None
    assert found == expected


def importlib_absolute(name: str, level: int, package: str) -> str:
    """The standard library's own rule."""
    import importlib.util

    return importlib.util.resolve_name("." * level + name, package)


@given(DOTTED, DOTTED, DOTTED, NAMES)
def test_imports_are_found_wherever_they_stand(a: str, b: str, c: str, d: str) -> None:
    code = compile(
        f"import {a}\n"
        f"def outer():\n"
        f"    class Inner:\n"
        f"        def method(self):\n"
        f"            from {b} import {d} as other\n"
        f"    return lambda: importlib.import_module('{c}')\n",
        "made up",
        "exec",
    )
    assert modules.imports(code, "") == {a, b, f"{b}.{d}", c}


def test_relative_imports_are_resolved_in_their_package() -> None:
    text = "from . import a\nfrom .b import c\nfrom .. import d\nfrom ..e.f import *\n"
    found = modules.imports(compile(text, "made up", "exec"), "top.mid")
    assert found == {"top.mid", "top.mid.a", "top.mid.b", "top.mid.b.c", "top", "top.d", "top.e.f"}


@settings(max_examples=30)
@given(st.dictionaries(st.sampled_from("abcdef"), st.sets(st.sampled_from("abcdef"), max_size=3)))
def test_the_closure_is_what_an_interpreter_really_imports(links: dict[str, set[str]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name in "abcdef":
            lines = [f"import own_{other}" for other in sorted(links.get(name, ()))]
            (folder / f"own_{name}.py").write_text("\n".join(lines))
        sys.path.insert(0, made)
        try:
            found = modules.Catalog().bundles(frozenset({"own_a"}))
            __import__("own_a")
            really = {name for name in sys.modules if name.startswith("own_")}
        finally:
            sys.path.remove(made)
            for name in [name for name in sys.modules if name.startswith("own_")]:
                del sys.modules[name]
            sys.path_importer_cache.pop(made, None)
    assert set(found) == really


# Bundles


@given(st.dictionaries(DOTTED, st.binary(max_size=50)), st.randoms(use_true_random=False))
def test_a_bundle_depends_on_names_and_contents_alone(files: dict[str, bytes], rng: Any) -> None:
    shuffled = list(files.items())
    rng.shuffle(shuffled)
    data = modules.zipped(files)
    assert modules.zipped(dict(shuffled)) == data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files


def test_a_package_travels_with_its_data_and_without_what_is_ignored(tmp_path: Path) -> None:
    package = write(tmp_path, {"pack/__init__": "", "pack/sub/mod": "x = 1"}) / "pack"
    (package / "table.csv").write_text("1,2")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "mod.pyc").write_bytes(b"")
    (package / "raw").mkdir()
    (package / "raw" / "video.bin").write_bytes(b"")
    (package / "sub" / "up").symlink_to(package)
    (package / ".fsdrayignore").write_text("# what functions do not need\nraw/\n")
    bundle = modules.Catalog().pack((package,), "pack")
    names = zipfile.ZipFile(io.BytesIO(bundle.data)).namelist()
    assert names == [
        "pack/.fsdrayignore",
        "pack/__init__.py",
        "pack/sub/mod.py",
        "pack/table.csv",
    ]


def test_a_package_that_is_too_large_is_named_with_its_largest_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules, "LIMIT", 1000)
    (tmp_path / "weights.bin").write_bytes(bytes(2000))
    with pytest.raises(SettingsError, match=r"(?s)weights\.bin") as raised:
        modules.Catalog().pack((tmp_path,), "pack")
    assert str(tmp_path) in str(raised.value)
    assert modules.IGNORE in str(raised.value)
    (tmp_path / modules.IGNORE).write_text("*.bin\n")
    assert modules.Catalog().pack((tmp_path,), "pack").digest


def test_a_changed_file_is_another_bundle_and_an_unchanged_one_the_same(tmp_path: Path) -> None:
    write(tmp_path, {"pack/__init__": "", "pack/mod": "x = 1"})
    catalog, place = modules.Catalog(), (tmp_path / "pack",)
    first = catalog.pack(place, "pack")
    assert modules.Catalog().pack(place, "pack") == first
    write(tmp_path, {"pack/mod": "x = 1000"})
    assert modules.Catalog().pack(place, "pack").digest != first.digest


# At the other end


@pytest.mark.parametrize("name", ["/etc/passwd", "../up.py", "a/../../up.py", "a\\..\\b.py"])
def test_a_member_that_would_lie_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    import hashlib

    data = modules.zipped({name: b"bad"})
    digest = hashlib.sha256(data).hexdigest()
    with pytest.raises(ServiceError, match="outside"):
        environment.unpacked(tmp_path, digest, lambda _: data)
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_are_not_those_of_their_digest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="other bytes"):
        environment.unpacked(tmp_path, "0" * 64, lambda _: modules.zipped({}))


def test_what_is_unpacked_is_fetched_once_however_many_want_it(tmp_path: Path) -> None:
    bundle = modules.Catalog().pack((Path(__file__),), None)
    fetched: list[str] = []

    def fetch(digest: str) -> bytes:
        fetched.append(digest)
        return bundle.data

    places = {environment.unpacked(tmp_path, bundle.digest, fetch) for _ in range(3)}
    assert fetched == [bundle.digest]
    [place] = places
    assert (place / "test_modules.py").read_bytes() == Path(__file__).read_bytes()


def test_a_worker_finds_nothing_through_editable_installs() -> None:
    code = """
        import sys
        from fsdray.environment import only_installed
        Finder = type("_EditableFinder", (), {"find_spec": lambda *_: None})
        Finder.__module__ = "__editable___mine_0_1_finder"
        sys.meta_path += [Finder, Finder()]
        sys.path += ["", "/home/me/src", "__editable__.mine.finder.__path_hook__"]
        only_installed()
        assert not {Finder} & {*sys.meta_path, *map(type, sys.meta_path)}
        assert not [path for path in sys.path if "me" in path.split("/") or "edit" in path]
        import json.tool, fsdray.worker, numpy
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr


# Tasks in this module, which travels as source


@fsd.remote
def with_lock(value: int) -> int:
    with LOCK:
        return value + 1


@pytest.mark.usefixtures("session")
class TestTasks:
    """What only needs a session."""

    def test_a_modules_lock_and_state_are_the_modules_own(self) -> None:
        assert fsd.get(with_lock.remote(1)) == 2

        @fsd.remote
        def closure() -> bool:
            with LOCK:
                return LOCK is sys.modules["tests.test_modules"].LOCK  # type: ignore[attr-defined]

        assert fsd.get(closure.remote())

    def test_nothing_of_a_module_is_in_the_pickle_of_its_function(self) -> None:
        with wire.collecting_modules() as needed:
            data = wire.encode_function(with_lock.__wrapped__)
        assert len(data) < 150
        assert "tests.test_modules" in needed

    def test_variables_are_set_for_the_call_alone(self) -> None:
        @fsd.remote
        def look() -> str | None:
            return os.environ.get("FSDRAY_TEST_COLOUR")

        @fsd.remote
        def nested() -> Any:
            return fsd.get(look.remote())

        env = {"env_vars": {"FSDRAY_TEST_COLOUR": "green"}}
        assert fsd.get(look.options(runtime_env=env).remote()) == "green"
        assert fsd.get(nested.options(runtime_env=env).remote()) == "green"
        assert [fsd.get(look.remote()) for _ in range(3)] == [None] * 3

    def test_a_working_directory_travels_and_is_where_the_call_runs(self, tmp_path: Path) -> None:
        write(tmp_path, {"beside": "word = 'beside'"})
        (tmp_path / "data.txt").write_text("travelled")

        @fsd.remote(runtime_env={"working_dir": str(tmp_path)})
        def read() -> tuple[str, str, str]:
            import beside

            return Path("data.txt").read_text(), beside.word, os.getcwd()

        @fsd.remote
        def outer() -> Any:
            return fsd.get(read.remote())

        text, word, place = fsd.get(read.remote())
        assert (text, word) == ("travelled", "beside")
        assert Path(place) != tmp_path
        assert fsd.get(outer.remote())[:2] == ("travelled", "beside")
        after = fsd.get(fsd.remote(os.getcwd).remote())
        assert after == os.getcwd() or on_aws.is_chosen(), "this machine's functions are beside us"

    def test_a_directory_of_data_hides_no_package_of_its_name(self, tmp_path: Path) -> None:
        write(tmp_path, {"numpy/table": "", "fsdray/table": "", "json": "raise SystemExit"})

        @fsd.remote(runtime_env={"working_dir": tmp_path})
        def look(array: Any) -> tuple[bool, bool]:
            import json

            import numpy

            return type(array) is numpy.ndarray, json.loads("true")

        assert fsd.get(look.remote(np.ones(3))) == (True, True)

    def test_a_remote_function_inside_another_takes_its_directory_along(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "data.txt").write_text("inner")

        @fsd.remote(runtime_env={"working_dir": tmp_path, "env_vars": {"FSDRAY_TEST_A": "a"}})
        def read() -> tuple[str, str]:
            return Path("data.txt").read_text(), os.environ["FSDRAY_TEST_A"]

        @fsd.remote
        def outer(task: Any) -> Any:
            return fsd.get(task.remote())

        assert fsd.get(outer.remote(read)) == ("inner", "a")

    def test_py_modules_travel_though_nothing_imports_them(self, tmp_path: Path) -> None:
        write(
            tmp_path,
            {
                "plug/__init__": "from .inner import word",
                "plug/inner": "word = 'in'",
                "single": "word = 'single'",
            },
        )

        @fsd.remote
        def load(names: list[str]) -> list[str]:
            return [__import__(name).word for name in names]

        paths = [tmp_path / "plug", str(tmp_path / "single.py")]
        env = {"py_modules": paths}
        assert fsd.get(load.options(runtime_env=env).remote(["plug", "single"])) == ["in", "single"]
        with pytest.raises(ModuleNotFoundError):
            fsd.get(load.remote(["plug"]))

    def test_two_versions_of_a_module_each_keep_to_their_calls(self, tmp_path: Path) -> None:
        for number in (1, 2):
            write(
                tmp_path,
                {
                    f"v{number}/twice": f"import twice_inner\nversion = {number}",
                    f"v{number}/twice_inner": f"version = {number}",
                },
            )

        @fsd.remote
        def look() -> tuple[int, int]:
            import twice  # type: ignore[import-not-found]

            return twice.version, twice.twice_inner.version

        def version(number: int) -> Any:
            places = [tmp_path / f"v{number}" / f"{name}.py" for name in ("twice", "twice_inner")]
            return fsd.get(look.options(runtime_env={"py_modules": places}).remote())

        assert [version(n) for n in (1, 2, 1, 2)] == [(1, 1), (2, 2), (1, 1), (2, 2)]

    def test_a_module_that_is_missing_is_named_with_how_to_ship_it(self) -> None:
        @fsd.remote
        def missing() -> None:
            import no_such_module_anywhere  # type: ignore[import-not-found]  # noqa: F401

        with pytest.raises(ModuleNotFoundError) as raised:
            fsd.get(missing.remote())
        assert isinstance(raised.value, TaskError)
        note, *_ = raised.value.__notes__
        assert "'no_such_module_anywhere'" in note
        assert "py_modules" in note

    def test_a_name_that_a_module_lacks_is_told_with_the_modules_file(self) -> None:
        @fsd.remote
        def missing() -> None:
            from tests.conftest import nothing  # type: ignore[attr-defined]  # noqa: F401

        with pytest.raises(ImportError) as raised:
            fsd.get(missing.remote())
        note, *_ = raised.value.__notes__
        assert "conftest.py" in note

    @pytest.mark.local_only("the editable install of these tests is on the Lambda host's path too")
    def test_a_worker_imports_from_none_of_the_callers_directories(self) -> None:
        @fsd.remote
        def paths() -> list[str]:
            return sys.path

        found = fsd.get(paths.remote())
        mine = {path for path in sys.path if path and not modules.is_installed_path(path)}
        assert mine.isdisjoint(found)
        assert "" not in found
        assert os.getcwd() not in found


@pytest.mark.parametrize(
    ("env", "says"),
    [
        (3, "give a dict"),
        ({"uv": ["six"]}, "'uv'.*as pip"),
        ({"image_uri": "there"}, "'image_uri'.*as pip"),
        ({"pip": 3}, "list of requirements"),
        ({"pip": [3]}, "pip has 3"),
        ({"pip": "/no/such/file.txt"}, "not a file"),
        ({"pip": {"packages": ["six"], "pip_version": "==20"}}, "'pip_version'.*interpreter"),
        ({"pip": {"pip_check": True}}, "no 'packages'"),
        ({"pip": {"packages": ["six"], "pip_check": 1}}, "pip_check=1"),
        ({"conda": "env"}, "'conda'"),
        ({"colour": 1}, "no 'colour'"),
        ({"env_vars": ["A=1"]}, "give a dict of names"),
        ({"env_vars": {"A": 1}}, "A=1"),
        ({"env_vars": {"A=": "1"}}, "without '='"),
        ({"working_dir": 3}, "path of a directory"),
        ({"working_dir": "/no/such/place"}, "not a directory"),
        ({"py_modules": "single.py"}, "a list"),
        ({"py_modules": [3]}, "paths or modules"),
        ({"py_modules": ["/no/such/place.py"]}, "neither"),
        ({"py_modules": [types.ModuleType("made_up")]}, "no Python source"),
    ],
)
def test_a_bad_runtime_env_is_an_error_at_once(env: Any, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        with_lock.options(runtime_env=env)


def test_modules_can_be_named_by_themselves() -> None:
    import tests.conftest

    found = RuntimeEnv.of({"py_modules": [tests.conftest]})
    assert found is not None
    assert found.py_modules == (ROOT / "tests",)


# Scripts, as users have them


def test_a_script_needs_no_setting_for_the_modules_beside_it(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "helper": """
                import threading, fsdray as fsd
                lock = threading.Lock()
                thread = threading.Thread(target=print)
                class Box:
                    def __init__(self, value): self.value = value
                @fsd.remote
                def locked(box):
                    from late import triple
                    with lock: return Box(triple(box.value))
                """,
            "late": """
                import importlib
                def triple(x): return importlib.import_module('last').times(x)
                """,
            "last": "def times(x): return 3 * x",
            "pack/__init__": "from . import one",
            "pack/one": "from . import two\ndef ping(n): return two.pong(n - 1) if n else 'end'",
            "pack/two": "from . import one\ndef pong(n): return one.ping(n)",
            "pack/data": """
                from pathlib import Path
                def text(): return Path(__file__).with_name('words.txt').read_text()
                """,
            "space/portion/deep": "word = 'deep'",
            "unused": "raise SystemExit('nobody imports this')",
        },
    )
    (tmp_path / "pack" / "words.txt").write_text("words")
    found = run(
        tmp_path,
        """
        import helper, pack.data
        @fsd.remote
        def everything(n):
            import space.portion.deep
            return pack.one.ping(n), pack.data.text(), space.portion.deep.word
        @fsd.remote
        def loaded():
            import importlib.util
            return importlib.util.find_spec("unused") is None and "script" not in sys.path[0]
        @fsd.remote
        def unbox(box): return box.value
        @fsd.remote
        def nested(): return fsd.get(helper.locked.remote(helper.Box(1))).value
        print(json.dumps([
            fsd.get(everything.remote(5)),
            fsd.get(helper.locked.remote(helper.Box(2))).value,
            fsd.get(loaded.remote()),
            fsd.get(unbox.remote(fsd.put(helper.Box("put")))),
            fsd.get(unbox.remote(helper.locked.remote(helper.Box(5)))),
            fsd.get(nested.remote()),
        ]))
        """,
    )
    assert found == [["end", "words", "deep"], 6, True, "put", 15, 3]


def test_an_argument_alone_brings_the_module_of_its_class(tmp_path: Path) -> None:
    write(tmp_path, {"shapes": "class Square:\n    def __init__(self, a): self.a = a"})
    found = run(
        tmp_path,
        """
        import shapes
        @fsd.remote
        def grow(shape): shape.a += 1; return shape
        bigger = fsd.get(grow.remote(shapes.Square(3)))
        print(json.dumps([type(bigger) is shapes.Square, bigger.a]))
        """,
    )
    assert found == [True, 4]


def test_a_module_that_changes_in_a_session_is_new_in_warm_workers(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "helper": "import inner\nversion = 1\ndef both(): return [version, inner.version]",
            "inner": "version = 1",
        },
    )
    found = run(
        tmp_path,
        """
        import importlib, pathlib, helper, inner
        @fsd.remote
        def look(): return helper.both()
        seen = [fsd.get(look.remote())]
        for name, module in (("inner", inner), ("helper", helper)):
            path = pathlib.Path(module.__file__)
            path.write_text(path.read_text().replace("version = 1", "version = 1000"))
            importlib.reload(module)
            seen.append(fsd.get(look.remote()))
        print(json.dumps(seen))
        """,
    )
    assert found == [[1, 1], [1, 1000], [1000, 1000]]


def test_what_the_caller_finds_before_an_installed_module_workers_do_too(tmp_path: Path) -> None:
    write(tmp_path, {"_pytest": "word = 'mine'"})
    found = run(
        tmp_path,
        """
        import _pytest
        @fsd.remote
        def word(): return _pytest.word
        print(json.dumps(fsd.get(word.remote())))
        """,
    )
    assert found == "mine"


def test_modules_on_the_callers_pythonpath_travel_and_the_path_does_not(tmp_path: Path) -> None:
    extra = write(tmp_path / "extra", {"elsewhere": "word = 'there'"})
    found = run(
        tmp_path,
        """
        import elsewhere
        @fsd.remote
        def look(): return elsewhere.word, sys.path
        print(json.dumps(fsd.get(look.remote())))
        """,
        PYTHONPATH=f"{ROOT}:{extra}",
    )
    word, paths = found
    assert word == "there"
    assert {str(extra), str(tmp_path), str(ROOT)}.isdisjoint(paths)


def test_the_ranks_of_a_gang_have_the_modules_too(tmp_path: Path) -> None:
    write(tmp_path, {"helper": "def twice(x): return 2 * x"})
    found = run(
        tmp_path,
        """
        import helper
        @fsd.remote(world_size=3)
        def rank(x): return fsd.collective.world().allreduce(helper.twice(x))
        print(json.dumps(fsd.get(rank.remote(fsd.per_rank([1, 2, 3])))))
        """,
    )
    assert found == [12, 12, 12]


def test_a_module_run_with_dash_m_may_import_relatively_in_its_functions(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "app/__init__": "",
            "app/tools": "word = 'tools'",
            "app/main": """
                import fsdray as fsd
                @fsd.remote
                def look():
                    from .tools import word
                    return word
                if __name__ == "__main__":
                    print(fsd.get(look.remote()))
                """,
        },
    )
    done = subprocess.run(
        [sys.executable, "-m", "app.main"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "tools\n", done.stderr
