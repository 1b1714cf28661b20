"""A function is sent anew when what its names stand for has changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fsdray as fsd

pytestmark = pytest.mark.usefixtures("session")

SCRIPT = """
import fsdray as fsd

def inner(): return "old inner"
def helper(): return inner()
class Shape:
    def name(self): return inner()
base = 1

@fsd.remote
def told():
    lazily = lambda: base
    return helper(), Shape().name(), lazily()

before = fsd.get(told.remote())
def inner(): return "new inner"
base = 2
after = fsd.get(told.remote())
class Shape:
    def name(self): return "new shape"
assert fsd.get(told.remote())[1] == "new shape"
print(before, after)
del base
try:
    fsd.get(told.remote())
except NameError as error:
    print(error)
with fsd.Executor() as executor:
    def plus(): return base
    base = 3
    first = executor.submit(plus).result()
    base = 4
    print(first, executor.submit(plus).result())
"""


def test_a_program_that_defines_its_names_anew_is_followed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "('old inner', 'old inner', 1) ('new inner', 'new inner', 2)",
        "name 'base' is not defined",
        "3 4",
    ]


def test_a_closure_has_what_its_variables_stand_for_at_the_call() -> None:
    step: Any = 1
    plus = fsd.remote(lambda x: x + step)
    assert fsd.get(plus.remote(1)) == 2
    step = 10
    assert fsd.get(plus.remote(1)) == 11
    assert fsd.get(plus.options(name="plus").remote(1)) == 11


def test_what_has_not_changed_is_pickled_once() -> None:
    pickled = []

    class Counted:
        def __reduce__(self) -> Any:
            pickled.append(self)
            return Counted, ()

    counted = Counted()
    hold = fsd.remote(lambda: counted is not None)
    assert fsd.get(hold.remote())
    once = len(pickled)
    assert once > 0
    assert fsd.get([hold.remote() for _ in range(5)]) == [True] * 5
    assert len(pickled) == once
