"""How long a request takes, as a distribution known by two of its points."""

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

    def slowest(self, of: float) -> float:
        """About how long the slowest of so many takes: the (of / (of + 1))-quantile."""
        if of <= 1 or self.p99 <= self.median:
            return self.median
        from statistics import NormalDist  # every function imports this module, and few need that

        mu, sigma = self._parameters
        return math.exp(mu + sigma * NormalDist().inv_cdf(of / (of + 1)))

    @cached_property
    def _parameters(self) -> tuple[float, float]:
        return lognormal(self.median, self.p99)
