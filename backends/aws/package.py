"""The functions' code: a zip of fsdray, what it requires and what the user requires.

The versions are those that the driver has, since the two talk in pickles. The same input gives the
same package, and nothing is made twice: packages are kept in the cache. `deploy` uploads them;
what does not fit into one is for `late`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import zstandard

import fsdray
from fsdray.backends.aws import wheels
from fsdray.backends.aws.late import INDEX
from fsdray.backends.aws.options import Options
from fsdray.errors import SettingsError
from fsdray.modules import zip_entry
from fsdray.packages import Target, command, locked, run_pip, telling
from fsdray.services import MIB

LIMIT = 250 * MIB  # bytes unpacked (Lambda quotas)
REQUIRED = (
    *("cloudpickle", "numpy", "xxhash", "zstandard"),
    *("tqdm", "tenacity", "aiobotocore", "boto3"),
)
EXTRAS: Mapping[str, tuple[str, ...]] = {"inference": ("scipy", "numba")}
"""What functions need of each extra of fsdray; the rest of it is for drivers."""

_FORMAT = 2  # of the cache's files
_ROOT = "/var/task"  # where Lambda unpacks it
_TESTED = {"numba", "numpy", "scipy", "sklearn"}  # whose tests nobody runs in functions
_EARLY = {"fsdray", "numpy", "xxhash", "zstandard", "botocore"}  # imported by every function
_PIECE = MIB  # bytes copied at a time
_SHOWN = 5  # of the largest, in an error
_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


@dataclass(frozen=True)
class Package:
    """A function's code.

    Parameters
    ----------
    path : of the zip.
    key : where it belongs in the stack's bucket. It is of what is in it, bytecode apart.
    unpacked : bytes that it has then.
    is_compiled : whether bytecode of its Python is in it.
    late : archives of what is fetched when it is first imported, by their keys in the bucket.
    """

    path: Path
    key: str
    unpacked: int
    is_compiled: bool
    late: Mapping[str, Path]

    @property
    def files(self) -> dict[str, Path]:
        """All that has to be in the bucket."""
        return {self.key: self.path, **self.late}


def build(options: Options, cache: Path, *, is_bare: bool = False) -> Package:
    """Make the package for a stack, or take it from the cache.

    Parameters
    ----------
    cache : `Settings.cache_directory`.
    is_bare : for functions that run here, with this very Python, as in the Lambda host: it has
        what fsdray requires already.

    Raises
    ------
    SettingsError : pip cannot install what is required, or it is too large.
    """
    wanted = requirements(options, is_bare=is_bare)
    pinned = pins(wanted, options.requirements)
    own = own_files()
    target = Target(
        options.python, () if is_bare else wheels.tags(options.python, options.architecture)
    )
    facts = (_FORMAT, LIMIT, target, wanted, pinned)
    key = _digest(repr(facts), *(f"{inner}\0{_sum(path)}" for inner, path in sorted(own.items())))
    folder = cache / "aws"
    folder.mkdir(parents=True, exist_ok=True)
    with telling("fsdray: packing the functions' code"), locked(folder / f"{key}.lock"):
        place = folder / key
        if not place.is_dir():
            with tempfile.TemporaryDirectory(prefix=f".{key}-", dir=folder) as making:
                _build(Path(making), target, wanted, pinned, own)
                Path(making, "made").rename(place)
        os.utime(place)  # it is in use
        return _read(place)


def requirements(options: Options, *, is_bare: bool) -> list[str]:
    """What pip is asked for.

    Raises
    ------
    SettingsError : for an extra that functions cannot have.
    """
    for extra in options.extras:
        if extra not in EXTRAS:
            raise SettingsError(
                f"extras={extra!r}: functions can have {', '.join(EXTRAS)}; name other packages "
                "in a file for --requirements"
            )
    ours = [] if is_bare else [*REQUIRED, *(n for each in options.extras for n in EXTRAS[each])]
    return [*ours, *options.requirements]


def pins(wanted: Iterable[str], given: Iterable[str]) -> list[str]:
    """The versions that are installed here, of all that is wanted and of what that requires.

    Parameters
    ----------
    given : lines of the user's own: what they say of versions holds.
    """
    free = {_named(line) for line in given if re.search("[=<>~@]", line)}
    waiting = [name for line in wanted if (name := _named(line))]
    found: dict[str, str] = {}
    for name in waiting:  # it grows as it is read
        if name in found or name in free:
            continue
        try:
            known = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if known.read_text("direct_url.json") is not None:
            continue  # no registry has just this one
        found[name] = known.version
        for line in known.requires or ():
            if "extra ==" not in line and (required := _named(line)):
                waiting.append(required)
    return sorted(f"{name}=={version}" for name, version in found.items())


def _named(line: str) -> str:
    """The distribution that a requirement names (PEP 503), or ``""``."""
    found = _NAME.match(line)
    return re.sub(r"[-_.]+", "-", found[1]).lower() if found else ""


def own_files() -> dict[str, Path]:
    """fsdray's own files, by their names in the package."""
    root = Path(fsdray.__file__).parent
    found = {}
    for at, folders, files in os.walk(root, followlinks=True):  # backends may be a link
        folders[:] = sorted(each for each in folders if each != "__pycache__")
        for name in sorted(files):
            if not name.endswith((".pyc", ".pyo")):
                path = Path(at, name)
                found[f"fsdray/{path.relative_to(root)}"] = path
    return found


