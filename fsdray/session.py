"""One user's connection to one backend: submits calls, and keeps what their refs stand for.

The same class serves the driver and, inside a task, the worker. What runs a call at the other end
is `fsdray.worker`; how a gang is started and watched is `fsdray.gang`; values are `fsdray.values`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import threading
from collections.abc import Coroutine, Iterable, Mapping, Sequence, Set
from typing import Any
from weakref import WeakValueDictionary

from fsdray import buffers, decoding, failure, gang, loop, modules, recovery, streams, wire
from fsdray.collective import channels
from fsdray.costs.medium import Medium
from fsdray.costs.meter import Meter, metering
from fsdray.costs.prices import load_prices
from fsdray.errors import (
    NotPicklable,
    ObjectLost,
    PlatformError,
    SessionError,
    SettingsError,
    TaskCancelled,
)
from fsdray.gang import GangResult
from fsdray.loop import Turnstile
from fsdray.modules import Bundle
from fsdray.refs import ObjectRef
from fsdray.retries import RetryPolicy
from fsdray.runtime_env import RuntimeEnv
from fsdray.services import Backend, Buffer
from fsdray.settings import Settings
from fsdray.submission import PerRank, Submission, dig
from fsdray.values import Entry, Values, value_key
from fsdray.wire import Call, Environment, Gang, Hole, Inline, Kept, Payload

_HANDED = 1024  # calls that are handed to the platform at one time, though fewer may run


class Session(Values):
    """Values, and the calls that make them."""

    def __init__(self, backend: Backend, settings: Settings, is_driver: bool) -> None:
        super().__init__(backend, settings, is_driver)
        self._functions: dict[str, Kept] = {}
        self._large: WeakValueDictionary[bytes, Entry] = WeakValueDictionary()  # by digest
        self.environment = Environment()  # inside a task, what its own call was given
        self.runtime_env: RuntimeEnv | None = None  # of all calls that the driver makes
        self._own: frozenset[str] = frozenset()  # the user's modules that this session needs
        self._stored: set[str] = set()  # digests of bundles
        self._ship_lock = threading.Lock()
        places = max(_HANDED, 2 * backend.functions.limits.concurrency)
        self._turnstile = Turnstile(places)

    def check(self, memory: int, timeout: float, world_size: int | None, channel: str) -> None:
        """Raise `SettingsError` for what no call can have, or a gang that never can be whole."""
        limits = self.backend.functions.limits
        limits.check(memory, timeout)
        if world_size is not None and world_size > limits.concurrency:
            raise SettingsError(
                f"a gang of {world_size} cannot be whole: {limits.concurrency} calls may run at "
                f"one time. Start fewer ranks, or fsdray.init(concurrency={world_size})"
            )
        messages = self.backend.messages.limits
        inboxes = (
            world_size if messages.inboxes is None or channel == "object" else messages.inboxes
        )
        if world_size is not None and inboxes is not None and world_size > inboxes:
            raise SettingsError(
                f"a gang of {world_size} needs an inbox for each rank, and there are {inboxes}. "
                "Start fewer ranks, use channel='object', or "
                f"{messages.more_inboxes.format(world_size)}"
            )

    def medium(self, memory: int) -> Medium:
        """What collectives of ranks with so many MB are chosen by."""
        try:
            prices = self.prices
        except SettingsError:
            if self.is_driver:
                raise
            # A worker need not have the caller's file; what is billed is priced by the caller.
            prices = self.prices = load_prices()
        return Medium.of(prices, memory, self.settings.prefer)

    def submit(self, submission: Submission) -> list[ObjectRef[Any]]:
        """Start a call, or a gang of them; one ref for each value, or each rank."""
        if self._closed:
            raise SessionError("this session was shut down; call fsdray.init() for a new one")
        self.check(submission.memory, submission.timeout, submission.world_size, submission.channel)
        task = self.new_id()
        size = submission.world_size
        args, kwargs, holes, given = dig(submission)
        try:
            with wire.collecting_modules() as needed, wire.collecting() as nested:
                parts = _encoded(submission.name, args, kwargs)
                if buffers.size(parts) > self.settings.inline_limit:
                    args, kwargs = self._lifted(args, kwargs, holes, len(given))
                    parts = wire.encode((args, kwargs))
                arguments = self._send(f"arguments/{task}", parts)
                sent = self._send_given(task, given, size or 1)
            self.need(submission.modules | needed)
            environment = self.shipped(submission.runtime_env)
            function = self._send_function(submission.function)
        except BaseException:
            # Which of them were stored is not known, and need not be.
            stored = [
                _given_key(task, number, rank) for number in given for rank in range(size or 1)
            ]
            self.forget(f"arguments/{task}", *stored)
            raise
        # The user's own modules are nowhere before a call brings them.
        preload = [name for name in submission.preload if not modules.is_own(name)]
        if preload and environment.packages is None:  # which may bring another version of it
            self.backend.functions.prepare(preload)
        count = submission.num_returns if size is None else size
        entries = [
            Entry(
                self,
                streams.end_id(task) if submission.items else f"{task}-{i}",
                f"{submission.name}[{i}]" if size else submission.name,
            )
            for i in range(count)
        ]
        given_refs = [
            *holes.values(),
            *(ref._entry for ref in nested),
            *(value for of_rank in sent for value in of_rank.values() if isinstance(value, Entry)),
        ]
        for entry in entries:
            entry.needs = given_refs
        call = Call(
            task=task,
            name=submission.name,
            function=function,
            arguments=arguments,
            holes={},
            returns=tuple(entry.id for entry in entries),
            unpack=size is None and submission.num_returns != 1,
            memory=submission.memory,
            timeout=submission.timeout,
            settings=self.settings,
            environment=environment,
            items=submission.items,
        )
        if size is None:
            garbage = [arguments]
            work = self._run_task(call, submission.retry, holes, entries, garbage)
            # What waits for other values must not keep those from being made.
            is_ready = all(entry.payload.done() for entry in holes.values())
            self._go_for(entries, garbage, work, self._turnstile if is_ready else None)
        else:
            for rank, entry in enumerate(entries):
                entry.gang = (task, rank)
            kept = [v for of_rank in sent for v in of_rank.values() if isinstance(v, Kept)]
            garbage = [arguments, *kept]
            work = self._run_gang(call, submission, holes, sent, entries, garbage)
            self._go_for(entries, garbage, work)
        return [ObjectRef(entry) for entry in entries]

    def need(self, names: Set[str]) -> None:
        """From now on all calls have those of these modules that are the user's own."""
        if not self.is_driver:
            return  # what this task refers to came with it, and goes on with its calls
        new = [name for name in names if name not in self._own and modules.is_own(name)]
        if new:
            with self._ship_lock:
                own = self._own.union(new)
                modules.catalog.bundles(own)  # one that cannot travel is this call's error alone
                self._own = own

    def shipped(self, runtime_env: RuntimeEnv | None) -> Environment:
        """What calls find around them, stored for them: modules, directory, variables.

        All modules that the session ever needed are there: a value may come from any call
        before, and its class with it.
        """
        environment = self.environment
        if self._own:
            bundles = modules.catalog.bundles(self._own)
            self._store(bundles.values())
            digests = tuple(bundle.digest for bundle in bundles.values())
            environment = Environment(digests)
        for each in (self.runtime_env, runtime_env):
            if each is not None:
                environment = self._with(environment, each)
        return environment

    def _with(self, environment: Environment, runtime_env: RuntimeEnv) -> Environment:
        """What a call finds around it, and what this says of it, which wins."""
        given = runtime_env.shipped
        packages = runtime_env.packages(
            self.settings.cache_directory, self.backend.functions.limits.wheels
        )
        working_dir, named = runtime_env.bundles()
        self._store([*named, *(each for each in (working_dir, packages) if each)])
        digests = tuple(bundle.digest for bundle in named)
        return Environment(
            tuple(dict.fromkeys((*digests, *given.modules, *environment.modules))),
            working_dir.digest if working_dir else given.working_dir or environment.working_dir,
            tuple(dict((*environment.env_vars, *given.env_vars, *runtime_env.env_vars)).items()),
            packages.digest if packages else given.packages or environment.packages,
        )

    def _store(self, bundles: Iterable[Bundle]) -> None:
        for bundle in bundles:
            if bundle.digest not in self._stored:
                loop.run(self.backend.objects.put(bundle.key, bundle.data, if_absent=True))
                self._stored.add(bundle.digest)

    async def close(self) -> None:
        """End the session; what still runs is stopped where the platform can."""
        self._closed = True
        for job in list(self._underway):
            job.cancel()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over(), 5)
        await self.backend.close()

    # Inside

    async def _run_task(
        self,
        call: Call,
        retry: RetryPolicy,
        holes: Mapping[int, Entry],
        entries: Sequence[Entry],
        garbage: list[Payload],
    ) -> None:
        filled = await self.all_resolved(holes)
        failed = next((payload for payload in filled.values() if payload.failed), None)
        if failed is not None:
            # A dependency's failure is this task's; nothing need run to know it.
            error = await self._failure(failed)
            error.add_note(f"{call.whereabouts()}, which was given its value")
            encoded = failure.encode(failure.capture(error, call.name))
            for entry in entries:
                entry.payload.set_result(Inline(encoded, failed=True))
            return
        whole = await self._fitting(call, filled, garbage)
        with metering() as meter:
            values = await self._attempts(whole, retry, meter)
        if len(values) != len(entries):
            values = values * len(entries)  # one that could not be read was refused as a whole
        for entry, value in zip(entries, values, strict=True):
            entry.counts = meter.counts()
            entry.payload.set_result(value)

    async def _attempts(self, call: Call, retry: RetryPolicy, meter: Meter) -> tuple[Payload, ...]:
        """Run a call until it succeeds or may not run again; its values or its failure."""
        while True:
            try:
                data = await self.backend.functions.invoke(
                    wire.dump(call), memory=call.memory, timeout=call.timeout, label=call.label
                )
            except PlatformError as error:
                if not retry.after_platform(error, call.attempt):
                    error.add_note(call.whereabouts())
                    raise
            else:
                reply = wire.load_reply(data).ranks[0]
                meter.merge(reply.counts)
                failed = next((value for value in reply.values if value.failed), None)
                if failed is None:
                    return tuple(reply.values)
                if not retry.retry_exceptions:
                    return tuple(reply.values)
                raised = await self._failure(failed)
                if not retry.after_exception(raised, call.attempt):
                    return tuple(reply.values)
            call = streams.again(call, self)

    async def _failure(self, payload: Payload) -> BaseException:
        """The exception that a failed payload stands for."""
        if isinstance(payload, Inline):
            return await decoding.run(failure.decode, payload.data)
        blob = await self.backend.objects.get(payload.key)
        if blob is None:
            return ObjectLost(f"the failure {payload.key!r} is no longer kept")
        return await decoding.run(failure.decode, blob.data)

    async def _run_gang(
        self,
        call: Call,
        submission: Submission,
        holes: Mapping[int, Entry],
        given: Sequence[Mapping[int, Payload | Entry]],
        entries: Sequence[Entry],
        garbage: list[Payload],
    ) -> None:
        size = len(entries)
        filled = {number: await self.resolved(entry) for number, entry in holes.items()}
        values = {
            rank: {
                number: await self.resolved(value) if isinstance(value, Entry) else value
                for number, value in of_rank.items()
            }
            for rank, of_rank in enumerate(given)
        }
        async with self.backend.functions.admitted(size):
            while True:
                result = await self._gang_once(call, submission, filled, values, garbage)
                if result.anew is None:
                    break
                # What came of it is nobody's, and lies where that of the next attempt will.
                await self.backend.objects.delete([value_key(each) for each in call.returns])
                call = dataclasses.replace(call, attempt=result.anew)
        if result.broken is not None:  # what its ranks came to is nobody's any more
            garbage += [each for rank in result.ranks.values() for each in rank.values]
        for rank, entry in enumerate(entries):
            if result.broken is not None:
                entry.payload.set_exception(gang.rank_failed(result.broken))
                continue
            entry.counts = result.ranks[rank].counts
            entry.payload.set_result(result.ranks[rank].values[0])

    async def _gang_once(
        self,
        call: Call,
        submission: Submission,
        filled: dict[int, Payload],
        given: Mapping[int, Mapping[int, Payload]],
        garbage: list[Payload],
    ) -> GangResult:
        """One attempt of a whole gang."""
        size = len(call.returns)
        medium = self.medium(call.memory)
        place = await channels.prepare(self.backend, submission.channel, size, medium)
        written: list[str] = []
        is_whole = False
        try:
            spec = Gang(
                id=place.gang,
                rank=-1,
                size=size,
                branching=self.settings.branching,
                channel=place.channel,
                inboxes=place.inboxes,
                given=given,
                medium=medium,
            )
            if submission.retry.max_retries:
                spec = recovery.recovering(spec)
                place = gang.rendezvous(spec)
            whole = await self._fitting(dataclasses.replace(call, gang=spec), filled, garbage)
            with metering() as meter:
                result = await recovery.run(self.backend, whole, submission.retry)
                for reply in result.ranks.values():
                    meter.merge(reply.counts)
                    written += reply.written
            written += result.written
            is_whole = result.broken is None and not result.lost
        finally:
            await channels.clear(self.backend, place, written, not is_whole)
        return result

    def _go_for(
        self,
        entries: Sequence[Entry],
        garbage: Sequence[Payload],
        work: Coroutine[Any, Any, None],
        turnstile: Turnstile | None = None,
    ) -> None:
        """Run a call's coroutine; its error becomes that of its values."""
        name = entries[0].label if entries else "a task"

        def ended(error: BaseException | None) -> None:
            if isinstance(error, asyncio.CancelledError):
                why = "the session was shut down" if self._closed else f"{name} was cancelled"
                error = TaskCancelled(why)
            for entry in entries:
                entry.needs = ()
                if error is not None and not entry.payload.done():
                    # Platform errors and bugs of ours alike must reach whoever waits.
                    entry.payload.set_exception(error)
            keys = [payload.key for payload in garbage if isinstance(payload, Kept)]
            if error is not None:
                # A call that was stopped may have written what it came to.
                keys += [value_key(entry.id) for entry in entries if not entry.escaped]
            if keys:
                self.forget(*keys)

        job = self.go(work, ended, turnstile)
        for entry in entries:
            entry.work = job

    # Payloads

    def _send(self, key: str, parts: list[Buffer]) -> Payload:
        """Encoded bytes to go with a call: inline where they are few."""
        if buffers.size(parts) <= self.settings.inline_limit:
            return Inline(b"".join(parts))
        return self.keep(key, parts)

    def _lifted(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        holes: dict[int, Entry],
        given: int,
    ) -> tuple[list[Any], dict[str, Any]]:
        """Arguments with more holes: one for each that is large, which is stored by itself."""

        def lifted(value: Any) -> Any:
            if isinstance(value, Hole):
                return value
            parts = wire.encode(value)
            if buffers.size(parts) <= self.settings.inline_limit:
                return value
            number = len(holes) + given
            holes[number] = self._stored_once(parts)
            return Hole(number)

        return [lifted(value) for value in args], {k: lifted(v) for k, v in kwargs.items()}

    def _stored_once(self, parts: Sequence[Buffer]) -> Entry:
        """An encoded value in objects: however many calls are given it, until none needs it."""
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        name = digest.digest()
        with self._lock:
            entry = self._large.get(name)
        if entry is None:
            entry = Entry(self, self.new_id(), "an argument")
            entry.payload.set_result(self.keep(value_key(entry.id), parts))
            with self._lock:
                self._large[name] = entry
        return entry

    def _send_function(self, pickled: bytes) -> Payload:
        """A function's bytes: stored once, however often it is called, if they are many."""
        if len(pickled) <= self.settings.inline_limit:
            return Inline(pickled)
        digest = hashlib.sha256(pickled).hexdigest()
        with self._lock:
            known = self._functions.get(digest)
        if known is None:
            known = self.keep(f"functions/{digest}", [pickled])
            with self._lock:
                self._functions[digest] = known
        return known

    def _send_given(
        self, task: str, given: Mapping[int, PerRank], size: int
    ) -> list[dict[int, Payload | Entry]]:
        """For each rank what its holes are filled with; what is large goes to objects."""
        room = self.backend.functions.limits.payload // 2 // size
        sent: list[dict[int, Payload | Entry]] = [{} for _ in range(size)]
        for number, per_rank_values in given.items():
            for rank, value in enumerate(per_rank_values.values):
                if isinstance(value, ObjectRef):
                    sent[rank][number] = value._entry
                    continue
                parts = wire.encode(value)
                if buffers.size(parts) <= min(room, self.settings.inline_limit):
                    sent[rank][number] = Inline(b"".join(parts))
                else:
                    sent[rank][number] = self.keep(_given_key(task, number, rank), parts)
        return sent

    async def _fitting(self, call: Call, holes: dict[int, Payload], garbage: list[Payload]) -> Call:
        """The call with its holes filled: inline, or from objects until a payload can hold it."""
        if not holes:
            return call
        call = dataclasses.replace(call, holes=holes)
        room = self.backend.functions.limits.payload - len(wire.dump(call))
        for number, payload in sorted(
            holes.items(), key=lambda item: -len(item[1].data) if isinstance(item[1], Inline) else 0
        ):
            if room >= 0 or not isinstance(payload, Inline):
                break
            key = f"arguments/{call.task}/{number}"
            await self.backend.objects.put(key, payload.data)
            holes[number] = Kept(key, len(payload.data))
            garbage.append(holes[number])
            room += len(payload.data)
        return dataclasses.replace(call, holes=holes)


