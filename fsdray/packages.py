"""Packages that a call asks for by requirement: pip installs them once, at the caller.

What pip made is kept on the caller's disk as one zip file, and travels as a bundle like the
user's own modules (`fsdray.modules`). How a worker imports from it is in `fsdray.environment`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache as cached
from pathlib import Path
from typing import Any

from fsdray.errors import SettingsError
from fsdray.modules import Bundle, Look, stamp_of, zip_entry
from fsdray.services import MIB

LIMIT = 250 * MIB  # bytes of all packages, unpacked: what a Lambda function may have
LOADED = ("cloudpickle", "numpy", "xxhash", "zstandard")
"""Distributions that fsdray itself has imported in every worker: no call can have others."""

_FORMAT = 1  # of the cache's files
_KEPT = 30 * 24 * 3600.0  # seconds that what nobody uses stays in the cache
_QUIET = 1.0  # seconds of installing that are not worth a line
_LINES = 15  # of pip's output, in an error
_SHOWN = 3  # of the largest packages, in an error
_PIECE = MIB  # bytes copied at a time
_FILE = re.compile(r"\s*(?:-r|-c|--requirement|--constraint)(?:[\s=]+)?(\S+)")
_EDITABLE = re.compile(r"\s*(?:-e|--editable)\b")


@dataclass(frozen=True)
class Target:
    """Where packages are to run.

    Parameters
    ----------
    python : its version, as "3.12".
    platforms : tags of the wheels that it can have, as ``manylinux2014_aarch64``; none for this
        machine.
    provided : what it has already and cannot have otherwise, as ``numpy==2.3.1``.
    """

    python: str
    platforms: tuple[str, ...] = ()
    provided: tuple[str, ...] = ()

    @staticmethod
    @cached
    def here() -> Target:
        """This interpreter, on this machine."""
        versions = {name: _version(name) for name in LOADED}
        return Target(
            f"{sys.version_info.major}.{sys.version_info.minor}",
            (),
            tuple(f"{name}=={version}" for name, version in versions.items() if version),
        )


def command(target: Target, requirements: Path, folder: Path) -> list[str]:
    """How pip is called to install a file of requirements into a directory."""
    arguments = [
        *(sys.executable, "-P", "-m", "pip", "install"),
        *("--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--no-compile"),
        *("--target", str(folder), "-r", str(requirements)),
    ]
    if target.platforms:
        # Nothing can be built here for another machine.
        arguments += ["--only-binary=:all:", "--implementation", "cp"]
        arguments += ["--python-version", target.python]
        arguments += [part for each in target.platforms for part in ("--platform", each)]
    return arguments


@dataclass(frozen=True)
class Requirements:
    """What a user asks pip for: lines of requirements, or the path of a file of them."""

    lines: tuple[str, ...]
    folder: str  # where relative paths begin

    @staticmethod
    def of(given: Any, is_caller: bool) -> Requirements | None:
        """``runtime_env``'s ``pip``, checked.

        Parameters
        ----------
        is_caller : whether paths are those of this machine.

        Raises
        ------
        SettingsError
            for what cannot be had.
        """
        if isinstance(given, Mapping):
            given = _packages_of(given)
        folder = os.getcwd()
        if isinstance(given, str | os.PathLike):
            path = Path(given).expanduser().absolute()
            if is_caller and not path.is_file():
                raise SettingsError(f"pip={str(given)!r} is not a file of requirements")
            return Requirements((f"-r {path}",), folder)
        if not hasattr(given, "__iter__"):
            raise SettingsError(f"pip={given!r}: give a list of requirements, or a file's path")
        lines = tuple(given)
        for line in lines:
            if not isinstance(line, str) or "\n" in line:
                raise SettingsError(f"pip has {line!r}: give requirements as pip knows them")
        return Requirements(lines, folder) if lines else None

    @property
    def title(self) -> str:
        """What is installed, for a message."""
        return ", ".join(line.removeprefix("-r ") for line in self.lines)

    def contents(self) -> Iterator[tuple[str, str]]:
        """The paths of all files of requirements with what they say; "" for the lines given."""
        waiting: list[tuple[str, str]] = [("", "\n".join(self.lines))]
        seen = set()
        while waiting:
            path, text = waiting.pop()
            yield path, text
            for line in text.splitlines():
                if _EDITABLE.match(line):
                    raise SettingsError(
                        f"pip has {line.strip()!r}: an editable install is only a note of where "
                        "files are here. Give the path without it"
                    )
                named = _FILE.match(line)
                if named is None or "://" in named[1]:
                    continue
                inner = os.path.normpath(
                    os.path.join(os.path.dirname(path) or self.folder, named[1])
                )
                if inner not in seen:
                    seen.add(inner)
                    waiting.append((inner, _read(inner)))


def _packages_of(given: Mapping[str, Any]) -> Any:
    """What Ray's dict form of ``pip`` asks for."""
    for name, value in given.items():
        if name in ("packages", "pip_check"):
            continue
        if name not in _REFUSED:
            raise SettingsError(f"pip has no {name!r}: give packages")
        if value is not None:
            raise SettingsError(f"pip cannot have {name!r}: {_REFUSED[name]}")
    check = given.get("pip_check", False)
    if not isinstance(check, bool):
        raise SettingsError(f"pip_check={check!r}: give True or False")
    if "packages" not in given:
        raise SettingsError("pip has no 'packages': give a list of requirements")
    # All is installed at once and by itself: pip has refused what does not fit together.
    return given["packages"]


