"""Which modules are the user's own, which of them a call needs, and how they are packed to travel.

A module is the user's own where it has source that is neither the standard library's, nor an
installed package's, nor ours. What needs it is followed by its imports, without running anything.
How what travelled is used in a worker is in `fsdray.environment`.
"""

from __future__ import annotations

import dis
import fnmatch
import hashlib
import importlib
import importlib.machinery
import io
import os
import sys
import sysconfig
import threading
import time
import types
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from fsdray.errors import SettingsError
from fsdray.services import MIB, Buffer

LIMIT = 50 * MIB  # bytes of one package or directory, before it is compressed
IGNORE = ".fsdrayignore"  # a file of patterns, one a line, for what does not travel
INSTALLED = frozenset({"site-packages", "dist-packages"})  # where installers put packages
_SKIPPED = {"__pycache__", ".git", ".hg", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that a zip file can say
_PATIENCE = 10  # looking for changes takes at most one part in this of a caller's time
_NAMED_BY_TEXT = {"import_module", "__import__"}
_LAYERS = 16  # decorators around one function that are looked through
_SHOWN = 3  # of the largest files, in an error


@dataclass(frozen=True)
class Root:
    """A top-level module or package of the user's own: what travels as a whole.

    `places` are its files: one for a module, the directory for a package; a namespace package
    may have several.
    """

    name: str
    places: tuple[Path, ...]


@dataclass(frozen=True)
class Bundle:
    """A zip file of modules; `digest` names it, and the same files always have the same."""

    digest: str
    data: Buffer

    @property
    def key(self) -> str:
        """Where it lies in objects."""
        return bundle_key(self.digest)


def bundle_key(digest: str) -> str:
    """Where the bundle with this digest lies in objects."""
    return f"modules/{digest}"


# Whose a module is


def is_own_file(path: str | os.PathLike[str]) -> bool:
    """Whether a module's file is the user's: neither the standard library's nor installed."""
    parts = Path(path).parts
    return INSTALLED.isdisjoint(parts) and not any(
        parts[: len(stdlib)] == stdlib for stdlib in _stdlib()
    )


def is_installed_path(entry: str) -> bool:
    """Whether an entry of ``sys.path`` is the interpreter's: its library, or where it installs."""
    return bool(entry) and not is_own_file(entry)


def is_own(name: str) -> bool:
    """Whether the user's own source defines a module, a package or what is in one."""
    return root_of(name) is not None


def root_of(name: str) -> Root | None:
    """The user's own top-level module or package that a module of this name is in, or None."""
    top = name.partition(".")[0]
    if top in _never_own:
        return None
    places = places_of(top)
    own = tuple(place for place in places or () if is_own_file(place))
    if places and not own:
        _never_own.add(top)  # asked for each argument, and where it is installed it stays
    return Root(top, own) if own else None


RESERVED = frozenset({*sys.stdlib_module_names, *sys.builtin_module_names}) | frozenset(
    {"__main__", "__mp_main__", "fsdray"}
)
"""Top-level names that no module of the user's own can have."""

_never_own = set(RESERVED)


def places_of(top: str) -> tuple[Path, ...] | None:
    """Where a top-level module's source lies; None where there is no such module."""
    module = sys.modules.get(top)
    spec = getattr(module, "__spec__", None) or _find(top)
    if spec is None:
        return None
    if spec.submodule_search_locations is not None:
        folders = (Path(folder).absolute() for folder in spec.submodule_search_locations)
        return tuple(folder for folder in folders if folder.is_dir())
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return (Path(spec.origin).absolute(),)


def _find(top: str) -> importlib.machinery.ModuleSpec | None:
    """What ``importlib.util.find_spec`` finds, for a name that somebody may have made up."""
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(top, None)
        except Exception:
            # Foreign finders; one that fails has not found it.
            continue
        if spec is not None:
            return spec
    return None


@lru_cache(maxsize=1)
def _stdlib() -> tuple[tuple[str, ...], ...]:
    named = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")} | {
        os.path.dirname(os.__file__)
    }
    paths = {path for each in named if each for path in (each, os.path.realpath(each))}
    zipped = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    paths |= {str(Path(path).with_name(zipped)) for path in paths}
    return tuple(Path(path).parts for path in sorted(paths))


# What a module needs


def imports(code: CodeType, package: str) -> set[str]:
    """Names of modules that code may import, those inside its functions too.

    It is a superset: of ``from a import b`` both ``a`` and ``a.b``, and where code calls
    ``import_module``, every text constant that could name a module.

    Parameters
    ----------
    package : what relative imports are relative to; "" where there is none.
    """
    found: set[str] = set()
    instructions = [each for each in dis.get_instructions(code) if each.opname != "EXTENDED_ARG"]
    for at, each in enumerate(instructions):
        if each.opname != "IMPORT_NAME":
            continue
        # The compiler pushes both right before, in every version of CPython.
        level, names = instructions[at - 2].argval, instructions[at - 1].argval
        base = absolute(each.argval, level, package)
        if base is not None:
            found.add(base)
            found |= {f"{base}.{name}" for name in names or () if name != "*"}
    texts = [each for each in code.co_consts if isinstance(each, str)]
    if _NAMED_BY_TEXT & {*code.co_names}:
        for text in texts:
            name = text.lstrip(".")
            if name and all(part.isidentifier() for part in name.split(".")):
                base = absolute(name, len(text) - len(name), package)
                found |= {base} if base is not None else set()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= imports(constant, package)
    return found


