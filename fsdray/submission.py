"""One call of a remote function before it is sent: its arguments, and the holes in them.

Refs and per-rank values among the arguments become holes, which `fsdray.session` fills.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fsdray.errors import SettingsError
from fsdray.refs import ObjectRef
from fsdray.retries import RetryPolicy
from fsdray.runtime_env import RuntimeEnv
from fsdray.values import Entry
from fsdray.wire import Hole, Items


class PerRank:
    """An argument that is another one for each rank; made by `per_rank`."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = tuple(values)


def per_rank(values: Sequence[Any]) -> Any:
    """An argument of a gang's function of which rank r is given ``values[r]``.

    Each value (a ref is resolved) travels to its rank alone. Give it as an argument itself, not
    inside another; it must have as many values as the gang has ranks.
    """
    return PerRank(values)


@dataclass(frozen=True)
class Submission:
    """One call of a remote function, before it became calls of the platform."""

    name: str
    function: bytes
    modules: frozenset[str]  # that the function refers to
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    num_returns: int
    memory: int
    timeout: float
    world_size: int | None
    channel: str
    preload: tuple[str, ...] = ()
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    runtime_env: RuntimeEnv | None = None
    items: Items | None = None  # of a generator function that streams


def dig(
    submission: Submission,
) -> tuple[list[Any], dict[str, Any], dict[int, Entry], dict[int, PerRank]]:
    """Arguments with holes, and what the holes are filled with: refs, and per-rank values."""
    holes: dict[int, Entry] = {}
    given: dict[int, PerRank] = {}
    size = submission.world_size

    def replaced(value: Any) -> Any:
        number = len(holes) + len(given)
        if isinstance(value, ObjectRef):
            holes[number] = value._entry
        elif isinstance(value, PerRank):
            if size is None:
                raise SettingsError(
                    f"per_rank is for gangs: give {submission.name} a world_size, or the value"
                )
            if len(value.values) != size:
                raise SettingsError(
                    f"per_rank has {len(value.values)} values for a gang of {size} ranks"
                )
            given[number] = value
        else:
            return value
        return Hole(number)

    args = [replaced(value) for value in submission.args]
    kwargs = {name: replaced(value) for name, value in submission.kwargs.items()}
    return args, kwargs, holes, given
