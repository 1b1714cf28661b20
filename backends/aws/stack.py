"""What a deployed stack says of itself: to the driver through CloudFormation's outputs, to a
function through one variable of its environment. Making one is for `deploy`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fsdray.backends.aws import border
from fsdray.errors import SettingsError
from fsdray.settings import Settings

VARIABLE = "FSDRAY_STACK_JSON"
OUTPUT = "Stack"
"""The output of the CloudFormation stack that holds the same."""


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
    image : the container image that is its functions' code; empty where that is a package.
    express : a directory bucket of S3 Express One Zone; empty where there is none.
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
    express: str = ""
    image: str = ""

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


def deploying(name: str, options: str = "") -> str:
    """The command that deploys a stack, for who reads an error."""
    named = "" if name == Settings.stack else f" --stack {name}"
    return f"`fsdray deploy{named}{options}`"


def is_under_way(status: str) -> bool:
    """Whether CloudFormation is working on a stack of this status."""
    # A change set under review waits for somebody to execute it, for ever.
    return status.endswith("_IN_PROGRESS") and status != "REVIEW_IN_PROGRESS"


def read_stack(settings: Settings) -> Stack:
    """The stack that the settings name, from one DescribeStacks; it blocks.

    Raises
    ------
    SettingsError
        no credentials, no region, no such stack or one that is not whole: it says what to run.
    """
    import boto3

    name = settings.stack
    region = settings.region or os.environ.get("AWS_REGION")
    with border.crossing(f"reading the stack {name!r}"):
        session = boto3.Session(profile_name=settings.profile, region_name=region)
        client = session.client("cloudformation")
        try:
            told: Any = client.describe_stacks(StackName=name)["Stacks"][0]
        except Exception as error:
            if border.code_of(error) != "ValidationError":
                raise
            raise SettingsError(
                f"there is no stack {name!r} in {client.meta.region_name}: run {deploying(name)}, "
                "or name another with fsdray.init(stack=..., region=...), FSDRAY_STACK, "
                "FSDRAY_REGION"
            ) from None
    outputs = {each["OutputKey"]: each["OutputValue"] for each in told.get("Outputs", ())}
    if OUTPUT not in outputs:
        where = f"the stack {name!r} in {client.meta.region_name}"
        status = told["StackStatus"]
        if is_under_way(status):
            raise SettingsError(
                f"{where} is {status}: wait until that is done (`fsdray doctor` shows it), and "
                f"if it is not whole then, run {deploying(name)}"
            )
        raise SettingsError(
            f"{where} is {status}, but not whole, as after a deploy that was interrupted: "
            f"run {deploying(name)}"
        )
    return Stack.load(outputs[OUTPUT])
