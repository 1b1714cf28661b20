"""The ring that an inbox is: against a model, at its ends, and under processes that are killed."""

from __future__ import annotations

import fcntl
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsdray.backends.local.inbox import Inbox, Posted, Released, Taken

AWAY = 10.0  # seconds that a delivery is away in these tests
RING = 1 << 16


def made(directory: Path, name: str = "inbox") -> Inbox:
    Inbox.create(str(directory / name))
    return Inbox(str(directory / name))


def taken(inbox: Inbox, now: float = 0.0, most: int = 10) -> list[Taken]:
    return inbox.take(most, 1 << 30, now, AWAY)[0]


def watch(inbox: Inbox, number: int, now: float = 0.0) -> float:
    found, again = inbox.take(10, 1 << 30, now, AWAY, number)
    assert found == []
    return again


def posted(*bodies: bytes) -> list[Posted]:
    return [Posted(len(body), body) for body in bodies]


def test_what_is_put_is_taken_in_order_and_once(tmp_path: Path) -> None:
    inbox = made(tmp_path)
    assert inbox.put([Posted(7, b"one", b"note"), Posted(0, b"")]) == []
    first, second = taken(inbox)
    assert first[1:] == (7, b"one", b"note")
    assert second[1:] == (0, b"", b"")
    assert taken(inbox) == []
    assert inbox.counts() == (0, 2)
    assert inbox.drop([first.receipt, second.receipt, first.receipt]) == [b"note"]
    assert inbox.counts() == (0, 0)


def test_what_is_not_acknowledged_comes_again_until_it_is(tmp_path: Path) -> None:
    inbox = made(tmp_path)
    inbox.put(posted(b"a", b"b"))
    early = taken(inbox, now=0, most=1)
    assert [each.body for each in taken(inbox, now=5)] == [b"b"]
    assert taken(inbox, now=AWAY - 0.1) == []
    again = taken(inbox, now=AWAY)
    assert [each.body for each in again] == [b"a"]
    assert inbox.drop([early[0].receipt]) == []
    assert inbox.counts() == (0, 2), "a late acknowledgement ends its own delivery alone"
    assert [each.body for each in taken(inbox, now=5 + AWAY)] == [b"b"]
    assert [each.body for each in taken(inbox, now=2 * AWAY)] == [b"a"]


