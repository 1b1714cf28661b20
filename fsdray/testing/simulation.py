"""Programs of coroutines on many ranks in virtual time, on the simulated backend.

The ranks run on the same communicators, mailboxes and channels as in a worker, in one process and
one thread; the network, its faults and the time of computing are modelled, and drawn from a seed.
The model itself is the backend's (`fsdray.backends.simulated`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from fsdray import failure, gang
from fsdray.backends.simulated import (
    Faults,
    Inboxes,
    Network,
    SimulatedFunctions,
    SimulatedMessages,
    SimulatedObjects,
    Store,
    Trace,
    VirtualLoop,
    World,
)
from fsdray.backends.simulated.faults import Death
from fsdray.backends.simulated.world import CALLER
from fsdray.collective import channels
from fsdray.collective.channels import Rendezvous
from fsdray.collective.communicator import AsyncCommunicator
from fsdray.collective.mailbox import Mailbox
from fsdray.costs.medium import Medium
from fsdray.costs.meter import Meter
from fsdray.costs.prices import Prices, load_prices
from fsdray.costs.receipt import Receipt
from fsdray.errors import (
    CollectiveError,
    FsdrayError,
    FunctionCrashed,
    PlatformError,
    RankFailed,
    ServiceError,
    SettingsError,
    Throttled,
)
from fsdray.retries import RetryPolicy
from fsdray.services import Backend, FunctionLimits, MessageLimits, ObjectLimits
from fsdray.settings import Settings, check_channel
from fsdray.testing.inprocess import GANG
from fsdray.testing.launch import Launch, Outcome

T = TypeVar("T")

Program = Callable[..., Coroutine[Any, Any, T]]
"""What every rank runs: ``await program(comm, *args)``."""

ComputeModel = Callable[[Callable[..., Any], tuple[Any, ...]], float]
"""Seconds that a call of a function with these arguments takes."""

_SHOWN = 20  # ranks that an error tells of


class Deadlock(CollectiveError):
    """The ranks wait, and nothing is on its way; the message says who waits for whom."""


@dataclass(frozen=True)
class Simulation(Generic[T]):
    """What a simulated run came to.

    Parameters
    ----------
    values : what each rank returned; None for those that did not.
    errors : by rank, what those raised or died of.
    seconds : virtual time when the last rank had returned.
    rank_seconds : the same of each rank, with what it still acknowledged; 0.0 of those that never
        started.
    receipt : the billed requests of all ranks and of the caller who cleans up, priced.
    left : messages by inbox, and objects, that nobody had taken or removed in the end; without
        faults there are none, and objects never.
    trace : every event; empty where none was wanted.
    relaunched : ranks that died and were started again by themselves. restarted : times that the
        whole gang was.
    """

    values: list[T]
    errors: dict[int, BaseException]
    seconds: float
    rank_seconds: list[float]
    receipt: Receipt
    left: dict[str, int]
    trace: Trace
    relaunched: int = 0
    restarted: int = 0

    @property
    def counts(self) -> dict[str, float]:
        """Billed requests by name (`fsdray.services.Count`)."""
        return dict(self.receipt.requests)


def simulate(
    program: Program[T],
    world_size: int,
    *args: Any,
    channel: str = "queue",
    prefer: str = "cheapest",
    seed: int | str = 0,
    network: Network = Network(),
    faults: Faults = Faults(),
    compute: ComputeModel | None = None,
    deadline: float = math.inf,
    branching: int | None = None,
    max_retries: int = 0,
    memory: int | None = None,
    prices: Prices | str | Path | None = None,
    message_limits: MessageLimits = MessageLimits(),
    object_limits: ObjectLimits = ObjectLimits(),
    trace: bool = True,
    raises: bool = True,
) -> Simulation[T]:
    """Run ``await program(comm, *args)`` as every rank of a gang, in virtual time.

    In the program `asyncio.sleep`, timeouts and the loop's clock are virtual; ``await
    fsdray.testing.compute(seconds)`` stands for computing. The same arguments give the same
    result, and the same trace byte for byte, on any machine, as long as the program itself draws
    nothing elsewhere and iterates over no set of strings.

    Parameters
    ----------
    program : a coroutine function; its first argument is the rank's `AsyncCommunicator`.
    world_size : how many ranks; thousands are fine.
    channel : ``"queue"``, ``"object"`` or ``"auto"``.
    prefer : what collectives are chosen by: ``"cheapest"`` or ``"fastest"``, by what the network
        and the price table say. Waiting costs nothing unless `memory` is given.
    seed : of the network and the faults.
    compute : seconds that ``comm.compute(function, *args)`` is to take, as reductions use it too,
        or anything that is left to `asyncio.to_thread`; None: no time. It is called in any case.
    deadline : seconds after which every wait ends with `CollectiveTimeout`. By default none does:
        a wait that nothing can end is a `Deadlock`.
    branching : functions that the caller, and each rank, starts itself. Where given, the gang is
        launched and supervised as a real one is, from cold functions that have `deadline` seconds
        (at most 900); otherwise all ranks start at 0.0.
    max_retries : times that each rank may be started again after it died, as a gang's option has
        it. Where given, ranks are functions, all of which the caller starts.
    memory : MB of each rank. Where given, the receipt has the invocations and GB-seconds too.
    prices : a price table, or the path of one; by default the packaged one.
    trace : whether to keep the events: about a quarter of a kilobyte each.
    raises : whether an error of a rank is raised, or only entered into `Simulation.errors`.

    Raises
    ------
    Deadlock
        at once, where ranks wait for each other.
    RankFailed
        where a rank died by a schedule of faults.
    Exception
        what a rank raised first.
    """
    check_channel(channel)
    if world_size < 1:
        raise SettingsError(f"world_size={world_size}: a gang has at least one rank")
    _check_no_loop()
    if branching is not None and branching < 1:
        raise SettingsError(f"branching={branching}: a rank that starts others starts at least 1")
    if max_retries and branching is None:
        branching = world_size
    table = prices if isinstance(prices, Prices) else load_prices(prices)
    meter = Meter()
    events = Trace()

    async def whole() -> _Run:
        world = World(
            meter.add, seed=seed, network=network, faults=faults, trace=events if trace else None
        )
        medium = _medium(table, network, memory or 0, prefer)
        meeting = Rendezvous(GANG, channel, (), medium=medium)
        run = _Run(world, meeting, world_size, deadline, message_limits, object_limits, compute)
        if branching is None:
            await run.at_once(program, args)
        else:
            retry = RetryPolicy(max_retries)
            await run.as_tree(program, args, branching, memory or Settings().memory, retry)
        return run

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        run = runner.run(whole())
    if raises:
        run.raise_first()
    if memory is not None and branching is None:
        meter.add("invoke", len(run.ranks))
        for rank in run.ranks.values():
            meter.add("gb_seconds", memory / 1024 * math.ceil(rank.ended * 1000) / 1000)
    return Simulation(
        [run.values.get(rank) for rank in range(world_size)],  # type: ignore[misc]  # None: no T
        dict(sorted(run.errors.items())),
        max((rank.returned for rank in run.ranks.values()), default=0.0),
        [run.ranks[rank].ended if rank in run.ranks else 0.0 for rank in range(world_size)],
        Receipt(meter.counts(), table),
        run.left,
        events,
        run.relaunched,
        run.restarted,
    )


async def compute(seconds: float) -> None:
    """Stand for `seconds` of computing at this rank of a simulation; a slow rank takes longer.

    Raises
    ------
    FsdrayError
        outside of a simulation.
    """
    rank = _here.get()
    if rank is None:
        raise FsdrayError("compute() stands for time in a program that simulate() runs")
    await rank.compute(seconds)


@dataclass
class _Services:
    """A rank's own way to the services."""

    messages: SimulatedMessages
    objects: SimulatedObjects
    functions: SimulatedFunctions | None


