"""The Graph Challenge's own files: networks, samples and true categories, read and written.

Every problem with a file is a `SettingsError` that names the file, and the line where there
is one. Other formats get modules of their own; what a network means is in
`fsdray.inference.model`.
"""

from __future__ import annotations

import gzip
import lzma
import math
import re
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from fsdray.errors import SettingsError
from fsdray.inference.model import Layer, Model
from fsdray.inference.radixnet import CHALLENGE_BIAS, CHALLENGE_CLAMP

__all__ = ["load", "load_categories", "load_samples", "save", "save_samples"]

_LAYER_FILE = re.compile(r"n([1-9]\d*)-l([1-9]\d*)\.tsv(\.gz)?")
_TABLE_SUFFIXES = (".tsv", ".tsv.gz")
_ARCHIVE_SUFFIXES = (".tar.xz", ".tar.gz", ".tgz", ".tar")
_DAMAGED = (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error)
_FLOAT32_LIMIT = 2.0**128 - 2.0**103  # from here on, rounding to float32 gives infinity
_MOST_SAMPLES = 2**31 - 1  # as many rows as int32 indices can tell apart
_MOST_DIGITS = 18  # as many as always fit int64
_NUMBER = np.zeros(256, dtype=bool)
_NUMBER[list(b"0123456789+-.eE")] = True


def load(path: str | Path, *, bias: float | None = None, clamp: float | None = None) -> Model:
    """Read a network in the challenge's format.

    Parameters
    ----------
    path
        A directory that holds ``n<N>-l<K>.tsv`` or ``.tsv.gz`` for K = 1, 2, …, itself or in
        one below it, or one archive of them; or such an archive: ``.tar.xz``, ``.tar.gz``,
        ``.tar``. Lines are ``row<TAB>column<TAB>value``, 1-based: row is the input neuron,
        column the output neuron. Every layer is N × N.
    bias
        Added to nonzero sums. None: the challenge's own for N = 1024, 4096, 16384, 65536.
    clamp
        Upper limit of an activation. None: the challenge's 32; ``math.inf``: no limit.

    Returns
    -------
    Model
        Float32 weights, (outputs, inputs): transposed from the files' orientation.

    Raises
    ------
    SettingsError
        When the file is missing, damaged or of another kind, a line is malformed, a layer is
        missing, or no bias is known for N.
    """
    path = _existing(path)
    neurons: int | None = None
    tables: dict[int, csr_array] = {}
    for name, content in _layer_files(path):
        size, number = (int(text) for text in _layer_match(name))
        if neurons not in (None, size):
            raise SettingsError(
                f"{path} holds layers of {neurons} and of {size} neurons: "
                "give the directory of one network"
            )
        if number in tables:
            raise SettingsError(f"{path} holds layer {number} twice (the second is {name})")
        neurons = size
        rows, columns, values = _parse(content, name, ("input neuron", "output neuron"), size, size)
        tables[number] = _matrix(columns, rows, values, (size, size), name)
    if neurons is None:
        raise SettingsError(f"no layer in {path}: it must hold n<N>-l1.tsv, n<N>-l2.tsv, …")
    for number in range(1, max(tables) + 1):
        if number not in tables:
            raise SettingsError(
                f"layer {number} is missing from {path}: there must be an "
                f"n{neurons}-l{number}.tsv (the last layer found is {max(tables)})"
            )
    if bias is None:
        if neurons not in CHALLENGE_BIAS:
            raise SettingsError(
                f"the challenge names no bias for {neurons} neurons: pass bias (--bias)"
            )
        bias = CHALLENGE_BIAS[neurons]
    limit = CHALLENGE_CLAMP if clamp is None else None if clamp == math.inf else clamp
    layers = (Layer(tables[number], bias, clamp=limit) for number in range(1, len(tables) + 1))
    return Model(tuple(layers), name=f"{_stem(path)}:{neurons}x{len(tables)}")


def load_samples(path: str | Path, neurons: int, *, count: int | None = None) -> csr_array:
    """Read samples in the challenge's format.

    Parameters
    ----------
    path
        A ``.tsv`` or ``.tsv.gz`` of lines ``sample<TAB>pixel<TAB>value``, 1-based, or an
        archive that holds one.
    neurons
        Values a sample: the network's inputs. A larger pixel number is an error.
    count
        Number of samples, where the last ones are empty. None: the largest that occurs.

    Returns
    -------
    scipy.sparse.csr_array
        Float32, shape (samples, neurons), canonical.

    Raises
    ------
    SettingsError
        When the file is missing, damaged, empty or of another kind, a line is malformed, or
        there are more samples than `count`.
    """
    path = _existing(path)
    name, content = _only_table(path)
    images, pixels, values = _parse(content, name, ("sample", "pixel"), _MOST_SAMPLES, neurons)
    found = int(images.max()) + 1
    if count is not None and count < found:
        raise SettingsError(f"{name} holds {found} samples, more than count={count}")
    return _matrix(images, pixels, values, (count or found, neurons), name)


