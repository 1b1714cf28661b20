"""The two-level exchange: ranks in rows and columns, each message by way of one other rank.

With rows of √P each rank sends √P messages twice in place of P once, and each receiver finds full
batches: an alltoall bills 2·P·√P/10 publishes in place of P²/10. Its bytes travel twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from fsdray.collective.algorithms.exchanges import Exchange


@dataclass(frozen=True)
class Grid:
    """`size` ranks in rows of `width`; the last row may be shorter."""

    size: int
    width: int

    def via(self, source: int, dest: int) -> int:
        """The rank that a message goes by; it may be its source, or its destination.

        It is in the source's row and the destination's column; where the last row is too short to
        have such a place, in the destination's row and the source's column.
        """
        there = source - source % self.width + dest % self.width
        return there if there < self.size else dest - dest % self.width + source % self.width

    def first(self, rank: int) -> Exchange:
        """To those by whom the rank's messages go."""
        short = self._short
        column = rank % self.width
        row = [other for other in self._row(rank) if other != rank]
        out, come = list(row), list(row)
        if short and self._is_last(rank):  # by way of the others in its column
            out += [other for other in range(column, self.size, self.width) if other != rank]
        elif short and column < short:
            come.append(self.size - short + column)
        return _each(out, come)

    def second(self, rank: int) -> Exchange:
        """To those for whom the rank holds messages."""
        short = self._short
        column = rank % self.width
        out = [other for other in range(column, self.size, self.width) if other != rank]
        come = list(out)
        if short and not self._is_last(rank):
            row = self._row(rank)
            beyond = [other for other in row if other % self.width >= short]
            if column < short:
                out += beyond
            else:
                come += [other for other in row if other % self.width < short]
        return _each(out, come)

    def kinds(self) -> list[tuple[int, int]]:
        """One rank of each kind of those that send and are sent alike, and how many there are."""
        short, rows = self._short, self.size // self.width
        kinds = [(0, rows * (short or self.width))]
        if short and rows:
            kinds += [(short, rows * (self.width - short)), (self.size - 1, short)]
        return kinds

    def held(self, rank: int, dest: int, is_first: bool) -> list[int]:
        """Whose messages a rank's bundle for `dest` holds, in their order.

        In the first round all are its own, and these are their destinations; in the second these
        are their sources, the rank itself before the others.
        """
        if is_first:
            beyond = self._beyond(dest)
            return sorted(each for each in beyond if self.via(rank, each) == dest)
        sources = [each for each in self._beyond(rank) if self.via(each, dest) == rank]
        return sorted(sources, key=lambda source: (source != rank, source))

    def strangers(self, rank: int) -> list[int]:
        """To whom a rank's messages go by way of a third."""
        return [dest for dest in range(self.size) if self.via(rank, dest) not in (rank, dest)]

    def _beyond(self, rank: int) -> set[int]:
        """Ranks in the row and the column of `rank`."""
        return {*self._row(rank), *range(rank % self.width, self.size, self.width)}

    @property
    def _short(self) -> int:
        """Ranks of the last row, where it is shorter than the others."""
        return self.size % self.width

    def _is_last(self, rank: int) -> bool:
        return rank >= self.size - self._short

    def _row(self, rank: int) -> range:
        start = rank - rank % self.width
        return range(start, min(start + self.width, self.size))


@lru_cache(maxsize=256)
def grid(size: int) -> Grid:
    """The grid of so many ranks that has the fewest messages; the squarer one of equals."""
    root = math.isqrt(size)
    widths = range(max(1, root // 2), min(size, 2 * root + 2) + 1)

    def messages(width: int) -> float:
        rows, short = divmod(size, width)
        sent = size * (width - 1) + size * (rows + bool(short) - 1)
        return sent + (short * rows + rows * short * (width - short) if short else 0)

    return Grid(size, min(widths, key=lambda width: (messages(width), abs(width - root))))


def _each(destinations: list[int], sources: list[int]) -> Exchange:
    return Exchange(
        tuple((rank,) for rank in sorted(destinations)), tuple(sorted(sources)), len(sources)
    )