class _Run:
    """One gang, from its first rank's start to its inboxes' release."""

    def __init__(
        self,
        world: World,
        meeting: Rendezvous,
        size: int,
        deadline: float,
        message_limits: MessageLimits,
        object_limits: ObjectLimits,
        model: ComputeModel | None,
    ) -> None:
        self.world = world
        self.size = size
        self.deadline = deadline
        self._model = model
        self._inboxes = Inboxes(world, message_limits)
        self._store = Store()
        self._limits = message_limits, object_limits
        names = self._inboxes.lease(size) if meeting.has_inboxes else []
        self.meeting = replace(meeting, inboxes=tuple(names))
        self.ranks: dict[int, Worker] = {}
        self.values: dict[int, Any] = {}
        self.errors: dict[int, BaseException] = {}
        self.left: dict[str, int] = {}
        self.relaunched = self.restarted = 0
        self._over: asyncio.Future[None] = world.loop.create_future()
        self._running = 0
        self._is_broken = False
        self._stalled_at: float | None = None
        self._telling: list[asyncio.Task[Any]] = []
        self._launch: Launch | None = None
        world.loop.takes = self._takes

    def services(self, rank: int) -> Backend:
        """What a rank, or the caller, reaches; only who starts others needs functions."""
        node, (messages, objects) = self.world.node(rank), self._limits
        functions = None
        if self._launch is not None:
            functions = SimulatedFunctions(self.world, node, self._launch.environments)
        reached = _Services(
            SimulatedMessages(self.world, node, self._inboxes, messages),
            SimulatedObjects(self.world, node, self._store, objects),
            functions,
        )
        return cast(Backend, reached)

    async def at_once(self, program: Program[Any], args: Sequence[Any]) -> None:
        """Run all ranks from 0.0 on and clean up behind them."""
        world = self.world
        ranks = [_Rank(self, n) for n in range(self.size) if n not in world.faults.absent]
        self.ranks.update((rank.number, rank) for rank in ranks)
        self._running = len(ranks)
        world.on_death = self._died
        world.loop.on_stall = self._stalled
        for rank in ranks:
            rank.start(program, args)
        self._schedule_deaths()
        if ranks:
            await self._over
        world.loop.on_stall = None
        for rank in ranks:
            rank.task.cancel()
        if self._telling:
            await asyncio.wait(self._telling)
        await self._clear([key for rank in ranks for key in rank.written], self._is_broken)

    async def as_tree(
        self,
        program: Program[Any],
        args: Sequence[Any],
        branching: int,
        memory: int,
        retry: RetryPolicy,
    ) -> None:
        """Launch the ranks as functions, which start one another, and clean up behind them."""

        async def member(number: int, communicator: AsyncCommunicator) -> Outcome:
            worker = self.ranks[number] = Worker(self.world, number)
            self.errors.pop(number, None)  # of one that had died
            return await worker.run(self, program(communicator, *args))

        world = self.world
        launch = self._launch = Launch(world, self.size, member, self.services)

        def died(number: int) -> None:
            self.errors.setdefault(number, _crash(number))
            launch.died(number)

        world.on_death = died
        self._schedule_deaths()
        timeout = min(self.deadline, FunctionLimits().timeout)
        name = getattr(program, "__name__", "program")
        caller = self.services(CALLER)
        attempt = 1
        while True:
            result = await launch.run(
                caller, name, self.meeting, self.size, branching, memory, timeout, retry, attempt
            )
            self.relaunched += result.lost
            if result.anew is None:
                break
            attempt = result.anew
            self.restarted += 1
            await channels.clear(caller, self.meeting, [], is_broken=True)
            place = await channels.prepare(caller, self.meeting.channel, self.size)
            # An id that is the same each time, as is the first.
            self.meeting = replace(place, gang=f"{self.restarted:032x}")
        world.on_death = lambda number: None  # who has replied may die
        for number in self.values:  # it may have died before, and been started again
            self.errors.pop(number, None)
        if result.broken is not None:
            failed = gang.rank_failed(result.broken)
            for number in range(self.size):
                if number not in self.values:
                    own = failed.cause if number in failed.ranks else None
                    self.errors.setdefault(number, own or failed)
        written = [key for reply in result.ranks.values() for key in reply.written]
        if retry.max_retries:
            self.meeting = replace(self.meeting, recovers=True)
        is_broken = result.broken is not None or result.lost > 0
        await self._clear([*written, *result.written], is_broken)

    def ended(self) -> None:
        """A rank returned, raised or died."""
        self._running -= 1
        if self._running == 0 and not self._over.done():
            self._over.set_result(None)

    def failed(self, rank: _Rank, error: Exception) -> None:
        """A rank raised; the others must not wait for it."""
        if self._stalled_at is None and not isinstance(error, RankFailed):
            encoded = failure.encode(failure.capture(error, f"rank {rank.number}"))
            rank.breaker.trip(((rank.number,), encoded), is_death=False, is_news=True)
            if rank.breaker.announcing is not None:
                self._telling.append(rank.breaker.announcing)

    def raise_first(self) -> None:
        """Raise what the first rank that failed by itself failed of."""
        if self._stalled_at is not None:
            raise Deadlock(self._deadlock())
        for rank, error in self.errors.items():  # in the order in which they came
            if isinstance(error, PlatformError) and not isinstance(error, Throttled | ServiceError):
                raise RankFailed([rank], error)
            if not isinstance(error, RankFailed):
                raise error
        for error in self.errors.values():
            raise error

    def _schedule_deaths(self) -> None:
        for death in self.world.faults.deaths:
            if death.at < math.inf and 0 <= death.rank < self.size:
                self.world.loop.call_at(death.at, self._kill, death)

    def _kill(self, death: Death) -> None:
        self.world.kill(self.world.node(death.rank), zombie=death.zombie)

    async def _clear(self, written: Sequence[str], is_broken: bool) -> None:
        self.left = self._inboxes.left()
        await channels.clear(self.services(CALLER), self.meeting, written, is_broken)
        self.left |= dict.fromkeys(self._store.keys(), 1)
        self.left |= {f"{name}, still leased": 1 for name in self._inboxes.leased()}

    def _takes(self, function: Callable[..., Any], args: tuple[Any, ...]) -> float:
        rank = _here.get()
        if self._model is None or rank is None:
            return 0.0
        seconds = self._model(function, args)
        return rank.slowed(seconds) if seconds > 0 else 0.0

    def _died(self, number: int) -> None:
        rank = self.ranks.get(number)
        if not isinstance(rank, _Rank) or rank.is_over:
            return
        error = _crash(number)
        self.errors[number] = error
        self._is_broken = True
        rank.die()
        self._telling.append(asyncio.create_task(self._tell(number, error)))

    async def _tell(self, number: int, error: FunctionCrashed) -> None:
        """What the supervision tree does: whoever started the rank tells all of its death."""
        world = self.world
        await world.until(world.now + world.latency(world.network.notice))
        encoded = failure.encode(failure.capture(error, f"rank {number}"))
        why = gang.wire_abort(((number,), encoded), is_death=True)
        backend = self.services(CALLER)
        await channels.announce(backend, self.meeting, number, self.size, why)

    def _stalled(self) -> None:
        if self._stalled_at is None:
            self._stalled_at = self.world.now
            self.world.record(CALLER, "stalled")
        # Waits that have no deadline end here, each with an error that says what it waited for.
        if not self.world.loop.expire() and not self._over.done():
            for number, rank in self.ranks.items():
                if isinstance(rank, _Rank) and not rank.is_over:
                    self.errors.setdefault(
                        number, CollectiveError(f"rank {number} waits, for nothing of ours")
                    )
            self._over.set_result(None)

    def _deadlock(self) -> str:
        lines = [f"  {error}" for _, error in sorted(self.errors.items())]
        more = [f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        absent = sorted(self.world.faults.absent)
        never = [f"  never started: {', '.join(map(str, absent[:_SHOWN]))}"] if absent else []
        head = f"at {self._stalled_at:.6f} s nothing is on its way and ranks still wait:"
        return "\n".join([head, *lines[:_SHOWN], *more, *never])


class Worker:
    """Where one rank computes, and when."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.returned = 0.0
        self.ended = 0.0

    async def compute(self, seconds: float) -> None:
        """Let time pass."""
        await self.world.until(self.world.now + self.slowed(seconds))

    def slowed(self, seconds: float) -> float:
        """What so many seconds of computing take here."""
        slow = self.world.node(self.number).slow
        self.world.record(self.number, "compute", seconds=seconds * slow)
        return seconds * slow

    async def run(self, run: _Run, program: Coroutine[Any, Any, Any]) -> Outcome:
        """Run the program, and enter what it came to."""
        _here.set(self)
        self.world.record(self.number, "started")
        try:
            value = await program
        except Exception as error:
            self.returned = self.ended = self.world.now
            run.errors.setdefault(self.number, error)
            self.world.record(self.number, "raised", error=type(error).__name__)
            return False, error
        self.returned = self.ended = self.world.now
        run.values[self.number] = value
        self.world.record(self.number, "returned")
        return True, value


class _Rank(Worker):
    """One rank's life in a gang that started at once, which the run itself supervises."""

    def __init__(self, run: _Run, number: int) -> None:
        super().__init__(run.world, number)
        self._run = run
        self._services = run.services(number)
        self.breaker = gang.Breaker(self._announce)
        mailbox = Mailbox(run.meeting.epoch, number, self.breaker.heard)
        self.breaker.listen(lambda e: mailbox.fail(lambda: RankFailed(e.ranks, e.cause)))
        self.channel = channels.open_channel(self._services, run.meeting, number, run.size, mailbox)
        ends = run.world.now + run.deadline
        self.communicator = AsyncCommunicator(
            number, run.size, self.channel, mailbox, ends, self._abort
        )
        self.is_over = False

    @property
    def written(self) -> list[str]:
        """Objects that must be removed in the end."""
        return [*self.channel.written, *self.breaker.written]

    def start(self, program: Program[Any], args: Sequence[Any]) -> None:
        """Begin to run the program."""
        self.task = asyncio.create_task(self._live(program, args))

    def die(self) -> None:
        """End at once; what this rank asks for from now on is never done."""
        self._leave()
        self.task.cancel()

    async def _live(self, program: Program[Any], args: Sequence[Any]) -> None:
        returned, value = await self.run(self._run, program(self.communicator, *args))
        if not returned and not self.is_over:
            self._run.failed(self, value)
        await self.communicator.close()
        if not self.is_over:
            self._leave()

    def _leave(self) -> None:
        self.is_over = True
        self.ended = self.world.now
        self._run.ended()

    async def _abort(self, why: CollectiveError) -> None:
        """The program ends the gang, as a death would."""
        encoded = failure.encode(failure.capture(why, f"rank {self.number}"))
        self.breaker.trip(((self.number,), encoded), is_death=True, is_news=True)
        if self.breaker.announcing is not None:
            await asyncio.wait([self.breaker.announcing])

    def _announce(self, why: bytes) -> asyncio.Task[list[str]]:
        run = self._run
        announcing = channels.announce(self._services, run.meeting, self.number, run.size, why)
        return asyncio.create_task(announcing)


def _medium(prices: Prices, network: Network, memory: int, prefer: str) -> Medium:
    """What the ranks know of the network that is simulated."""
    names = ("deliver", "direct", "publish", "receive", "put", "get")
    times: dict[str, Any] = {name: getattr(network, name) for name in names}
    bandwidth = sum(network.bandwidth) / 2
    return replace(Medium.of(prices, memory, prefer), bandwidth=bandwidth, **times)


def _crash(number: int) -> FunctionCrashed:
    return FunctionCrashed(f"rank {number} died, as the schedule of faults says")


_here: ContextVar[Worker | None] = ContextVar("fsdray_simulated_rank", default=None)


def _check_no_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise FsdrayError(
        "simulate() runs a loop of its own: in a coroutine or a notebook, call it by "
        "await asyncio.to_thread(simulate, ...)"
    )
