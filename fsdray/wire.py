"""What crosses between caller and function: values, and the `Call` and `Reply` around them.

A value is cloudpickled with its large buffers out of band and aligned, so that an array can be
read where it lies. Where the bytes go (inline or into objects) is decided in `fsdray.session` and
`fsdray.worker`; how an exception becomes a value, in `fsdray.failure`.
"""

from __future__ import annotations

import io
import pickle
import platform
import struct
import sys
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import cloudpickle

from fsdray import modules
from fsdray._version import __version__
from fsdray.costs.medium import USUAL, Medium
from fsdray.errors import EnvironmentMismatch, FsdrayError, NotPicklable
from fsdray.services import Buffer
from fsdray.settings import Settings

if TYPE_CHECKING:
    from fsdray.collective.channels.sendlog import Logged
    from fsdray.refs import ObjectRef

_HEAD = struct.Struct("<II")  # buffers, bytes of pickle
_LENGTH = struct.Struct("<Q")
_ALIGN = 64  # bytes: the widest vector load, so that arrays in place are as fast as any
_FEW = 16  # items of a list that are looked at, rather than left to cloudpickle
_MANY = 1024  # types and shapes of arrays that are remembered
_About: TypeAlias = tuple[str, tuple[int, ...], bool]  # an array's type, shape, whether Fortran's
_BUILT_IN = 24  # NumPy's own types have numbers below this
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


# Values


class _Collected(threading.local):
    refs: list[ObjectRef[Any]] | None = None
    modules: set[str] | None = None


_collected = _Collected()


@contextmanager
def collecting() -> Iterator[list[ObjectRef[Any]]]:
    """The refs that are pickled in this block, on this thread."""
    outer, _collected.refs = _collected.refs, []
    try:
        yield _collected.refs
    finally:
        _collected.refs = outer


def collect(ref: ObjectRef[Any]) -> None:
    """Note that a ref is being pickled; called by the ref itself."""
    if _collected.refs is not None:
        _collected.refs.append(ref)


@contextmanager
def collecting_modules() -> Iterator[set[str]]:
    """Names of the modules that what is pickled in this block, on this thread, refers to."""
    outer, _collected.modules = _collected.modules, set()
    try:
        yield _collected.modules
    finally:
        _collected.modules = outer


def encode(value: Any) -> list[Buffer]:
    """A value as buffers to be written one after the other.

    Arrays are referred to, not copied: write the buffers before the value changes.

    Raises
    ------
    NotPicklable
        naming what cannot be pickled.
    """
    if is_simple(value):
        return [_start(value), pickle.PickleBuffer(value).raw()]
    buffers: list[pickle.PickleBuffer] = []
    try:
        if _is_plain(value):
            body = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        else:
            stream = io.BytesIO()
            _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
            body = stream.getvalue()
    except FsdrayError:
        raise  # a ref or an environment in it says what is wrong itself
    except Exception as error:
        # Pickling runs the __reduce__ of whatever the value holds.
        raise NotPicklable(
            f"a value of type {type(value).__name__} cannot be pickled, so it cannot be sent: "
            f"{error}"
        ) from error
    return _laid_out(body, [buffer.raw() for buffer in buffers])


def _laid_out(body: bytes, raws: Sequence[memoryview]) -> list[Buffer]:
    head = b"".join((_HEAD.pack(len(raws), len(body)), *(_LENGTH.pack(raw.nbytes) for raw in raws)))
    parts: list[Buffer] = [head, body]
    at = len(head) + len(body)
    for raw in raws:
        parts += (bytes(-at % _ALIGN), raw)
        at += -at % _ALIGN + raw.nbytes
    return parts


# An array is pickled as its type and shape, with its numbers out of band. In a program they are
# mostly the same few, and the pickler, cold, takes longer than all else about a small array.
_starts: dict[_About, bytes] = {}
_arrays: dict[bytes, tuple[_About, Any]] = {}


def is_simple(value: Any) -> bool:
    """Whether it is an array whose pickle says its type and shape, and nothing else."""
    numpy = sys.modules.get("numpy")
    if numpy is None or type(value) is not numpy.ndarray:
        return False
    kind, flags = value.dtype, value.flags
    return bool(
        kind.kind in "biufc"
        and kind.num < _BUILT_IN
        and kind.isnative
        and kind.metadata is None
        and flags.forc
        and flags.writeable
        and value.size
    )


