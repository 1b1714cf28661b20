"""What IAM has to allow: who runs sessions (``user.json``), who deploys (``deployer.json``).

What the functions themselves may do is in the stack's template. A test holds all three to what the
code calls: nothing is missing, nothing more is allowed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib import resources
from string import Template
from typing import Any

from fsdray.backends.aws.stack import Stack
from fsdray.errors import SettingsError

NAMES = ("user", "deployer")


def load(
    name: str, *, stack: str, account: str, region: str, partition: str = "aws", bucket: str
) -> dict[str, Any]:
    """A policy for one stack, as IAM takes it.

    Raises
    ------
    SettingsError : there is none of that name.
    """
    if name not in NAMES:
        raise SettingsError(f"there is no policy {name!r}: choose one of {', '.join(NAMES)}")
    text = resources.files(__package__).joinpath(f"{name}.json").read_text("utf-8")
    filled = Template(text).substitute(
        Stack=stack, Account=account, Region=region, Partition=partition, Bucket=bucket
    )
    policy = json.loads(filled)
    assert isinstance(policy, dict)
    return policy


@dataclass(frozen=True)
class Asked:
    """Actions on one resource, which may be allowed or not."""

    actions: tuple[str, ...]
    resource: str


def of_session(stack: Stack) -> list[Asked]:
    """What a session on this stack must be allowed, on one resource of each kind."""
    policy = load(
        "user",
        stack=stack.name,
        account=stack.account,
        region=stack.region,
        partition=partition(stack.region),
        bucket=stack.bucket,
    )
    function = next(iter(stack.functions.values())).partition(":")[0]
    names = {
        f"function:{stack.name}-*": f"function:{function}",
        f"{stack.name}-group-*": f"{stack.name}-group-0",
        f"{stack.name}-slot-*": f"{stack.name}-slot-0000",
        f"/aws/lambda/{stack.name}-*:*": f"/aws/lambda/{function}:*",
        "/runs/*": "/runs/any",
        f"stack/{stack.name}/*": f"stack/{stack.name}/any",
    }
    found = []
    for statement in policy["Statement"]:
        for resource in statement["Resource"]:
            for pattern, name in names.items():
                resource = resource.replace(pattern, name)
            found.append(Asked(tuple(statement["Action"]), resource))
    return found


def partition(region: str) -> str:
    """The first part of ARNs there."""
    if region.startswith("cn-"):
        return "aws-cn"
    return "aws-us-gov" if region.startswith("us-gov-") else "aws"


def principal(arn: str) -> str:
    """Whose policies hold for a caller: of a role that was assumed, the role itself."""
    found = re.fullmatch(r"(arn:[\w-]+):sts::(\d+):assumed-role/([^/]+)/.*", arn)
    return arn if found is None else f"{found[1]}:iam::{found[2]}:role/{found[3]}"
