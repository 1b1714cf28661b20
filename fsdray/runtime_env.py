"""The option ``runtime_env``: what a user may say of a call's environment, checked at once.

How it is packed is in `fsdray.modules`, how it is used in a worker in `fsdray.environment`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from fsdray import modules
from fsdray.errors import SettingsError
from fsdray.modules import Bundle
from fsdray.packages import Requirements, Target, installer
from fsdray.wire import Environment

# Keys that Ray's runtime_env has, and what to do without them.
_REFUSED = {
    "uv": "give the same requirements as pip",
    "conda": "functions run in an interpreter that is already there; give packages as pip",
    "container": "functions run in an interpreter that is already there; give packages as pip",
    "image_uri": "functions run in an interpreter that is already there; give packages as pip",
    "py_executable": "functions run in an interpreter that is already there",
    "java_jars": "functions are Python",
    "excludes": f"name what does not travel in a file {modules.IGNORE} in the directory",
    "worker_process_setup_hook": "have the function call it, or a module that it imports",
    "config": "packages are installed before a call starts, with pip's own time limits",
}


@dataclass(frozen=True)
class RuntimeEnv:
    """A call's own environment.

    Parameters
    ----------
    env_vars : variables of ``os.environ`` while the call runs.
    working_dir : a directory whose files travel; the call runs in its own copy of it, and
        imports from there.
    pip : packages that are installed for the call, with all that they need.
    py_modules : files and directories to import from, which travel though nothing imports them
        by name.
    shipped : the same where it has travelled already, as digests.
    """

    env_vars: tuple[tuple[str, str], ...] = ()
    working_dir: Path | None = None
    py_modules: tuple[Path, ...] = ()
    shipped: Environment = Environment()
    pip: Requirements | None = None

    @staticmethod
    def of(given: Any) -> RuntimeEnv | None:
        """What a user gave, checked.

        Raises
        ------
        SettingsError
            for an unknown key or a value that it cannot have.
        """
        if given is None or isinstance(given, RuntimeEnv):
            return given
        if not isinstance(given, Mapping):
            raise SettingsError(f"runtime_env={given!r}: give a dict")
        known = ("env_vars", "working_dir", "py_modules", "pip")
        for name in given:
            if name in _REFUSED:
                raise SettingsError(f"runtime_env cannot have {name!r}: {_REFUSED[name]}")
            if name not in known:
                raise SettingsError(f"runtime_env has no {name!r}: give {', '.join(known)}")
        return RuntimeEnv(
            _env_vars(given.get("env_vars") or {}),
            _working_dir(given.get("working_dir")),
            _py_modules(given.get("py_modules") or ()),
            pip=Requirements.of(given.get("pip") or (), _is_caller()),
        )

    def packages(self, cache: Path, wheels: tuple[str, ...] = ()) -> Bundle | None:
        """The installed packages, packed.

        Parameters
        ----------
        wheels : tags of platforms that they must run on; none for this machine.

        Raises
        ------
        SettingsError
            where they cannot be installed.
        """
        target = replace(Target.here(), platforms=wheels)
        return None if self.pip is None else installer.bundle(self.pip, target, cache)

    def bundles(self) -> tuple[Bundle | None, list[Bundle]]:
        """The packed working directory, and the packed modules.

        Raises
        ------
        SettingsError
            for what is not there (any more), or too large.
        """
        for path in (self.working_dir, *self.py_modules):
            if path is not None and not path.exists():
                raise SettingsError(f"runtime_env names {str(path)!r}, which is not there")
        folder = self.working_dir
        return (
            None if folder is None else modules.catalog.pack((folder,), None),
            [modules.catalog.pack((path,), path.name) for path in self.py_modules],
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Paths mean nothing elsewhere: what is pickled refers to what has travelled."""
        from fsdray import session

        return RuntimeEnv, ((), None, (), session.current().shipped(self))


def _env_vars(given: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(given, Mapping):
        raise SettingsError(f"env_vars={given!r}: give a dict of names and texts")
    for name, value in given.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise SettingsError(f"env_vars has the name {name!r}: give a text without '='")
        if not isinstance(value, str) or "\0" in value:
            raise SettingsError(f"env_vars has {name}={value!r}: give a text")
    return tuple(sorted(given.items()))


def _working_dir(given: Any) -> Path | None:
    if given is None:
        return None
    if not isinstance(given, str | os.PathLike):
        raise SettingsError(f"working_dir={given!r}: give the path of a directory")
    path = Path(given).expanduser().absolute()
    if _is_caller() and not path.is_dir():
        raise SettingsError(f"working_dir={str(given)!r} is not a directory")
    return path


def _py_modules(given: Any) -> tuple[Path, ...]:
    if isinstance(given, str | os.PathLike | ModuleType) or not hasattr(given, "__iter__"):
        raise SettingsError(f"py_modules={given!r}: give a list of paths or modules")
    return tuple(path for each in given for path in _of_module(each))


def _of_module(given: Any) -> tuple[Path, ...]:
    if isinstance(given, ModuleType):
        places = modules.places_of(given.__name__.partition(".")[0])
        if not places:
            raise SettingsError(f"py_modules has {given.__name__!r}, which has no Python source")
        return places
    if not isinstance(given, str | os.PathLike):
        raise SettingsError(f"py_modules has {given!r}: give paths or modules")
    path = Path(given).expanduser().absolute()
    if _is_caller() and not (path.is_dir() or (path.is_file() and path.suffix == ".py")):
        raise SettingsError(
            f"py_modules has {str(given)!r}, which is neither a package's directory nor a .py file"
        )
    return (path,)


def _is_caller() -> bool:
    """Whether paths are those of this machine: a worker only reads what a module says of it."""
    from fsdray import session

    return not session.is_open() or session.current().is_driver
