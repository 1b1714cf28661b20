"""The three services that a backend provides, and the rules that all backends share.

A backend is `Functions`, `Messages` and `Objects`; everything above this file is written once.
The billing rules (what one request is, when a payload counts twice) live here too, because
every backend must split in the same way; what a request costs lives in `fsdray.costs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from fsdray.errors import SettingsError

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Anything contiguous that holds bytes."""

KIB = 1024
MIB = 1024 * KIB
BILLING_UNIT = 64 * KIB
"""SNS and SQS bill a request of up to 256 KB as one for each 64 KB begun (AWS price pages)."""
ENVELOPE = 25
"""Bytes of a message beside its body that are billed and limited as the body is: text of one
character, and names, types and heads of two attributes (the bytes, and to whom they go)."""
ADDRESS = 13
"""The same, for each inbox that a message goes to: its number, as text to filter by and in binary
with the epoch of its lease."""

Count: TypeAlias = Callable[[str, float], None]
"""How a service reports a billed request: ``count("publish", 1)``. The names, which are also
those on a receipt:

==================  ==========================================================================
``invoke``          calls of a function; ``gb_seconds`` what they ran (memory × billed time)
``publish``         publish calls; ``publish_units`` the same in 64 KB units, as SNS bills them
``publish_bytes``   what was published, envelopes included
``send``            publishes to one inbox, which go to its queue directly (`is_direct`);
                    ``send_units`` and ``send_bytes`` as above
``receive``         receive calls, empty ones included; ``receive_units`` in 64 KB units
``acknowledge``     acknowledgement (delete) calls of up to ten messages
``put``, ``get``    objects written and read; ``put_bytes``, ``get_bytes`` their payload
``miss``            reads of a key that was not there yet: billed as a get
``list``            listings; ``delete`` is free on S3 and counted all the same
``lease``           changes of the one object that says who has which inbox: a read and a write
==================  ==========================================================================
"""


