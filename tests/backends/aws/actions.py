"""Which of AWS's actions fsdray's code calls, read off its source; and what a policy allows."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import botocore.session
from botocore import xform_name

SOURCE = Path(__file__).parents[3] / "backends" / "aws"

SERVICES = ("cloudformation", "iam", "lambda", "logs", "s3", "sns", "sqs", "sts")

FUNCTION = (
    "functions",
    "objects",
    "messages",
    "store",
    "leases",
    "clients",
    "handler",
    "late",
    "compiled",
)
USER = (*FUNCTION[:-3], "backend", "stack", "logs")
DEPLOYER = ("deploy", "cloudformation", "package", "stack", "doctor", "orphans")
"""The modules that run in functions, in a session's driver, and when somebody deploys."""

ACTION = {
    # Where a permission is not named after its operation (the Service Authorization Reference).
    "lambda:Invoke": "lambda:InvokeFunction",
    "lambda:GetFunctionConfiguration": "lambda:GetFunctionConfiguration",
    "s3:HeadObject": "s3:GetObject",
    "s3:HeadBucket": "s3:ListBucket",
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:DeleteObjects": "s3:DeleteObject",
    "s3:CreateMultipartUpload": "s3:PutObject",
    "s3:UploadPart": "s3:PutObject",
    "s3:CompleteMultipartUpload": "s3:PutObject",
    "s3:ListBuckets": "s3:ListAllMyBuckets",
    "s3:ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "s3:CreateSession": "s3express:CreateSession",
    "sns:PublishBatch": "sns:Publish",
    "sqs:SendMessageBatch": "sqs:SendMessage",
    "sqs:DeleteMessageBatch": "sqs:DeleteMessage",
    "sqs:ChangeMessageVisibilityBatch": "sqs:ChangeMessageVisibility",
}
TRANSFERS = {
    # boto3's transfer manager, by what it calls.
    "upload_file": ("PutObject", "AbortMultipartUpload"),
    "upload_fileobj": ("PutObject", "AbortMultipartUpload"),
    "download_fileobj": ("GetObject",),
}
FREE = {"sts:GetCallerIdentity"}
"""Needs no permission."""


def action(service: str, operation: str) -> str:
    """The permission that an operation needs."""
    return ACTION.get(f"{service}:{operation}", f"{service}:{operation}")


@functools.cache
def _operations() -> dict[str, list[tuple[str, str]]]:
    """boto3's method names, each with the services and operations that it may be."""
    session = botocore.session.get_session()
    found: dict[str, list[tuple[str, str]]] = {}
    for service in SERVICES:
        for operation in session.get_service_model(service).operation_names:
            found.setdefault(xform_name(operation), []).append((service, operation))
    return found


def called(*modules: str) -> set[str]:
    """Actions that modules of the backend call: methods of AWS's clients, wherever they are named.

    A client's method is told by its name, or by the text of it that a paginator or a waiter is
    asked for. `invoke` and `publish` are fsdray's own words too, so there the object has to be
    called a client.
    """
    found = set()
    for module in modules:
        tree = ast.parse((SOURCE / f"{module}.py").read_text())
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Attribute):
                if node.attr not in ("invoke", "publish") or "client" in ast.unparse(node.value):
                    names.append(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.append(node.value)
            for name in names:
                found |= {action("s3", operation) for operation in TRANSFERS.get(name, ())}
                # Of a name that several services have, the module's own text says which is meant.
                candidates = _operations().get(name, [])
                for service, operation in candidates:
                    if len(candidates) == 1 or f'"{service}"' in ast.unparse(tree):
                        found.add(action(service, operation))
    return found - FREE


def logged(requests: Iterable[Mapping[str, Any]], by: str) -> set[str]:
    """Actions that an emulator was asked for by functions, drivers or others, by its own log."""
    return {
        action(each["service"], each["operation"]) for each in requests if each.get("by") == by
    } - FREE


def check_logged(requests: Iterable[Mapping[str, Any]]) -> None:
    """Fail if functions or drivers asked for what is not read off their source."""
    lines = list(requests)
    for by, modules in (("function", FUNCTION), ("driver", USER)):
        more = logged(lines, by) - called(*modules)
        assert not more, f"a {by} asked for what no policy is held to: {sorted(more)}"


def allowed(policy: Mapping[str, Any]) -> set[str]:
    """Actions that a policy allows."""
    return {
        action
        for statement in policy["Statement"]
        if statement["Effect"] == "Allow"
        for action in _listed(statement["Action"])
    }


def wildcards(policy: Mapping[str, Any]) -> list[str]:
    """Statements that allow any action, or something on any resource."""
    return [
        str(statement.get("Sid"))
        for statement in policy["Statement"]
        if statement["Effect"] == "Allow"
        and (
            "*" in _listed(statement["Resource"])
            or any("*" in action for action in _listed(statement["Action"]))
        )
    ]


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else [value]
