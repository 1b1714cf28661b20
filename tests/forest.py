"""Trees of tasks for `test_nesting`: what workers import, so without what tests need."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from dataclasses import dataclass
from typing import Any

import fsdray as fsd

WAYS = (
    "get",
    "get each",
    "wait",
    "as_completed",
    "map",
    "unordered",
    "executor",
    "executor waits",
    "future",
    "await",
    "threads",
    "refs",
    "argument",
    "gang",
)


@dataclass(frozen=True)
class Tree:
    """A task: what it adds, how it waits for those below it, and these."""

    value: int
    way: str = "get"
    below: tuple[Tree, ...] = ()

    def total(self) -> int:
        return self.value + sum(tree.total() for tree in self.below)

    def size(self) -> int:
        return 1 + sum(tree.size() for tree in self.below)


@fsd.remote
def grow(tree: Tree) -> int:
    """The sum of a tree, by a task for each of its nodes."""
    return tree.value + sum(waited_for(tree.way, tree.below))


@fsd.remote
def started(tree: Tree) -> list[Any]:
    """Refs of tasks that nobody here waits for."""
    return [grow.remote(each) for each in tree.below]


@fsd.remote
def summed(*values: int) -> int:
    return sum(values)


@fsd.remote(world_size=2)
def ranks(trees: list[Tree]) -> int:
    """Each rank grows every other tree; all learn the sum."""
    comm = fsd.collective.world()
    mine = sum(fsd.get([grow.remote(tree) for tree in trees[comm.rank :: 2]]))
    return int(comm.allreduce(mine))


def waited_for(way: str, trees: tuple[Tree, ...]) -> list[int]:
    """What tasks of these trees come to, waited for in one of the ways."""
    if not trees:
        return []
    if way == "map":
        return list(grow.map(trees))
    if way == "unordered":
        return list(grow.map(trees, ordered=False))
    if way.startswith("executor"):
        with fsd.Executor() as executor:
            futures = [executor.submit(grow.__wrapped__, tree) for tree in trees]
            if way == "executor waits":
                concurrent.futures.wait(futures)
                done = concurrent.futures.as_completed(futures)
                return [future.result() for future in done]
            return [future.result() for future in futures]
    if way == "refs":
        return fsd.get(fsd.get(started.remote(Tree(0, "refs", trees))))
    if way == "gang":
        total, other = fsd.get(ranks.remote(list(trees)))
        assert total == other
        return [total]
    refs = [grow.remote(tree) for tree in trees]
    if way == "argument":
        return [fsd.get(summed.remote(*refs))]
    if way == "get each":
        return [fsd.get(ref) for ref in refs]
    if way == "wait":
        ready: list[Any] = []
        while refs:
            done, refs = fsd.wait(refs)
            ready += done
        return fsd.get(ready)
    if way == "as_completed":
        return [fsd.get(ref) for ref in fsd.as_completed(refs)]
    if way == "future":
        return [ref.future().result() for ref in refs]
    if way == "await":
        return asyncio.run(awaited(refs))
    if way == "threads":
        return in_threads(refs)
    assert way == "get"
    return fsd.get(refs)


async def awaited(refs: list[Any]) -> list[int]:
    return list(await asyncio.gather(*refs))


def in_threads(refs: list[Any]) -> list[int]:
    """A thread for each ref, while the main thread waits for these in its own way."""
    found: list[int] = []
    threads = [threading.Thread(target=lambda ref=ref: found.append(fsd.get(ref))) for ref in refs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def chain(way: str, depth: int, width: int) -> Tree:
    """A tree with `depth` tasks one in the other, and `width` in each."""
    below = (chain(way, depth - 1, width), *(Tree(1, way),) * (width - 1)) if depth > 1 else ()
    return Tree(1, way, below)