def units(payload: int) -> int:
    """Billed units of one SNS or SQS request with `payload` bytes: one for each 64 KB begun.

    Source: AWS price pages for SNS and SQS; an empty request is billed as one.
    """
    return max(1, -(-payload // BILLING_UNIT))


LARGE_OBJECT = 64 * MIB
"""Bytes up to which an object is written by one put and read by one get. A function's network
moves them in a second, over one connection as over several (FACTS: 71-83 MB/s)."""

_PART = 32 * MIB
_PARTS = 10_000  # S3's limit of one object


def part_size(size: int) -> int:
    """Bytes of each part but the last of an object above `LARGE_OBJECT`."""
    return max(_PART, -(-size // _PARTS))


def puts(size: int) -> int:
    """Billed requests that write an object of `size` bytes: begin, parts and end where large."""
    return 1 if size <= LARGE_OBJECT else 2 + -(-size // part_size(size))


def gets(size: int) -> int:
    """Billed requests that read `size` bytes of an object."""
    return 1 if size <= LARGE_OBJECT else -(-size // part_size(size))


@dataclass(frozen=True)
class Pace:
    """How often a reader that waits for a key looks for it, where looking is billed.

    The first look is at once; the waits between looks grow from `first` by `factor` up to
    `ceiling`, all in seconds. The defaults follow S3's measured latencies (FACTS: a small GET
    takes 27 ms): looking more often than a look takes would buy nothing.
    """

    first: float = 0.025
    factor: float = 1.5
    ceiling: float = 1.0

    def misses(self, waited: float) -> int:
        """Looks that found nothing, for a key that came after `waited` seconds."""
        looks, at, step = 0, 0.0, self.first
        while at < waited:
            looks += 1
            at += step
            step = min(step * self.factor, self.ceiling)
        return looks

    def look(self, waited: float) -> float:
        """When, in seconds after the wait began, the first look at or after `waited` is."""
        at, step = 0.0, self.first
        while at < waited:
            at += step
            step = min(step * self.factor, self.ceiling)
        return at


@dataclass(frozen=True)
class FunctionLimits:
    """What `Functions` accepts; the defaults are AWS Lambda's (2026-11)."""

    # Bytes, each way, of a synchronous call: Lambda's 6 MB are JSON, which holds them as base64,
    # and beside them 143 KB of what it is about and what it printed.
    payload: int = 4500 * KIB
    memory: tuple[int, int] = (128, 10_240)  # MB, least and most
    timeout: float = 900.0  # seconds
    concurrency: int = 1000  # calls at one time
    architecture: str = "x86_64"  # or "arm64": a GB-second has another price there
    wheels: tuple[str, ...] = ()  # platforms' tags, as pip takes them; none: those of this machine

    def check(self, memory: int, timeout: float) -> None:
        """Raise `SettingsError` for a memory (MB) or timeout (s) that no call can have."""
        least, most = self.memory
        if not least <= memory <= most:
            raise SettingsError(f"memory={memory} MB: choose between {least} and {most} MB")
        if not 0 < timeout <= self.timeout:
            raise SettingsError(f"timeout={timeout} s: choose above 0 and up to {self.timeout} s")


@dataclass(frozen=True)
class MessageLimits:
    """What `Messages` accepts; the defaults are SNS's and SQS's (2026-11)."""

    message: int = 256 * KIB  # bytes of one message
    batch: int = 256 * KIB  # bytes of one publish
    batch_messages: int = 10  # messages of one publish
    fanout: int = 200  # inboxes that one message reaches (filter policies a topic)
    receive_messages: int = 10
    receive: int = MIB  # bytes of one receive
    acknowledge: int = 10  # deliveries of one acknowledgement
    wait: float = 20.0  # seconds of one long poll
    visibility: float = 30.0  # seconds until an unacknowledged delivery comes again
    inboxes: int | None = None  # that there are in all; None: any number
    more_inboxes: str = ""  # what to do for more of them

    def room(self, inboxes: int) -> int:
        """Bytes that the body of one message to so many inboxes may have."""
        return self.message - ENVELOPE - ADDRESS * inboxes

    def check_publish(self, messages: Sequence[Message]) -> None:
        """Raise `SettingsError` for a batch that is over the limits."""
        if not 1 <= len(messages) <= self.batch_messages:
            raise SettingsError(
                f"a batch has 1 to {self.batch_messages} messages, not {len(messages)}"
            )
        sizes = [message.billed for message in messages]
        if max(sizes) > self.message or sum(sizes) > self.batch:
            raise SettingsError(
                f"messages of {sizes} bytes with their envelopes: one may have {self.message}, "
                f"a batch {self.batch} in all"
            )
        if any(not 1 <= len(message.inboxes) <= self.fanout for message in messages):
            raise SettingsError(f"a message goes to 1 to {self.fanout} inboxes")

    def check_wait(self, wait: float) -> None:
        """Raise `SettingsError` for seconds that no long poll lasts."""
        if not 0 <= wait <= self.wait:
            raise SettingsError(f"wait={wait} s: a long poll lasts 0 to {self.wait} s")

    def check_acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Raise `SettingsError` for deliveries that are not acknowledged in one call."""
        if not 1 <= len(deliveries) <= self.acknowledge:
            raise SettingsError(
                f"1 to {self.acknowledge} deliveries are acknowledged at once, "
                f"not {len(deliveries)}"
            )
        if len({delivery.inbox for delivery in deliveries}) > 1:
            raise SettingsError("deliveries of one inbox are acknowledged together")


@dataclass(frozen=True)
class ObjectLimits:
    """What `Objects` accepts; the defaults are S3's (2026-11)."""

    key: int = 1024  # bytes of UTF-8
    delete_keys: int = 1000  # keys of one delete

    def check_key(self, key: str) -> None:
        """Raise `SettingsError` for a key that no object can have."""
        if not 0 < len(key.encode()) <= self.key:
            raise SettingsError(f"a key has 1 to {self.key} bytes, not {len(key.encode())}")

    def check_put(self, key: str, if_absent: bool, if_match: str | None) -> None:
        """Raise `SettingsError` for a put that no service takes."""
        self.check_key(key)
        if if_absent and if_match is not None:
            raise SettingsError("if_absent and if_match exclude each other")

    def check_get(self, key: str, span: tuple[int, int] | None) -> None:
        """Raise `SettingsError` for a get that no service takes."""
        self.check_key(key)
        if span is not None and not 0 <= span[0] <= span[1]:
            raise SettingsError(f"range={span}: start at 0 or later and do not end before it")


class Message(NamedTuple):
    """Bytes for one or more inboxes.

    `attached` is the key of an object that nobody reads but who receives this: a backend whose
    room for objects is small may remove it when all have acknowledged the message.
    """

    body: Buffer
    inboxes: tuple[str, ...]
    attached: str | None = None

    @property
    def billed(self) -> int:
        """Bytes that are billed and limited: the body, and what says where it goes."""
        body = self.body
        size = len(body) if type(body) is bytes else memoryview(body).nbytes
        return size + ENVELOPE + ADDRESS * len(self.inboxes)


def is_direct(messages: Sequence[Message]) -> bool:
    """Whether a batch goes to its one inbox directly: SQS's send is cheaper than SNS's publish."""
    first = messages[0].inboxes
    return len(first) == 1 and all(message.inboxes == first for message in messages[1:])


def count_publish(count: Count, messages: Sequence[Message], *, direct: bool) -> None:
    """Report one publish of messages, or one send where the batch that they are of is direct."""
    name = "send" if direct else "publish"
    size = sum(message.billed for message in messages)
    count(name, 1)
    count(f"{name}_units", units(size))
    count(f"{name}_bytes", size)


def count_receive(count: Count, deliveries: Sequence[Delivery]) -> None:
    """Report one receive and what it brought."""
    count("receive", 1)
    count("receive_units", units(sum(delivery.billed for delivery in deliveries)))


class Delivery(NamedTuple):
    """One message as it arrived; `receipt` acknowledges this delivery of it.

    `billed` is the message's (`Message.billed`).
    """

    inbox: str
    receipt: str
    body: Buffer
    billed: int


@dataclass(frozen=True)
class Blob:
    """An object's bytes, or the range asked for.

    `data` is private to the reader and writable (copy on write where it is shared memory);
    `size` is the whole object's; `etag` changes with every put of the key.
    """

    data: memoryview
    size: int
    etag: str


class Functions(Protocol):
    """Runs calls.

    Guarantees: a payload is never run twice by one `invoke`; a call that does not reply raises,
    it never hangs past its timeout; calls run one at a time in an environment, and environments
    are reused. Cancelling an `invoke` stops the call where the platform can.
    """

    @property
    def limits(self) -> FunctionLimits: ...

    async def invoke(
        self, payload: Buffer, *, memory: int, timeout: float, label: str = ""
    ) -> bytes:
        """Run one worker on `payload` and return its reply.

        Parameters
        ----------
        payload : at most ``limits.payload`` bytes.
        memory : MB. timeout : seconds.
        label : names the call in logs: the function's name, a blank and the call's own id.

        Raises
        ------
        Throttled, OutOfMemory, FunctionTimeout, FunctionCrashed
            each with the function's last log lines.
        SettingsError
            for a payload, memory or timeout beyond the limits; nothing has started.
        """
        ...

    def admitted(self, count: int) -> AbstractAsyncContextManager[None]:
        """Entered while a gang of `count` calls runs; waits until it can be whole.

        Two gangs that were half started could wait for each other for ever, so a gang's calls
        start only inside this. Raises `SettingsError` for a gang that never can be whole.
        """
        ...

    def yielded(self) -> AbstractContextManager[None]:
        """Entered while the call that runs in this process only waits for other calls.

        A platform that can gives its concurrency to others meanwhile, so that nested waits
        cannot deadlock.
        """
        ...

    def prepare(self, names: Sequence[str]) -> None:
        """A hint: calls to come will import these modules, or call ``module:function``.

        A platform that can loads them once ahead of time; others do nothing.
        """
        ...


class Messages(Protocol):
    """Publishes to inboxes.

    Guarantees: at least once, in any order, to every inbox that is leased when `publish` is
    called, whether or not its reader has started. A delivery that is not acknowledged within
    ``limits.visibility`` seconds comes again. An idle reader uses no CPU.
    """

    @property
    def limits(self) -> MessageLimits: ...

    async def lease(self, count: int) -> list[str]:
        """Take `count` empty inboxes until `release`.

        They come in groups of ``limits.fanout``: what goes to the inboxes of one group only is
        one publish; a batch that goes to several may be billed as one for each.
        """
        ...

    async def release(self, inboxes: Sequence[str], *, is_broken: bool = False) -> None:
        """Give inboxes back; what is left in them is gone.

        `is_broken` says that not all who used them ended well: what they sent and took is not
        known. A platform that must empty inboxes may know without asking where it need not.
        """
        ...

    async def publish(self, messages: Sequence[Message]) -> None:
        """Publish one batch, which may mix targets; entries that fail are retried inside.

        A batch for one inbox alone is sent to it directly (`is_direct`), which is cheaper.

        Raises `SettingsError` where the batch is over the limits (the channel splits, not the
        service) and `ServiceError` where an inbox is not leased.
        """
        ...

    async def receive(self, inbox: str, *, wait: float) -> list[Delivery]:
        """What is in the inbox, waiting up to `wait` seconds for the first; may be empty."""
        ...

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Say that deliveries of one inbox are safely held: they will not come again."""
        ...

    @property
    def near(self) -> NearMessages | None:
        """The same where no request leaves this machine; None where they do."""
        ...


class NearMessages(Protocol):
    """What `Messages` does, with nothing to wait for: so with no task, and no turn of the loop.

    Limits, counts, guarantees and errors are those of `Messages`. It is used on the loop.
    """

    def publish(self, messages: Sequence[Message]) -> None:
        """See `Messages.publish`."""
        ...

    def receive(self, inbox: str, ready: Callable[[], object]) -> list[Delivery]:
        """What is in the inbox; where nothing is, `ready` is called, once, when that may change.

        From the first time that nothing was there it is one receive, or as many as long polls
        would be until something is.
        """
        ...

    def wait(self, inbox: str, seconds: float, enough: int = 1) -> list[Delivery]:
        """What is in the inbox; where nothing is, what there is when `enough` have come.

        This thread waits, for so many seconds at most. It may come back sooner with less, or with
        nothing, where others of this process were waiting.
        """
        ...

    def stop(self, inbox: str, ready: Callable[[], object]) -> None:
        """Do not call `ready` any more."""
        ...

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """See `Messages.acknowledge`."""
        ...


class Objects(Protocol):
    """Keeps blobs.

    Guarantees: a put is atomic, and a get, list or condition after it sees it; of several
    conditional puts at once exactly one succeeds.
    """

    @property
    def limits(self) -> ObjectLimits: ...

    async def put(
        self,
        key: str,
        data: Buffer | Sequence[Buffer],
        *,
        if_absent: bool = False,
        if_match: str | None = None,
        is_attached: bool = False,
    ) -> str | None:
        """Write an object (a sequence is written as one) and return its etag.

        None says that the condition did not hold and nothing was written. `is_attached` says that a
        message will have it as its `Message.attached`, and that who reads it too late would know.
        """
        ...

    async def get(
        self,
        key: str,
        *,
        range: tuple[int, int] | None = None,  # noqa: A002 - S3's own word
        wait: float | None = None,
        pace: Pace = Pace(),
    ) -> Blob | None:
        """Read an object, or bytes ``range[0]`` up to and without ``range[1]`` of it.

        A range past the end is cut. None says that the key is not there, after `wait` seconds
        where given; `pace` says how often a platform that bills each look looks.
        """
        ...

    async def list(self, prefix: str) -> list[str]:
        """Keys that start with `prefix`, sorted."""
        ...

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove keys; one that is not there is no error."""
        ...


class Backend(Protocol):
    """A platform, connected: what an entry point of the group ``fsdray.backends`` returns."""

    @property
    def name(self) -> str: ...
    @property
    def functions(self) -> Functions: ...
    @property
    def messages(self) -> Messages: ...
    @property
    def objects(self) -> Objects: ...

    async def close(self) -> None:
        """Stop what can be stopped and leave nothing behind."""
        ...
