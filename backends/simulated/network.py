"""The model of the network: how long requests take, and how many fit into a second.

Figures are those of FACTS (section 3), or assumed where nobody measured them; each is a field that
can be replaced. What is drawn from them, and when, is in `world` and in the services.
"""

from __future__ import annotations

from dataclasses import dataclass

from fsdray.costs import medium
from fsdray.costs.latency import Latency
from fsdray.errors import SettingsError


@dataclass(frozen=True)
class Network:
    """What the simulated services need in time; all in seconds, bytes and requests a second.

    Parameters
    ----------
    deliver, direct, publish, receive, put, get : as in `fsdray.costs.medium.Medium`, whose are the
        defaults.
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

    deliver: Latency = medium.USUAL.deliver
    direct: Latency = medium.USUAL.direct
    publish: Latency = medium.USUAL.publish
    receive: Latency = medium.USUAL.receive
    put: Latency = medium.USUAL.put
    get: Latency = medium.USUAL.get
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


EXPRESS = Network(put=medium.EXPRESS_PUT, get=medium.EXPRESS_GET)
"""With S3 Express One Zone for the objects."""