def _start(array: Any) -> bytes:
    """What comes before the numbers of a simple array: made once for each type and shape."""
    about = array.dtype.char, array.shape, array.flags.fnc
    start = _starts.get(about)
    if start is None:
        if len(_starts) >= _MANY:
            _starts.clear()
            _arrays.clear()
        raws: list[pickle.PickleBuffer] = []
        body = pickle.dumps(array, protocol=5, buffer_callback=raws.append)
        start = b"".join(_laid_out(body, [raw.raw() for raw in raws])[:-1])
        # By its letter: what is pickled with a type is a copy of it.
        _starts[about] = start
        _arrays[start] = about, sys.modules["numpy"].dtype(array.dtype.char)
    return start


def _is_plain(value: Any) -> bool:
    """Whether the plain pickler does what cloudpickle would, in a tenth of the time."""
    kind = type(value)
    if kind is tuple or kind is list:
        return len(value) <= _FEW and all(_is_plain(each) for each in value)
    if kind in _PLAIN:
        return True
    # NumPy is not imported for this: where nobody has, no value is an array.
    numpy = sys.modules.get("numpy")
    return (
        numpy is not None
        and kind is numpy.ndarray
        and value.flags.writeable
        and value.flags.forc
        and not value.dtype.hasobject
        and not _holds_times(value.dtype)
    )


def encode_function(function: Any) -> bytes:
    """A function's bytes for `decode_function`; what pickling it raises, it raises."""
    stream = io.BytesIO()
    _Pickler(stream, protocol=5).dump(function)
    return stream.getvalue()


def decode_function(data: Buffer) -> Any:
    """The function of what `encode_function` wrote."""
    return pickle.loads(data)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Cloudpickle with two rules of ours, and an eye on the modules that the other side needs.

    Code of the user's own modules runs in those modules, which travel as source: a decorated
    function is found there, and a closure is given the module's globals rather than copies.
    Whether the sender may write an array says nothing of who receives its own copy.
    """

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is types.FunctionType:
            return self._reduce_function(obj, super().reducer_override(obj))
        if _collected.modules is not None:
            if kind is types.ModuleType:
                _collected.modules.add(obj.__name__)
            elif issubclass(kind, type) and isinstance(obj.__module__, str):
                _collected.modules.add(obj.__module__)
        numpy = sys.modules.get("numpy")
        if numpy is not None and kind is numpy.ndarray and not obj.dtype.hasobject:
            return self._reduce_array(numpy, obj)
        return super().reducer_override(obj)

    def _reduce_array(self, numpy: Any, array: Any) -> Any:
        """As a buffer, whatever its layout and type; NumPy pickles some of them by value."""
        if not array.flags.forc:
            array = numpy.ascontiguousarray(array)
        if _holds_times(array.dtype):
            # Their memory cannot be had as a buffer, nor can anything that holds one of them.
            order = "C" if array.flags.c_contiguous else "F"
            raw = array.reshape(-1, order=order).view(f"V{array.dtype.itemsize}").view("u1")
            return _array_of, (raw, array.dtype, array.shape, order)
        if not array.flags.writeable:
            array = numpy.asarray(_Lent(array))
        return array.__reduce_ex__(5)

    def _reduce_function(self, function: types.FunctionType, reduced: Any) -> Any:
        needed = _collected.modules
        if needed is not None and isinstance(function.__module__, str):
            needed.add(function.__module__)
        if reduced is NotImplemented:
            return reduced  # by its name
        module = modules.module_of(function)
        if module is None:
            if needed is not None:
                package = function.__globals__.get("__package__") or ""
                needed |= modules.imports(function.__code__, package)
            return reduced
        way = modules.way_to(function)
        if way is not None:
            return modules.follow, way
        make, (code, _, *given), (state, slots), *rest = reduced
        used = slots["__globals__"]
        if all(isinstance(value, types.ModuleType) for value in used.values()):
            return reduced  # it has nothing of its module's, whose import it can do without
        # What no source can say was put there by a rewriter of code, as pytest's of asserts.
        extra = {name: value for name, value in used.items() if not name.isidentifier()}
        slots = {**slots, "__globals__": {}, "_cloudpickle_submodules": []}
        return make, (code, _Globals(module.__name__, extra), *given), (state, slots), *rest


def _holds_times(dtype: Any) -> bool:
    if dtype.subdtype is not None:
        return _holds_times(dtype.subdtype[0])
    if dtype.fields is not None:
        return any(_holds_times(field[0]) for field in dtype.fields.values())
    return dtype.kind in "mM"


def _array_of(raw: Any, dtype: Any, shape: tuple[int, ...], order: str) -> Any:
    return raw.view(dtype).reshape(shape, order=order)


class _Globals:
    """Stands in a pickle for the globals of a module."""

    def __init__(self, module: str, extra: dict[str, Any]) -> None:
        self._module = module
        self._extra = extra

    def __reduce__(self) -> tuple[Any, ...]:
        return _globals_of, (self._module, self._extra)


def _globals_of(module: str, extra: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = vars(modules.follow(module, "", 0))
    for name, value in extra.items():
        found.setdefault(name, value)
    return found


class _Lent:
    """A read-only array's memory as if it could be written, without a copy."""

    def __init__(self, array: Any) -> None:
        about = array.__array_interface__
        self.array = array  # kept alive
        self.__array_interface__ = {**about, "data": (about["data"][0], False)}


