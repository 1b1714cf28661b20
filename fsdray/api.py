"""The calls of everyday use, over the current session: init, shutdown, get, put, wait."""

from __future__ import annotations

import asyncio
import atexit
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from fsdray import from_ray, loop, output, session, settings
from fsdray.costs.meter import Meter, ambient, count, set_outermost
from fsdray.costs.prices import load_prices
from fsdray.costs.receipt import Receipt
from fsdray.errors import FsdrayError, SessionError, SettingsError
from fsdray.refs import ObjectRef
from fsdray.runtime_env import RuntimeEnv
from fsdray.services import Backend
from fsdray.session import Session
from fsdray.streams import ObjectRefGenerator

T = TypeVar("T")


@dataclass(frozen=True)
class Connected:
    """What `init` returns; as a context manager it ends the session with its block.

    Parameters
    ----------
    settings : what the session runs with.
    """

    settings: settings.Settings

    def disconnect(self) -> None:
        """`shutdown`."""
        shutdown()

    def __enter__(self) -> Connected:
        return self

    def __exit__(self, *_: object) -> None:
        shutdown()


def init(
    backend: str | None = None,
    *,
    ignore_reinit_error: bool = False,
    runtime_env: Mapping[str, Any] | None = None,
    **options: Any,
) -> Connected:
    """Start the session of this process; the first remote call does so by itself.

    Parameters
    ----------
    backend : ``"local"`` (the default), or another installed backend.
    ignore_reinit_error : whether to do nothing where a session is open.
    runtime_env : what all calls find around them; a call's own option adds to it, and wins. See
        `fsdray.remote.TaskOptions`.
    **options : see `fsdray.settings.Settings`. Of the arguments of Ray's ``init``, ``num_cpus`` is
        ``concurrency``, ``log_to_driver`` is ``log_to_caller``, ``address`` is the backend; those
        that tune Ray's own processes are ignored.

    Returns
    -------
    Connected
        to be used with ``with``, or not at all.

    Raises
    ------
    SettingsError
        for an unknown backend, setting or value.
    SessionError
        where a session is open: `shutdown` it first.
    """
    if session.is_open():
        if ignore_reinit_error:
            return Connected(session.current().settings)
        raise SessionError(
            "a session is open; call fsdray.shutdown() before another init, or init with "
            "ignore_reinit_error=True"
        )
    chosen = settings.resolve(from_ray.settings_of(backend, options))
    surroundings = RuntimeEnv.of(runtime_env)
    connect = _backend(chosen.backend)
    load_prices(chosen.prices)  # a bad table is known now, not after the run
    set_outermost(Meter())
    connecting = loop.submit(connect(chosen, count))
    try:
        connected = connecting.result()
    except KeyboardInterrupt:
        loop.finish(_undone(connecting))
        raise
    here = Session(connected, chosen, is_driver=True)
    here.runtime_env = surroundings
    session.set_current(here)
    atexit.register(_end)
    return Connected(chosen)


def shutdown() -> None:
    """End the session: stop what runs, leave no process and no file. Without one, do nothing.

    Raises
    ------
    SessionError
        inside a task: the session is its caller's.
    """
    if session.is_open():
        here = session.current()
        if not here.is_driver:
            raise SessionError("a task cannot shut down its caller's session")
        session.set_current(None)
        atexit.unregister(_end)
        loop.finish(here.close())
        output.flush()


def receipt() -> Receipt:
    """What the session has asked of the services so far, priced."""
    here = session.current()
    total = ambient()
    return Receipt(total.counts() if total else {}, here.prices)


def cluster_resources() -> dict[str, float]:
    """What Ray's programs ask to size their work: ``{"CPU": calls that may run at one time}``."""
    return {"CPU": float(session.current().backend.functions.limits.concurrency)}


def is_initialized() -> bool:
    """Whether this process has a session."""
    return session.is_open()


@overload
def get(refs: ObjectRef[T], *, timeout: float | None = None) -> T: ...
@overload
def get(refs: list[ObjectRef[T]], *, timeout: float | None = None) -> list[T]: ...
@overload
def get(refs: list[Any], *, timeout: float | None = None) -> list[Any]: ...
def get(refs: Any, *, timeout: float | None = None) -> Any:
    """The value of a ref, or the values of a list of refs; waits until they are there.

    Arrays are read-only views of shared memory where there is any; copy what you want to change.

    Parameters
    ----------
    timeout : seconds, after which the wait (not the task) ends.

    Raises
    ------
    GetTimeout
        where the values are not there in time.
    Exception
        what a task raised: an instance of its own type and of `TaskError`. Where a rank of a
        gang raised, its error rather than the `RankFailed` of those that waited for it.
    PlatformError
        where the platform failed.
    ValueError
        where `refs` is neither a ref nor a list.
    TypeError
        where something in the list is not a ref.
    """
    many = isinstance(refs, list)
    wanted = refs if many else [refs]
    for ref in wanted:
        if not isinstance(ref, ObjectRef):
            wrong = f"get takes an ObjectRef or a list of them, not {type(ref).__name__}"
            if isinstance(ref, ObjectRefGenerator):
                wrong += ": iterate over it for its refs"
            raise TypeError(wrong) if many else ValueError(f"{wrong} {ref!r}"[:120])
    _check_timeout(timeout)
    if not wanted:
        return []
    values, error = session.current().get(wanted, timeout)
    if error is not None:
        __tracebackhide__ = True  # pytest and IPython then show the caller's line alone
        try:
            raise error
        finally:
            # The traceback keeps this frame, which must keep neither it nor the refs.
            del error, values, wanted, refs, ref
    return values if many else values[0]


