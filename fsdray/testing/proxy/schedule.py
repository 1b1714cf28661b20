"""Which requests go wrong, and how: a function of what was asked, so that a seed repeats it."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias


class Fault(enum.Enum):
    """What a proxy does to one request."""

    THROTTLE = "refused with 429, and not passed on"
    UNAVAILABLE = "refused with 503, and not passed on"
    INTERNAL = "refused with 500, and not passed on"
    EXPIRED = "refused with 403 ExpiredToken, and not passed on"
    CUT_BEFORE = "its connection is cut before it is passed on"
    CUT_AFTER = "it is done, and its connection cut instead of an answer"
    CUT_MIDWAY = "its connection is cut in the middle of its answer"
    SLOW = "its answer takes longer"
    PARTIAL = "of its batch one entry is passed on, and the others fail"
    TWICE = "it is done twice: what was sent is delivered again, what was asked is asked again"
    LATE = "what it received is taken away, and comes again in a second"
    KILL_BEFORE = "the process that asks is killed before it is passed on"
    KILL_AFTER = "it is done, and the process that asked is killed before it hears of it"


BATCHES = {"PublishBatch", "SendMessageBatch", "DeleteMessageBatch", "DeleteObjects"}
FITTING: Mapping[Fault, Callable[[str], bool]] = {
    Fault.PARTIAL: BATCHES.__contains__,
    Fault.TWICE: BATCHES.__contains__,
    Fault.LATE: {"ReceiveMessage"}.__contains__,
}
"""Operations that a fault can befall; others befall all."""


class Asked(NamedTuple):
    """A request: which service's, what it asks, and how many of those came before.

    Where the proxy looks who asks: which process it is, in the order of their first requests and
    beginning with 1 (0: the proxy's own), and how many requests it made before.
    """

    service: str
    operation: str
    number: int
    process: int = 0
    turn: int = 0


Schedule: TypeAlias = Callable[[Asked], Fault | None]


def seeded(seed: int, shares: Mapping[Fault, float], burst: int = 1) -> Schedule:
    """A schedule by chance: each fault befalls its share of the requests that it can befall.

    Parameters
    ----------
    seed : the same one decides the same about the nth request of an operation.
    shares : of requests, from 0 to 1.
    burst : requests of an operation in a row that share one fate.
    """

    def choose(asked: Asked) -> Fault | None:
        name = f"{seed} {asked.service} {asked.operation} {asked.number // burst}".encode()
        at = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") / 2**64
        for fault, share in shares.items():
            fits = FITTING.get(fault)
            if fits is not None and not fits(asked.operation):
                continue
            if at < share:
                return fault
            at -= share
        return None

    return choose


def rarely(fault: Fault, operation: str, numbers: range | tuple[int, ...] = (0,)) -> Schedule:
    """A schedule that has one fault befall these requests of one operation."""

    def choose(asked: Asked) -> Fault | None:
        return fault if asked.operation == operation and asked.number in numbers else None

    return choose


def killing(process: int, turn: int, fault: Fault = Fault.KILL_BEFORE) -> Schedule:
    """A schedule that kills one process at one of its requests (`Asked.process`, `Asked.turn`)."""

    def choose(asked: Asked) -> Fault | None:
        return fault if (asked.process, asked.turn) == (process, turn) else None

    return choose