def decode(data: Buffer) -> Any:
    """The value of what `encode` wrote.

    Arrays are views of `data`: writable where it is, and alive as long as they are.
    """
    view = memoryview(data)
    count, length = _HEAD.unpack_from(view)
    start = -(-(_HEAD.size + _LENGTH.size + length) // _ALIGN) * _ALIGN
    if count == 1 and length < _ALIGN * 8:
        known = _arrays.get(bytes(view[:start]))
        if known is not None:
            (_, shape, is_fortran), kind = known
            return sys.modules["numpy"].ndarray(
                shape, kind, view, start, order="F" if is_fortran else "C"
            )
    sizes = [_LENGTH.unpack_from(view, _HEAD.size + i * _LENGTH.size)[0] for i in range(count)]
    at = _HEAD.size + count * _LENGTH.size
    body = view[at : at + length]
    at += length
    buffers = []
    for n in sizes:
        at += -at % _ALIGN
        buffers.append(view[at : at + n])
        at += n
    value = pickle.loads(body, buffers=buffers)
    if count == 1 and is_simple(value):
        _start(value)  # the next one is known
    return value


# Calls


@dataclass(frozen=True)
class Inline:
    """Encoded bytes that travel with the call or reply; `failed` says that they are a failure."""

    data: bytes
    failed: bool = False


@dataclass(frozen=True)
class Kept:
    """Encoded bytes that wait in objects under `key`."""

    key: str
    size: int
    failed: bool = False


Payload: TypeAlias = Inline | Kept


@dataclass(frozen=True)
class Hole:
    """Stands in the pickled arguments for the value of a ref, or for this rank's value."""

    number: int


@dataclass(frozen=True)
class Gang:
    """What a rank knows of its gang.

    `given` holds, for each rank of this rank's subtree, what `fsdray.per_rank` arguments fill the
    holes with, so that a value travels down to its rank alone. Where it `recovers`, ranks that die
    may be started again; `moved` says how often those were that were. `medium` is what
    its collectives are chosen by.
    """

    id: str
    rank: int
    size: int
    branching: int
    channel: str
    inboxes: tuple[str, ...]
    given: Mapping[int, Mapping[int, Payload]]
    recovers: bool = False
    moved: Mapping[int, int] = field(default_factory=dict)
    medium: Medium = USUAL


@dataclass(frozen=True)
class Environment:
    """What a call finds around it; the calls that it makes find the same.

    `modules`, `working_dir` and `packages` are digests of bundles (`fsdray.modules`).
    """

    modules: tuple[str, ...] = ()
    working_dir: str | None = None
    env_vars: tuple[tuple[str, str], ...] = ()
    packages: str | None = None


@dataclass(frozen=True)
class Items:
    """How a generator's call streams what it yields.

    The first `skip` items were taken from an attempt before. Where `ahead` is given, at most so
    many items wait to be taken; the function waits meanwhile.
    """

    skip: int = 0
    ahead: int | None = None


@dataclass(frozen=True)
class Call:
    """One attempt to run one function, as its payload says it."""

    task: str
    name: str
    function: Payload
    arguments: Payload
    holes: Mapping[int, Payload]
    returns: tuple[str, ...]  # ids of the refs that stand for the values
    unpack: bool  # whether the function's value is a sequence of len(returns) values
    memory: int
    timeout: float
    settings: Settings
    gang: Gang | None = None
    attempt: int = 1
    environment: Environment = Environment()
    items: Items | None = None  # of a generator function that streams

    @property
    def label(self) -> str:
        """What names this call in logs: its name, its rank, and as much of its id as is needed."""
        rank = f"[{self.gang.rank}]" if self.gang is not None else ""
        process, _, number = self.task.partition("-")
        return f"{self.name}{rank} {process[:4]}-{number}"

    def whereabouts(self) -> str:
        """Which call this is, for who reads its error."""
        rank = f", rank {self.gang.rank} of {self.gang.size}" if self.gang is not None else ""
        return f"in task {self.name} (id {self.task}){rank}, attempt {self.attempt}"


@dataclass(frozen=True)
class RankReply:
    """What one call, or one rank of a gang, came to."""

    values: tuple[Payload, ...]
    counts: Mapping[str, float] = field(default_factory=dict)
    written: tuple[str, ...] = ()  # objects of its communicators, to be removed with the gang


@dataclass(frozen=True)
class Report:
    """What a rank of a gang that recovers says beside its values.

    Parameters
    ----------
    logged : all that it sent.
    moved : the others' moves that it knew of; it has sent those all that is theirs.
    raised : the encoded failure of the user's code, of which the others are to be told.
    chance : what it could not do again as before; the gang is to start anew.
    """

    logged: Logged
    moved: Mapping[int, int]
    raised: bytes | None = None
    chance: str | None = None


@dataclass(frozen=True)
class Reply:
    """What a function sends back: its own outcome, and those of the ranks that it started.

    `broken` says that the gang lost ranks: which, and the encoded failure that is why.
    """

    ranks: Mapping[int, RankReply]
    broken: tuple[tuple[int, ...], bytes] | None = None
    report: Report | None = None


def _fingerprint() -> bytes:
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    return f"fsdray {__version__}, {python}, {platform.machine()}\n".encode()


FINGERPRINT = _fingerprint()


def dump(message: Call | Reply) -> bytes:
    """A call or reply as bytes; the sender's fingerprint comes first."""
    if isinstance(message, Reply):
        return FINGERPRINT + pickle.dumps(message, protocol=5)
    head = _head(*(getattr(message, name) for name in _SAME))
    own = pickle.dumps([getattr(message, name) for name in _OWN], protocol=5)
    return b"".join((FINGERPRINT, _LENGTH.pack(len(head)), head, own))


def load_call(data: Buffer) -> Call:
    """The call in `data`; raises what `load_reply` does."""
    body = _checked(data)
    (length,) = _LENGTH.unpack_from(body)
    start = _LENGTH.size + length
    same = _of_head(bytes(body[_LENGTH.size : start]))
    return Call(**same, **dict(zip(_OWN, pickle.loads(body[start:]), strict=True)))


def load_reply(data: Buffer) -> Reply:
    """The reply in `data`.

    Raises
    ------
    EnvironmentMismatch
        where the two sides differ in Python's minor version, fsdray's version or architecture.
    """
    reply = pickle.loads(_checked(data))
    assert isinstance(reply, Reply)
    return reply


def _checked(data: Buffer) -> memoryview:
    """What comes after the fingerprint."""
    view = memoryview(data)
    if view[: len(FINGERPRINT)] == FINGERPRINT:
        return view[len(FINGERPRINT) :]
    theirs = bytes(view[:100]).partition(b"\n")[0]
    raise EnvironmentMismatch(
        f"caller and function differ: {theirs.decode(errors='replace').strip()} there, "
        f"{FINGERPRINT.decode().strip()} here; install the same on both sides"
    )


# A call's head is what all calls of one function with the same options share. It is pickled once
# and unpickled once a worker.

_SAME = ("name", "function", "unpack", "memory", "timeout", "settings", "environment")
_OWN = tuple(field.name for field in fields(Call) if field.name not in _SAME)


@lru_cache(maxsize=64)
def _head(*same: Any) -> bytes:
    return pickle.dumps(dict(zip(_SAME, same, strict=True)), protocol=5)


@lru_cache(maxsize=64)
def _of_head(head: bytes) -> dict[str, Any]:
    same: dict[str, Any] = pickle.loads(head)
    return same