def absolute(name: str, level: int, package: str) -> str | None:
    """The absolute name of an import with `level` leading dots; None where it leads nowhere."""
    if level == 0:
        return name or None
    parts = package.split(".") if package else []
    if level > len(parts):
        return None
    return ".".join([*parts[: len(parts) - level + 1], *([name] if name else [])])


def sources(root: Root, name: str) -> list[tuple[Path, str]]:
    """Files that importing `name` runs, each with its package: parents' ``__init__`` and its own.

    It stops at the first part that is no module, since ``a.b`` may be a value in ``a``.
    """
    if root.places[0].suffix == ".py" and root.places[0].is_file():
        return [(root.places[0], "")]
    files: list[tuple[Path, str]] = []
    folders = list(root.places)
    package = root.name
    for part in [None, *name.split(".")[1:]]:
        if part is not None:
            single = [folder / f"{part}.py" for folder in folders]
            folders = [folder / part for folder in folders if (folder / part).is_dir()]
            if not folders:
                return files + [(path, package) for path in single if path.is_file()][:1]
            package = f"{package}.{part}"
        found = [folder / "__init__.py" for folder in folders]
        files += [(path, package) for path in found if path.is_file()][:1]
    return files


class Catalog:
    """Packs what names need, and packs nothing twice.

    Files are looked at again for changes, but never so often that it takes more than a tenth of
    the caller's time.
    """

    def __init__(self) -> None:
        self._packed: dict[tuple[tuple[Path, ...], str | None], _Packed] = {}
        self._imports: dict[tuple[Path, str], tuple[_Stamp, frozenset[str]]] = {}
        self._known: dict[frozenset[str], tuple[dict[str, Bundle], Look]] = {}
        self._lock = threading.Lock()

    def bundles(self, names: frozenset[str]) -> dict[str, Bundle]:
        """Bundles of all that these modules need, by the name of the top-level module.

        Raises
        ------
        SettingsError
            for a package that is too large.
        """
        with self._lock:
            known = self._known.get(names)
            if known is not None and known[1].is_fresh():
                return known[0]
            bundles: dict[str, Bundle] = {}
            stamps: dict[str, _Stamp] = {}
            for root in self._closure(names):
                packed = self._pack(root.places, root.name)
                bundles[root.name] = packed.bundle
                stamps |= packed.look.stamps
            # Names only grow: what was asked before is history.
            self._known = {names: (bundles, Look(stamps))}
            return bundles

    def pack(self, places: tuple[Path, ...], name: str | None) -> Bundle:
        """A bundle of files and directories.

        Parameters
        ----------
        name : what a directory is called inside; None puts what is in it at the top.

        Raises
        ------
        SettingsError
            for a directory that is too large.
        """
        with self._lock:
            return self._pack(places, name).bundle

    def _closure(self, names: Iterable[str]) -> list[Root]:
        roots: dict[Root, None] = {}
        waiting, done = list(names), set()
        while waiting:
            name = waiting.pop()
            if name in done:
                continue
            done.add(name)
            root = root_of(name)
            if root is None:
                continue
            roots[root] = None
            for path, package in sources(root, name):
                waiting += self._imports_of(path, package)
        return sorted(roots, key=lambda root: root.name)

    def _imports_of(self, path: Path, package: str) -> frozenset[str]:
        stamp = stamp_of(path)
        known = self._imports.get((path, package))
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        except (OSError, SyntaxError, ValueError):
            found = frozenset[str]()  # whoever imports it is told
        else:
            found = frozenset(imports(code, package))
        self._imports[path, package] = stamp, found
        return found

    def _pack(self, places: tuple[Path, ...], name: str | None) -> _Packed:
        known = self._packed.get((places, name))
        if known is None or not known.look.is_fresh():
            self._packed[places, name] = known = _Packed.of(places, name)
        return known


# Packing


def _walk(folder: Path) -> Iterator[tuple[str, Path | None]]:
    """Files below a directory, and the directories themselves with None."""
    ignored = _patterns(folder)
    seen: set[str] = set()
    for at, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(at)
        if real in seen:
            folders.clear()  # a link back up
            continue
        seen.add(real)
        yield at, None
        here = os.path.relpath(at, folder)
        inner = {each: os.path.normpath(f"{here}/{each}") for each in (*folders, *files)}
        folders[:] = [
            each
            for each in sorted(folders)
            if each not in _SKIPPED and not _matches(inner[each], ignored)
        ]
        for each in files:
            path = Path(at, each)
            if not (each.endswith(".pyc") or _matches(inner[each], ignored)) and path.is_file():
                yield inner[each], path


