"""Which algorithms there are for each operation, and which is taken: the policy.

All ranks must take the same one, and each knows only the size of its own value: so the choice is by
the operation and the number of ranks, as if each value had `NOMINAL` bytes. What depends on sizes
is chosen by who knows them: whether a message goes as frames or lies in an object, by its sender;
whether a large array is reduced in pieces, by each rank for its own, and all say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from fsdray.collective.algorithms import bills, bundled
from fsdray.collective.algorithms.bills import Setting
from fsdray.collective.frames import Operation
from fsdray.costs.medium import Bill, best
from fsdray.services import KIB

NOMINAL = KIB
ONE_ROUND, ROOT, COMBINED, GRID = "one round", "through root", "combined by root", "grid"
PIECES = "pieces"
MOST_UPWARDS = 64
"""Ranks up to which a scan in one round is thought of: its receivers are told P²/2 times in all."""


def ways(operation: Operation, here: Setting, payload: int) -> dict[str, Bill]:
    """The algorithms of an operation, and what each comes to with so many bytes a message.

    A neighbor_alltoall is taken as one in which everybody has something for everybody else.

    Raises
    ------
    ValueError
        for what is no operation that ranks call.
    """
    found: dict[str, Bill]
    match operation:
        case Operation.BCAST | Operation.SEND:
            found = {"multicast": bills.one_for_all(here, payload)}
        case Operation.SCATTER:
            found = {"one to each": bills.one_for_each(here, payload)}
        case Operation.GATHER | Operation.REDUCE:
            found = {"each to root": bills.to_one(here, payload)}
        case Operation.ALLGATHER | Operation.SPLIT:
            found = {
                ONE_ROUND: bills.same_for_all(here, payload),
                COMBINED: bundled.combined(here, payload),
            }
        case Operation.ALLTOALL | Operation.REDUCE_SCATTER:
            found = {
                ONE_ROUND: bills.each_for_each(here, payload),
                GRID: bundled.in_grid(here, payload),
            }
        case Operation.NEIGHBOR_ALLTOALL:
            found = {ONE_ROUND: bills.each_for_each(here, payload)}
        case Operation.ALLREDUCE | Operation.BARRIER:
            found = {
                ONE_ROUND: bills.same_for_all(here, payload),
                ROOT: bills.up_and_down(here, payload),
            }
        case Operation.SCAN | Operation.EXSCAN:
            found = {ROOT: bills.up_and_scattered(here, payload)}
            if here.size <= MOST_UPWARDS:
                found = {ONE_ROUND: bills.upwards(here, payload), **found}
        case _:
            raise ValueError(f"{operation.name.lower()} is no collective")
    return found


@lru_cache(maxsize=1024)
def choose(here: Setting, operation: Operation) -> str:
    """The algorithm that all ranks take."""
    return best(ways(operation, here, NOMINAL), here.medium, here.size)


@lru_cache(maxsize=1024)
def cuts(here: Setting, payload: int) -> bool:
    """Whether an array of so many bytes is worth reducing in pieces, if all have such a one."""
    way = choose(here, Operation.ALLREDUCE)
    bill = ways(Operation.ALLREDUCE, here, payload)[way]
    both = {way: bill, PIECES: bills.in_pieces(here, payload, is_told=way == ROOT)}
    return here.size > 1 and best(both, here.medium, here.size) == PIECES


def all_ways(operation: Operation, here: Setting, payload: int) -> tuple[Mapping[str, Bill], str]:
    """Every algorithm, those for large arrays too, and the one that ranks with such values take."""
    found = ways(operation, here, payload)
    chosen = choose(here, operation)
    if operation == Operation.ALLREDUCE and here.size > 1:
        found[PIECES] = bills.in_pieces(here, payload, is_told=chosen == ROOT)
        chosen = PIECES if cuts(here, payload) else chosen
    return found, chosen