_REFUSED = {
    "pip_version": "the pip of your own interpreter is used; install the one that you want there",
    "pip_install_options": "pip reads your PIP_* variables and your pip.conf; options that a "
    "file of requirements can have may be lines among the packages",
}


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the requirements in {path!r}: {error}") from error


class Installer:
    """Installs what is asked for, and nothing twice: neither here nor in another process.

    A requirement without an exact version stays at what it was installed with first, as long as
    the cache has it.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], tuple[Bundle, Look]] = {}

    def bundle(self, wanted: Requirements, target: Target, cache: Path) -> Bundle:
        """The packages, installed and packed.

        Raises
        ------
        SettingsError
            where pip fails, with its last lines; where there is no pip; for what is too large.
        """
        variables = {name: v for name, v in os.environ.items() if name.startswith("PIP_")}
        asked = wanted, target, cache, tuple(sorted(variables.items()))
        known = self._known.get(asked)
        if known is not None and known[1].is_fresh():
            return known[0]
        contents = list(wanted.contents())
        stamps = dict(_stamps(wanted.folder, contents))
        machine = sysconfig.get_config_var("SOABI")  # a home directory may serve several
        facts = repr((_FORMAT, machine, *asked, contents, stamps))
        key = hashlib.sha256(facts.encode()).hexdigest()[:32]
        try:
            path = _installed(cache / "pip", key, wanted, target)
            with path.open("rb") as file:
                data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise SettingsError(
                f"cannot keep what pip installs in {cache}: {error}. Give another place with "
                "fsdray.init(cache=...) or FSDRAY_CACHE"
            ) from error
        bundle = Bundle(path.stem.rpartition("-")[2], data)
        self._known[asked] = bundle, Look(stamps)
        return bundle


installer = Installer()
"""That of this process."""


def _stamps(folder: str, contents: Iterable[tuple[str, str]]) -> Iterator[tuple[str, Any]]:
    """Files and directories that requirements name, and what they look like."""
    for file, text in contents:
        if file:
            yield file, stamp_of(file)
        for word in re.split(r"[\s=,;@]+", text):
            named = os.path.join(folder, word.removeprefix("file://").partition("#")[0])
            if "/" not in word and not word.endswith((".whl", ".zip", ".gz", ".txt")):
                continue  # a name is not a file, even where there is one
            if os.path.isdir(named):
                for at, _, files in os.walk(named):
                    yield at, stamp_of(at)
                    yield from (
                        (each, stamp_of(each)) for each in (f"{at}/{name}" for name in files)
                    )
            elif os.path.exists(named):
                yield named, stamp_of(named)


def _installed(directory: Path, key: str, wanted: Requirements, target: Target) -> Path:
    """The zip file with what is asked for: kept from before, or made now."""
    directory.mkdir(parents=True, exist_ok=True)
    with (
        telling(f"fsdray: installing {wanted.title} with pip"),
        locked(directory / f"{key}.lock"),
    ):
        for path in directory.glob(f"{key}-*.zip"):
            os.utime(path)  # it is in use
            return path
        _sweep(directory)
        with tempfile.TemporaryDirectory(prefix=f".{key}-", dir=directory) as made:
            return _install(Path(made), directory / key, wanted, target)


def _install(making: Path, place: Path, wanted: Requirements, target: Target) -> Path:
    folder, requirements = making / "packages", making / "requirements.txt"
    constraints = making / "what-fsdray-itself-has-loaded.txt"
    constraints.write_text("\n".join(target.provided))
    requirements.write_text("\n".join((f"-c {constraints}", *map(_absolute(wanted), wanted.lines))))
    hint = ""
    if target.provided:
        hint = (
            f". Where functions run, fsdray itself has imported {', '.join(target.provided)}, "
            "and no others can be had beside them"
        )
    run_pip(
        command(target, requirements, folder),
        f"pip could not install {wanted.title} for a call",
        wanted.folder,
        "runtime_env's pip",
        hint,
    )
    folder.mkdir(exist_ok=True)  # all that was asked for may be comments
    _remove(folder, {each.partition("==")[0] for each in target.provided} | {"fsdray"})
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    sizes = {inner: path.stat().st_size for inner, path in files.items()}
    if sum(sizes.values()) > LIMIT:
        raise SettingsError(_too_large(wanted, sizes))
    packed = making / "packed.zip"
    _zip(packed, files)
    with packed.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return packed.rename(place.with_name(f"{place.name}-{digest}.zip"))


def _absolute(wanted: Requirements) -> Any:
    """Lines that name other files of requirements relatively are no longer where they were."""

    def line(text: str) -> str:
        named = _FILE.match(text)
        if named is None or "://" in named[1]:
            return text
        return text[: named.start(1)] + os.path.join(wanted.folder, named[1])

    return line


def run_pip(arguments: Sequence[str], failure: str, folder: str, needed_by: str, hint: str) -> None:
    """Run a command of `command`.

    Parameters
    ----------
    failure : what an error begins with.
    folder : where relative paths begin.
    needed_by : what cannot be had without pip.
    hint : said where a constraint is what cannot be met.

    Raises
    ------
    SettingsError
        where pip fails, with its last lines, or where there is none.
    """
    # Both mean the user's own environment, which is not touched.
    variables = os.environ | {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    done = subprocess.run(
        arguments,
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        if "No module named pip" in done.stdout:
            raise SettingsError(
                f"{needed_by} needs pip, which {sys.executable} does not have: "
                "python -m ensurepip, or uv pip install pip"
            )
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        shown = "\n".join(f"  | {line}" for line in lines[-_LINES:])
        why = hint if "(constraint)" in done.stdout else ""
        raise SettingsError(f"{failure}{why}:\n{shown}")


def _remove(folder: Path, names: Iterable[str]) -> None:
    """Remove distributions that are where functions run already, in the same version."""
    import csv

    unwanted = {_normal(name) for name in names}
    for info in list(folder.glob("*.dist-info")):
        if _normal(info.name.partition("-")[0]) not in unwanted:
            continue
        with contextlib.suppress(FileNotFoundError), (info / "RECORD").open(newline="") as record:
            for name, *_ in csv.reader(record):
                path = folder / name
                if path.is_relative_to(folder) and ".." not in path.parts:
                    path.unlink(missing_ok=True)
        shutil.rmtree(info, ignore_errors=True)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _normal(name: str) -> str:
    """A distribution's name as it is compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _zip(place: Path, files: Mapping[str, Path]) -> None:
    """A zip file that depends on nothing but names, contents and what can be executed."""
    with zipfile.ZipFile(place, "w") as archive:
        for inner in sorted(files):
            path = files[inner]
            about = zip_entry(inner, executable=os.access(path, os.X_OK))
            about.file_size = path.stat().st_size  # whether it needs 64 bits
            with path.open("rb") as source, archive.open(about, "w") as copy:
                shutil.copyfileobj(source, copy, _PIECE)