def _patterns(folder: Path) -> list[str]:
    try:
        lines = (folder / IGNORE).read_text().splitlines()
    except OSError:
        return []
    return [line.strip().rstrip("/") for line in lines if line.strip() and line[0] != "#"]


def _matches(inner: str, patterns: Iterable[str]) -> bool:
    name = inner.rpartition("/")[2]
    return any(fnmatch.fnmatch(inner, each) or fnmatch.fnmatch(name, each) for each in patterns)


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip file that depends on nothing but names and contents."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zip_entry(name), files[name])
    return stream.getvalue()


def zip_entry(name: str, executable: bool = False) -> zipfile.ZipInfo:
    """A member that says nothing of who packed it, and when."""
    about = zipfile.ZipInfo(name, _EPOCH)
    about.external_attr = (0o755 if executable else 0o644) << 16
    about.compress_type = zipfile.ZIP_DEFLATED
    return about


_Stamp = tuple[int, int, int] | None


def stamp_of(path: str | os.PathLike[str]) -> _Stamp:
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size, about.st_ino


class Look:
    """What files and directories looked like, and when it is time to look again."""

    def __init__(self, stamps: Mapping[str, _Stamp]) -> None:
        self.stamps = dict(stamps)
        self._next = 0.0

    def is_fresh(self) -> bool:
        """Whether nothing changed, as far as was looked."""
        now = time.monotonic()
        if now < self._next:
            return True
        if not self.is_same():
            return False
        after = time.monotonic()
        self._next = after + _PATIENCE * (after - now)
        return True

    def is_same(self) -> bool:
        return all(stamp_of(path) == stamp for path, stamp in self.stamps.items())


@dataclass(frozen=True)
class _Packed:
    bundle: Bundle
    look: Look

    @staticmethod
    def of(places: tuple[Path, ...], name: str | None) -> _Packed:
        paths: dict[str, Path] = {}
        stamps: dict[str, _Stamp] = {}
        for place in places:
            if place.is_file():
                paths.setdefault(place.name, place)
                continue
            for inner, path in _walk(place):
                if path is None:
                    stamps[inner] = stamp_of(inner)  # changes with what is added and removed
                else:
                    paths.setdefault(inner if name is None else f"{name}/{inner}", path)
        sizes = {inner: path.stat().st_size for inner, path in paths.items()}
        if sum(sizes.values()) > LIMIT:
            raise SettingsError(_too_large(places, sizes))
        stamps |= {str(path): stamp_of(path) for path in paths.values()}
        data = zipped({inner: path.read_bytes() for inner, path in paths.items()})
        bundle = Bundle(hashlib.sha256(data).hexdigest(), data)
        return _Packed(bundle, Look(stamps))


def _too_large(places: tuple[Path, ...], sizes: Mapping[str, int]) -> str:
    largest = sorted(sizes, key=lambda inner: -sizes[inner])[:_SHOWN]
    shown = ", ".join(f"{inner} ({sizes[inner] / MIB:.0f} MB)" for inner in largest)
    return (
        f"{', '.join(map(str, places))} would travel with the call, but holds "
        f"{sum(sizes.values()) / MIB:.0f} MB; at most {LIMIT // MIB} MB can. Name what functions "
        f"do not need in a file {IGNORE} in it, one pattern a line. The largest: {shown}"
    )


# How functions refer to modules


def way_to(function: types.FunctionType) -> tuple[str, str, int] | None:
    """The module, name and number of ``__wrapped__`` steps by which a decorated function is found.

    None where it is not one of the user's own modules that has it at its top.
    """
    module = module_of(function)
    if module is None:
        return None
    found: Any = module
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    for steps in range(_LAYERS):
        if found is function:
            return module.__name__, function.__qualname__, steps
        found = getattr(found, "__wrapped__", None)
    return None


def follow(module: str, name: str, steps: int) -> Any:
    """What `way_to` found, in this process; without a name, the module."""
    found: Any = importlib.import_module(module)
    for part in name.split(".") if name else ():
        found = getattr(found, part)
    for _ in range(steps):
        found = found.__wrapped__
    return found


def module_of(function: types.FunctionType) -> ModuleType | None:
    """The user's own module whose globals a function has."""
    name = function.__module__
    module = sys.modules.get(name) if isinstance(name, str) else None
    if module is None or vars(module) is not function.__globals__:
        return None
    root, file = root_of(name), getattr(module, "__file__", None)
    if root is None or file is None:
        return None
    # One that was made otherwise than by an import of its name cannot be imported elsewhere.
    real = os.path.realpath(file)
    is_found = any(os.path.realpath(path) == real for path, _ in sources(root, name)[-1:])
    return module if is_found else None


catalog = Catalog()
"""That of this process: sessions come and go, files stay."""
