"""Puts AWS's services together: for a session's driver, and for the functions that serve it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
from collections.abc import Mapping
from typing import Any

from fsdray import output
from fsdray._version import __version__
from fsdray.backends.aws import border, calls, pool, wheels
from fsdray.backends.aws.clients import Clients
from fsdray.backends.aws.functions import CANCELS, AwsFunctions, Show
from fsdray.backends.aws.messages import AwsMessages
from fsdray.backends.aws.objects import AwsObjects
from fsdray.backends.aws.stack import Stack, deploying, read_stack
from fsdray.errors import EnvironmentMismatch, SettingsError
from fsdray.services import Count, FunctionLimits
from fsdray.settings import Settings

_ENDING = 8.0  # seconds that calls are given to see that the session is closed
_FILES = 256  # that this process may have open beside one connection for each call


class AwsBackend:
    """Lambda, SNS with SQS, and S3, as one session uses them."""

    name = "aws"

    def __init__(
        self, session: str, functions: AwsFunctions, messages: AwsMessages, objects: AwsObjects
    ) -> None:
        self.session = session
        self.functions = functions
        self.messages = messages
        self.objects = objects

    @classmethod
    def of_session(
        cls,
        stack: Stack,
        clients: Clients,
        session: str,
        limits: FunctionLimits,
        storage: str,
        show: Show,
    ) -> AwsBackend:
        """The services of a session in a function.

        Its slots are given back as soon as they are not used: the function may be frozen then.

        Parameters
        ----------
        storage : as in `fsdray.settings.Settings`. show : takes what calls print.

        Raises
        ------
        SettingsError : the stack has no such storage.
        """
        objects = _objects(clients, stack, session, storage)
        holder = pool.call_of(session, secrets.token_hex(4))
        messages = AwsMessages.of_stack(clients, stack, holder, keep=0)
        functions = AwsFunctions(
            clients, stack.functions, session, objects, limits, show, messages.ledger.add, storage
        )
        return cls(session, functions, messages, objects)

    async def close(self) -> None:
        """A function's end is Lambda's to decide."""


class _DriverBackend(AwsBackend):
    """The same, with what it must leave as it found it."""

    _clients: Clients

    @classmethod
    def of_session(
        cls,
        stack: Stack,
        clients: Clients,
        session: str,
        limits: FunctionLimits,
        storage: str,
        show: Show,
    ) -> _DriverBackend:
        objects = _objects(clients, stack, session, storage)

        async def quiet() -> None:
            await functions.cancelled_have_ended(_ENDING)

        messages = AwsMessages.of_stack(clients, stack, session, quiet=quiet)
        functions = AwsFunctions(
            clients, stack.functions, session, objects, limits, show, messages.settle_own, storage
        )
        backend = cls(session, functions, messages, objects)
        backend._clients = clients
        return backend

    async def close(self) -> None:
        try:
            await self.functions.stop(_ENDING)
            try:
                await self.messages.close()
            finally:  # each clears away what it can, whatever of the stack is gone
                # Calls that run on, some of whose callers died, find by a mark that they are not
                # wanted; a day ends the marks.
                keys = await self.objects.list("")
                others = [key for key in keys if not key.startswith(CANCELS)]
                await self.objects.delete(others)
                if len(others) < len(keys):
                    await self.messages.close_for_the_dead()
        finally:
            await self._clients.close()


async def connect(settings: Settings, count: Count) -> AwsBackend:
    """Start a session on a stack that was deployed, as its driver.

    Parameters
    ----------
    settings : of these it uses stack, profile, region, concurrency and log_to_caller.
    count : told of each billed request.

    Raises
    ------
    SettingsError : no credentials, no region, no such stack: the message says what to run.
    EnvironmentMismatch : the stack is of another fsdray or another Python.
    """
    clients = Clients(count, region=settings.region, profile=settings.profile)
    try:
        stack, account = await asyncio.gather(
            asyncio.to_thread(read_stack, settings), _concurrency(clients)
        )
        check(stack)
        return _connected(clients, stack, account, settings)
    except BaseException:
        await clients.close()
        raise


def _connected(clients: Clients, stack: Stack, account: int, settings: Settings) -> _DriverBackend:
    concurrency = _connectable(min(account, settings.concurrency or account))

    def show(printed: Any) -> None:
        if settings.log_to_caller:
            output.show(calls.shown(printed))

    session = secrets.token_hex(8)
    limits = FunctionLimits(
        concurrency=concurrency,
        architecture=stack.architecture,
        wheels=wheels.foreign(stack.python, stack.architecture),
    )
    return _DriverBackend.of_session(stack, clients, session, limits, settings.storage, show)


def check(stack: Stack) -> None:
    """Raise `EnvironmentMismatch` where functions of the stack could not run calls from here."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    for what, there, here in (
        ("fsdray", stack.version, __version__),
        ("Python", stack.python, python),
    ):
        if there != here:
            raise EnvironmentMismatch(
                f"the stack {stack.name!r} was deployed with {what} {there}, and this is {here}: "
                f"run {deploying(stack.name)} to update it, or deploy one beside it with another "
                "name and choose it by fsdray.init(stack=NAME) or FSDRAY_STACK"
            )


def _objects(clients: Clients, stack: Stack, session: str, storage: str) -> AwsObjects:
    """A session's objects; raises `SettingsError` where the stack has no such storage."""
    bucket = stack.express if storage == "express" else stack.bucket
    if not bucket:
        raise SettingsError(
            f"storage='express': the stack {stack.name!r} has no directory bucket; make one "
            "with `fsdray deploy --express-zone ZONE`, or leave storage at 'standard'"
        )
    return AwsObjects(clients, bucket, f"runs/{session}/")


async def _concurrency(clients: Clients) -> int:
    """Calls that the account may run at one time: what is not reserved for other functions."""
    client = await clients.get("lambda")
    with border.crossing("asking for the account's concurrency"):
        told: Mapping[str, Any] = (await client.get_account_settings())["AccountLimit"]
    return int(told.get("UnreservedConcurrentExecutions") or told["ConcurrentExecutions"])


def _connectable(concurrency: int) -> int:
    """So many calls, or as many as this process may have connections for: files to the system."""
    try:
        import resource
    except ImportError:  # not on Windows, which has no such limit
        return concurrency
    wanted = concurrency + _FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS has limits that it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return max(1, min(concurrency, soft - _FILES))
    return concurrency
