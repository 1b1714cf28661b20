"""Lambda as functions: the guarantees, each way to fail, and that no call is run twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from fsdray import loop
from fsdray.backends.aws import backend as aws_backend
from fsdray.backends.aws import functions
from fsdray.backends.aws.backend import AwsBackend
from fsdray.backends.aws.clients import Clients
from fsdray.backends.aws.functions import DEPTH, AwsFunctions, cancel_key, rung
from fsdray.errors import FunctionCrashed, ServiceError, SettingsError, Throttled
from fsdray.services import FunctionLimits, Objects
from fsdray.settings import Settings
from fsdray.testing import FUNCTION_CHECKS, call_function
from fsdray.testing import calls as checks
from tests.backends.aws.conftest import Aws

Program = Callable[[AwsBackend, Counter[str]], Coroutine[Any, Any, None]]


class Session:
    """A session, for one test after the other."""

    def __init__(self, settings: Settings) -> None:
        self._counts: Counter[str] = Counter()
        self.backend = loop.run(aws_backend.connect(settings, self._count))

    def run(self, program: Program) -> None:
        """Run a program on the session, with what it has counted since it began."""
        self._counts.clear()
        loop.run(program(self.backend, self._counts))

    def _count(self, name: str, amount: float) -> None:
        self._counts[name] += amount  # type: ignore[assignment]


@pytest.fixture(scope="module")
def connected(aws: Aws) -> Iterator[Session]:
    made = Session(Settings(backend="aws", concurrency=8, log_to_caller=False))
    yield made
    loop.run(made.backend.close())


@pytest.mark.parametrize("check", FUNCTION_CHECKS, ids=lambda check: check.__name__)
def test_functions_keep_their_guarantees(connected: Session, check: Any) -> None:
    async def program(backend: AwsBackend, counts: Counter[str]) -> None:
        await check(backend.functions, backend.objects)

    connected.run(program)


def test_a_call_is_one_request_and_what_lambda_says_it_billed(connected: Session) -> None:
    async def program(backend: AwsBackend, counts: Counter[str]) -> None:
        await call_function(backend.functions, checks.same, 1)
        seconds = counts.pop("gb_seconds")
        assert counts == {"invoke": 1}
        memory, _ = rung(backend.functions._ladder, checks.MEMORY)
        milliseconds = seconds / memory * 1024 * 1000
        assert milliseconds == pytest.approx(round(milliseconds), abs=1e-6)
        assert milliseconds >= 1

    connected.run(program)


def test_the_smallest_function_that_is_large_enough_runs_a_call() -> None:
    ladder = {512: "small", 1769: "middle", 10_240: "large"}
    assert rung(ladder, 128) == (512, "small")
    assert rung(ladder, 1769) == (1769, "middle")
    assert rung(ladder, 1770) == (10_240, "large")
    with pytest.raises(SettingsError, match=r"512, 1769 MB.*fsdray deploy"):
        rung({512: "small", 1769: "middle"}, 2048)


def test_a_chain_of_calls_that_is_too_long_is_refused(connected: Session) -> None:
    async def program(backend: AwsBackend, counts: Counter[str]) -> None:
        backend.functions.above = ("0" * 12,) * DEPTH
        try:
            with pytest.raises(SettingsError, match="wait for one another"):
                await call_function(backend.functions, checks.same, 1)
        finally:
            backend.functions.above = ()
        assert not counts

    connected.run(program)


def test_a_call_that_finds_first_that_its_caller_is_unwanted_is_no_death(
    connected: Session,
) -> None:
    async def program(backend: AwsBackend, counts: Counter[str]) -> None:
        caller = "f" * 12
        others = await backend.objects.list("cancel/")
        backend.functions.above = (caller,)
        try:
            call = asyncio.create_task(call_function(backend.functions, checks.until, "below/"))
            assert await backend.objects.get("below/started", wait=checks.PATIENCE) is not None
            await backend.objects.put(cancel_key(caller), b"")
            await asyncio.wait({call}, timeout=checks.PATIENCE)
        finally:
            backend.functions.above = ()
        assert call.cancelled(), "its caller would tell others of a death"
        marks = await backend.objects.list("cancel/")
        assert set(marks) - set(others) == {cancel_key(caller)}, "nobody died"
        await backend.objects.delete([cancel_key(caller), "below/started"])

    connected.run(program)


def test_a_call_that_begins_late_looks_first_whether_it_is_wanted(
    connected: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def program(backend: AwsBackend, counts: Counter[str]) -> None:
        caller = "e" * 12
        backend.functions.above = (caller,)
        try:
            assert await call_function(backend.functions, checks.same, 1) == 1
            await backend.objects.put(cancel_key(caller), b"")
            with pytest.raises(asyncio.CancelledError):
                await call_function(backend.functions, checks.until, "late/")
        finally:
            backend.functions.above = ()
        assert await backend.objects.get("late/started") is None, "it ran"
        await backend.objects.delete([cancel_key(caller)])

    monkeypatch.setattr(functions.time, "time", lambda: 0.0)
    connected.run(program)


def test_a_cancelled_call_ends_and_leaves_nothing(connected: Session) -> None:
    async def program(backend: AwsBackend, counts: Counter[str]) -> None:
        call = asyncio.create_task(call_function(backend.functions, checks.until, "cancelled/"))
        assert await backend.objects.get("cancelled/started", wait=checks.PATIENCE) is not None
        [(name, running)] = backend.functions._running.items()
        call.cancel()
        await asyncio.wait({call})
        assert call.cancelled()
        assert not running.done(), "the platform stopped it, which it cannot"
        await asyncio.wait({running}, timeout=checks.PATIENCE)
        assert running.cancelled(), "its end is nobody's business"
        assert await backend.objects.get("cancelled/after") is None
        await asyncio.gather(*backend.functions._clearing)
        assert await backend.objects.get(cancel_key(name)) is None
        await backend.objects.delete(["cancelled/started"])

    connected.run(program)


# Between this client and Lambda


class Proxy:
    """Passes connections on to Lambda, and cuts some when the answer would come.

    Parameters
    ----------
    cut : how many to cut.
    """

    def __init__(self, url: str, cut: int) -> None:
        self._host, _, port = url.rpartition("/")[2].partition(":")
        self._port = int(port)
        self.cut = cut
        self._writers: list[asyncio.StreamWriter] = []

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, to_them = await asyncio.open_connection(self._host, self._port)
        self._writers += [writer, to_them]

        async def forth() -> None:
            while data := await reader.read(65536):
                to_them.write(data)

        sending = asyncio.create_task(forth())
        while data := await theirs.read(65536):
            if self.cut:
                self.cut -= 1
                writer.transport.abort()
                break
            writer.write(data)
        sending.cancel()
        to_them.close()
        writer.close()


@asynccontextmanager
async def through(
    aws: Aws, patch: pytest.MonkeyPatch, backend: AwsBackend, cut: int, **limits: Any
) -> AsyncIterator[tuple[AwsFunctions, Counter[str]]]:
    """Functions of the same session, whose first answers are cut off."""
    counts: Counter[str] = Counter()

    def count(name: str, amount: float) -> None:
        counts[name] += amount  # type: ignore[assignment]

    proxy = Proxy(aws.emulator.environment["AWS_ENDPOINT_URL_LAMBDA"], cut)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    patch.setenv("AWS_ENDPOINT_URL_LAMBDA", f"http://127.0.0.1:{port}")
    clients = Clients(count)
    functions = AwsFunctions(
        clients,
        aws.stack.functions,
        backend.session,
        backend.objects,
        FunctionLimits(concurrency=4),
        lambda lines: None,
        lambda told: None,
    )
    try:
        yield functions, counts
    finally:
        await clients.close()
        server.close()
        proxy.close()


def test_a_call_whose_answer_was_cut_off_is_not_run_again(
    aws: Aws, connected: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def began() -> int:
        invoked = [each for each in aws.emulator.requests() if each.get("operation") == "Invoke"]
        return len(invoked)

    async def program(backend: AwsBackend, _: Counter[str]) -> None:
        before = began()
        async with through(aws, monkeypatch, backend, cut=1) as (functions, counts):
            with pytest.raises(FunctionCrashed, match="may have run"):
                await call_function(functions, checks.same, 1)
            assert counts["invoke"] == 1
            assert counts["gb_seconds"] > 0, "it may have been billed"
            assert began() == before + 1, "it was sent again"
            assert await call_function(functions, checks.same, 2) == 2

    connected.run(program)


def test_lambda_that_cannot_be_reached_is_an_error_that_says_so(
    aws: Aws, connected: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fsdray.backends.aws.functions._REACHES", 2)

    async def program(backend: AwsBackend, counts: Counter[str]) -> None:
        async with through(aws, monkeypatch, backend, cut=0) as (functions, _):
            monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", "http://127.0.0.1:9")
            with pytest.raises(ServiceError, match="not reached"):
                await call_function(functions, checks.same, 1)

    connected.run(program)


class Refusing:
    """A client of Lambda that refuses calls with an error, so many times."""

    def __init__(self, client: Any, code: str, status: int, times: int) -> None:
        self._client = client
        self._error = (code, status)
        self.left = times
        self.asked = 0

    async def invoke(self, **given: Any) -> Any:
        from botocore.exceptions import ClientError

        self.asked += 1
        if self.left:
            self.left -= 1
            code, status = self._error
            raise ClientError(
                {
                    "Error": {"Code": code, "Message": "Rate Exceeded."},
                    "ResponseMetadata": {"HTTPStatusCode": status},  # type: ignore[typeddict-item]
                },
                "Invoke",
            )
        return await self._client.invoke(**given)


@pytest.mark.parametrize(
    ("code", "status", "times", "timeout", "asked", "error"),
    [
        ("TooManyRequestsException", 429, 3, 30.0, 4, None),
        ("EC2ThrottledException", 502, 1, 30.0, 2, None),
        ("SnapStartNotReadyException", 409, 1, 30.0, 2, None),
        ("TooManyRequestsException", 429, 1000, 0.2, None, Throttled),
        ("ServiceException", 500, 1, 30.0, 1, FunctionCrashed),
        ("ResourceNotFoundException", 404, 1, 30.0, 1, ServiceError),
        ("AccessDeniedException", 403, 1, 30.0, 1, ServiceError),
        ("ExpiredTokenException", 403, 1, 30.0, 1, SettingsError),
    ],
)
def test_only_what_did_not_run_and_may_run_later_is_sent_again(
    connected: Session,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    status: int,
    times: int,
    timeout: float,
    asked: int | None,
    error: type[Exception] | None,
) -> None:
    async def program(backend: AwsBackend, _: Counter[str]) -> None:
        clients = backend.functions._clients
        refusing = Refusing(await clients.get("lambda"), code, status, times)

        async def get(service: str) -> Any:
            return refusing

        monkeypatch.setattr(clients, "get", get)
        call = call_function(backend.functions, checks.same, 1, timeout=timeout)
        if error is None:
            assert await call == 1
        else:
            with pytest.raises(error) as caught:
                await call
            assert type(caught.value) is error
        if asked is not None:
            assert refusing.asked == asked

    connected.run(program)


class SlowMarks:
    """Objects whose puts take a moment; they have nothing else."""

    def __init__(self) -> None:
        self.written: list[str] = []

    async def put(self, key: str, data: bytes) -> None:
        await asyncio.sleep(0.05)
        self.written.append(key)


def test_who_stops_has_said_that_what_the_dead_had_called_is_not_wanted() -> None:
    async def stop() -> list[str]:
        marks = SlowMarks()
        ending = AwsFunctions(
            Clients(lambda name, amount: None),
            {1769: "middle"},
            "session",
            cast(Objects, marks),
            FunctionLimits(concurrency=4),
            lambda lines: None,
            lambda told: None,
        )
        ending._tell_below("dead")  # one that died while the session ended
        assert await ending.stop(20)
        return marks.written

    assert asyncio.run(stop()) == [cancel_key("dead")]


def test_after_its_end_a_session_opens_no_connection_that_nobody_would_close(aws: Aws) -> None:
    async def use() -> None:
        clients = Clients(lambda name, amount: None)
        early = asyncio.create_task(clients.get("sqs"))
        assert await clients.get("s3") is await clients.get("s3")
        await asyncio.sleep(0)
        late = asyncio.create_task(clients.get("lambda"))
        await asyncio.sleep(0)  # it is being made
        await clients.close()
        with pytest.raises(ServiceError, match="s3 any more: the session has ended"):
            await clients.get("s3")
        await asyncio.wait([early, late])
        assert late.cancelled()

    asyncio.run(use())
