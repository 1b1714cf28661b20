"""The suite on AWS's services, as an emulator on this machine serves them (``--backend aws``).

What runs there: the tests of the public API (`FILES`), without those marked ``local_only``. Of each
that has parameters the first and the last set of them run, or those that ``on_aws`` names; what is
marked ``slow_on_aws`` runs with ``--thorough`` only. One emulator with one deployed stack
serves them all; where ``AWS_ENDPOINT_URL`` is set already, as by ``fsdray emulate`` in another
terminal, that one does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

FILES = (
    "collective/test_docs.py",
    "collective/test_gang.py",
    "collective/test_oracle.py",
    "inference/test_engine.py",
    "integrations",
    "semantics",
    "test_async_tasks.py",
    "test_bindings.py",
    "test_cli.py",
    "test_executor.py",
    "test_failure.py",
    "test_gang_failures.py",
    "test_generators.py",
    "test_groups.py",
    "test_lifetimes.py",
    "test_maps.py",
    "test_modules.py",
    "test_nesting.py",
    "test_packages.py::TestCalls",
    "test_readme.py",
    "test_recovery.py",
    "test_retries.py",
    "test_tasks.py",
    "test_tracebacks.py",
)
"""Files, directories, classes below ``tests`` that know a session and no backend. Not among them:
``test_output``, ``test_first_minutes`` (they wait for output that on AWS comes with the reply),
``test_many`` (thousands of calls and kills), ``test_idle`` (CPU time of local processes)."""

SLOTS = 200

_is_chosen = False


def choose(config: pytest.Config) -> None:
    """Note what ``--backend`` says."""
    global _is_chosen
    _is_chosen = config.getoption("--backend") == "aws"


def is_chosen() -> bool:
    """Whether the tests run on AWS's services."""
    return _is_chosen


def runs(item: pytest.Item, is_thorough: bool) -> bool:
    """Whether a test is one of those that run on AWS's services."""
    name = item.nodeid.removeprefix("tests/")
    is_public = any(re.match(rf"{re.escape(each)}(/|::|$)", name) for each in FILES)
    is_slow = item.get_closest_marker("slow_on_aws") is not None
    is_local = item.get_closest_marker("local_only") is not None
    return is_public and not is_local and (is_thorough or not is_slow)


def has_none(path: Path) -> bool:
    """Whether a file below ``tests`` has nothing that runs on AWS, so that none need import it."""
    name = path.as_posix()
    return name.endswith(".py") and not any(
        re.match(rf"{re.escape(each.partition('::')[0])}(/|$)", name) for each in FILES
    )


def chosen(items: Sequence[pytest.Item], is_thorough: bool) -> list[pytest.Item]:
    """The tests that run: of one with parameters those that are named, or both ends."""
    found: dict[str, list[pytest.Item]] = {}
    for item in (item for item in items if runs(item, is_thorough)):
        found.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept: set[int] = set()
    for same in found.values():
        named = same[0].get_closest_marker("on_aws")
        ids = {f"[{each}]" for each in named.args} if named is not None else set()
        of_ids = [item for item in same if item.nodeid.endswith(tuple(ids))]
        kept |= {id(item) for item in of_ids or (same[0], same[-1])}
    return [item for item in items if id(item) in kept]


@contextmanager
def platform() -> Iterator[None]:
    """A stack on an emulator, which the sessions of these tests find; at the end both are gone."""
    # Only here: they import AWS's clients, which takes a second.
    from fsdray.testing.emulator import Emulator
    from tests.deployed import deployed, using

    if "AWS_ENDPOINT_URL" in os.environ:
        with using({"FSDRAY_BACKEND": "aws"}):
            yield
        return
    with (
        Emulator(cloudwatch=True) as emulator,
        deployed(emulator, "tests", slots=SLOTS) as variables,
        using(variables | {"FSDRAY_BACKEND": "aws"}),
    ):
        yield


def amount(usual: int, on_aws: int) -> int:
    """How many a test takes: fewer on AWS's services, where each costs requests."""
    return on_aws if _is_chosen else usual


def check_nothing_left() -> None:
    """Fail if sessions left anything on the platform."""
    from tests import leftovers  # only here: it imports AWS's clients, which takes a second

    leftovers.check(leftovers.stack_of_environment())