def put(value: T) -> ObjectRef[T]:
    """Store a value once, to be given to any number of calls by its ref.

    Raises
    ------
    TypeError
        for a ref: it is stored already.
    NotPicklable
        for a value that cannot be pickled.
    ServiceError
        where there is no room for it.
    """
    return session.current().put(value)


def wait(
    refs: list[ObjectRef[T]],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[ObjectRef[T]], list[ObjectRef[T]]]:
    """Wait until `num_returns` of the refs have a value (or an error), or time is up.

    Parameters
    ----------
    fetch_local : for Ray's programs: values are fetched by `get` in any case.

    Returns
    -------
    (ready, not_ready)
        in the order of `refs`; `ready` has at most `num_returns`. An `ObjectRefGenerator` is ready
        where `next` need not wait for it.
    """
    if not isinstance(refs, list):
        raise TypeError(f"wait takes a list of refs, not {type(refs).__name__}")
    if any(not isinstance(ref, ObjectRef | ObjectRefGenerator) for ref in refs):
        raise TypeError("wait takes a list of refs")
    if len(set(refs)) != len(refs):
        raise ValueError("wait takes each ref once")
    if not refs:
        return [], []
    if not 1 <= num_returns <= len(refs):
        raise ValueError(f"num_returns={num_returns}: choose from 1 to {len(refs)}, one a ref")
    _check_timeout(timeout)
    return session.current().wait(refs, num_returns, timeout)


def as_completed(
    refs: Sequence[ObjectRef[T]], *, timeout: float | None = None
) -> Iterator[ObjectRef[T]]:
    """The refs one by one, as their values (or errors) come.

    Parameters
    ----------
    timeout : seconds for all of them together.

    Raises
    ------
    GetTimeout
        where not all have come in time.
    """
    if any(not isinstance(ref, ObjectRef) for ref in refs):
        raise TypeError(
            "as_completed takes a list of refs; the refs of an ObjectRefGenerator come in order "
            "from itself, and wait takes several generators"
        )
    _check_timeout(timeout)
    return session.current().completed(list(refs), timeout)


def cancel(
    ref: ObjectRef[Any] | ObjectRefGenerator[Any], *, force: bool = False, recursive: bool = True
) -> None:
    """Stop a task; of a gang's ref, the whole gang. Its values raise `TaskCancelled`.

    Of a generator, items that were made before stay good, and the next ref raises.

    A task that has not started never will. One that runs is stopped at once on the local backend:
    its process is killed, and the tasks that it started are stopped within a second. Where its
    value is there already, nothing happens.

    Parameters
    ----------
    force : for Ray's programs: it makes no difference, since there is no gentler way.
    recursive : must be True: what a task started does not outlive it.
    """
    if isinstance(ref, ObjectRefGenerator):
        ref = ref.completed()
    if not isinstance(ref, ObjectRef):
        raise TypeError(f"cancel takes a ref, not {type(ref).__name__}")
    if not recursive:
        raise SettingsError("recursive=False: what a task started does not outlive it here")
    session.current().cancel(ref)


def _end() -> None:
    # A second Ctrl-C, while the first one's end is waited for, has nothing new to say.
    with suppress(KeyboardInterrupt):
        try:
            shutdown()
        except FsdrayError as error:
            # The program has ended: nobody can catch it, and a traceback would be of our own code.
            print(f"fsdray: at the end of the session: {error}", file=sys.stderr)


async def _undone(connecting: Future[Backend]) -> None:
    """End what an interrupted `init` has begun to start."""
    connected = await asyncio.wrap_future(connecting)
    await connected.close()


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout={timeout}: give seconds from 0, or None to wait for ever")


def _backend(name: str) -> Any:
    from importlib.metadata import entry_points  # 30 ms that only an init needs

    found = {entry.name: entry for entry in entry_points(group="fsdray.backends")}
    if name not in found:
        raise SettingsError(f"backend={name!r}: installed are {', '.join(sorted(found)) or 'none'}")
    return found[name].load()
