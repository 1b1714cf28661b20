"""The page for who comes from Ray lists the differences that are tested, and no others."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from tests.semantics.differs import DIFFERENCES

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "ray.md"

for _file in HERE.glob("test_*.py"):
    importlib.import_module(f"tests.semantics.{_file.stem}")


def listed() -> list[str]:
    section = PAGE.read_text(encoding="utf-8").partition("\n## What is different\n")[2]
    section = section.partition("\n## ")[0]
    points = re.findall(r"^- (.*(?:\n  .*)*)", section, re.MULTILINE)
    return [" ".join(point.split()) for point in points]


def test_the_page_lists_each_difference_once() -> None:
    assert sorted(listed()) == sorted(DIFFERENCES)


def test_each_difference_is_shown_on_both_sides() -> None:
    one_sided = [x.reason for x in DIFFERENCES.values() if x.shown != {"ray", "fsdray"}]
    assert one_sided == []
