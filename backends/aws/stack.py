"""What a deployed stack says of itself: to the driver through CloudFormation's outputs, to a
function through one variable of its environment. Making one is for `deploy`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fsdray.backends.aws import border
from fsdray.errors import ServiceError, SettingsError

if TYPE_CHECKING:
    from fsdray.backends.aws.clients import Clients
    from fsdray.settings import Settings

OUTPUT = "Stack"
"""Of CloudFormation's outputs, the one that holds what `Stack.dump` wrote."""

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


def read_stack(settings: Settings) -> Stack:
    """The stack that the settings name, asked for with boto3; it blocks.

    Raises
    ------
    SettingsError : there is none, or it is no fsdray stack: the message says what to run.
    ServiceError : it was not deployed to its end.
    """
    import boto3

    with border.crossing(f"looking for the stack {settings.stack!r}"):
        session = boto3.Session(profile_name=settings.profile, region_name=settings.region)
        client = session.client("cloudformation")
        try:
            told = client.describe_stacks(StackName=settings.stack)
        except client.exceptions.ClientError as error:
            raise _absent(error, settings.stack, client.meta.region_name) or error from error
    return _of(told["Stacks"][0])


async def find_stack(clients: Clients, name: str) -> Stack:
    """The stack of that name, asked for on the loop; as `read_stack`."""
    client = await clients.get("cloudformation")
    with border.crossing(f"looking for the stack {name!r}"):
        try:
            told = await client.describe_stacks(StackName=name)
        except client.exceptions.ClientError as error:
            raise _absent(error, name, client.meta.region_name) or error from error
    return _of(told["Stacks"][0])


def _absent(error: Exception, name: str, region: str) -> SettingsError | None:
    """Our error where the service says that there is no such stack."""
    if border.code_of(error) != "ValidationError" or "does not exist" not in str(error):
        return None
    return SettingsError(
        f"there is no stack {name!r} in {region}: run `{command('deploy', name)}`, or name another "
        "stack (FSDRAY_STACK) or region (FSDRAY_REGION)"
    )


def _of(described: Mapping[str, Any]) -> Stack:
    """The stack that CloudFormation describes."""
    name, status = described["StackName"], described["StackStatus"]
    outputs = {each["OutputKey"]: each["OutputValue"] for each in described.get("Outputs") or ()}
    if status in ("CREATE_IN_PROGRESS", "REVIEW_IN_PROGRESS", "DELETE_IN_PROGRESS"):
        raise ServiceError(f"the stack {name!r} is {status}: try again when that is done")
    if not outputs.get("Release") and "Options" in outputs:
        raise ServiceError(
            f"the stack {name!r} was not deployed to its end ({status}): run "
            f"`{command('deploy', name)}` again"
        )
    if OUTPUT not in outputs:
        raise SettingsError(
            f"the stack {name!r} is {status} and says nothing of fsdray: run "
            f"`{command('deploy', name)}` if fsdray made it, or name another with FSDRAY_STACK"
        )
    return Stack.load(outputs[OUTPUT])


def command(verb: str, name: str) -> str:
    """What to type to have something done with a stack."""
    return f"fsdray {verb}" + ("" if name == "fsdray" else f" --stack {name}")
