"""Algorithms for a store-and-forward medium: who sends to whom, what that bills, which is taken.

`exchanges` are the single rounds and `grid` the two-level one, `bills` and `bundled` have the
formula of each algorithm, `ways` the table of all and the choice. Running them is the
communicator's.
"""

from __future__ import annotations

from fsdray.collective.algorithms.bills import Setting
from fsdray.collective.algorithms.bundled import passes_grid, passes_root
from fsdray.collective.algorithms.exchanges import (
    Exchange,
    all_to_all,
    each_to_each,
    from_root,
    to_higher,
    to_root,
)
from fsdray.collective.algorithms.grid import Grid, grid
from fsdray.collective.algorithms.ways import all_ways, choose, cuts, ways
from fsdray.collective.forms import groups

__all__ = [
    "Exchange",
    "Grid",
    "Setting",
    "all_to_all",
    "all_ways",
    "choose",
    "cuts",
    "each_to_each",
    "from_root",
    "grid",
    "groups",
    "passes_grid",
    "passes_root",
    "to_higher",
    "to_root",
    "ways",
]
