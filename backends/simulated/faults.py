"""What may go wrong in a simulation: chances, drawn from its seed, and what befalls ranks.

All of it lies within the services' contracts, or kills a rank; nothing here acts by itself, the
services ask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fsdray.errors import SettingsError


@dataclass(frozen=True)
class Death:
    """`rank` dies `at` virtual seconds, or instead of its `request`-th request (from 1).

    Of a rank that is started again its next death counts the requests of the next process. A
    `zombie` is only thought to be dead, and runs on; it needs a run whose ranks are functions.
    """

    rank: int
    at: float = math.inf
    request: int = 0
    zombie: bool = False

    def __post_init__(self) -> None:
        if (self.at == math.inf) == (self.request == 0) or self.at < 0 or self.request < 0:
            raise SettingsError(f"{self}: say either at=SECONDS, or request=N from 1")


@dataclass(frozen=True)
class Faults:
    """Chances from 0 to 1, and fates of ranks; by default nothing goes wrong.

    Parameters
    ----------
    duplicate : a delivery comes again within `lateness`.
    delay : a delivery takes up to `lateness` seconds more.
    reorder : a delivery is put before those that wait in its inbox.
    corrupt : a damaged copy of a delivery comes too.
    forget : an acknowledgement is lost, so that its deliveries come again.
    partial : an entry of a publish fails alone and is published again.
    throttle : a request is refused, and made again after a back-off.
    error : a request ends in a server's error, in half of the cases after it was done, and is
        made again.
    twin : a conditional put finds that a twin wrote the same before.
    lateness : seconds.
    attempts : times that a request is made before its error is raised.
    deaths : ranks that die. absent : ranks that never start, of which nobody is told.
    slow : for a rank, by what its computing and its network are slower.
    """

    duplicate: float = 0.0
    delay: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    forget: float = 0.0
    partial: float = 0.0
    throttle: float = 0.0
    error: float = 0.0
    twin: float = 0.0
    lateness: float = 2.0
    attempts: int = 16
    deaths: tuple[Death, ...] = ()
    absent: frozenset[int] = frozenset()
    slow: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (
            *("duplicate", "delay", "reorder", "corrupt", "forget"),
            *("partial", "throttle", "error", "twin"),
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name}={getattr(self, name)!r}: a chance is from 0 to 1")
        if not 0 < self.lateness < math.inf or self.attempts < 1:
            raise SettingsError("give a lateness above 0 s, and at least one attempt")
        for rank, factor in self.slow.items():
            if not factor > 0:
                raise SettingsError(f"slow={{{rank}: {factor}}}: give a factor above 0")
        object.__setattr__(self, "deaths", tuple(self.deaths))
        object.__setattr__(self, "absent", frozenset(self.absent))
        object.__setattr__(self, "slow", dict(self.slow))