def load_categories(path: str | Path) -> NDArray[np.int64]:
    """Read the true categories: the numbers of the samples that stay alive, one a line.

    Parameters
    ----------
    path
        A ``.tsv`` or ``.tsv.gz`` with one 1-based sample number a line. An empty file is no
        error: no sample stays alive.

    Returns
    -------
    numpy.ndarray
        Int64, shape (categories,), in the file's order.

    Raises
    ------
    SettingsError
        When the file is missing, damaged, of another kind, or a line is not such a number.
    """
    name, content = _only_table(_existing(path))
    numbers = []
    for line, text in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
        if not re.fullmatch(r"\s*0*[1-9][0-9]{0,17}\s*", text, re.ASCII):
            raise SettingsError(f"{name}, line {line}: {text!r} is not a 1-based sample number")
        numbers.append(int(text))
    return np.array(numbers, dtype=np.int64)


def save(model: Model, directory: str | Path) -> Path:
    """Write a network in the challenge's format: ``neuron<N>/n<N>-l<K>.tsv``.

    Values are written so that they read back as the same float32. The format holds neither
    bias nor clamp: pass them to `load`.

    Parameters
    ----------
    model
        Every layer must be N × N, for one N.
    directory
        Where the sub-directory is made; made too when missing.

    Returns
    -------
    pathlib.Path
        The sub-directory.

    Raises
    ------
    SettingsError
        When the layers are not all square and of one size.
    """
    neurons = model.inputs
    if any(layer.outputs != neurons for layer in model.layers):
        raise SettingsError(
            f"the challenge's format holds layers of one size only: {model.name!r} has others"
        )
    target = Path(directory) / f"neuron{neurons}"
    target.mkdir(parents=True, exist_ok=True)
    for number, layer in enumerate(model.layers, start=1):
        _write(target / f"n{neurons}-l{number}.tsv", layer.weights.T.tocsr())
    return target


def save_samples(samples: csr_array, path: str | Path) -> None:
    """Write samples, (samples, neurons), in the challenge's format: ``.tsv`` or ``.tsv.gz``.

    Raises
    ------
    SettingsError
        When the suffix is another one.
    """
    path = Path(path)
    if not path.name.endswith(_TABLE_SUFFIXES):
        raise SettingsError(f"samples are written as .tsv or .tsv.gz, not as {path.name}")
    _write(path, csr_array(samples))


def _write(path: Path, matrix: csr_array) -> None:
    table = matrix.tocoo()
    rows, columns = (table.row + 1).tolist(), (table.col + 1).tolist()
    # Nine significant digits tell any two float32 apart (IEEE 754).
    lines = map("%d\t%d\t%.9g\n".__mod__, zip(rows, columns, table.data.tolist(), strict=True))
    content = "".join(lines).encode()
    path.write_bytes(gzip.compress(content, 6, mtime=0) if path.suffix == ".gz" else content)


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise SettingsError(f"{path} does not exist: give a file or directory that does")
    return path


def _stem(path: Path) -> str:
    return path.resolve().name.split(".")[0]


def _layer_match(name: str) -> tuple[str, str]:
    match = _LAYER_FILE.fullmatch(PurePosixPath(name).name)
    assert match is not None, name
    return match[1], match[2]


def _layer_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the text of every layer's file."""
    if not path.is_dir():
        yield from _files(path, _LAYER_FILE)
        return
    tables = sorted(file for file in path.rglob("n*.tsv*") if _LAYER_FILE.fullmatch(file.name))
    archives = sorted(file for file in path.iterdir() if file.name.endswith(_ARCHIVE_SUFFIXES))
    if tables:
        for table in tables:
            yield from _files(table, _LAYER_FILE)
    elif len(archives) == 1:
        yield from _files(archives[0], _LAYER_FILE)


def _only_table(path: Path) -> tuple[str, bytes]:
    """Return the name and the text of the one table that the file is or holds."""
    found = list(_files(path, re.compile(r".*\.tsv(\.gz)?")))
    if len(found) != 1:
        raise SettingsError(f"{path} holds {len(found)} .tsv files: it must hold exactly one")
    return found[0]


