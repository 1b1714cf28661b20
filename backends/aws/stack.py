"""What a deployed stack says of itself: to the driver through CloudFormation's outputs, to a
function through one variable of its environment. Making one is for `deploy`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from fsdray.errors import SettingsError

VARIABLE = "FSDRAY_STACK_JSON"


@dataclass(frozen=True)
class Stack:
    """One deployed stack.

    Parameters
    ----------
    name, version, region, account : its name, the fsdray that deployed it, and where it is.
    python, architecture : of its functions, as ``"3.11"`` and ``"x86_64"`` or ``"arm64"``.
    bucket : where objects are.
    functions : the ladder: memory in MB, and the name of the function that has it.
    topics : ARNs; topic g serves slots 200g to 200g + 199.
    queues : what the URL of a slot's queue begins with; four digits follow.
    slots : how many there are.
    """

    name: str
    version: str
    region: str
    account: str
    python: str
    architecture: str
    bucket: str
    functions: Mapping[int, str]
    topics: tuple[str, ...]
    queues: str
    slots: int

    def dump(self) -> str:
        """As `of_environment` reads it."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def load(cls, text: str) -> Stack:
        """What `dump` wrote."""
        told = json.loads(text)
        told["functions"] = {int(memory): name for memory, name in told["functions"].items()}
        told["topics"] = tuple(told["topics"])
        return cls(**told)

    @classmethod
    def of_environment(cls) -> Stack:
        """The stack of the function that this runs in."""
        text = os.environ.get(VARIABLE)
        if text is None:
            raise SettingsError(f"{VARIABLE} is not set: this is no function of an fsdray stack")
        return cls.load(text)