def _build(
    making: Path,
    target: Target,
    wanted: Sequence[str],
    pinned: Sequence[str],
    own: Mapping[str, Path],
) -> None:
    """Make ``made``: code.zip, late-NAME.tar.zst for what is too large, and about.json."""
    tree, made = making / "tree", making / "made"
    tree.mkdir()
    made.mkdir()
    if wanted:
        _install(making, tree, target, wanted, pinned)
    _prune(tree)
    for inner, path in own.items():
        place = tree / inner
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    is_compiled = _compile(tree, target.python)
    files = {str(path.relative_to(tree)): path for path in tree.rglob("*") if path.is_file()}
    sizes = _by_top({inner: path.stat().st_size for inner, path in files.items()})
    late = _too_many(sizes)
    index = {}
    for top in late:
        parts = {n: p for n, p in files.items() if _top(n) == top}
        packed = _tar(made / f"late-{top}.tar.zst", parts)
        index[top] = f"code/late-{top}-{packed}.tar.zst"
    listing = making / INDEX
    listing.write_text(json.dumps(index, sort_keys=True))
    early = {n: p for n, p in files.items() if _top(n) not in late} | {INDEX: listing}
    about = {
        "digest": _zip(made / "code.zip", early),
        "unpacked": sum(path.stat().st_size for path in early.values()),
        "is_compiled": is_compiled,
        "late": {key: f"late-{top}.tar.zst" for top, key in index.items()},
    }
    (made / "about.json").write_text(json.dumps(about))


def _read(place: Path) -> Package:
    about = json.loads((place / "about.json").read_text())
    return Package(
        path=place / "code.zip",
        key=f"code/{about['digest']}.zip",
        unpacked=about["unpacked"],
        is_compiled=about["is_compiled"],
        late={key: place / name for key, name in about["late"].items()},
    )


def _install(
    making: Path, tree: Path, target: Target, wanted: Sequence[str], pinned: Sequence[str]
) -> None:
    lines, constraints = making / "requirements.txt", making / "versions-of-the-driver.txt"
    lines.write_text("\n".join((f"-c {constraints}", *wanted)))
    # Lambda's system is older than many a driver's, and some wheels are for newer ones alone:
    # then the major version is the same, with which pickles are read too.
    attempts = [pinned, *([[_of_major(each) for each in pinned]] if pinned else [])]
    for attempt in attempts:
        constraints.write_text("\n".join(attempt))
        shutil.rmtree(tree, ignore_errors=True)
        try:
            run_pip(
                command(target, lines, tree),
                f"pip could not install what functions of Python {target.python} require"
                + (f" ({target.platforms[-1]})" if target.platforms else ""),
                os.getcwd(),
                "packing the functions' code",
                "",
            )
            return
        except SettingsError:
            if attempt is attempts[-1]:
                raise


def _of_major(pin: str) -> str:
    """``name==2.4.6`` as ``name>=2,<3``."""
    name, _, version = pin.partition("==")
    major = int(re.match(r"(?:\d+!)?(\d+)", version)[1])  # type: ignore[index]
    return f"{name}>={major},<{major + 1}"


