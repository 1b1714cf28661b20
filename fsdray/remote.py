"""``@fsdray.remote``: turns a function into one that runs elsewhere, and checks its options.

What happens to a call from here on is in `fsdray.session`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, ParamSpec, TypeVar, cast, overload

from fsdray import session, wire
from fsdray.bindings import Bindings
from fsdray.errors import NotPicklable, SettingsError
from fsdray.maps import Map, inputs_of
from fsdray.retries import RetryPolicy
from fsdray.runtime_env import RuntimeEnv
from fsdray.session import Session
from fsdray.settings import check_channel
from fsdray.streams import FirstItems, ObjectRefGenerator
from fsdray.submission import Submission
from fsdray.wire import Items

P = ParamSpec("P")
R = TypeVar("R")


MEMORY_OF_A_CPU = 1769
"""MB at which AWS Lambda gives a function one whole CPU (Lambda's documentation)."""

# Options that Ray's tasks take, and why they cannot be had.
_REFUSED = {
    "num_gpus": "functions have no GPUs",
    "accelerator_type": "functions have no accelerators",
    "resources": "functions have memory, and CPUs in proportion to it: use memory=MB",
    "scheduling_strategy": "there are no nodes to choose from",
    "label_selector": "there are no nodes to choose from",
    "fallback_strategy": "there are no nodes to choose from",
    "placement_group": "there are no nodes to choose from",
    "placement_group_bundle_index": "there are no nodes to choose from",
    "placement_group_capture_child_tasks": "there are no nodes to choose from",
    "max_calls": "the platform decides when an environment is replaced",
    "max_cost": "there are no estimates yet that it could be held against",
    "concurrency_groups": "a function runs one call at a time",
}

# Their values that ask for nothing, or for what is so in any case.
_NOTHING: tuple[Any, ...] = (None, 0, {}, "DEFAULT", "SPREAD", "default")

# Options of Ray's that tune its own processes, not what a program computes.
_HINTS = frozenset({"enable_task_events", "object_store_memory"})

_MOST_MEGABYTES = 1 << 20


@dataclass(frozen=True)
class TaskOptions:
    """Options of a call; None means the session's setting.

    Parameters
    ----------
    num_returns : how many refs a call returns, by default one; with 0 it returns None, with more
        than one the function must return as many values. A call of a generator function is, by
        default or with ``"streaming"``, an `ObjectRefGenerator` of the refs of its items, as they
        are yielded; with a number, it is the refs of its first items, once all of them are there
        (with 0 it runs to its end), and then goes no further.
    memory : MB that the call may use (Ray's is in bytes). timeout : seconds that it may take.
        ``num_cpus=n`` asks for as much memory as gives n CPUs.
    name : what the call is called in logs and errors; by default the function's own name.
    world_size : ranks of a gang; the call returns a list of one ref a rank.
    channel : how the gang talks: ``"queue"``, ``"object"`` or ``"auto"``.
    max_retries, retry_exceptions : see `fsdray.retries.RetryPolicy`. Of a gang ``max_retries``, by
        default 0, says how often each rank may be started again, alone where that is possible
        (docs/collectives.md); ``retry_exceptions`` is not for gangs.
    preload : modules that the function needs, or ``"module:function"`` to call; a platform that
        can loads them once for all calls.
    runtime_env : a dict with any of ``env_vars`` (a dict of texts, set while the call runs),
        ``working_dir`` (a directory whose files travel; the call runs in a copy of it),
        ``py_modules`` (paths and modules to travel though nothing imports them by name) and
        ``pip`` (a list of requirements, or the path of a file of them). Calls that the call makes
        have the same, unless they say otherwise. Packages are installed here, once, by this
        interpreter's pip with your configuration of it; they are kept (``fsdray.init(cache=)``)
        and come before what is installed where functions run. A requirement without an exact
        version stays as it was first installed for as long as it is kept.
    _generator_backpressure_num_objects : of a generator that streams: with this many items that
        nobody has taken, it waits before it makes more, on its own time. None or -1 is any number.
        It costs one put and one get for each half of that many items.
    """

    num_returns: int | Literal["streaming"] | None = None
    memory: int | None = None
    timeout: float | None = None
    name: str | None = None
    world_size: int | None = None
    channel: str | None = None
    preload: tuple[str, ...] = ()
    max_retries: int | None = None
    retry_exceptions: bool | tuple[type[BaseException], ...] | None = None
    runtime_env: RuntimeEnv | Mapping[str, Any] | None = None
    _generator_backpressure_num_objects: int | None = None

    def __post_init__(self) -> None:
        wanted: object = self.num_returns
        if wanted == "dynamic":
            raise SettingsError(
                'num_returns="dynamic" gives its refs only when all items are there, and Ray has '
                'given it up: use "streaming", the default of generator functions'
            )
        if wanted not in (None, "streaming") and not (
            isinstance(wanted, int) and _is_int(wanted) and wanted >= 0
        ):
            raise SettingsError(
                f"num_returns={wanted!r}: give a whole number from 0, or, for a "
                'generator function, "streaming"'
            )
        ahead = self._generator_backpressure_num_objects
        if ahead is not None and (not _is_int(ahead) or (ahead < 1 and ahead != -1)):
            raise SettingsError(
                f"_generator_backpressure_num_objects={ahead!r}: give a whole number from 1, or -1 "
                "for no limit"
            )
        if self.memory is not None and (not _is_int(self.memory) or self.memory < 1):
            raise SettingsError(f"memory={self.memory!r}: give whole MB of at least 1")
        if self.memory is not None and self.memory >= _MOST_MEGABYTES:
            raise SettingsError(
                f"memory={self.memory} is in MB, not in bytes as Ray's: did you mean "
                f"memory={self.memory >> 20}?"
            )
        if self.timeout is not None and (
            not isinstance(self.timeout, int | float) or not self.timeout > 0
        ):
            raise SettingsError(f"timeout={self.timeout!r}: give seconds above 0")
        if self.name is not None and not isinstance(self.name, str):
            raise SettingsError(f"name={self.name!r}: give a string")
        if self.world_size is not None and (not _is_int(self.world_size) or self.world_size < 1):
            raise SettingsError(f"world_size={self.world_size!r}: give a whole number from 1")
        if self.world_size is not None and self.num_returns not in (None, 1):
            raise SettingsError("a gang returns one ref a rank: world_size excludes num_returns")
        if self.world_size is not None and self.retry_exceptions not in (None, False):
            raise SettingsError(
                "retry_exceptions is for tasks: a rank's exception is its gang's outcome, and the "
                "other ranks may know of it. Call the gang again where it is raised"
            )
        _ = self.retry  # a bad value is refused now
        if isinstance(self.preload, str) or not all(isinstance(x, str) for x in self.preload):
            raise SettingsError(f"preload={self.preload!r}: give a list of names")
        object.__setattr__(self, "runtime_env", RuntimeEnv.of(self.runtime_env))
        if self.channel is not None:
            if self.world_size is None:
                raise SettingsError("channel is for gangs: give world_size too")
            check_channel(self.channel)

    @property
    def retry(self) -> RetryPolicy:
        """When a call runs again."""
        retries = 0 if self.world_size is not None else None  # by default a gang runs once
        most = self.max_retries if self.max_retries is not None else retries
        given = {"max_retries": most, "retry_exceptions": self.retry_exceptions}
        return RetryPolicy(**{name: v for name, v in given.items() if v is not None})  # type: ignore[arg-type]

    def updated(self, changes: Mapping[str, Any]) -> TaskOptions:
        """These options with some changed.

        Raises
        ------
        SettingsError
            for an option that does not exist or a value that it cannot have.
        """
        known = {field.name for field in dataclasses.fields(self)}
        changes = dict(changes)
        cpus = changes.pop("num_cpus", None)
        if cpus is not None:
            changes.setdefault("memory", _memory_for(cpus, self.memory))
        for name, value in list(changes.items()):
            if name in _HINTS or (name in _REFUSED and value in _NOTHING):
                del changes[name]
            elif name in _REFUSED:
                raise SettingsError(f"{name} has no meaning here: {_REFUSED[name]}")
            elif name not in known:
                raise SettingsError(
                    f"unknown option {name!r}: a task takes {', '.join(sorted(known))}"
                )
        return dataclasses.replace(self, **changes)


class RemoteFunction(Generic[P, R]):
    """A function that runs elsewhere: ``f.remote(...)`` returns refs, ``f.options(...)`` varies it.

    The function itself is ``f.__wrapped__``, to be called here.
    """

    __name__: str
    __qualname__: str
    is_generator: bool
    """Whether the function yields."""

    def __init__(self, function: Callable[P, R], options: TaskOptions) -> None:
        if not hasattr(function, "__name__"):  # a partial, or an object that can be called
            told = getattr(function, "func", type(function))
            self.__name__, self.__qualname__ = told.__name__, told.__qualname__
        functools.update_wrapper(self, function)
        self.__wrapped__ = function
        self._options = options
        self.is_generator = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(
            function
        )
        wanted = options.num_returns
        self._count = wanted if isinstance(wanted, int) else 1
        self._items = self._streamed()
        # What is sent: with a number of returns, a generator function is one that returns them.
        as_it_is = self._items is not None or not self.is_generator
        self._sent = function if as_it_is else FirstItems(function, self._count)
        self._signature = _signature(function)
        self._pickled: tuple[weakref.ref[Session], bytes, frozenset[str], Bindings] | None = None

    def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Start a call.

        Returns
        -------
        ObjectRef, or a list of them, or an ObjectRefGenerator
            One ref; a list where ``num_returns`` is above 1 or ``world_size`` is given (one ref a
            rank); None where ``num_returns`` is 0; an `ObjectRefGenerator` of a generator function.

        Raises
        ------
        TypeError
            where the arguments do not fit the function's signature.
        SettingsError
            where an argument cannot be pickled, an option cannot be had, or a gang cannot be
            whole. Nothing has started.
        """
        if self._signature is not None:
            self._signature.bind(*args, **kwargs)
        here = session.current()
        options, settings = self._options, here.settings
        function, modules = self._pickle(here)
        refs = here.submit(
            Submission(
                name=options.name or self.__name__,
                function=function,
                modules=modules,
                args=args,
                kwargs=kwargs,
                num_returns=self._count,
                memory=options.memory or settings.memory,
                timeout=options.timeout or settings.timeout,
                world_size=options.world_size,
                channel=options.channel or settings.channel,
                preload=tuple(options.preload),
                retry=options.retry,
                runtime_env=cast(RuntimeEnv | None, options.runtime_env),
                items=self._items,
            )
        )
        if self._items is not None:
            return ObjectRefGenerator(refs[0], self._items.ahead)
        if options.world_size is not None or self._count > 1:
            return refs
        return refs[0] if refs else None

    def map(
        self,
        iterable: Iterable[Any],
        *,
        ordered: bool = True,
        return_exceptions: bool = False,
        chunksize: int | None = None,
        progress: bool = False,
    ) -> Map:
        """Call the function on each item; an iterator over the values.

        Items are taken from `iterable` as values are taken out, so it may be endless.

        Parameters
        ----------
        ordered : whether values come in the order of their items, or as they are there.
        return_exceptions : whether an exception that the function raises takes the value's place,
            or ends the map.
        chunksize : items of one call; by default it adapts, so that a call takes a quarter second.
        progress : show a bar on a terminal.

        Raises
        ------
        Exception
            what the function raised, when its turn comes, or what `iterable` itself raised, once
            the values of the items before are out. Calls still under way are then cancelled.
        """
        inputs, total = inputs_of(iterable)
        return Map(
            self,
            ((item,) for item in inputs),
            ordered=ordered,
            return_exceptions=return_exceptions,
            chunksize=chunksize,
            progress=progress,
            total=total,
        )

    def starmap(
        self,
        iterable: Iterable[Iterable[Any]],
        *,
        ordered: bool = True,
        return_exceptions: bool = False,
        chunksize: int | None = None,
        progress: bool = False,
    ) -> Map:
        """`map` over tuples of arguments."""
        inputs, total = inputs_of(iterable)
        return Map(
            self,
            (tuple(items) for items in inputs),
            ordered=ordered,
            return_exceptions=return_exceptions,
            chunksize=chunksize,
            progress=progress,
            total=total,
        )

    @property
    def is_gang(self) -> bool:
        """Whether a call is a gang."""
        return self._options.world_size is not None

    @property
    def retries_exceptions(self) -> bool:
        """Whether a call runs again after an exception of the user's code."""
        return bool(self._options.retry_exceptions)

    def wrapping(self, function: Callable[..., Any]) -> RemoteFunction[..., Any]:
        """Another function with this one's name and options."""
        name = self._options.name or self.__name__
        options = self._options.updated({"name": name, "num_returns": 1})
        return RemoteFunction(function, options)

    def check(self) -> None:
        """Raise `SettingsError` where no call could have these options; start nothing."""
        options, here = self._options, session.current()
        here.check(
            options.memory or here.settings.memory,
            options.timeout or here.settings.timeout,
            options.world_size,
            options.channel or here.settings.channel,
        )

    def options(self, **changes: Any) -> RemoteFunction[P, R]:
        """The same function with other options; see `TaskOptions`."""
        other = RemoteFunction(self.__wrapped__, self._options.updated(changes))
        if other._sent == self._sent:
            other._pickled = self._pickled
        return other

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        raise TypeError(
            f"{self.__name__} is a remote function: call {self.__name__}.remote(...) to run it "
            f"elsewhere, or {self.__name__}.__wrapped__(...) to run it here"
        )

    def __repr__(self) -> str:
        return f"<remote function {self.__module__}.{self.__qualname__}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFunction, (self.__wrapped__, self._options)

    def _streamed(self) -> Items | None:
        """How a call's items stream, where they do; the function's kind excludes some options."""
        options = self._options
        wanted, ahead = options.num_returns, options._generator_backpressure_num_objects
        if self.is_generator and options.world_size is not None:
            raise SettingsError(
                f"{self.__name__} is a generator function, and a rank has one value: return a list "
                "from each rank, or start tasks that yield"
            )
        if self.is_generator and not isinstance(wanted, int):
            return Items(ahead=None if ahead == -1 else ahead)
        if wanted == "streaming":
            raise SettingsError(
                f'num_returns="streaming" is for generator functions, and {self.__name__} is none: '
                "nothing in it yields"
            )
        if ahead is not None:
            raise SettingsError(
                "_generator_backpressure_num_objects is for generator functions that stream, and "
                f"{self.__name__} does not"
            )
        return None

    def _pickle(self, here: Session) -> tuple[bytes, frozenset[str]]:
        """The function's bytes, and the modules it refers to; made anew where those changed."""
        known = self._pickled
        if known is None or known[0]() is not here or not known[3].hold():
            bindings = Bindings(self.__wrapped__)
            try:
                with wire.collecting_modules() as modules:
                    pickled = wire.encode_function(self._sent)
                known = weakref.ref(here), pickled, frozenset(modules), bindings
                self._pickled = known
            except Exception as error:
                # Pickling runs the __reduce__ of whatever the closure holds.
                raise NotPicklable(
                    f"{self.__name__} cannot be pickled, so it cannot run elsewhere: {error}. "
                    "Look at what it refers to from outside"
                ) from error
        return known[1:3]


@overload
def remote(function: Callable[P, R], /) -> RemoteFunction[P, R]: ...
@overload
def remote(**options: Any) -> Callable[[Callable[P, R]], RemoteFunction[P, R]]: ...
def remote(*args: Any, **options: Any) -> Any:
    """Make a function remote: ``@fsdray.remote`` or ``@fsdray.remote(memory=2048, timeout=60)``.

    An ``async def`` function runs to its end, as by `asyncio.run`; it can await refs. A call of a
    generator function is an `ObjectRefGenerator`.

    Parameters
    ----------
    **options : see `TaskOptions`.

    Raises
    ------
    SettingsError
        for an unknown option or a bad value.
    TypeError
        for something that is not a function; classes (actors) are not supported.
    """
    checked = TaskOptions().updated(options)
    if not args:
        return lambda function: _made(function, checked)
    if len(args) > 1 or options:
        raise TypeError("use @fsdray.remote, or @fsdray.remote(option=value, ...)")
    return _made(args[0], checked)


def _made(function: Any, options: TaskOptions) -> RemoteFunction[Any, Any]:
    if inspect.isclass(function):
        raise TypeError(
            f"{function.__name__} is a class: fsdray has tasks and gangs, not actors. Keep state "
            "in the caller, in fsdray.put, or in the ranks of a gang"
        )
    if not callable(function) or isinstance(function, RemoteFunction):
        raise TypeError(f"@fsdray.remote takes a function, not {type(function).__name__}")
    return RemoteFunction(cast(Callable[..., Any], function), options)


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """What a call is checked against; a few built-in functions do not tell."""
    try:
        return inspect.signature(function)
    except ValueError:
        return None


def _memory_for(cpus: Any, memory: int | None) -> int | None:
    """The memory (MB) that gives so many CPUs, unless more was asked for."""
    if isinstance(cpus, bool) or not isinstance(cpus, int | float) or not cpus >= 0:
        raise SettingsError(f"num_cpus={cpus!r}: give a number from 0")
    wanted = math.ceil(cpus * MEMORY_OF_A_CPU)
    return max(wanted, memory or 0) if cpus > 1 else memory


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
