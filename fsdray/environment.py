"""What travelled with a call, at its other end: modules to import, variables, a directory.

A worker has one `Surroundings` and enters it for each call. What travels is decided in
`fsdray.modules` and `fsdray.session`.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib
import io
import os
import shutil
import sys
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from fsdray.errors import FsdrayError, ServiceError
from fsdray.modules import INSTALLED, RESERVED, is_installed_path
from fsdray.services import Buffer
from fsdray.wire import Environment

_WORLDS = 8  # sets of modules that a worker keeps imported
_PIECE = 64 * 1024  # bytes that are read at a time
_NOTE = "fsdray: "

Fetch = Callable[[str], Buffer]
"""The bytes of the bundle with this digest."""


class Surroundings:
    """What calls in this process import from and run in.

    Parameters
    ----------
    shared : a directory for unpacked modules, which may belong to several processes at once.
    private : a directory of this process for what calls may write to.
    """

    def __init__(self, shared: Path, private: Path) -> None:
        self._shared = shared
        self._private = private
        self._paths: tuple[str, ...] = ()
        self._owners: dict[str, str] = {}  # top-level modules, and the path that has each
        self._layers = Layers()
        # Modules stay imported with the set of bundles that they were imported from: what was
        # imported from one version of a module must not meet another.
        self._worlds: OrderedDict[tuple[str, ...], dict[str, ModuleType]] = OrderedDict()

    @contextmanager
    def entered(self, environment: Environment, fetch: Fetch) -> Iterator[None]:
        """Where a call runs; variables and directory are as before when it has ended."""
        if not environment.modules and not self._paths and environment == Environment():
            yield
            return
        folders = [unpacked(self._shared, digest, fetch) for digest in environment.modules]
        home: Path | None = None
        if environment.working_dir is not None:
            home = unpacked(self._private, environment.working_dir, fetch)
            folders.append(home)
        packages: str | None = None
        if environment.packages is not None:
            packages = str(unpacked(self._shared, environment.packages, fetch))
        self._import_from(tuple(map(str, folders)), packages)
        with contextlib.ExitStack() as undo:
            if environment.env_vars:
                undo.enter_context(_variables(dict(environment.env_vars)))
            if home is not None:
                undo.enter_context(contextlib.chdir(home))
            yield

    def _import_from(self, own: tuple[str, ...], packages: str | None) -> None:
        paths = own if packages is None else (*own, packages)
        if paths == self._paths:
            return
        owners = {name: path for path in reversed(own) for name in _top_level(path)}
        is_other = packages != self._layers.current
        if not is_other and all(owners.get(name) == path for name, path in self._owners.items()):
            # Nothing that is imported changes. What is new may hide something installed.
            for name in [name for name in owners if name not in self._owners]:
                _take_out({name})
        else:
            self._worlds[self._paths] = _take_out({*self._owners, *owners})
            if is_other:
                self._layers.change(packages)
            sys.modules.update(self._worlds.pop(paths, {}))
            if len(self._worlds) > _WORLDS:
                self._worlds.popitem(last=False)
        for path in self._paths:
            with contextlib.suppress(ValueError):  # the user's code may change sys.path
                sys.path.remove(path)
        # As at the caller: what was found there before what is installed is so here.
        installed = (i for i, path in enumerate(sys.path) if INSTALLED & {*Path(path).parts})
        at = next(installed, len(sys.path))
        sys.path[at:at] = paths
        self._paths, self._owners = paths, owners
        importlib.invalidate_caches()


class Layers:
    """Which packages pip brought, over what is installed.

    Each layer keeps the modules that it brought, and those installed ones that were imported
    while it was there and refer to them: what was imported with one version of a package must
    not meet another. What refers to neither is shared.
    """

    def __init__(self) -> None:
        self.current: str | None = None  # its directory; None is what is installed
        self._tops: frozenset[str] = frozenset()
        self._aside: OrderedDict[str | None, dict[str, ModuleType]] = OrderedDict()
        self._referred: WeakKeyDictionary[ModuleType, frozenset[str]] = WeakKeyDictionary()

    def change(self, packages: str | None) -> None:
        """Have ``sys.modules`` be what it is with these packages."""
        tops = frozenset[str]() if packages is None else _brought(packages)
        hidden = set(self._tops | tops)
        referring: dict[str, set[str]] = {}
        for name, module in list(sys.modules.items()):
            top = name.partition(".")[0]
            if isinstance(module, ModuleType) and top not in RESERVED:
                for other in self._referred_by(module):
                    referring.setdefault(other, set()).add(top)
        waiting = list(hidden)
        while waiting:
            more = referring.get(waiting.pop(), set()) - hidden
            hidden |= more
            waiting += more
        self._aside[self.current] = _take_out(hidden)
        sys.modules.update(self._aside.pop(packages, {}))
        if len(self._aside) > _WORLDS:
            # What is installed stays: many a native module can be imported once only.
            self._aside.pop(next(layer for layer in self._aside if layer is not None))
        self.current, self._tops = packages, tops

    def _referred_by(self, module: ModuleType) -> frozenset[str]:
        """Top-level modules that a module's globals come from."""
        found = self._referred.get(module)
        if found is None:
            # A lazy module must not be loaded for this.
            values = list(object.__getattribute__(module, "__dict__").values())
            names = {_home(value) for value in values}
            found = self._referred[module] = frozenset(
                {name.partition(".")[0] for name in names if name} - RESERVED
            )
        return found