def _files(path: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and text of the file itself, or of the archive's members that are wanted."""
    if path.is_dir() or not path.name.endswith(_TABLE_SUFFIXES + _ARCHIVE_SUFFIXES):
        kinds = ", ".join(_TABLE_SUFFIXES + _ARCHIVE_SUFFIXES)
        raise SettingsError(f"{path} is of no known kind: use {kinds}")
    try:
        if path.name.endswith(_ARCHIVE_SUFFIXES):
            with tarfile.open(path) as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.isfile() else None
                    if file is not None and wanted.fullmatch(PurePosixPath(member.name).name):
                        yield member.name, _unpacked(member.name, file.read())
        elif wanted.fullmatch(path.name):
            yield str(path), _unpacked(path.name, path.read_bytes())
    except _DAMAGED as error:
        raise SettingsError(f"{path} cannot be read, it may be damaged: {error}") from error


def _unpacked(name: str, content: bytes) -> bytes:
    return gzip.decompress(content) if name.endswith(".gz") else content


def _parse(
    content: bytes, name: str, kinds: tuple[str, str], rows: int, columns: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return 0-based rows and columns, and the values, of a table with 1-based ones."""
    table = _parsed_at_once(content.replace(b"\r\n", b"\n").rstrip(b"\n") + b"\n")
    if table is not None:
        row, column, value = table
        good = (row >= 1) & (row <= rows) & (column >= 1) & (column <= columns)
        if (good & (np.abs(value) < _FLOAT32_LIMIT)).all():
            return row - 1, column - 1, value.astype(np.float32)
    raise SettingsError(_first_fault(content, name, kinds, rows, columns))


def _parsed_at_once(
    content: bytes,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]] | None:
    """Return the three columns of a well-formed table, or None.

    NumPy's bulk parser alone would take three numbers on two lines for a line of three, so
    the separators are checked first; then it finds 3 numbers a line only if each field is one.
    """
    text = np.frombuffer(content, dtype=np.uint8)
    places = np.flatnonzero(~_NUMBER[text])
    if places.size % 3 or places[0] == 0 or (np.diff(places) < 2).any():
        return None
    if not (text[places].reshape(-1, 3) == np.frombuffer(b"\t\t\n", dtype=np.uint8)).all():
        return None
    first, second, third = places.reshape(-1, 3).T
    row = _integers(text, np.concatenate([[0], third[:-1] + 1]), first)
    column = _integers(text, first + 1, second)
    value = _values(content, int(second[0]), int(third[0]), places.size)
    return None if row is None or column is None or value is None else (row, column, value)


def _integers(
    text: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """Return the whole numbers written in ``text[start:end]``, or None if one is no such."""
    width = ends - starts
    if width.max() > _MOST_DIGITS:
        return None
    total = np.zeros(starts.size, dtype=np.int64)
    for position in range(int(width.max())):
        digit = text[np.minimum(starts + position, ends - 1)] - np.uint8(ord("0"))
        if (digit > 9).any():
            return None
        total = np.where(position < width, total * 10 + digit, total)
    return total


def _values(content: bytes, start: int, end: int, count: int) -> NDArray[np.float64] | None:
    """Return the third of each three of `count` numbers; the first one is at start:end."""
    if content.count(content[start:end] + b"\n") * 3 == count:  # one value throughout, as is usual
        value = _number(content[start + 1 : end].decode("ascii"))
        return None if value is None else np.full(count // 3, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of text that stops short: seen below
        try:
            numbers = np.fromstring(content.decode("ascii"), dtype=np.float64, sep=" ")
        except ValueError:
            return None
    return numbers[2::3] if numbers.size == count else None


def _first_fault(content: bytes, name: str, kinds: tuple[str, str], rows: int, columns: int) -> str:
    """Say which line of a table is wrong, and how. Slow: only for tables that are."""
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
        where, fields = f"{name}, line {number}", line.split("\t")
        if len(fields) != 3:
            return f"{where}: {line!r} is not three fields, {kinds[0]}<TAB>{kinds[1]}<TAB>value"
        for kind, text, limit in zip(kinds, fields[:2], (rows, columns), strict=True):
            if not re.fullmatch(f"[0-9]{{1,{_MOST_DIGITS}}}", text):
                return f"{where}: {kind} {text!r} is not a whole number"
            if not 1 <= int(text) <= limit:
                return f"{where}: {kind} {text!r} is out of range: they go from 1 to {limit}"
        value = _number(fields[2])
        if value is None or not abs(value) < _FLOAT32_LIMIT:
            return f"{where}: value {fields[2]!r} is not a finite number"
    return f"{name} is empty" if not content.strip() else f"{name} is malformed at its end"


def _number(text: str) -> float | None:
    try:
        return float(text) if _NUMBER[list(text.encode())].all() else None
    except ValueError:
        return None


def _matrix(
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    values: NDArray[np.float32],
    shape: tuple[int, int],
    name: str,
) -> csr_array:
    matrix = csr_array(coo_array((values, (rows, columns)), shape=shape))
    if matrix.nnz < values.size:
        _, first = np.unique(rows * shape[1] + columns, return_index=True)
        line = int(np.setdiff1d(np.arange(values.size), first)[0]) + 1
        raise SettingsError(f"{name}, line {line} repeats an entry: each may occur once")
    return matrix