@pytest.mark.parametrize("room", [0, 5, 10, 15])
def test_a_take_keeps_its_room_but_for_one_message(tmp_path: Path, room: int) -> None:
    inbox = made(tmp_path)
    inbox.put(posted(*[b"12345"] * 4))
    assert len(inbox.take(10, room, 0.0, AWAY)[0]) == max(1, room // 5)


def test_messages_that_cross_the_end_of_the_ring_are_whole(tmp_path: Path) -> None:
    inbox = made(tmp_path)
    for i in range(200):
        body = bytes([i]) * (RING // 3)
        inbox.put([Posted(1, body, b"%d" % i)])
        (got,) = taken(inbox)
        assert (got.body, got.note) == (body, b"%d" % i)
        assert inbox.drop([got.receipt]) == [b"%d" % i]
    assert (tmp_path / "inbox").stat().st_size < 2 * RING, "room is used again"


def test_a_ring_grows_with_what_is_in_it_also_for_who_has_it_open(tmp_path: Path) -> None:
    sender = made(tmp_path)
    reader = Inbox(str(tmp_path / "inbox"))
    bodies = [os.urandom(RING // 2 - 100) for _ in range(9)]
    sender.put(posted(bodies[0]))  # so that the ring does not grow from its beginning
    (first,) = taken(reader)
    reader.drop([first.receipt])
    for body in bodies:
        sender.put(posted(body))
    more = os.urandom(5 * RING)
    sender.put(posted(more))
    assert [each.body for each in taken(reader)] == [*bodies, more]


def test_a_ring_that_grows_is_locked_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox, other = made(tmp_path), os.open(tmp_path / "inbox", os.O_RDWR)
    inbox.put(posted(bytes(RING // 2)))
    fit = inbox._fit

    def looked_at(capacity: int) -> None:
        fit(capacity)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    monkeypatch.setattr(inbox, "_fit", looked_at)
    inbox.put(posted(bytes(RING)))
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)


def test_who_watches_is_told_once_of_what_comes(tmp_path: Path) -> None:
    inbox = made(tmp_path)
    assert watch(inbox, 7) == math.inf
    assert watch(inbox, 7) == math.inf
    assert watch(inbox, 8) == math.inf
    assert inbox.put(posted(b"a")) == [7, 8]
    assert inbox.put(posted(b"b")) == []
    assert len(inbox.take(10, 1 << 30, 3.0, AWAY, 7)[0]) == 2
    assert inbox.put(posted(b"c")) == [], "who is given something does not watch"
    assert len(taken(inbox, now=4.0)) == 1
    assert watch(inbox, 7, 5.0) == 3.0 + AWAY
    assert len(inbox.take(10, 1 << 30, 3.5 + AWAY, AWAY, 7)[0]) == 2
    assert inbox.put(posted(b"d")) == [7]


def test_more_who_watch_than_can_be_written_down_look_again_soon(tmp_path: Path) -> None:
    inbox = made(tmp_path)
    times = [watch(inbox, number, 1.0) for number in range(600)]
    assert times[:252] == [math.inf] * 252
    assert times[252:] == [1.01] * 348
    assert inbox.put(posted(b"a")) == list(range(252))


def test_who_watches_for_several_is_told_when_so_many_were_sent(tmp_path: Path) -> None:
    inbox = made(tmp_path)

    def wait_for(number: int, enough: int) -> None:
        assert inbox.take(10, 1 << 30, 0.0, AWAY, number, enough)[0] == []

    inbox.put(posted(b"before"))
    assert len(taken(inbox)) == 1
    for number, enough in ((7, 3), (8, 1), (9, 3), (10, 2)):
        wait_for(number, enough)
    assert inbox.put(posted(b"first")) == [8]
    assert inbox.put(posted(b"second")) == [10]
    assert len(taken(inbox)) == 2
    wait_for(7, 5)  # it says anew what it waits for
    assert inbox.put(posted(b"third", b"fourth")) == [9]
    assert inbox.put(posted(b"fifth")) == []
    assert inbox.put(posted(b"sixth", b"seventh", b"eighth")) == [7]
    assert inbox.put(posted(b"more")) == []


def test_an_inbox_says_whether_it_is_empty(tmp_path: Path) -> None:
    inbox = made(tmp_path)
    assert inbox.is_empty()
    inbox.put(posted(b"a", b"b"))
    assert not inbox.is_empty()
    taken(inbox, most=1)
    assert not inbox.is_empty()
    taken(inbox)
    assert inbox.is_empty()


def test_a_released_inbox_is_over_for_all(tmp_path: Path) -> None:
    inbox = made(tmp_path)
    other = Inbox(str(tmp_path / "inbox"))
    watch(other, 3)
    inbox.put([Posted(1, b"", b"read"), Posted(1, b"", b"away"), Posted(1, b"", b"ready")])
    (read, away), _ = inbox.take(2, 100, 0.0, AWAY)
    inbox.drop([read.receipt])
    watchers, notes = inbox.release()
    assert notes == [b"away", b"ready"]
    assert watchers == []
    assert not (tmp_path / "inbox").exists()
    for call in (
        lambda: other.put(posted(b"x")),
        lambda: taken(other),
        lambda: watch(other, 3),
        other.release,
        other.check,
    ):
        with pytest.raises(Released):
            call()
    assert other.drop([away.receipt]) == []


def test_one_name_is_one_inbox(tmp_path: Path) -> None:
    made(tmp_path).close()
    with pytest.raises(FileExistsError):
        Inbox.create(str(tmp_path / "inbox"))
    with pytest.raises(FileNotFoundError):
        Inbox(str(tmp_path / "other"))


STEPS = st.one_of(
    st.tuples(st.just("put"), st.lists(st.integers(0, 40_000), min_size=1, max_size=3)),
    st.tuples(st.just("take"), st.integers(1, 4)),
    st.tuples(st.just("drop"), st.integers(0, 5)),
    st.tuples(st.just("wait"), st.sampled_from([0.3, AWAY])),
)


@settings(max_examples=60)
@given(st.lists(STEPS, max_size=40))
def test_it_is_what_a_list_is(
    tmp_path_factory: pytest.TempPathFactory, steps: list[object]
) -> None:
    """Two views of one ring, used in turn, against messages in a list."""
    directory = tmp_path_factory.mktemp("ring")
    views = [made(directory), Inbox(str(directory / "inbox"))]
    now, serial = 0.0, 0
    model: list[dict[str, object]] = []  # what is not acknowledged, in its order
    for turn, (step, value) in enumerate(steps):  # type: ignore[misc]
        view = views[turn % 2]
        if step == "put":
            bodies = []
            for size in value:
                serial += 1
                bodies.append(b"%d:" % serial + bytes(size))
            view.put(posted(*bodies))
            model += [{"body": body, "until": None, "receipt": None} for body in bodies]
        elif step == "take":
            for each in model:
                if each["until"] is not None and each["until"] <= now:  # type: ignore[operator]
                    each["until"] = None
            ready = [each for each in model if each["until"] is None][:value]
            found = taken(view, now, value)
            assert [each.body for each in found] == [each["body"] for each in ready]
            for each, delivery in zip(ready, found, strict=True):
                each["until"], each["receipt"] = now + AWAY, delivery.receipt
        elif step == "drop":
            delivered = [each for each in model if each["receipt"] is not None]
            for each in delivered[value : value + 2]:
                view.drop([str(each["receipt"])])
                model.remove(each)
        else:
            now += value
    for view in views:
        view.close()


HAMMER = """
import os, random, sys, time
from fsdray.backends.local.inbox import Inbox, Posted
path, role, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
inbox, draw = Inbox(path), random.Random(seed)
if role == "send":
    for i in range(10**9):
        inbox.put([Posted(1, b"%d.%d " % (seed, i) * draw.choice([1, 10, 3000]))])
        os.write(1, b"%d.%d\\n" % (seed, i))
        while sum(inbox.counts()) > 50:
            time.sleep(0.001)
else:
    while True:
        for each in inbox.take(3, 1 << 30, time.monotonic(), 0.05)[0]:
            words = set(each.body.split())
            assert len(words) == 1, "a message is not whole"
            if draw.random() < 0.8:
                # Said first: who is killed in between has it come again.
                os.write(1, words.pop() + b"\\n")
                inbox.drop([each.receipt])
"""


@dataclass
class Hammer:
    """A process that sends or takes, and what it said of that."""

    role: str
    number: int
    out: Path
    process: subprocess.Popen[bytes]

    def words(self) -> list[bytes]:
        return self.out.read_bytes().split()

    def kill(self) -> None:
        """Kill it in the middle of its work."""
        until = time.monotonic() + 30
        while not self.words() and time.monotonic() < until:
            time.sleep(0.01)
        assert self.process.poll() is None, "it has found something wrong"
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def test_processes_that_are_killed_lose_nothing_and_leave_it_whole(tmp_path: Path) -> None:
    inbox = made(tmp_path)
    made_so_far: list[Hammer] = []

    def start(role: str) -> Hammer:
        number = len(made_so_far)
        out = tmp_path / f"{role}-{number}"
        with out.open("wb") as stream:
            command = [sys.executable, "-c", HAMMER, str(tmp_path / "inbox"), role, str(number)]
            process = subprocess.Popen(command, stdout=stream)
        made_so_far.append(Hammer(role, number, out, process))
        return made_so_far[-1]

    running = [start(role) for role in ("send", "take", "send", "take")]
    for _ in range(12):
        victim = running.pop(0)
        victim.kill()
        running.append(start(victim.role))
    for each in running:
        each.kill()
    left: list[bytes] = []
    while any(inbox.counts()):
        for each in inbox.take(10, 1 << 30, time.monotonic(), 0.05)[0]:
            left.append(each.body.split()[0])
            inbox.drop([each.receipt])
    sent = [word for each in made_so_far if each.role == "send" for word in each.words()]
    came = [word for each in made_so_far if each.role == "take" for word in each.words()]
    assert set(sent) <= set(came) | set(left)
    # Who is killed may have sent one that it did not say any more.
    senders = sum(each.role == "send" for each in made_so_far)
    assert len(set(came) | set(left)) <= len(sent) + senders
