"""Algorithms for a store-and-forward medium: who sends to whom, and what that bills."""

from __future__ import annotations

from fsdray.collective.algorithms.exchanges import (
    Call,
    Exchange,
    Published,
    all_to_all,
    each_to_each,
    from_root,
    is_one_round,
    published,
    puts,
    rounds,
    to_higher,
    to_root,
)
from fsdray.collective.forms import groups

__all__ = [
    "Call",
    "Exchange",
    "Published",
    "all_to_all",
    "each_to_each",
    "from_root",
    "groups",
    "is_one_round",
    "published",
    "puts",
    "rounds",
    "to_higher",
    "to_root",
]