def _given_key(task: str, number: int, rank: int) -> str:
    return f"given/{task}/{number}/{rank}"


def _encoded(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Buffer]:
    """A call's arguments, encoded; what cannot be is said to be which of them."""
    try:
        return wire.encode((args, kwargs))
    except NotPicklable:
        for which, value in [*enumerate(args, 1), *kwargs.items()]:
            try:
                wire.encode(value)
            except NotPicklable as error:
                raise NotPicklable(f"argument {which} of {name}: {error}") from error.__cause__
        raise


# The session of this process

_current: Session | None = None


def current() -> Session:
    """The session of this process; a driver that has none yet starts one."""
    if _current is None:
        from fsdray import api

        api.init()
    assert _current is not None
    return _current


def set_current(session: Session | None) -> None:
    """Make `session` the one that `current` returns."""
    global _current
    _current = session


def is_open() -> bool:
    """Whether this process has a session."""
    return _current is not None


def enter(backend: Backend, call: Call) -> Session:
    """The session of a worker, for the call that it begins."""
    if _current is None or _current.backend is not backend:
        set_current(Session(backend, call.settings, is_driver=False))
    assert _current is not None
    _current.forget_foreign()
    _current.settings = call.settings
    _current.environment = call.environment
    return _current


# A forked child has none of its parent's processes: it starts a session of its own.
os.register_at_fork(after_in_child=lambda: set_current(None))
