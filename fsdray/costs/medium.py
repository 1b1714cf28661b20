"""What requests cost, how long they take, and which of the two matters: the ground of choices.

A `Medium` travels with a gang, so that all of its ranks choose alike; a `Bill` is what one way to
do something would come to on it. Which ways there are is said in `fsdray.collective.algorithms`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fsdray.costs.latency import Latency
from fsdray.costs.prices import Prices
from fsdray.settings import Settings, check_preference

_SAME = 1e-9  # of a bill: a difference that is rounding

_PRICED = (
    "publish_units",
    "publish_bytes",
    "send_units",
    "receive_units",
    "acknowledge",
    "put",
    "put_bytes",
    "get",
    "get_bytes",
    "miss",
    "gb_seconds",
)


EXPRESS_PUT = Latency(0.0073, 0.0088)
EXPRESS_GET = Latency(0.0048, 0.0059)
"""S3 Express One Zone at 1 KB, for `EXPRESS_PUT` too: measured (Skyrise's raw data)."""


@dataclass(frozen=True)
class Medium:
    """Prices, latencies and a preference.

    Parameters
    ----------
    prices : dollars of one of each count of the meter (`fsdray.services.Count`) that is billed.
        The default is the packaged price table's (us-east-1, November 2026, S3 Standard).
    deliver : from a publish to a reader that waits: FACTS' assumption for SNS→SQS long poll; p99
        in the proportion measured for SNS → push.
    direct : the same from a send, which goes to the queue without SNS: measured (FMI).
    publish : until a publish or a send returns; assumed.
    receive : of a receive that finds messages, and of an acknowledgement; assumed, half of what
        was measured from an SQS send to its consumer.
    put, get : S3 Standard, 1 KB: measured (FMI's and Skyrise's raw data).
    bandwidth : bytes a second of a worker each way: measured, 71 to 83 MB/s.
    memory : MB of each rank: what its waiting costs, at the price of a GB-second. 0: nothing.
    prefer : ``"cheapest"`` or ``"fastest"``.
    """

    prices: tuple[tuple[str, float], ...] = (
        ("publish_units", 0.5e-6),
        ("publish_bytes", 0.0),
        ("send_units", 0.4e-6),
        ("receive_units", 0.4e-6),
        ("acknowledge", 0.4e-6),
        ("put", 5e-6),
        ("put_bytes", 0.0),
        ("get", 0.4e-6),
        ("get_bytes", 0.0),
        ("miss", 0.4e-6),
        ("gb_seconds", 0.0000166667),
    )
    deliver: Latency = Latency(0.060, 0.185)
    direct: Latency = Latency(0.016, 0.105)
    publish: Latency = Latency(0.020, 0.062)
    receive: Latency = Latency(0.008, 0.053)
    put: Latency = Latency(0.041, 0.125)
    get: Latency = Latency(0.027, 0.103)
    bandwidth: float = 77e6
    memory: int = 0
    prefer: str = "cheapest"

    def __post_init__(self) -> None:
        check_preference(self.prefer)

    @classmethod
    def of(cls, prices: Prices, memory: int = 0, prefer: str = "cheapest") -> Medium:
        """What a session's price table says, with the default latencies."""
        table = tuple((name, prices.of(name)) for name in _PRICED)
        medium = cls(prices=table, memory=memory, prefer=prefer)
        if prices.storage == "express":
            medium = replace(medium, put=EXPRESS_PUT, get=EXPRESS_GET)
        return medium

    def dollars(self, counts: Mapping[str, float]) -> float:
        """What these requests cost."""
        return sum(price * counts.get(name, 0.0) for name, price in self.prices)

    def as_json(self) -> dict[str, Any]:
        """Plain values, for `from_json`."""
        times = {name: [t.median, t.p99] for name, t in vars(self).items() if type(t) is Latency}
        rest = {"bandwidth": self.bandwidth, "memory": self.memory, "prefer": self.prefer}
        return {"prices": dict(self.prices), **times, **rest}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Medium:
        """What `as_json` wrote down."""
        made: dict[str, Any] = {
            k: Latency(*v) if isinstance(v, list) else v for k, v in values.items()
        }
        made["prices"] = tuple(values["prices"].items())
        return cls(**made)


USUAL = Medium(memory=Settings.memory)
"""What holds where nothing else is said."""


@dataclass(frozen=True)
class Bill:
    """What one way to do something comes to, for all ranks together.

    Parameters
    ----------
    counts : requests by the meter's names.
    seconds : until the last rank is done, where all begin at the same time; an estimate.
    rounds : messages that follow one another.
    """

    counts: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    rounds: int = 0

    def __add__(self, other: Bill) -> Bill:
        """One after the other."""
        counts = dict(self.counts)
        for name, amount in other.counts.items():
            counts[name] = counts.get(name, 0.0) + amount
        return Bill(counts, self.seconds + other.seconds, self.rounds + other.rounds)

    def count(self, name: str) -> float:
        """How many of one kind."""
        return self.counts.get(name, 0.0)

    def dollars(self, medium: Medium, ranks: int) -> float:
        """The requests, and what `ranks` cost while they wait for them."""
        waiting = ranks * medium.memory / 1024 * self.seconds
        return medium.dollars(self.counts) + medium.dollars({"gb_seconds": waiting})


def together(counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Counts added up."""
    total: dict[str, float] = {}
    for each in counts:
        for name, amount in each.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def best(bills: Mapping[str, Bill], medium: Medium, ranks: int) -> str:
    """The way to take: the cheapest or the fastest; of equals the other decides, then the first."""
    dollars = {name: bill.dollars(medium, ranks) for name, bill in bills.items()}
    seconds = {name: bill.seconds for name, bill in bills.items()}
    first, second = (dollars, seconds) if medium.prefer == "cheapest" else (seconds, dollars)
    least = min(first.values()) * (1 + _SAME)
    return min((name for name in bills if first[name] <= least), key=lambda name: second[name])
