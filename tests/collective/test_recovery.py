"""Ranks die, at any point, in simulation: the gang comes to the same bits, and it is known how."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from fsdray import wire
from fsdray.backends.simulated import SimulatedMessages
from fsdray.collective import ANY_SOURCE, AsyncCommunicator, AsyncRequest
from fsdray.collective.channels.sendlog import Logged, SendLog, frames_to
from fsdray.collective.frames import Codec, Frame, Key, Operation, pack, unpack
from fsdray.collective.mailbox import Mailbox
from fsdray.errors import FunctionCrashed, RankFailed, Throttled
from fsdray.retries import catches_up
from fsdray.testing import Death, Faults, compute, simulate
from fsdray.testing.simulation import Simulation
from tests.collective import CHANNELS, noise, services

SOME = ("queue", "object", "auto")
BAD = Faults(duplicate=0.1, delay=0.1, reorder=0.2, corrupt=0.05, forget=0.1, partial=0.1, twin=0.2)


def add(left: Any, right: Any) -> Any:
    """Not commutative, and its floating-point result depends on its grouping."""
    return left + 0.5 * right


async def step(
    comm: AsyncCommunicator, halves: AsyncCommunicator, at: int, name: str, length: int
) -> Any:
    """One operation of all ranks, which draws its values from its place."""
    rank, size = comm.rank, comm.size
    root, right, left = at % size, (rank + 1) % size, (rank - 1) % size
    mine = np.random.default_rng([rank, at]).standard_normal(length)
    each = [mine + other for other in range(size)]
    match name:
        case "bcast" | "gather" | "allgather":
            return await getattr(comm, name)(mine, *([root] if name != "allgather" else []))
        case "scatter":
            return await comm.scatter(each, root)
        case "reduce":
            return await comm.reduce(mine, add, root)
        case "allreduce" | "scan" | "exscan":
            return await getattr(comm, name)(mine, add)
        case "alltoall":
            return await comm.alltoall(each)
        case "reduce_scatter":
            return await comm.reduce_scatter(each, add)
        case "neighbors":
            return await comm.neighbor_alltoall({right: mine, root: mine * 2}, {left, *(
                range(size) if rank == root else ())})  # fmt: skip
        case "half":
            return await halves.allreduce(mine, add)
        case "ring":
            return await comm.sendrecv((rank, mine), right, source=left)
        case "begun":
            summed = comm.iallreduce(mine, add)
            sending = [comm.isend((tag, mine), right, tag=tag) for tag in (1, 2)]
            receiving = [comm.irecv(source=left, tag=tag) for tag in (2, 1)]
            return [*await AsyncRequest.waitall([*receiving, *sending]), await summed]
        case _:
            return await comm.barrier()


STEPS = (
    *("bcast", "scatter", "gather", "allgather", "alltoall", "reduce", "allreduce"),
    *("scan", "exscan", "reduce_scatter", "neighbors", "half", "ring", "begun", "barrier"),
)


async def program(comm: AsyncCommunicator, steps: list[tuple[str, int]]) -> list[Any]:
    halves = await comm.split(comm.rank % 2, comm.rank)
    assert halves is not None
    got = []
    for at, (name, length) in enumerate(steps):
        await compute(0.02 * ((comm.rank + at) % 3))
        got.append(await step(comm, halves, at, name, length))
    await compute(0.1 * comm.rank)  # some have replied while others still run
    return got


def plain(value: Any) -> bytes:
    """A value whose equality is one of bits."""
    return b"".join(wire.encode(value))


def lost(simulation: Simulation[Any]) -> int:
    """Processes that died, or were given up."""
    return sum(event.what in ("died", "given up") for event in simulation.trace.events)


def check_clean(simulation: Simulation[Any]) -> None:
    """Nothing of the gang is left: no object, and no inbox that was not given back."""
    assert not [name for name in simulation.left if "/" in name or "leased" in name]


@pytest.mark.parametrize("channel", SOME)
@pytest.mark.parametrize("block", range(5))
def test_ranks_that_die_at_any_point_change_no_bit(channel: str, block: int) -> None:
    relaunched: Counter[int] = Counter()
    for seed in range(20 * block, 20 * block + 20):
        rng = random.Random(seed)
        print(f"seed {seed}")
        size = rng.choice([1, 2, 3, 5, 9])
        steps = [
            (rng.choice(STEPS), rng.choice([0, 1, 100, 3000])) for _ in range(rng.randint(1, 5))
        ]
        whole = simulate(program, size, steps, channel=channel, seed=seed, branching=size)
        deaths = []
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            victim, zombie = rng.randrange(size), rng.random() < 0.2
            if rng.random() < 0.5:
                deaths.append(Death(victim, request=rng.randint(1, 30), zombie=zombie))
            else:
                at = rng.uniform(0, whole.seconds)
                deaths.append(Death(victim, at=at, zombie=zombie))
        faults = dataclasses.replace(BAD if rng.random() < 0.3 else Faults(), deaths=tuple(deaths))
        run = simulate(
            program, size, steps, channel=channel, seed=seed, faults=faults, max_retries=3
        )
        assert plain(run.values) == plain(whole.values)
        assert run.restarted == 0
        assert run.counts["invoke"] == size + run.relaunched
        # Who dies after its reply has arrived is not missed.
        returned = sum(event.what == "returned" for event in run.trace.events)
        assert lost(run) - returned <= run.relaunched <= lost(run)
        check_clean(run)
        relaunched[run.relaunched] += 1
    print(relaunched)
    assert sum(relaunched.values()) - relaunched[0] >= 8, "few of them died: the test is void"


async def ring(comm: AsyncCommunicator, rounds: int) -> list[int]:
    """Each message depends on all before it."""
    seen = [comm.rank]
    for _ in range(rounds):
        got = comm.sendrecv(
            sum(seen), (comm.rank + 1) % comm.size, source=(comm.rank - 1) % comm.size
        )
        seen.append(await got)
        await compute(0.05)
    return seen


@pytest.mark.parametrize("channel", SOME)
def test_one_rank_lost_is_one_more_invocation_wherever_it_was(channel: str) -> None:
    whole = simulate(ring, 4, 6, channel=channel, branching=4)
    for at in np.linspace(0, 0.95 * whole.rank_seconds[2], 8):
        run = simulate(
            *(ring, 4, 6),
            channel=channel,
            faults=Faults(deaths=(Death(2, at=at),)),
            max_retries=1,
        )
        assert run.values == whole.values
        assert (run.relaunched, run.restarted, run.counts["invoke"]) == (1, 0, 5)
        check_clean(run)


@pytest.mark.parametrize("channel", SOME)
def test_the_same_rank_may_die_as_often_as_it_may_run_again_and_all_of_them_may(
    channel: str,
) -> None:
    again = Faults(deaths=tuple(Death(1, request=request) for request in (6, 4, 1)))
    run = simulate(ring, 3, 4, channel=channel, faults=again, max_retries=3)
    assert (run.relaunched, run.restarted) == (3, 0)
    assert run.values == simulate(ring, 3, 4, channel=channel).values
    with pytest.raises(RankFailed) as raised:
        simulate(ring, 3, 4, channel=channel, faults=again, max_retries=2)
    assert raised.value.ranks == [1]
    assert isinstance(raised.value.cause, FunctionCrashed)
    everybody = Faults(deaths=tuple(Death(rank, at=0.4) for rank in range(5)))
    run = simulate(ring, 5, 4, channel=channel, faults=everybody, max_retries=1)
    assert (run.relaunched, run.restarted) == (5, 0)
    assert run.values == simulate(ring, 5, 4, channel=channel).values
    check_clean(run)


async def anybody(comm: AsyncCommunicator) -> Any:
    if comm.rank:
        return await comm.send(comm.rank, 0)
    return sorted([await comm.recv(source=ANY_SOURCE) for _ in range(comm.size - 1)])


async def nudge(comm: AsyncCommunicator, use: Callable[..., Coroutine[Any, Any, Any]]) -> Any:
    if comm.rank:
        await comm.send(comm.rank, 0)
        return await comm.bcast(None)
    await use(comm)
    got = [await comm.recv(source=rank) for rank in range(1, comm.size)]
    await comm.bcast("done")
    return got


async def use_tested(comm: AsyncCommunicator) -> None:
    request = comm.ibarrier() if comm.size == 1 else comm.isend(0, 0)
    while not (await request.test())[0]:
        await compute(0.01)
    await comm.recv(source=0)


async def use_probed(comm: AsyncCommunicator) -> None:
    await comm.probe(source=1)


async def use_iprobed(comm: AsyncCommunicator) -> None:
    while not await comm.iprobe(source=1):
        await compute(0.01)


async def use_waited_any(comm: AsyncCommunicator) -> None:
    requests = [comm.isend(0, 0), comm.irecv(source=0)]
    await AsyncRequest.waitany(requests)
    await AsyncRequest.waitall(requests)


async def use_cancelled(comm: AsyncCommunicator) -> None:
    request = comm.irecv(source=0, tag=99)
    request.cancel()
    await request.wait()


CHANCES = (use_tested, use_probed, use_iprobed, use_waited_any, use_cancelled)


@pytest.mark.parametrize("channel", SOME)
def test_what_cannot_be_repeated_starts_the_whole_gang_anew(channel: str) -> None:
    async def late(comm: AsyncCommunicator) -> Any:
        got = await anybody(comm)
        await compute(1.0)
        return got

    death = Faults(deaths=(Death(0, at=1.0),))
    run = simulate(late, 4, channel=channel, faults=death, max_retries=1)
    assert run.values == [[1, 2, 3], None, None, None]
    assert (run.relaunched, run.restarted, run.counts["invoke"]) == (1, 1, 4 + 1 + 4)
    check_clean(run)
    # Those whose own course does not hang on it are started again alone.
    other = Faults(deaths=(Death(2, at=1.0),))
    run = simulate(late, 4, channel=channel, faults=other, max_retries=1)
    assert run.values == [[1, 2, 3], None, None, None]
    assert (run.relaunched, run.restarted, run.counts["invoke"]) == (1, 0, 5)


@pytest.mark.parametrize("use", CHANCES)
def test_each_operation_that_hangs_on_chance_is_known(
    use: Callable[[AsyncCommunicator], Coroutine[Any, Any, None]],
) -> None:
    async def late(comm: AsyncCommunicator) -> Any:
        got = await nudge(comm, use)
        await compute(1.0)
        return got

    death = Faults(deaths=(Death(0, at=1.0),))
    run = simulate(late, 3, faults=death, max_retries=1)
    assert run.values == [[1, 2], "done", "done"]
    assert (run.relaunched, run.restarted) == (1, 1)


@pytest.mark.parametrize("channel", SOME)
def test_one_that_is_lost_too_late_to_catch_up_starts_the_gang_anew_with_all_its_time(
    channel: str,
) -> None:
    async def slow(comm: AsyncCommunicator) -> int:
        await compute(6.0)
        summed: int = await comm.allreduce(1)
        return summed

    death = Faults(deaths=(Death(1, at=5.5),))
    run = simulate(slow, 3, channel=channel, faults=death, max_retries=1, deadline=10)
    assert run.values == [3, 3, 3]
    assert (run.relaunched, run.restarted, run.counts["invoke"]) == (0, 1, 6)
    assert catches_up(4.9, 5.1)
    assert not catches_up(5.0, 5.0)


@pytest.mark.parametrize("channel", SOME)
def test_an_exception_is_no_death_and_reaches_those_who_were_started_again(channel: str) -> None:
    async def fails(comm: AsyncCommunicator) -> None:
        await comm.barrier()
        if comm.rank == 2:
            raise KeyError("mine")
        await compute(0.5)
        await comm.allreduce(1)

    for death in ((), (Death(0, at=0.5),), (Death(1, request=2), Death(1, request=1))):
        run = simulate(
            fails, 4, channel=channel, faults=Faults(deaths=death), max_retries=3, raises=False
        )
        assert type(run.errors.pop(2)) is KeyError
        assert sorted(run.errors) == [0, 1, 3]
        for error in run.errors.values():
            assert isinstance(error, RankFailed)
            assert error.ranks == [2]
        assert (run.relaunched, run.restarted) == (len(death), 0)
        check_clean(run)


@pytest.mark.parametrize("channel", SOME)
def test_an_abort_is_final(channel: str) -> None:
    async def aborts(comm: AsyncCommunicator) -> None:
        if comm.rank == 1:
            await comm.abort(3)
        await comm.barrier()

    with pytest.raises(RankFailed, match=r"called abort\(3\)"):
        simulate(aborts, 3, channel=channel, max_retries=3)


@pytest.mark.parametrize("channel", SOME)
def test_a_gang_that_nobody_leaves_bills_what_it_bills_without_retries(channel: str) -> None:
    steps = [(name, 100) for name in STEPS]
    for size in (2, 5, 9):
        one = simulate(program, size, steps, channel=channel, branching=size)
        other = simulate(program, size, steps, channel=channel, max_retries=3)
        asked = ("invoke", "publish", "publish_bytes", "send", "send_bytes", "put", "list", "lease")
        assert [one.counts.get(name) for name in asked] == [
            other.counts.get(name) for name in asked
        ]


def test_what_a_rank_sent_before_it_ended_is_sent_again_from_memory_and_from_objects() -> None:
    async def giver(comm: AsyncCommunicator, length: int) -> Any:
        if comm.rank == 0:
            return await comm.send(noise(length), 1)
        await compute(2.0)
        got = await comm.recv(source=0)
        await compute(2.0)
        return got

    for length, puts in ((1000, None), (300_000, 1)):  # which fits into a reply, or does not
        death = Faults(deaths=(Death(1, at=3.5),))
        run = simulate(giver, 2, length, faults=death, max_retries=1)
        assert run.values[1].tobytes() == noise(length).tobytes()
        assert (run.relaunched, run.restarted, run.counts.get("put")) == (1, 0, puts)
        check_clean(run)


def test_a_log_that_is_too_large_for_memory_goes_on_in_objects() -> None:
    async def use(objects: Any) -> None:
        log = SendLog(objects, "log/", spill=1000, inline=500)
        bodies = [bytes([i]) * 300 for i in range(11)]
        for i, body in enumerate(bodies):
            log.add((i % 3, 7), body)
            await log.relieve()
        for rank, wanted in ((7, bodies), (1, bodies[1::3]), (5, [])):
            assert [body async for some in log.to(rank) for body in some] == wanted
        logged = await log.finished()
        assert len(logged.segments) == 3
        assert sum(len(sent.body) for sent in logged.sent) <= 500
        again = [body async for some in frames_to(objects, logged, 7) for body in some]
        assert again == bodies
        await objects.delete(logged.segments)
        with pytest.raises(LookupError, match="log/0"):
            await anext(frames_to(objects, logged, 7))
        assert [some async for some in frames_to(objects, Logged(), 7)] == [[]]

    with services() as here:
        asyncio.run(use(here.objects))


def test_parts_of_a_message_from_before_and_after_a_death_do_not_mix() -> None:
    def part(incarnation: int, number: int, count: int, payload: bytes) -> Frame:
        where = {"communicator": 0, "number": 0, "source": 1, "destinations": (0,), "tag": 0}
        frame = Frame(
            epoch=bytes(16), operation=Operation.BCAST, codec=Codec.RAW, **where,  # type: ignore[arg-type]
            part=number, parts=count, payload=payload, incarnation=incarnation,
        )  # fmt: skip
        return unpack(pack(frame))

    mailbox = Mailbox(bytes(16), 0)
    key = Key(0, False, 0, 1)
    mailbox.deposit(part(0, 0, 2, b"old one"))
    mailbox.deposit(part(1, 1, 3, b"b"))
    assert mailbox.called(key) is not None
    mailbox.deposit(part(1, 0, 3, b"a"))
    assert not mailbox.has(key)
    mailbox.deposit(part(1, 2, 3, b"c"))
    assert bytes(mailbox.take(key).payload) == b"abc"
    mailbox.deposit(part(0, 1, 2, b"old two"))
    assert not mailbox.has(key)
    assert mailbox.dropped == 1


@pytest.mark.parametrize("channel", SOME)
def test_one_who_is_given_up_and_lives_on_harms_nobody(channel: str) -> None:
    async def angry(comm: AsyncCommunicator) -> Any:
        """As `ring`, but one that finds itself alone says so, loudly."""
        try:
            return await ring(comm, 6)
        except RankFailed as error:
            raise ValueError("I am the only one left") from error

    whole = simulate(ring, 4, 6, channel=channel)
    for request in range(1, 13, 2):
        deaths = (Death(1, request=request, zombie=True), Death(3, at=0.4, zombie=True))
        run = simulate(angry, 4, channel=channel, faults=Faults(deaths=deaths), max_retries=1)
        assert run.values == whole.values
        assert run.restarted == 0
        assert 1 <= run.relaunched <= 2
        check_clean(run)


@pytest.mark.parametrize("trouble", ["refused", "never"])
def test_where_there_is_no_inbox_for_one_the_gang_starts_anew_in_those_that_it_has(
    trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = SimulatedMessages.lease

    async def scarce(self: SimulatedMessages, count: int) -> list[str]:
        if count == 1 and trouble == "refused":
            raise Throttled("no inbox is free")
        if count == 1:
            await asyncio.sleep(10_000)
        return await lease(self, count)

    monkeypatch.setattr(SimulatedMessages, "lease", scarce)
    death = Faults(deaths=(Death(1, at=0.4),))
    run = simulate(ring, 3, 5, faults=death, max_retries=1)
    assert run.values == simulate(ring, 3, 5).values
    assert (run.relaunched, run.restarted, run.counts["invoke"]) == (0, 1, 6)
    assert run.seconds < 20
    check_clean(run)


def test_the_same_seed_gives_the_same_trace_with_deaths_and_all() -> None:
    deaths = Faults(deaths=(Death(0, at=0.5), Death(2, request=7)), duplicate=0.2)

    def run() -> str:
        return simulate(ring, 4, 5, seed=3, faults=deaths, max_retries=1).trace.digest()

    assert run() == run()


def test_the_channels_of_these_tests_are_all_channels() -> None:
    assert set(SOME) <= set(CHANNELS)
