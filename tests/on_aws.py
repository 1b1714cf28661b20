"""The suite on AWS's services, as an emulator on this machine serves them (``--backend aws``).

What runs there: the tests of the public API (`FILES`), without those marked ``local_only``, and of
each that has parameters the first and the last set of them. One emulator with one deployed stack
serves them all; where ``AWS_ENDPOINT_URL`` is set already, as by ``fsdray emulate`` in another
terminal, that one does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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
    "test_packages.py",
    "test_readme.py",
    "test_recovery.py",
    "test_retries.py",
    "test_tasks.py",
    "test_tracebacks.py",
)
"""Files and directories, below ``tests``, that know a session and no backend. Not among them:
``test_output``, ``test_first_minutes`` (they wait for output that on AWS comes with the reply),
``test_many`` (thousands of calls and kills), ``test_idle`` (CPU time of local processes)."""

USUAL = ("collective/test_docs.py", "semantics", "test_async_tasks.py", "test_tasks.py")
"""Those of them that run without ``--thorough``: the rest takes minutes more."""
SLOTS = 200

_is_chosen = False


def choose(config: pytest.Config) -> None:
    """Note what ``--backend`` says."""
    global _is_chosen
    _is_chosen = config.getoption("--backend") == "aws"


def is_chosen() -> bool:
    """Whether the tests run on AWS's services."""
    return _is_chosen


def runs(item: pytest.Item, files: Sequence[str] = FILES) -> bool:
    """Whether a test is one of those that run on AWS's services."""
    path = item.path.relative_to(item.config.rootpath / "tests").as_posix()
    is_public = any(path == each or path.startswith(f"{each}/") for each in files)
    return is_public and item.get_closest_marker("local_only") is None


def chosen(items: Sequence[pytest.Item], is_thorough: bool) -> list[pytest.Item]:
    """The tests that run: of one with parameters those with the first and the last set of them."""
    files = FILES if is_thorough else USUAL
    found: dict[str, list[pytest.Item]] = {}
    for item in (item for item in items if runs(item, files)):
        found.setdefault(item.nodeid.partition("[")[0], []).append(item)
    ends = {id(item) for same in found.values() for item in (same[0], same[-1])}
    return [item for item in items if id(item) in ends]


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
