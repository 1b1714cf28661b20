"""Which wheels a function can have: the tags of what runs in Lambda's own Python."""

from __future__ import annotations

import platform
import sys

_GLIBC = {"3.11": 26}  # the minor version in Amazon Linux 2
_NEW_GLIBC = 34  # in Amazon Linux 2023, which has Python from 3.12 on
_OLD_GLIBC = 5  # with which the first manylinux began


def tags(python: str, architecture: str) -> tuple[str, ...]:
    """Tags of platforms, as pip takes them, the newest first."""
    machine = {"arm64": "aarch64"}.get(architecture, architecture)
    newest = _GLIBC.get(python, _NEW_GLIBC)
    found = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, _OLD_GLIBC - 1, -1)]
    return (*found, f"manylinux2014_{machine}")


def foreign(python: str, architecture: str) -> tuple[str, ...]:
    """The same, or nothing where functions have what this machine has, and builds."""
    machine = {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
    is_alike = sys.platform == "linux" and machine == architecture
    return () if is_alike else tags(python, architecture)
