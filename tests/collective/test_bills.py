"""Every operation bills what its formula says, for 1 to 64 ranks and messages of 0 B to 10 MB.

The communicators, channels and mailboxes are the real ones, in virtual time; of large messages only
the length is there (`hollow`). On the even network all counts are exact, but for a grid's receives
(`is_bounded`); elsewhere what receivers ask for is within the bounds of `check_bounds`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from fsdray.collective import MAX, AsyncCommunicator, algorithms
from fsdray.collective.algorithms import Setting
from fsdray.collective.algorithms.ways import PIECES
from fsdray.collective.arrivals import READERS
from fsdray.collective.frames import Operation
from fsdray.costs.medium import USUAL, Bill
from fsdray.services import KIB, MIB, MessageLimits, Pace
from fsdray.testing import Network, Simulation, simulate
from tests.collective import CHANNELS, noise, services
from tests.collective.even import (
    CALLS,
    COUNTS,
    EVEN,
    FIXED,
    SENT,
    SQUARE,
    bill,
    packed,
    run_each,
    setting,
    simulated,
)
from tests.collective.hollow import Hollow, hollow

RANKS = range(1, 65)
SMALL, MIDDLE = 1000, 70_000
LENGTHS = (0, SMALL, MIDDLE, 300_000, MIB, 10_000_000)
LARGE = (*SQUARE, Operation.SCAN, Operation.EXSCAN)
"""What moves P² values, or half as many."""
LEAST, MOST_SAID = 0.7, 1.1  # of what is billed, where formulas say "about"
MOST, MANY = 8000, 25_000  # messages of one run, and of some runs with many ranks
RECEIVED = ("receive", "receive_units", "acknowledge", "miss")


@pytest.fixture
def zeros(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hollow]:
    with hollow(monkeypatch) as here:
        yield here


def is_bounded(operation: Operation, here: Setting, length: int) -> bool:
    """Whether receives are within bounds only, even where the network is even.

    Ranks of a grid that have to read more than one receive holds begin their second rounds one
    after the other; and of messages of several frames the last may come while the first are read.
    """
    if operation not in SQUARE or here.channel == "object":
        return False
    goes_by_grid = operation in (Operation.ALLTOALL, Operation.REDUCE_SCATTER) and (
        algorithms.choose(here, operation) == "grid"
    )
    return length > SMALL if goes_by_grid else here.channel == "queue" and length > 256 * KIB


def check_bounds(run: Simulation[Any], meant: Bill, size: int) -> None:
    """What receivers ask for where messages do not come when the formula says.

    A receive brings ten messages at most, as an acknowledgement holds; one at least, but for those
    that a rank had begun when the last message came. A key is looked for as `Pace` says, by who
    waits for it, all the time.
    """
    found = run.counts
    held, asked = found.get("acknowledge", 0), found.get("receive", 0)
    assert held <= asked <= 10 * held + (READERS - 1) * size
    assert held >= meant.count("acknowledge")
    assert found.get("get", 0) == meant.count("get")
    most = (meant.count("get") + size) * Pace().misses(run.seconds)
    assert found.get("miss", 0) <= most


def check(zeros: Hollow, operation: Operation, size: int, length: int, here: Setting) -> None:
    """A run on the even network bills what the formula says."""
    case = f"{operation.name}, {size} ranks, {length} B, {here.channel}, {here.medium.memory} MB"
    value = zeros.array(length)
    meant = bill(operation, here, value)
    run = simulated(operation, size, value, here.channel, here.medium.memory)
    zeros.forget()
    found = {name: run.counts.get(name, 0) for name in COUNTS}
    said = {name: meant.count(name) for name in COUNTS}
    if is_bounded(operation, here, length):
        for name in ("receive", "receive_units"):
            have, say = found.pop(name), said.pop(name)
            assert LEAST * have <= say <= MOST_SAID * have, (case, name, have, say)
    assert found == said, case
    check_bounds(run, meant, size)


def messages(operation: Operation, size: int, length: int, channel: str) -> int:
    """About how many messages a run has."""
    pairs = size * size if operation in LARGE else size
    return pairs * (1 + (length // (256 * KIB) if channel == "queue" else 0))


def is_one(operation: Operation, length: int) -> bool:
    """Whether there is a case: what sends nothing of ours has one length."""
    return operation not in FIXED or length == 0


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_number_of_ranks_bills_what_the_formulas_say(channel: str, zeros: Hollow) -> None:
    turn = CHANNELS.index(channel)
    for size in RANKS:
        # Channels, lengths and what moves P² values take turns: `--thorough` has them all.
        square = LARGE[size // 3 % len(LARGE)]
        for i, operation in enumerate(CALLS):
            is_too_large = operation in LARGE and size > 12 and operation != square
            if (size + i) % 12 != 4 * turn or is_too_large:
                continue
            is_middle = size // 2 % 2 and not (operation in LARGE and size > 40)
            length = 0 if operation in FIXED else MIDDLE if is_middle else SMALL
            check(zeros, operation, size, length, setting(channel, size))


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_length_bills_what_the_formulas_say(channel: str, zeros: Hollow) -> None:
    for operation, size, length in itertools.product(CALLS, (2, 7, 13, 64), LENGTHS):
        few = messages(operation, size, length, channel) <= (500 if size > 7 else 2000)
        if is_one(operation, length) and few:
            check(zeros, operation, size, length, setting(channel, size))


@pytest.mark.parametrize("channel", CHANNELS)
def test_what_waiting_costs_makes_other_algorithms_and_the_formulas_follow(
    channel: str, zeros: Hollow
) -> None:
    for operation, size, length in itertools.product(CALLS, (4, 12), (0, SMALL, MIDDLE)):
        if is_one(operation, length):
            check(zeros, operation, size, length, setting(channel, size, 1769))


@pytest.mark.parametrize("memory", [0, 1769])
@pytest.mark.parametrize("channel", CHANNELS)
def test_large_arrays_in_pieces_bill_what_the_formula_says(
    channel: str, memory: int, zeros: Hollow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fsdray.collective.relay.cuts", lambda here, size: True)
    for size, length in itertools.product((2, 3, 5, 8, 16), (SMALL, MIDDLE, MIB)):
        value = zeros.array(length)

        async def program(comm: AsyncCommunicator, value: Any = value) -> Any:
            return await comm.allreduce(value, MAX)

        run = simulate(
            program, size, channel=channel, network=EVEN, trace=False, memory=memory or None
        )
        zeros.forget()
        here = setting(channel, size, memory)
        bills, _ = algorithms.all_ways(Operation.ALLREDUCE, here, packed(value, here.size))
        meant = bills[PIECES]
        for name in (*SENT, "get", "acknowledge"):
            assert run.counts.get(name, 0) == meant.count(name), (size, length, name)
        # A last message that has a batch of its own comes early, and its rank goes on alone; who
        # waits for a quarter of a second looks once for an abort.
        assert 0 <= run.counts.get("miss", 0) - meant.count("miss") <= size
        asked = run.counts.get("receive", 0)
        assert LEAST * asked <= meant.count("receive") <= MOST_SAID * asked
        check_bounds(run, meant, size)


@pytest.mark.thorough("minutes: every number of ranks with every length, on every channel")
@pytest.mark.parametrize("memory", [0, 1769])
@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize("channel", CHANNELS)
def test_all_that_is_billed_is_what_the_formulas_say(
    channel: str, operation: Operation, memory: int, zeros: Hollow
) -> None:
    for size, length in itertools.product(RANKS[:: 5 if memory else 1], LENGTHS):
        # What is left out would be the same with more frames a message.
        few = messages(operation, size, length, channel) <= (MANY if size in (33, 64) else MOST)
        if is_one(operation, length) and few:
            check(zeros, operation, size, length, setting(channel, size, memory))


@pytest.mark.parametrize("channel", CHANNELS)
def test_on_an_uneven_network_senders_bill_the_same_and_receivers_within_bounds(
    channel: str, zeros: Hollow
) -> None:
    for operation, size, length in itertools.product(CALLS, (3, 12), (0, SMALL, 300_000)):
        if not is_one(operation, length):
            continue
        value = zeros.array(length)
        meant = bill(operation, setting(channel, size), value)
        run = simulated(operation, size, value, channel, network=Network(bandwidth=(1e30, 1e30)))
        zeros.forget()
        found = {name: run.counts.get(name, 0) for name in SENT}
        assert found == {name: meant.count(name) for name in SENT}, (operation, size, length)
        check_bounds(run, meant, size)


@pytest.mark.parametrize("channel", CHANNELS)
def test_the_local_meter_counts_what_the_formulas_say_of_senders(channel: str) -> None:
    with services() as here:
        for operation, size, length in itertools.product(CALLS, (1, 3, 8), (0, 70 * KIB)):
            if not is_one(operation, length):
                continue
            value = noise(length)
            before = here.meter.counts()
            here.run(channel, size, run_each(CALLS[operation], value))
            meant = bill(operation, Setting(channel, size, USUAL, MessageLimits()), value)
            after = here.meter.counts()
            found = {name: after.get(name, 0) - before.get(name, 0) for name in after}
            assert {name: found.get(name, 0) for name in SENT} == {
                name: meant.count(name) for name in SENT
            }, (operation.name, size, length)
            held = found.get("acknowledge", 0)
            assert held <= found.get("receive", 0) <= 10 * held + (READERS - 1) * size
        assert here.count("list") == 0
