"""The suite on AWS's services, as an emulator on this machine serves them (``--backend aws``).

What runs there: the tests of the public API (`FILES`), without those marked ``local_only``.
"""

from __future__ import annotations

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
    "test_first_minutes.py",
    "test_gang_failures.py",
    "test_generators.py",
    "test_groups.py",
    "test_lifetimes.py",
    "test_many.py",
    "test_maps.py",
    "test_modules.py",
    "test_nesting.py",
    "test_output.py",
    "test_packages.py",
    "test_readme.py",
    "test_retries.py",
    "test_tasks.py",
    "test_tracebacks.py",
)
"""Files and directories, below ``tests``, that know a session and no backend."""

_is_chosen = False


def choose(config: pytest.Config) -> None:
    """Note what ``--backend`` says."""
    global _is_chosen
    _is_chosen = config.getoption("--backend") == "aws"


def is_chosen() -> bool:
    """Whether the tests run on AWS's services."""
    return _is_chosen


def runs(item: pytest.Item) -> bool:
    """Whether a test is one of those that run on AWS's services."""
    path = item.path.relative_to(item.config.rootpath / "tests").as_posix()
    is_public = any(path == each or path.startswith(f"{each}/") for each in FILES)
    return is_public and item.get_closest_marker("local_only") is None


def check_nothing_left() -> None:
    """Fail if sessions left anything on the platform."""
