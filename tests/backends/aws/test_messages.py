"""Messages through real SNS and SQS clients: the contract on two servers, and what is AWS's own."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from fsdray.backends.aws.clients import Clients
from fsdray.backends.aws.inboxes import Inbox, attributes, inbox_of, pack, unpack
from fsdray.backends.aws.leases import Leases
from fsdray.backends.aws.ledger import Ledger
from fsdray.backends.aws.messages import AwsMessages, in_full, purge
from fsdray.backends.aws.stack import Stack
from fsdray.backends.aws.store import PoolObject
from fsdray.errors import ServiceError, Throttled
from fsdray.services import KIB, Message, MessageLimits
from fsdray.testing.emulator import Emulator
from fsdray.testing.message_checks import (
    MESSAGE_CHECKS,
    MessageCheck,
    a_batch_may_mix_targets,
    a_message_arrives_as_it_was_sent,
    acknowledgements_beyond_the_limits_are_refused,
    an_empty_body_arrives,
    as_many_inboxes_as_the_fanout_are_reached,
    messages_as_large_as_the_limits_arrive,
    one_message_reaches_each_of_its_inboxes_and_no_other,
    what_is_not_acknowledged_comes_again,
)
from tests.backends.aws.provision import moto, provision, waiting

# These servers put no limit on the bytes of a receive.
LIMITS = MessageLimits(fanout=8, visibility=2.0, wait=2.0, receive=10 * 256 * KIB)
SLOTS = 16
QUICK = (
    a_batch_may_mix_targets,
    a_message_arrives_as_it_was_sent,
    acknowledgements_beyond_the_limits_are_refused,
    an_empty_body_arrives,
    as_many_inboxes_as_the_fanout_are_reached,
    messages_as_large_as_the_limits_arrive,
    one_message_reaches_each_of_its_inboxes_and_no_other,
    what_is_not_acknowledged_comes_again,
)


@dataclass(frozen=True)
class Server:
    url: str
    stack: Stack
    is_late: bool = False  # delivers after it has said that it had


@pytest.fixture(scope="module")
def emulated() -> Iterator[Server]:
    with Emulator() as emulator:
        stack = provision(emulator.url, "hand", slots=SLOTS, fanout=8, visibility=2)
        yield Server(emulator.url, stack)


@pytest.fixture(scope="module")
def motos() -> Iterator[Server]:
    with moto() as url:
        yield Server(url, provision(url, "hand", slots=SLOTS, fanout=8, visibility=2), is_late=True)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "local")


class Session:
    """One process's messages, with what was counted."""

    def __init__(self, server: Server, name: str, **leasing: Any) -> None:
        self.counted: Counter[str] = Counter()
        self.clients = Clients(self._count, region="us-east-1")
        self.purged: list[int] = []
        self.leases = Leases(
            PoolObject(self.clients, server.stack.bucket),
            **{
                "slots": server.stack.slots,
                "fanout": LIMITS.fanout,
                "session": name,
                "who": name,
                "purge": self._purge,
                "rest": 0.5,  # these servers purge at once
                **leasing,
            },
        )
        self.stack = server.stack
        self.messages = AwsMessages(self.clients, server.stack, self.leases, LIMITS)

    def _count(self, name: str, amount: float) -> None:
        self.counted[name] += int(amount)

    async def _purge(self, slots: Sequence[int]) -> None:
        self.purged += slots
        await purge(self.clients, self.stack, slots)