def _too_large(wanted: Requirements, sizes: Mapping[str, int]) -> str:
    tops: dict[str, int] = {}
    for inner, size in sizes.items():
        top = inner.partition("/")[0]
        tops[top] = tops.get(top, 0) + size
    largest = sorted(tops, key=lambda top: -tops[top])[:_SHOWN]
    shown = ", ".join(f"{top} ({tops[top] / MIB:.0f} MB)" for top in largest)
    return (
        f"pip={wanted.title} holds {sum(sizes.values()) / MIB:.0f} MB with all that it needs; at "
        f"most {LIMIT // MIB} MB can go with a call. Install the largest where functions run: "
        f"{shown}"
    )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that a file stands for, against other processes too."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def telling(text: str) -> Iterator[None]:
    """Say on stderr what takes more than a moment."""
    alarm = threading.Timer(_QUIET, lambda: print(f"{text} ...", file=sys.stderr, flush=True))
    alarm.daemon = True
    alarm.start()
    try:
        yield
    finally:
        alarm.cancel()


def _sweep(directory: Path) -> None:
    """Remove what nobody has used for long, and what a killed process left."""
    oldest = time.time() - _KEPT
    for path in directory.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process sweeps too
            if path.stat().st_mtime < oldest:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def _version(name: str) -> str | None:
    from importlib import metadata  # 30 ms that only an installation needs

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
