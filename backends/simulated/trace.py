"""What happened in a simulation, event by event: lines of JSON that are the same on every run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

Detail = str | int | float
"""What an event says beside its time, its rank and its kind."""


class Event(NamedTuple):
    """At `at` virtual seconds `rank` (-1: the caller) did, or met, `what`."""

    at: float
    rank: int
    what: str
    details: tuple[tuple[str, Detail], ...]

    def line(self) -> str:
        """The event as JSON."""
        return json.dumps(
            {"at": self.at, "rank": self.rank, "what": self.what, **dict(self.details)},
            ensure_ascii=False,
            separators=(",", ":"),
        )


@dataclass
class Trace:
    """The events of one simulation, in their order."""

    events: list[Event] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.events)

    def lines(self) -> Iterator[str]:
        """Each event as one line of JSON, with its line break."""
        return (event.line() + "\n" for event in self.events)

    def digest(self) -> str:
        """SHA-256 of all lines, in hexadecimal."""
        digest = hashlib.sha256()
        for line in self.lines():
            digest.update(line.encode())
        return digest.hexdigest()

    def write(self, path: str | Path) -> None:
        """Write a file of JSON lines."""
        with Path(path).open("w", encoding="utf-8") as file:
            file.writelines(self.lines())