def _prune(tree: Path) -> None:
    """Remove what no function uses."""
    shutil.rmtree(tree / "bin", ignore_errors=True)  # scripts, for a Python that is not there
    for top in _TESTED:
        # What is in there besides may be imported: numpy's testing, by way of scipy.sparse, is.
        for test in [*(tree / top).rglob("tests/**/test_*.py"), *(tree / top).rglob("tests/data")]:
            shutil.rmtree(test) if test.is_dir() else test.unlink(missing_ok=True)
    if list(tree.glob("zstandard/backend_c.*.so")):
        for other in tree.glob("zstandard/_cffi.*.so"):
            other.unlink()


def _compile(tree: Path, python: str) -> bool:
    """Add bytecode where there is an interpreter of that version; whether there is.

    It says of itself that it is never stale, so that no file is looked at for it.
    """
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    interpreter = sys.executable if python == here else shutil.which(f"python{python}")
    if interpreter is None:
        return False
    options = ["--invalidation-mode", "unchecked-hash", "-j", "0", "-s", str(tree), "-p", _ROOT]
    subprocess.run(
        # What is not for this Python is not compiled, and is imported by nobody.
        [interpreter, "-I", "-S", "-m", "compileall", "-qq", *options, str(tree)],
        env={"PYTHONHASHSEED": "0", "PATH": os.environ.get("PATH", os.defpath)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    # What bears an interpreter's name may be a script that finds none.
    return any(tree.rglob(f"*.cpython-{python.replace('.', '')}.pyc"))


def _too_many(sizes: Mapping[str, int]) -> list[str]:
    """The largest packages, without which the rest fits.

    Raises
    ------
    SettingsError : what remains does not fit either.
    """
    late: list[str] = []
    left = sum(sizes.values())
    for top in sorted(sizes, key=lambda each: -sizes[each]):
        if left <= LIMIT:
            break
        if top not in _EARLY and sizes[top] > MIB:
            late.append(top)
            left -= sizes[top]
    if left > LIMIT:
        largest = sorted(sizes, key=lambda each: -sizes[each])[:_SHOWN]
        shown = ", ".join(f"{top} ({sizes[top] / MIB:.0f} MB)" for top in largest)
        raise SettingsError(
            f"the functions' code holds {left / MIB:.0f} MB, of the {LIMIT // MIB} MB that Lambda "
            f"takes: {shown}. Require less, or put all into a container image, which may have "
            "10 GB, and deploy that: `fsdray deploy --image URI` (docs/aws.md says how)"
        )
    return late


def _by_top(sizes: Mapping[str, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for inner, size in sizes.items():
        found[_top(inner)] = found.get(_top(inner), 0) + size
    return found


def _top(inner: str) -> str:
    """The package that a file belongs to; its libraries lie beside it."""
    return inner.partition("/")[0].removesuffix(".libs")


def _tar(place: Path, files: Mapping[str, Path]) -> str:
    """`_zip` for what is unpacked in a function's own time: by zstd, twice as fast."""
    with (
        place.open("wb") as file,
        zstandard.ZstdCompressor(level=9, threads=-1).stream_writer(file) as stream,
        tarfile.open(fileobj=stream, mode="w|") as archive,
    ):
        for inner, path in sorted(files.items()):
            about = tarfile.TarInfo(inner)
            about.size = path.stat().st_size
            about.mode = 0o755 if os.access(path, os.X_OK) else 0o644
            with path.open("rb") as source:
                archive.addfile(about, source)
    return _content(files)


def _zip(place: Path, files: Mapping[str, Path]) -> str:
    """Write a zip that depends on names and contents alone; a digest of all but bytecode."""
    with zipfile.ZipFile(place, "w") as archive:
        for inner in sorted(files):
            path = files[inner]
            about = zip_entry(inner, executable=os.access(path, os.X_OK))
            about.file_size = path.stat().st_size  # whether it needs 64 bits
            with path.open("rb") as source, archive.open(about, "w") as copy:
                shutil.copyfileobj(source, copy, _PIECE)
    return _content(files)


def _content(files: Mapping[str, Path]) -> str:
    """A digest of names and contents of all but bytecode."""
    sums = (f"{inner}\0{_sum(files[inner])}" for inner in sorted(files) if inner[-4:] != ".pyc")
    return _digest(*sums)


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]
