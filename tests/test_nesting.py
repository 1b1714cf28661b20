"""Tasks that start tasks and wait for them: at any depth, in every way, with a concurrency of 2.

A call that only waits gives its concurrency to those that it waits for. What is tested here is
that each way to wait does so; a deadlock is a test that its timeout ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import fsdray as fsd
from tests.conftest import clean_session
from tests.forest import WAYS, Tree, chain, grow, in_threads

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [pytest.mark.usefixtures("two_at_a_time"), pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def two_at_a_time() -> Iterator[None]:
    """A session in which two calls run at one time."""
    with clean_session(concurrency=2):
        yield


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.on_aws("get")
def test_each_way_to_wait_lets_others_run(way: str) -> None:
    tree = chain(way, 6, 3)
    assert fsd.get([grow.remote(tree) for _ in range(2)], timeout=100) == [tree.total()] * 2


def trees(depth: int) -> st.SearchStrategy[Tree]:
    values, ways = st.integers(0, 9), st.sampled_from(WAYS)
    if depth == 1:
        return st.builds(Tree, values, ways)
    below = st.lists(trees(depth - 1), max_size=4).map(tuple)
    return st.builds(Tree, values, ways, below)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(trees(6).filter(lambda tree: tree.size() <= 60))
@example(chain("gang", 4, 4))
@pytest.mark.slow_on_aws
def test_any_tree_of_tasks_comes_to_its_sum(tree: Tree) -> None:
    assert fsd.get(grow.remote(tree), timeout=100) == tree.total()


@fsd.remote
def fib(n: int) -> int:
    return n if n < 2 else sum(fsd.get([fib.remote(n - 1), fib.remote(n - 2)]))


@pytest.mark.slow_on_aws
def test_a_task_may_call_itself() -> None:
    assert fsd.get(fib.remote(7), timeout=100) == 13


@fsd.remote
def deep(depth: int) -> int:
    return 0 if depth == 0 else 1 + int(fsd.get(deep.remote(depth - 1)))


@pytest.mark.local_only("on Lambda each call that waits has an environment of its own")
def test_a_chain_of_waits_may_be_longer_than_there_is_concurrency() -> None:
    assert fsd.get([deep.remote(22), deep.remote(22)], timeout=100) == [22, 22]


def test_tasks_that_leave_their_children_running_hold_no_place_of_theirs() -> None:
    @fsd.remote
    def leave(depth: int) -> list[Any]:
        return [depth, *([leave.remote(depth - 1)] if depth else [])]

    for ref in [leave.remote(3) for _ in range(4)]:
        seen, left = [], [ref]
        while left:
            depth, *left = fsd.get(left[0], timeout=100)
            seen.append(depth)
        assert seen == [3, 2, 1, 0]


def test_one_thread_that_waits_on_does_not_lose_what_another_has_given_back() -> None:
    # Two threads wait; one wait ends, and its thread with it. The other's call must still run.
    @fsd.remote
    def slow(key: str) -> str:
        # It ends when told to, by an object that the test writes.
        blob = fsd.loop.run(fsd.session.current().backend.objects.get(key, wait=60))
        assert blob is not None
        return key

    @fsd.remote
    def both(names: list[str]) -> list[str]:
        refs = [slow.remote(name) for name in names]
        return sorted(in_threads(refs))  # type: ignore[type-var]

    calls = [both.remote([f"test/{n}/{side}" for side in "ab"]) for n in range(2)]
    objects = fsd.session.current().backend.objects
    for side in "ab":
        for n in range(2):
            fsd.loop.run(objects.put(f"test/{n}/{side}", b""))
    assert fsd.get(calls, timeout=100) == [[f"test/{n}/{s}" for s in "ab"] for n in range(2)]


@pytest.mark.parametrize("wait", ["get", "as_completed", "map"])
def test_an_error_deep_inside_comes_up_through_all_that_wait(wait: str) -> None:
    @fsd.remote
    def dig(depth: int) -> int:
        if depth == 0:
            raise KeyError("at the bottom")
        if wait == "map":
            return sum(dig.map([depth - 1], ordered=False))
        refs = [dig.remote(depth - 1)]
        return sum(fsd.get(ref) for ref in (fsd.as_completed(refs) if wait != "get" else refs))

    with pytest.raises(KeyError, match="at the bottom"):
        fsd.get(dig.remote(4), timeout=100)


# One seed for all


@fsd.remote(world_size=2)
def hashes(texts: list[str]) -> tuple[int, list[int]]:
    return os.getpid(), [hash(text) for text in texts]


def test_workers_hash_texts_alike() -> None:
    # So a group that one task chose by hash is the group that another does.
    (one, first), (other, second) = fsd.get(hashes.remote(["x", "y", "z"]))
    assert one != other
    assert first == second


@pytest.mark.local_only("functions of AWS hash by seed 0, which was deployed")
def test_the_caller_hashes_as_workers_do_where_its_seed_is_set(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import fsdray as fsd\n"
        "far = fsd.get(fsd.remote(lambda: hash('x')).remote())\n"
        "print(far == hash('x'))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
    )
    assert (done.stdout, done.stderr) == ("True\n", "")