@asynccontextmanager
async def session(server: Server, name: str = "a", **leasing: Any) -> AsyncIterator[Session]:
    """A session that has given everything back at its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        made = Session(server, name, **leasing)
        try:
            yield made
        finally:
            await made.messages.close()
            await made.clients.close()


def run(server: Server, program: Callable[[Session], Awaitable[None]]) -> None:
    async def main() -> None:
        async with session(server) as mine:
            await program(mine)

    asyncio.run(main())
    # Moto may deliver after a purge, as AWS may: epochs make that harmless, and it stays a while.
    assert server.is_late or waiting(server.url, server.stack) == {}


def checks() -> Iterator[Any]:
    """All on one server; on the other those that are quick: it looks at a whole queue each time."""
    for check in MESSAGE_CHECKS:
        yield pytest.param("emulated", check, id=f"emulated-{check.__name__}")
        if check in QUICK:
            slow = pytest.mark.thorough("half a minute on a second emulator")
            yield pytest.param("motos", check, id=f"moto-{check.__name__}", marks=slow)


@pytest.mark.parametrize(("where", "check"), list(checks()))
def test_messages_keep_the_contract(
    where: str, check: MessageCheck, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(where)

    async def program(mine: Session) -> None:
        await check(mine.messages)

    run(server, program)


def counted_by_aws(text: str, carried: dict[str, dict[str, Any]]) -> int:
    """Bytes of a message as SNS and SQS say that they count it: text, and the names, types and
    values of its attributes (their developers' guides, "message attributes").
    """
    size = len(text.encode())
    for name, value in carried.items():
        given = value.get("BinaryValue") or value["StringValue"].encode()
        size += len(name) + len(value["DataType"]) + len(given)
    return size


@pytest.mark.parametrize("inboxes", [1, 2, 8])
@pytest.mark.parametrize("body", [b"", b"x", bytes(1000)])
def test_a_message_is_as_large_as_it_is_billed(inboxes: int, body: bytes) -> None:
    named = [Inbox(slot, 2**32 - 1 - slot) for slot in range(inboxes)]
    message = Message(body, tuple(map(str, named)))
    assert counted_by_aws("-", attributes(body, named)) == message.billed
    largest = bytes(MessageLimits().room(inboxes))
    assert counted_by_aws("-", attributes(largest, named)) == MessageLimits().message


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\1", b"\0\1\0\0\0\0\0"])
def test_what_is_no_message_of_ours_is_known(data: bytes) -> None:
    assert unpack(data) is None


def test_an_inbox_is_known_by_its_name() -> None:
    inbox = Inbox(17, 0xAB)
    assert str(inbox) == "0017-000000ab"
    assert inbox_of(str(inbox)) == inbox
    for name in ("", "inbox-1", "17-ab", "0017-000000AB"):
        with pytest.raises(ServiceError, match="no inbox is called"):
            inbox_of(name)


def test_what_is_counted_is_what_the_server_was_asked(emulated: Server) -> None:
    async def program(mine: Session) -> None:
        first, second = await mine.messages.lease(2)
        mine.counted.clear()
        await mine.messages.publish([Message(b"x" * 70_000, (first, second))])
        await mine.messages.publish([Message(b"x", (first,)), Message(b"y", (first,))])
        taken = []
        while len(taken) < 3:
            taken += await mine.messages.receive(first, wait=1)
        empty = mine.counted["receive"]
        await mine.messages.acknowledge(taken)
        await mine.messages.acknowledge(await mine.messages.receive(second, wait=1))
        sizes = [70_051, 39, 39]
        assert mine.counted["publish"] == 1
        assert mine.counted["publish_units"] == 2
        assert mine.counted["publish_bytes"] == sizes[0]
        assert mine.counted["send"] == mine.counted["send_units"] == 1
        assert mine.counted["send_bytes"] == sum(sizes[1:])
        assert mine.counted["acknowledge"] == 2
        assert mine.counted["receive"] == empty + 1
        await mine.messages.release([first, second])
        assert mine.purged == [], "nothing was left, and nobody asked"

    run(emulated, program)


def test_what_nobody_received_is_gone_with_the_gang(emulated: Server) -> None:
    async def program(mine: Session) -> None:
        inboxes = await mine.messages.lease(3)
        await mine.messages.publish([Message(b"never asked for", (inboxes[1],))])
        await mine.messages.release(inboxes)
        again = await mine.messages.lease(1)
        await mine.messages.release(again, is_broken=True)
        await mine.messages.close()
        assert sorted(mine.purged) == sorted([inbox_of(inboxes[1]).slot, inbox_of(again[0]).slot])

    run(emulated, program)


def test_a_frame_of_an_earlier_gang_is_dropped(emulated: Server) -> None:
    async def program(mine: Session) -> None:
        (before,) = await mine.messages.lease(1)
        await mine.messages.publish([Message(b"late", (before,))])
        # As if that were still on its way: the slot's next lease finds it.
        mine.messages.ledger.settle(inbox_of(before))
        await mine.messages.release([before])
        (after,) = await mine.messages.lease(1)
        assert inbox_of(after).slot == inbox_of(before).slot
        await mine.messages.publish([Message(b"now", (after,))])
        found = []
        while not found:
            found = await mine.messages.receive(after, wait=2)
        assert [bytes(each.body) for each in found] == [b"now"]
        await mine.messages.acknowledge(found)
        await mine.messages.release([after])

    run(emulated, program)


def test_two_sessions_share_a_pool_without_mixing_anything(emulated: Server) -> None:
    async def talk(mine: Session, what: bytes) -> set[int]:
        inboxes = await mine.messages.lease(3)
        for i in range(4):
            await mine.messages.publish([Message(what + b"%d" % i, tuple(inboxes))])
        for inbox in inboxes:
            seen = set()
            while len(seen) < 4:
                found = await mine.messages.receive(inbox, wait=2)
                seen |= {bytes(each.body) for each in found}
                if found:
                    await mine.messages.acknowledge(found)
            assert seen == {what + b"%d" % i for i in range(4)}
        slots = {inbox_of(inbox).slot for inbox in inboxes}
        await mine.messages.release(inboxes)
        return slots

    async def main() -> None:
        async with session(emulated, "a") as one, session(emulated, "b") as two:
            slots = await asyncio.gather(talk(one, b"one"), talk(two, b"two"))
            assert not slots[0] & slots[1]

    asyncio.run(main())
    assert waiting(emulated.url, emulated.stack) == {}


def test_a_killed_sessions_slots_are_taken_over_and_its_zombie_does_no_harm(
    emulated: Server,
) -> None:
    async def main() -> None:
        async with session(emulated, "killed", term=3.0) as dead, session(emulated, "b") as heir:
            lost = await dead.messages.lease(SLOTS)
            await dead.messages.publish([Message(b"old", (lost[0],))])
            (delivery,) = await dead.messages.receive(lost[0], wait=2)
            assert dead.leases._keeper is not None
            dead.leases._keeper.cancel()  # nobody renews any more

            inboxes = await heir.messages.lease(SLOTS)  # waits for the end of the hold
            target = inboxes[0]
            assert inbox_of(target).slot == inbox_of(lost[0]).slot
            # The zombie sends to its old inbox, deletes what it took, reads what is not its own.
            await dead.messages.publish([Message(b"late", (lost[0],))])
            await dead.messages.acknowledge([delivery])
            await heir.messages.publish([Message(b"new", (target,))])

            async def read_on() -> None:
                while True:
                    await dead.messages.receive(lost[0], wait=1)

            with pytest.raises(ServiceError, match=r"lease of inbox .* is over"):
                await read_on()
            seen = []
            while not seen:
                seen = await heir.messages.receive(target, wait=2)
            assert [bytes(each.body) for each in seen] == [b"new"]
            await heir.messages.acknowledge(seen)
            await heir.messages.release(inboxes)
            await heir.messages.close()
            # A stale slot is emptied once more, whatever came.
            assert sorted(heir.purged) == list(range(SLOTS))
            await dead.messages.release(lost)
            await dead.messages.close()
            assert dead.purged == [], "they are not its own any more"

    asyncio.run(main())
    assert waiting(emulated.url, emulated.stack) == {}


# Batches that fail in part


def batch(names: str) -> dict[str, dict[str, Any]]:
    return {name: {"Id": name} for name in names}


def test_only_the_entries_that_failed_are_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsdray.backends.aws.messages._PAUSE", (0.0, 0.0))
    sent: list[str] = []

    async def send(some: Sequence[dict[str, Any]]) -> dict[str, Any]:
        names = "".join(each["Id"] for each in some)
        sent.append(names)
        good, bad = (names[:1], names[1:])
        failed = [{"Id": each, "Code": "InternalError", "SenderFault": False} for each in bad]
        return {"Successful": [{"Id": each} for each in good], "Failed": failed}

    asyncio.run(in_full(batch("abc"), send, "messages"))
    assert sent == ["abc", "bc", "c"]


def test_an_entry_that_is_wrong_is_not_sent_again() -> None:
    async def send(some: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "Successful": [{"Id": "a"}],
            "Failed": [{"Id": "b", "Code": "Invalid", "Message": "no", "SenderFault": True}],
        }

    with pytest.raises(ServiceError, match=r"refused 1 of 2 messages: Invalid: no"):
        asyncio.run(in_full(batch("ab"), send, "messages"))


def test_entries_that_fail_for_ever_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsdray.backends.aws.messages._PAUSE", (0.0, 0.0))

    async def send(some: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"Failed": [{"Id": "a", "Code": "InternalError", "SenderFault": False}]}

    with pytest.raises(Throttled, match=r"1 of 1 messages failed 10 times \(InternalError"):
        asyncio.run(in_full(batch("a"), send, "messages"))


# What is left, without asking

A, B = Inbox(1, 5), Inbox(2, 5)


def test_what_was_sent_and_taken_leaves_nothing() -> None:
    driver, sender, reader = Ledger(), Ledger(), Ledger()
    sender.sent([A, B])
    sender.sent([A])
    reader.took(A, ["m1"])
    reader.took(A, ["m1", "m2"])  # delivered again, deleted again
    for each in (reader, sender):
        driver.add(json.loads(json.dumps(each.take())))
        assert each.take() == []
    assert not driver.settle(A)
    assert driver.settle(B), "nobody took it"
    assert not driver.settle(B), "that account is closed"


def test_what_is_doubtful_may_be_left() -> None:
    driver, rank = Ledger(), Ledger()
    rank.doubt([A])
    driver.add(rank.take())
    driver.keep([B])
    assert not driver.settle(A), "another's"
    rank.doubt([A])
    driver.add(rank.take())
    assert driver.settle(A)


def test_a_group_whose_senders_are_not_known_leaves_nothing() -> None:
    mine = Ledger()
    mine.took(A, ["m1"])
    assert not mine.settle(A)


def test_bytes_name_each_inbox_and_its_epoch() -> None:
    read = unpack(pack(b"body", [A, B]))
    assert read is not None
    assert read[0] == [A, B]
    assert bytes(read[1]) == b"body"
