"""Messages through real SNS and SQS clients: the contract on two servers, and what is AWS's own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from fsdray.backends.aws.clients import Clients
from fsdray.backends.aws.leases import Leases
from fsdray.backends.aws.messages import AwsMessages, purge
from fsdray.backends.aws.stack import Stack
from fsdray.backends.aws.store import PoolObject
from fsdray.services import MessageLimits
from fsdray.testing.emulator import Emulator
from fsdray.testing.message_checks import MESSAGE_CHECKS, MessageCheck
from tests.backends.aws.provision import moto, provision, waiting

LIMITS = MessageLimits(fanout=8, visibility=2.0, wait=3.0)
SLOTS = 16


@dataclass(frozen=True)
class Server:
    url: str
    stack: Stack


@pytest.fixture(scope="module")
def emulated() -> Iterator[Server]:
    with Emulator() as emulator:
        stack = provision(emulator.url, "hand", slots=SLOTS, fanout=8, visibility=2)
        yield Server(emulator.url, stack)


@pytest.fixture(scope="module")
def motos() -> Iterator[Server]:
    with moto() as url:
        yield Server(url, provision(url, "hand", slots=SLOTS, fanout=8, visibility=2))


@pytest.fixture(scope="module", params=["emulated", "motos"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


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
    assert waiting(server.url, server.stack) == {}


@pytest.mark.parametrize("check", MESSAGE_CHECKS, ids=lambda check: check.__name__)
def test_messages_keep_the_contract(server: Server, check: MessageCheck) -> None:
    async def program(mine: Session) -> None:
        await check(mine.messages)

    run(server, program)