def _home(value: object) -> str | None:
    """The name of the module that a value comes from."""
    if isinstance(value, ModuleType):
        name = object.__getattribute__(value, "__dict__").get("__name__")
    else:
        kind = value if isinstance(value, type | FunctionType) else type(value)
        name = kind.__module__
    return name if isinstance(name, str) else None


def _brought(packages: str) -> frozenset[str]:
    """Top-level modules in a directory that pip filled: packages, sources, native modules."""
    names = {entry.name.partition(".")[0] for entry in os.scandir(packages)}
    return frozenset(name for name in names if name.isidentifier()) - RESERVED


def unpacked(directory: Path, digest: str, fetch: Fetch) -> Path:
    """The directory with a bundle's files, fetched where no process had it yet.

    Raises
    ------
    ServiceError
        where the bytes are not those of the digest, or would lie outside the directory.
    """
    place = directory / digest
    if place.is_dir():
        return place
    data = memoryview(fetch(digest))
    if hashlib.sha256(data).hexdigest() != digest:
        raise ServiceError(f"the bundle {digest} came with other bytes than were sent")
    directory.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=directory))
    try:
        # Read where it lies: it may be most of the memory that the call has.
        with zipfile.ZipFile(io.BufferedReader(_Bytes(data), _PIECE)) as archive:
            for about in archive.infolist():
                if not is_inside(about.filename):
                    raise ServiceError(
                        f"the bundle {digest} has a file {about.filename!r} outside of it"
                    )
            archive.extractall(making)
            for about in archive.infolist():
                if about.external_attr >> 16 & 0o100:
                    (making / about.filename).chmod(0o755)
        making.rename(place)
    except OSError:
        if not place.is_dir():  # another process was faster
            raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return place


class _Bytes(io.RawIOBase):
    """A file that is bytes in memory, not copied."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        part = self._data[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


def is_inside(name: str) -> bool:
    """Whether a zip file's member stays where it is unpacked."""
    path = PurePosixPath(name)
    return not (path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name)


def only_installed() -> None:
    """Have this process import nothing but the standard library and what is installed.

    What it has imported stays: a checkout of fsdray finds its own modules by its package's path.
    """
    sys.path[:] = [path for path in sys.path if is_installed_path(path)]
    # Editable installs: setuptools, meson-python and scikit-build-core find them by a hook.
    sys.meta_path[:] = [
        finder
        for finder in sys.meta_path
        if "editable" not in (getattr(finder, "__module__", None) or type(finder).__module__)
    ]
    importlib.invalidate_caches()


def explain(error: BaseException) -> None:
    """Give an import that failed in a worker a note that says how to ship the module."""
    if not isinstance(error, ImportError) or any(
        note.startswith(_NOTE) for note in getattr(error, "__notes__", ())
    ):
        return
    if isinstance(error, ModuleNotFoundError):
        which = f"the module {error.name!r} is not where this function ran."
    else:
        version = f" (it has {error.path})" if error.path else ""
        which = f"importing from {error.name!r} failed where this function ran{version}."
    error.add_note(
        f"{_NOTE}{which} Modules of your own travel by themselves where the function, its "
        "arguments or other modules of yours import them by name. A package must be installed "
        "where functions run, in the same version, or come with runtime_env={'pip': [NAME]}. "
        "What is imported in another way travels with "
        "@fsdray.remote(runtime_env={'py_modules': [PATH]})"
    )


def _top_level(path: str) -> set[str]:
    """Names of what imports find right in a directory, and nowhere before."""
    found = set()
    for entry in os.scandir(path):
        name = entry.name.removesuffix(".py")
        if entry.is_dir():
            # A directory of data hides no installed package of its name.
            installed = getattr(sys.modules.get(name), "__file__", None)
            is_module = installed is None or os.path.exists(f"{entry.path}/__init__.py")
        else:
            is_module = name != entry.name
        if is_module and name not in RESERVED:
            found.add(name)
    return found


def _take_out(tops: set[str]) -> dict[str, ModuleType]:
    """Remove modules and all within them from ``sys.modules``."""
    names = [name for name in list(sys.modules) if name.partition(".")[0] in tops]
    return {name: sys.modules.pop(name) for name in names}


@contextmanager
def _variables(given: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


_here: Surroundings | None = None


def current() -> Surroundings:
    """Those of this process; without `place`, in a temporary directory of its own."""
    if _here is None:
        directory = Path(tempfile.mkdtemp(prefix="fsdray-modules-"))
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        place(directory)
    assert _here is not None
    return _here


def place(directory: Path) -> None:
    """Unpack below this directory, which somebody else removes.

    Processes may share it: modules are never written to, and the rest has the process's number.
    """
    global _here
    if not directory.is_absolute():
        raise FsdrayError(f"{directory} is not absolute")
    _here = Surroundings(directory / "shared", directory / str(os.getpid()))
