"""Which system the tests run: fsdray, or Ray itself with ``--system ray``."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.semantics.signals import Bell, Gate, Tally


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--system",
        choices=("fsdray", "ray"),
        default=os.environ.get("FSDRAY_SEMANTICS", "fsdray"),
        help="what the tests of tests/semantics run",
    )


def _system(config: pytest.Config) -> str:
    # The option is there only where this directory was named on the command line.
    return str(config.getoption("--system", os.environ.get("FSDRAY_SEMANTICS", "fsdray")))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "differs(reason, system): what one of the systems does")
    if _system(config) == "ray":
        config.addinivalue_line("filterwarnings", "default")  # Ray's own are not ours to mend


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def runs(item: pytest.Item) -> bool:
        marks = list(item.iter_markers("differs"))
        return not marks or any(mark.args[1] == _system(config) for mark in marks)

    left_out = [item for item in items if not runs(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if runs(item)]


@pytest.fixture(scope="session")
def system(request: pytest.FixtureRequest) -> str:
    """``"fsdray"`` or ``"ray"``."""
    return _system(request.config)


@pytest.fixture(scope="module")
def _module(system: str) -> Iterator[ModuleType]:
    module = importlib.import_module(system)
    importlib.import_module(f"{system}.exceptions")
    yield module
    module.shutdown()


@pytest.fixture
def ray(_module: Any) -> Any:
    """What a program calls ``ray``, with a session of four CPUs."""
    if not _module.is_initialized():
        _module.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    return _module


@pytest.fixture
def bare(_module: Any) -> Iterator[Any]:
    """What a program calls ``ray``, without a session before or after."""
    _module.shutdown()
    yield _module
    _module.shutdown()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate that is shut; it opens at the latest when the test is over."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


@pytest.fixture
def bell(tmp_path: Path) -> Bell:
    return Bell(tmp_path / "bell")


@pytest.fixture
def tally(tmp_path: Path) -> Tally:
    return Tally(tmp_path / "tally")
