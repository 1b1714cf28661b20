"""Receives that wait for a send, and sends that no receive has asked for yet: who gets which.

The rule is MPI's: a message goes to the first receive posted that wants it, a receive takes the
first message that came. So two ranks' messages do not overtake, with wildcards too. No clock, no
bytes and no waiting here: those are the mailbox's and the channel's.
"""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass
from operator import itemgetter
from typing import Generic, Protocol, TypeVar


class Addressed(Protocol):
    """What can be matched."""

    @property
    def source(self) -> int: ...
    @property
    def tag(self) -> int: ...


L = TypeVar("L", bound=Addressed)


@dataclass(eq=False)
class Posting(Generic[L]):
    """One receive: from `source` with `tag`, None for any; `letter` is what it was given."""

    source: int | None
    tag: int | None
    letter: L | None = None
    arrival: int = -1  # when the letter came

    def wants(self, letter: Addressed) -> bool:
        """Whether this receive may take a message."""
        return self.source in (None, letter.source) and self.tag in (None, letter.tag)


class Matching(Generic[L]):
    """The receives and the sends of one communicator at one rank."""

    def __init__(self) -> None:
        self._postings: list[Posting[L]] = []
        self._arrived: list[tuple[int, L]] = []  # by arrival
        self._arrivals = itertools.count()

    def arrive(self, letter: L) -> None:
        """A message is there, the next one of its source."""
        self._offer(next(self._arrivals), letter)

    def post(self, source: int | None, tag: int | None) -> Posting[L]:
        """A receive begins."""
        posting: Posting[L] = Posting(source, tag)
        for i, (arrival, letter) in enumerate(self._arrived):
            if posting.wants(letter):
                posting.letter, posting.arrival = letter, arrival
                del self._arrived[i]
                return posting
        self._postings.append(posting)
        return posting

    def withdraw(self, posting: Posting[L]) -> None:
        """A receive is given up; what it was given, and nobody has seen, the next one gets."""
        if posting.letter is None:
            if posting in self._postings:
                self._postings.remove(posting)
            return
        letter, posting.letter = posting.letter, None
        self._offer(posting.arrival, letter)

    def peek(self, source: int | None, tag: int | None) -> L | None:
        """The message that such a receive would be given, left where it is."""
        posting: Posting[L] = Posting(source, tag)
        return next((letter for _, letter in self._arrived if posting.wants(letter)), None)

    @property
    def is_waiting(self) -> bool:
        """Whether any receive has not been given its message."""
        return bool(self._postings)

    def _offer(self, arrival: int, letter: L) -> None:
        for posting in self._postings:
            if posting.wants(letter):
                posting.letter, posting.arrival = letter, arrival
                self._postings.remove(posting)
                return
        bisect.insort(self._arrived, (arrival, letter), key=itemgetter(0))
