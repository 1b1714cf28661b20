"""What a session runs with: one frozen dataclass from arguments, environment and config file.

An argument of `fsdray.init` wins over ``FSDRAY_<NAME>`` in the environment, which wins over the
TOML file that ``FSDRAY_CONFIG`` names (by default ``fsdray.toml`` in the working directory).
Options of a single call are `fsdray.remote.TaskOptions`.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from fsdray.errors import SettingsError
from fsdray.services import KIB, MIB

CHANNELS = ("queue", "object", "auto")
PREFERENCES = ("cheapest", "fastest")


@dataclass(frozen=True)
class Settings:
    """Everything that holds for a whole session.

    Parameters
    ----------
    backend : the platform's name, as entry points of the group ``fsdray.backends`` give it.
    concurrency : calls that may run at one time; a gang larger than this is refused. By default
        what the platform allows: on this machine 4 a processor, and at least 32.
    memory : MB that a task has unless it says otherwise; Lambda gives one CPU at 1,769.
    timeout : seconds that a task has unless it says otherwise.
    channel : how gangs talk unless they say otherwise: ``"queue"``, ``"object"`` or ``"auto"``.
    prefer : what collectives are chosen by where there is a choice: ``"cheapest"`` (requests, and
        what the ranks cost while they wait) or ``"fastest"``.
    branching : invocations that the caller, and each rank of a gang, starts itself.
    inline_limit : bytes; a larger argument or result travels through the object store.
    directory : where the local backend keeps its objects; by default shared memory.
    log_to_caller : whether what tasks print appears at the caller.
    grace : seconds that the other ranks of a broken gang are given to see it themselves.
    prices : path of a price table that replaces the packaged one.
    stack : of AWS: which deployed stack; several may lie beside one another in one account.
    profile, region : of AWS: as ``AWS_PROFILE`` and ``AWS_REGION``, or what ``aws configure``
        wrote, say where they are not given.
    storage : of AWS: what holds objects: S3 ``"standard"``, or ``"express"``, which answers five
        times as fast from one zone, where the stack has it; receipts are priced by it.
    cache : where packages that pip installed for calls are kept; by default ``fsdray`` in the
        user's cache directory (``XDG_CACHE_HOME``, or ``~/.cache``).
    """

    backend: str = "local"
    concurrency: int | None = None
    memory: int = 1769
    timeout: float = 900.0
    channel: str = "queue"
    prefer: str = "cheapest"
    branching: int = 4
    inline_limit: int = 256 * KIB
    directory: str | None = None
    log_to_caller: bool = True
    grace: float = 0.4
    prices: str | None = None
    cache: str | None = None
    stack: str = "fsdray"
    profile: str | None = None
    region: str | None = None
    storage: str = "standard"

    def __post_init__(self) -> None:
        for name in ("concurrency", "memory", "branching", "inline_limit"):
            value = getattr(self, name)
            if value is None and name == "concurrency":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SettingsError(f"{name}={value!r}: give a whole number of at least 1")
        for name in ("timeout", "grace"):
            value = getattr(self, name)
            if (
                not isinstance(value, int | float)
                or isinstance(value, bool)
                or not 0 < value < math.inf
            ):
                raise SettingsError(f"{name}={value!r}: give seconds above 0")
        for name in ("backend", "directory", "prices", "cache", "stack", "profile", "region"):
            value = getattr(self, name)
            if not isinstance(value, str | os.PathLike) and (
                value is not None or name in ("backend", "stack")
            ):
                raise SettingsError(f"{name}={value!r}: give text")
        if not isinstance(self.log_to_caller, bool):
            raise SettingsError(f"log_to_caller={self.log_to_caller!r}: give True or False")
        if self.storage not in ("standard", "express"):
            raise SettingsError(f"storage={self.storage!r}: choose 'standard' or 'express'")
        check_channel(self.channel)
        check_preference(self.prefer)
        if self.inline_limit > 4 * MIB:
            raise SettingsError(
                f"inline_limit={self.inline_limit}: at most {4 * MIB}, since a call's payload "
                "holds 6 MiB in all"
            )

    @property
    def cache_directory(self) -> Path:
        """Where what can be made again is kept between sessions."""
        if self.cache is not None:
            return Path(self.cache).expanduser().absolute()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fsdray"


def check_preference(prefer: str) -> None:
    """Raise `SettingsError` for a preference that does not exist."""
    if prefer not in PREFERENCES:
        raise SettingsError(f"prefer={prefer!r}: choose one of {', '.join(PREFERENCES)}")


def check_channel(channel: str) -> None:
    """Raise `SettingsError` for a channel that does not exist."""
    if channel not in CHANNELS:
        raise SettingsError(f"channel={channel!r}: choose one of {', '.join(CHANNELS)}")


def resolve(arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from arguments (None means not given), environment and config file.

    Raises
    ------
    SettingsError
        for an unknown name or a value that cannot be read, saying where it came from.
    """
    environ = os.environ if environment is None else environment
    known = {f.name for f in dataclasses.fields(Settings)}
    unknown = sorted(set(arguments) - known)
    if unknown:
        raise SettingsError(
            f"unknown setting {unknown[0]!r}: fsdray.init knows {', '.join(sorted(known))}"
        )
    values = _from_file(environ.get("FSDRAY_CONFIG"), known)
    for name in known:
        text = environ.get(f"FSDRAY_{name.upper()}")
        if text is not None:
            values[name] = _read(name, text)
    values.update({name: value for name, value in arguments.items() if value is not None})
    return Settings(**values)


def _from_file(named: str | None, known: set[str]) -> dict[str, Any]:
    path = Path(named or "fsdray.toml")
    if named is None and not path.is_file():
        return {}
    import tomllib  # every function imports this module, and has no such file

    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read the config file {path}: {error}") from error
    unknown = sorted(set(values) - known)
    if unknown:
        raise SettingsError(f"{path}: unknown setting {unknown[0]!r}")
    return values


def _read(name: str, text: str) -> Any:
    kind = get_type_hints(Settings)[name]
    try:
        if kind is bool:
            return {"1": True, "true": True, "0": False, "false": False}[text.lower()]
        if kind == int | None:
            kind = int
        return kind(text) if kind in (int, float) else text
    except (KeyError, ValueError):
        raise SettingsError(
            f"FSDRAY_{name.upper()}={text!r} cannot be read as {kind.__name__}"
        ) from None
