"""Sessions that share one pool, in virtual time: slow requests, lost answers, deaths, wrong clocks.

What must hold whatever happens: nobody uses a slot that another rightly holds, a slot's epochs
only grow, and nothing is sent to a queue while it is being emptied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fsdray.backends.aws import pool
from fsdray.backends.aws.leases import EPOCHS, Lease, Leases, is_later
from fsdray.backends.simulated.clock import VirtualLoop
from fsdray.errors import ServiceError, SettingsError, Throttled

T = TypeVar("T")
SLOTS, FANOUT = 24, 8
PURGING = 60.0  # seconds for which SQS may delete what is sent after a purge


def in_virtual_time(program: Callable[[], Awaitable[T]]) -> T:
    async def main() -> T:
        return await program()

    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


class Bucket:
    """Where the pool is kept: as slow, forgetful and often down as it is told."""

    def __init__(self, chance: Random, lost: float = 0.0, failing: float = 0.0) -> None:
        self.text: str | None = None
        self.version = 0
        self.writes = 0
        self.reads = 0
        self._chance = chance
        self._lost = lost
        self._failing = failing

    @property
    def now(self) -> float:
        return 1_000_000.0 + asyncio.get_running_loop().time()

    async def read(self) -> tuple[str | None, str | None, float]:
        await asyncio.sleep(self._chance.random() * 0.2)
        self.reads += 1
        if self._chance.random() < self._failing:
            raise ServiceError("the bucket is down")
        found = self.text, None if self.text is None else str(self.version), float(int(self.now))
        await asyncio.sleep(self._chance.random() * 0.2)
        return found

    async def write(self, text: str, etag: str | None) -> bool:
        await asyncio.sleep(self._chance.random() * 0.2)
        self.writes += 1
        if etag != (None if self.text is None else str(self.version)):
            return False
        self.text = text
        self.version += 1
        await asyncio.sleep(self._chance.random() * 0.2)
        # The client sent it again, and met its own.
        return self._chance.random() >= self._lost

    @property
    def pool(self) -> pool.Pool:
        return pool.expire(pool.Pool() if self.text is None else pool.parse(self.text), self.now)


class World:
    """All sessions, and the rules that they must keep."""

    def __init__(self, seed: int, **faults: float) -> None:
        self.chance = Random(seed)
        self.bucket = Bucket(self.chance, **faults)
        self.using: dict[int, tuple[str, float]] = {}  # by slot: the session, and until when surely
        self.epochs: dict[int, int] = {}
        self.purged: dict[int, float] = {}
        self.zombies: set[str] = set()

    def session(self, name: str, *, skew: float = 1.0, **more: Any) -> Leases:
        async def purge(slots: Sequence[int]) -> None:
            await asyncio.sleep(self.chance.random() * 0.2)
            for slot in slots:
                assert self.using.get(slot, (name, 0.0))[0] == name
                self.purged[slot] = asyncio.get_running_loop().time()

        loop = asyncio.get_running_loop()
        return Leases(
            self.bucket,
            **{
                "slots": SLOTS,
                "fanout": FANOUT,
                "session": name,
                "who": f"{name}@here",
                "purge": purge,
                "clock": lambda: 77.0 + skew * loop.time(),
                "chance": self.chance,
                **more,
            },
        )

    def take(self, name: str, lease: Lease) -> None:
        now = asyncio.get_running_loop().time()
        for slot in lease.slots:
            user, until = self.using.get(slot, (name, 0.0))
            assert until <= now, f"{name} was given slot {slot}, which {user} uses"
            assert now - self.purged.get(slot, -PURGING) >= PURGING, "sent into a purge"
            before = self.epochs.get(slot)
            assert before is None or is_later(lease.epoch, before)
            assert before is None or not is_later(before, lease.epoch)
            self.epochs[slot] = lease.epoch
            self.using[slot] = (name, float("inf"))

    def drop(self, name: str, lease: Lease) -> None:
        for slot in lease.slots:
            if self.using.get(slot, ("", 0.0))[0] == name:
                del self.using[slot]

    def dies(self, name: str) -> None:
        """What it used is free when its hold is over, and not before."""
        hold = self.bucket.pool.holds.get(name)
        now = asyncio.get_running_loop().time()
        for slot, (user, _) in list(self.using.items()):
            if user == name:
                left = 0.0 if hold is None else hold.until - self.bucket.now
                self.using[slot] = (user, now + left - 0.001)


@dataclass(frozen=True)
class Gang:
    size: int
    before: float
    seconds: float
    is_clean: bool


GANGS = st.lists(
    st.builds(
        Gang,
        st.integers(1, 12),
        st.floats(0, 60),
        st.floats(0, 400),
        st.booleans(),
    ),
    max_size=4,
)
SESSION = st.tuples(
    st.lists(GANGS, min_size=1, max_size=2),  # some at a time
    st.none() | st.floats(0, 500),  # when it is killed
    st.sampled_from([0.97, 1.0, 1.03]),  # how fast its clock goes
    st.sampled_from([0.0, 20.0]),  # how long it keeps what it does not use
)


@settings(max_examples=200)
@given(
    sessions=st.lists(SESSION, min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
    lost=st.sampled_from([0.0, 0.3]),
    failing=st.sampled_from([0.0, 0.05]),
)
# What had not been used for a while was given back while it was granted to the next gang.
@example(
    sessions=[
        (
            [[Gang(1, 21.0, 0.0, False)], [Gang(9, 0.0, 0.0, False), Gang(7, 20.25, 2.0, False)]],
            None,
            0.97,
            20.0,
        )
    ],
    seed=0,
    lost=0.0,
    failing=0.0,
)
def test_sessions_never_use_each_others_slots(
    sessions: list[tuple[list[list[Gang]], float | None, float, float]],
    seed: int,
    lost: float,
    failing: float,
) -> None:
    async def work(world: World, name: str, leases: Leases, gangs: Sequence[Gang]) -> None:
        for gang in gangs:
            await asyncio.sleep(gang.before)
            try:
                lease = await leases.lease(gang.size)
            except (Throttled, ServiceError):
                continue
            world.take(name, lease)
            assert len(lease.slots) == gang.size
            await asyncio.sleep(gang.seconds)
            world.drop(name, lease)
            dirty = set() if gang.is_clean else set(lease.slots[:2])
            try:
                await leases.release([(slot, lease.epoch) for slot in lease.slots], dirty)
            except (Throttled, ServiceError):
                assert failing  # it is given back later

    async def live(world: World, name: str, told: Any) -> None:
        lanes, killed, skew, keep = told
        leases = world.session(name, skew=skew, keep=keep)
        jobs = [asyncio.create_task(work(world, name, leases, gangs)) for gangs in lanes]
        done, left = await asyncio.wait(jobs, timeout=killed)
        for job in done:
            job.result()
        if left:
            world.dies(name)
            for task in (*left, *([leases._keeper] if leases._keeper else ())):
                task.cancel()
            await asyncio.wait(left)
            return
        world.bucket._failing = 0.0  # what must end well can
        await leases.close()
        world.bucket._failing = failing
        assert name not in world.bucket.pool.holds

    async def program() -> None:
        world = World(seed, lost=lost, failing=failing)
        names = [f"s{i}" for i in range(len(sessions))]
        await asyncio.gather(*map(live, [world] * len(names), names, sessions))
        # What was killed is free when its time is over.
        await asyncio.sleep(pool.TERM + pool.REST)
        world.bucket._failing = 0.0
        last = world.session("last")
        world.take("last", lease := await last.lease(SLOTS))
        await last.release([(slot, lease.epoch) for slot in lease.slots], set())
        await last.close()
        assert not world.bucket.pool.holds
        assert not world.bucket.pool.stale

    in_virtual_time(program)


def test_gangs_one_after_the_other_ask_once() -> None:
    async def program() -> None:
        world = World(1)
        leases = world.session("a")
        epochs = []
        for size in (8, 3, 5, 8):
            lease = await leases.lease(size)
            world.take("a", lease)
            world.drop("a", lease)
            epochs.append(lease.epoch)
            await leases.release([(slot, lease.epoch) for slot in lease.slots], set())
            await asyncio.sleep(5)
        assert world.bucket.writes == 1
        assert sorted(set(epochs)) == epochs
        await asyncio.sleep(30)
        assert leases.held == 0, "what is not used is given back"
        assert world.bucket.writes == 2
        await leases.close()
        assert world.bucket.writes == 2, "there was nothing to give back"

    in_virtual_time(program)


def test_a_long_gang_keeps_its_slots() -> None:
    async def program() -> None:
        world = World(2)
        sessions = [world.session(name) for name in "abc"]
        mine, others, late = sessions
        lease = await mine.lease(8)
        world.take("a", lease)
        await asyncio.sleep(900)
        assert all(mine.holds(slot, lease.epoch) for slot in lease.slots)
        for _ in range(2):
            world.take("b", await others.lease(8))
        with pytest.raises(Throttled):
            await late.lease(1)
        for session in sessions:
            await session.close()

    in_virtual_time(program)


def test_a_session_gives_back_what_its_calls_held_that_died() -> None:
    async def program() -> None:
        world = World(7)
        driver = world.session("a")
        await driver.give_back_for_the_dead()  # there is no pool yet
        for name in ("a/1", "a/2", "ab/1"):
            await world.session(name, keep=0.0).lease(2)
        lease = await driver.lease(1)
        await driver.give_back_for_the_dead()
        state = world.bucket.pool
        assert set(state.holds) == {"a", "ab/1"}, "a/1 and a/2 are gone"
        assert sorted(world.purged) == sorted(state.resting)
        assert len(state.resting) == 4
        assert driver.holds(lease.slots[0], lease.epoch)
        writes = world.bucket.writes
        await driver.give_back_for_the_dead()
        assert world.bucket.writes == writes, "there was nothing to give back"
        await driver.close()

    in_virtual_time(program)


def test_too_few_slots_say_who_has_them_and_what_to_run() -> None:
    async def program() -> str:
        world = World(3)
        mine, others = world.session("a"), world.session("b", stack="prod")
        await mine.lease(16)
        with pytest.raises(Throttled) as caught:
            await others.lease(9)
        await mine.close()
        await others.close()
        return str(caught.value)

    said = in_virtual_time(program)
    for word in ("9 inboxes", "24 slots", "'prod'", "16 by a@here", "fsdray deploy --slots 48"):
        assert word in said, said


def test_more_than_the_stack_has_is_refused_before_anything_is_asked() -> None:
    async def program() -> None:
        world = World(4)
        with pytest.raises(SettingsError, match="has 24: run fsdray deploy --slots 25"):
            await world.session("a").lease(25)
        assert world.bucket.reads == 0

    in_virtual_time(program)


def test_what_others_give_back_is_waited_for() -> None:
    async def program() -> float:
        world = World(5)
        mine, others = world.session("a"), world.session("b")
        lease = await mine.lease(SLOTS)
        waiting = asyncio.create_task(others.lease(SLOTS))
        await asyncio.sleep(1)
        await mine.release([(slot, lease.epoch) for slot in lease.slots], set())
        await waiting
        took = asyncio.get_running_loop().time()
        await mine.close()
        await others.close()
        return took

    assert in_virtual_time(program) < 32  # what is kept unused for 20 s, and a look


def test_gangs_of_one_session_wait_for_each_other_as_long_as_it_takes() -> None:
    async def program() -> None:
        world = World(6)
        leases = world.session("a")

        async def gang() -> None:
            lease = await leases.lease(SLOTS)
            world.take("a", lease)
            await asyncio.sleep(300)
            world.drop("a", lease)
            await leases.release([(slot, lease.epoch) for slot in lease.slots], set())

        await asyncio.gather(*(gang() for _ in range(4)))
        await leases.close()

    in_virtual_time(program)


def test_a_driver_that_slept_too_long_has_lost_its_slots() -> None:
    async def program() -> None:
        world = World(7)
        mine, others = world.session("a"), world.session("b")
        lease = await mine.lease(SLOTS)
        assert mine._keeper is not None
        mine._keeper.cancel()  # as a laptop's lid does
        await asyncio.sleep(pool.TERM + 1)
        world.dies("a")
        taken = await others.lease(SLOTS)
        world.take("b", taken)
        assert all(is_later(taken.epoch, lease.epoch) for _ in lease.slots)
        # Back again: it gives back what is not its own any more, which changes nothing.
        await mine.release([(slot, lease.epoch) for slot in lease.slots], set(lease.slots))
        await mine.close()
        assert set(world.bucket.pool.holds) == {"b"}
        assert all(others.holds(slot, taken.epoch) for slot in taken.slots)
        # Everything that "a" left behind is emptied when it is given back.
        await others.release([(slot, taken.epoch) for slot in taken.slots], set())
        await others.close()
        assert set(world.bucket.pool.resting) == set(range(SLOTS))

    in_virtual_time(program)


def test_epochs_go_round() -> None:
    assert is_later(1, 0)
    assert not is_later(0, 1)
    assert not is_later(5, 5)
    assert is_later(3, EPOCHS - 2)
    assert not is_later(EPOCHS - 2, 3)
