"""Random programs, and what befalls them: plain data, drawn from whatever draws.

A program is a list of steps that all ranks take in turn, each on one of the communicators that
there are by then. Any step may be left out of a program, and it is still one: so it shrinks.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, fields
from typing import Any

from tests.collective.schedules.values import KINDS, REDUCED

ROOTED = ("bcast", "scatter", "gather", "reduce")
REDUCING = ("reduce", "allreduce", "reduce_scatter", "scan", "exscan")
COLLECTIVES = (
    *ROOTED,
    *("allgather", "alltoall", "allreduce", "reduce_scatter", "scan", "exscan"),
    *("barrier", "neighbor_alltoall"),
)
STYLES = ("call", "call", "begin", "begin", "together")
WILD = ("none", "none", "source", "tag", "both")
HOW_RECEIVED = ("recv", "recv", "irecv", "posted", "posted", "probe", "iprobe", "cancel")
HOW_SENT = ("send", "send", "isend", "isend", "sendrecv")
HOW_WAITED = ("each", "waitall", "waitany", "waitsome", "testall", "testany", "testsome")
FAULTS = (
    *("duplicate", "delay", "reorder", "corrupt", "forget"),
    *("partial", "throttle", "error", "twin"),
)
SIZES = (1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 5, 5, 6, 7, 8, 9, 10, 11, 12)


@dataclass(frozen=True)
class Line:
    """One message of a `traffic` step; places and tags are taken modulo what there is."""

    source: int
    dest: int
    tag: int
    size: int
    is_exact: bool  # its receive names its source and tag
    sent: str
    received: str


@dataclass(frozen=True)
class Step:
    """What the ranks of one communicator do next.

    `which` is a communicator, modulo their number; `style` is how a collective is called: awaited,
    begun and waited for later, or at once with the steps after it that say so too. `colors` and
    `keys` are by rank of the world, `pause` is before it: a rank of the world, and seconds.
    """

    what: str
    seed: int = 0
    which: int = 0
    style: str = "call"
    root: int = 0
    kind: str = "int"
    size: int = 0
    op: str = "SUM"
    colors: tuple[int | None, ...] = ()
    keys: tuple[int, ...] = ()
    lines: tuple[Line, ...] = ()
    wild: str = "none"
    waited: str = "each"
    pause: tuple[int, float] | None = None

    def __repr__(self) -> str:
        """Only what is not the default."""
        said = [
            f"{f.name}={v!r}" for f in fields(self) if (v := getattr(self, f.name)) != f.default
        ]
        return f"Step({', '.join(said)})"


@dataclass(frozen=True)
class Fate:
    """What one rank does that it should not, or does not do that it should.

    ``dies`` at its `at`-th request, ``raises`` or ``aborts`` before its `at`-th step, ``strays``
    (calls something else) in it, ``is absent``: never starts.
    """

    what: str
    rank: int
    at: int = 0


@dataclass(frozen=True)
class Schedule:
    """A program, the services' limits, and what goes wrong meanwhile."""

    size: int
    channel: str
    steps: tuple[Step, ...]
    seed: int = 0
    message: int = 4096
    fanout: int = 200
    visibility: float = 30.0
    faults: dict[str, Any] = field(default_factory=dict)
    slow: dict[int, float] = field(default_factory=dict)
    fate: Fate | None = None
    branching: int | None = None
    retries: int = 0
    prefer: str = "cheapest"


def schedule(draw: random.Random, channels: tuple[str, ...]) -> Schedule:
    """Draw one."""
    size = draw.choice(SIZES)
    message = draw.choice((700, 1000, 4096))
    steps = tuple(_step(draw, size, message) for _ in range(draw.randint(1, 6)))
    fate = None
    if size > 1 and draw.random() < 0.25:
        what = draw.choice(("dies", "dies", "dies", "raises", "strays", "aborts", "is absent"))
        fate = Fate(what, draw.randrange(size), draw.randint(0, 12))
    return Schedule(
        size=size,
        channel=draw.choice(channels),
        steps=steps,
        seed=draw.randrange(2**32),
        message=message,
        fanout=draw.choice((200, 200, 3, 1)),
        visibility=draw.choice((30.0, 30.0, 2.0)),
        faults=_faults(draw),
        slow={draw.randrange(size): draw.choice((3.0, 8.0))} if draw.random() < 0.2 else {},
        fate=fate,
        branching=draw.choice((1, 2, 4)) if draw.random() < 0.05 else None,
        retries=draw.choice((0, 3, 3)),
        prefer=draw.choice(("cheapest", "fastest")),
    )


def _faults(draw: random.Random) -> dict[str, Any]:
    """What the services do that they may: nothing in three cases of ten."""
    if draw.random() < 0.3:
        return {}
    chosen = draw.sample(FAULTS, draw.randint(1, 5))
    found: dict[str, Any] = {name: draw.choice((0.05, 0.2, 0.5)) for name in chosen}
    for name in ("throttle", "error", "partial"):
        if name in found:
            found[name] = min(found[name], 0.2)
    return found | {"lateness": draw.choice((0.05, 2.0, 40.0))}


def _step(draw: random.Random, size: int, message: int) -> Step:
    what = draw.choices(
        ("collective", "traffic", "split", "dup", "free", "wait"), (60, 18, 9, 4, 5, 6)
    )[0]
    seed, which = draw.randrange(2**16), draw.choice((0, 0, 1, 2, 3))
    pause = (draw.randrange(size), draw.choice((0.01, 1.0, 12.0))) if draw.random() < 0.1 else None
    match what:
        case "collective":
            what = draw.choice(COLLECTIVES)
            kinds = tuple(REDUCED) if what in REDUCING else KINDS
            kind = draw.choice(kinds)
            op = draw.choice(REDUCED[kind]) if what in REDUCING else "SUM"
            root = draw.randrange(size) if what in ROOTED else 0
            style, many = draw.choice(STYLES), _size(draw, message)
            return Step(what, seed, which, style, root, kind, many, op, pause=pause)
        case "split":
            colors = tuple(draw.choice((None, 0, 0, 1, 1, 2)) for _ in range(size))
            keys = tuple(draw.randint(-2, 2) for _ in range(size))
            return Step(what, seed, which, colors=colors, keys=keys, pause=pause)
        case "traffic":
            lines = tuple(_line(draw, size, message) for _ in range(draw.randint(1, 2 * size)))
            wild, waited = draw.choice(WILD), draw.choice(HOW_WAITED)
            return Step(what, seed, which, lines=lines, wild=wild, waited=waited, pause=pause)
    return Step(what, seed, which, pause=pause)


def _line(draw: random.Random, size: int, message: int) -> Line:
    return Line(
        source=draw.randrange(size),
        dest=draw.randrange(size),
        tag=draw.randrange(3),
        size=_size(draw, message),
        is_exact=draw.random() < 0.5,
        sent=draw.choice(HOW_SENT),
        received=draw.choice(HOW_RECEIVED),
    )


def _size(draw: random.Random, message: int) -> int:
    """Mostly small; sometimes at the limit of a message, or several of them."""
    return draw.choice((0, 1, 8, 30, 100, message - 300, message - 120, 3 * message))
