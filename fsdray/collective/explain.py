"""What a communicator would do, and what it would cost: `comm.explain()` as text and numbers.

Nothing is sent for it: the numbers are those of the formulas that algorithms are chosen by
(`fsdray.collective.algorithms`).
"""

from __future__ import annotations

from dataclasses import dataclass

from fsdray.collective.algorithms import Setting, all_ways
from fsdray.collective.frames import Operation
from fsdray.costs.medium import Bill, Medium
from fsdray.errors import SettingsError

_SHOWN = ("publish", "send", "receive", "acknowledge", "put", "get", "miss")


@dataclass(frozen=True)
class Alternative:
    """One way to do it, for all ranks together.

    Parameters
    ----------
    name : the algorithm. requests : billed requests by kind. rounds : that follow one another.
    dollars : of the requests, and of the ranks while they wait. seconds : an estimate.
    """

    name: str
    requests: dict[str, float]
    rounds: int
    dollars: float
    seconds: float


@dataclass(frozen=True)
class Explanation:
    """What is chosen for an operation whose messages have `nbytes` bytes each, and why.

    Parameters
    ----------
    alternatives : all that were compared. chosen : the one that is taken.
    form : whether its messages go as frames or lie in objects.
    why : a sentence.
    """

    operation: str
    nbytes: int
    ranks: int
    channel: str
    alternatives: tuple[Alternative, ...]
    chosen: str
    form: str
    why: str

    def __str__(self) -> str:
        head = f"{self.operation} of {self.nbytes:,} bytes, {self.ranks} ranks, {self.channel}"
        lines = [f"{head}: {self.chosen}, {self.form}", self.why]
        for each in self.alternatives:
            asked = ", ".join(
                f"{each.requests[name]:,.0f} {name}" for name in _SHOWN if each.requests.get(name)
            )
            mark = "*" if each.name == self.chosen else " "
            lines.append(
                f"{mark} {each.name}: {1e6 * each.dollars:,.1f} µ$, {each.seconds:.3f} s, "
                f"rounds {each.rounds}: {asked or 'nothing'}"
            )
        return "\n".join(lines)

    __repr__ = __str__


def explain(operation: str, nbytes: int, here: Setting) -> Explanation:
    """Compare the ways to do an operation.

    Raises
    ------
    SettingsError
        for what is no collective, or a size below 0.
    """
    names = [each.name.lower() for each in Operation if each.name not in ("ABORT", "MOVED")]
    if operation not in names:
        raise SettingsError(f"explain({operation!r}): choose one of {', '.join(names)}")
    if nbytes < 0:
        raise SettingsError(f"nbytes={nbytes}: give the bytes of a message, 0 or more")
    kind = Operation[operation.upper()]
    bills, chosen = all_ways(kind, here, nbytes)
    found = tuple(
        Alternative(
            name,
            dict(bill.counts),
            bill.rounds,
            bill.dollars(here.medium, here.size),
            bill.seconds,
        )
        for name, bill in bills.items()
    )
    why = _why(here.medium, found, chosen)
    return Explanation(
        operation, nbytes, here.size, here.channel, found, chosen, _form(here, bills[chosen]), why
    )


def _form(here: Setting, bill: Bill) -> str:
    if here.channel == "queue" or not bill.count("put"):
        return "in messages"
    if here.channel == "object":
        return "in objects"
    return "in objects, with pointers in messages"


def _why(medium: Medium, found: tuple[Alternative, ...], chosen: str) -> str:
    ranks = f"ranks of {medium.memory:,} MB" if medium.memory else "ranks whose waiting is free"
    if len(found) == 1:
        return f"the only way, {medium.prefer} form, with {ranks}"
    (mine,) = (each for each in found if each.name == chosen)
    others = [each for each in found if each.name != chosen]
    if medium.prefer == "fastest":
        other = min(others, key=lambda each: each.seconds)
        return f"fastest with {ranks}: {mine.seconds:.3f} s, {other.name} {other.seconds:.3f} s"
    other = min(others, key=lambda each: each.dollars)
    return (
        f"cheapest with {ranks}: {1e6 * mine.dollars:,.1f} µ$, "
        f"{other.name} {1e6 * other.dollars:,.1f} µ$"
    )
