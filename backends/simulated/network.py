"""The model of the network: how long requests take, and how many fit into a second.

Figures are those of FACTS (section 3), or assumed where nobody measured them; each is a field that
can be replaced. What is drawn from them, and when, is in `world` and in the services.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cached_property

from fsdray.errors import SettingsError

_Z99 = 2.3263478740408408  # the standard normal's 99th percentile


def lognormal(median: float, p99: float) -> tuple[float, float]:
    """The (mu, sigma) of the lognormal distribution with this median and 99th percentile.

    Latencies of cloud services are bounded below and have long tails, for which this is the usual
    shape with two parameters; the logarithm of such a value is normal.
    """
    return math.log(median), math.log(p99 / median) / _Z99


@dataclass(frozen=True)
class Latency:
    """A time in seconds of which the median and the 99th percentile are known.

    Raises
    ------
    SettingsError
        unless ``0 < median <= p99``.
    """

    median: float
    p99: float

    def __post_init__(self) -> None:
        if not 0 < self.median <= self.p99 < math.inf:
            raise SettingsError(f"{self}: give seconds, the median above 0 and p99 not below it")

    def draw(self, source: random.Random) -> float:
        """One such time."""
        mu, sigma = self._parameters
        return math.exp(mu + sigma * source.gauss(0.0, 1.0))

    @cached_property
    def _parameters(self) -> tuple[float, float]:
        return lognormal(self.median, self.p99)


@dataclass(frozen=True)
class Network:
    """What the simulated services need in time; all in seconds, bytes and requests a second.

    Parameters
    ----------
    deliver : from a publish to a reader that waits in a long poll. Median: FACTS' assumption for
        SNS→SQS long poll; p99 in the proportion that was measured for SNS → push.
    direct : from a send to a reader that waits: measured from SQS to its consumer (FMI).
    publish : until a publish or send call returns; assumed.
    receive : of a receive that finds messages, and of an acknowledgement; assumed, half of what
        was measured from an SQS send to its consumer (16 and 105 ms).
    put, get : S3 Standard, 1 KB: measured (FMI's and Skyrise's raw data).
    list, delete : median FACTS' assumption for LIST, p99 in the proportion of a put.
    invoke : a warm synchronous call, one way: FACTS' assumption.
    cold : what a call of a new environment takes more: measured for a zip package, without the
        imports (FMI); p99 assumed in the proportion of a put.
    notice : from the death of a function to the end of its caller's wait; assumed as `invoke`.
    bandwidth : bytes a second of a worker each way, between these two: measured (FMI, Skyrise).
    connections : requests that a worker has under way at a time; assumed.
    put_rate, get_rate : requests a second of one prefix: S3's documented floor; who is over it
        waits, as with an SDK that backs off.
    publish_rate : messages a second of one topic set; SNS's default quota in us-east-1, assumed.
    """

    deliver: Latency = Latency(0.060, 0.185)
    direct: Latency = Latency(0.016, 0.105)
    publish: Latency = Latency(0.020, 0.062)
    receive: Latency = Latency(0.008, 0.053)
    put: Latency = Latency(0.041, 0.125)
    get: Latency = Latency(0.027, 0.103)
    list: Latency = Latency(0.040, 0.122)
    delete: Latency = Latency(0.040, 0.122)
    invoke: Latency = Latency(0.015, 0.046)
    cold: Latency = Latency(0.085, 0.259)
    notice: Latency = Latency(0.015, 0.046)
    bandwidth: tuple[float, float] = (71e6, 83e6)
    connections: int = 64
    put_rate: float = 3500.0
    get_rate: float = 5500.0
    publish_rate: float = 30_000.0

    def __post_init__(self) -> None:
        low, high = self.bandwidth
        if not 0 < low <= high:
            raise SettingsError(f"bandwidth={self.bandwidth}: give the least and the most, above 0")
        for name in ("connections", "put_rate", "get_rate", "publish_rate"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name}={getattr(self, name)!r}: give a number above 0")


EXPRESS = Network(put=Latency(0.0073, 0.0088), get=Latency(0.0048, 0.0059))
"""With S3 Express One Zone for the objects: measured at 1 KB (Skyrise's raw data)."""
