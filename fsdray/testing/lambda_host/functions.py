"""Functions as they are configured: a version's settings, its code, and what the API says of it.

Only values live here, with the rules that they keep; which requests change them is in `control`,
what runs them in `environment`.
"""

from __future__ import annotations

import dataclasses
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fsdray.testing.lambda_host.faults import ApiFault, constraint, invalid
from fsdray.testing.lambda_host.limits import MB, VARIABLES

LATEST = "$LATEST"

# What the host keeps and tells, and does not act on.
_ECHOED = (
    "Role",
    "Description",
    "VpcConfig",
    "DeadLetterConfig",
    "KMSKeyArn",
    "TracingConfig",
    "EphemeralStorage",
    "LoggingConfig",
    "SnapStart",
    "Architectures",
)
# What a function could not do without, and the host has not.
_REFUSED = {
    "Layers": "has no layers: put what they hold into the package",
    "FileSystemConfigs": "has no file systems",
    "ImageConfig": "runs no images: give it a zip",
}
_RESERVED = re.compile(
    r"_HANDLER|_X_AMZN_TRACE_ID|AWS_(DEFAULT_)?REGION|AWS_EXECUTION_ENV"
    r"|AWS_LAMBDA_(FUNCTION_(NAME|MEMORY_SIZE|VERSION)|INITIALIZATION_TYPE|LOG_(GROUP|STREAM)_NAME"
    r"|RUNTIME_API)|AWS_ACCESS_KEY(_ID)?|AWS_SECRET_ACCESS_KEY|AWS_SESSION_TOKEN"
    r"|LAMBDA_(TASK_ROOT|RUNTIME_DIR)"
)


def _revision() -> str:
    return str(uuid.uuid4())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "+0000")


@dataclass(frozen=True)
class Code:
    """An unpacked package."""

    path: Path
    sha256: str  # base64, of the zip
    size: int  # bytes of the zip


@dataclass(frozen=True)
class Version:
    """One version of a function: all that an environment of it is made from."""

    name: str
    arn: str  # of the function, without a version
    number: str
    code: Code
    handler: str
    runtime: str
    memory: int = 128  # MB
    timeout: int = 3  # seconds
    variables: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)
    revision: str = field(default_factory=_revision)
    modified: str = field(default_factory=_now)

    @property
    def log_group(self) -> str:
        given = self.others.get("LoggingConfig", {}).get("LogGroup")
        return str(given or f"/aws/lambda/{self.name}")

    def changed(self, **changes: Any) -> Version:
        """This with other values, as a new revision."""
        return dataclasses.replace(self, **changes, revision=_revision(), modified=_now())

    def is_same_as(self, other: Version) -> bool:
        """Whether both run the same code with the same settings."""
        return self == dataclasses.replace(
            other, number=self.number, revision=self.revision, modified=self.modified
        )

    def configuration(self) -> dict[str, Any]:
        """`FunctionConfiguration`, as the API tells it."""
        is_latest = self.number == LATEST
        told: dict[str, Any] = {
            "FunctionName": self.name,
            "FunctionArn": self.arn if is_latest else f"{self.arn}:{self.number}",
            "Runtime": self.runtime,
            "Handler": self.handler,
            "CodeSize": self.code.size,
            "CodeSha256": self.code.sha256,
            "Description": "",
            "Timeout": self.timeout,
            "MemorySize": self.memory,
            "LastModified": self.modified,
            "Version": self.number,
            "RevisionId": self.revision,
            "State": "Active",
            "LastUpdateStatus": "Successful",
            "PackageType": "Zip",
            "Architectures": ["x86_64"],
            "EphemeralStorage": {"Size": 512},
            "TracingConfig": {"Mode": "PassThrough"},
            **self.others,
        }
        told["LoggingConfig"] = {
            "LogFormat": "Text",
            **self.others.get("LoggingConfig", {}),
            "LogGroup": self.log_group,
        }
        told["SnapStart"] = {
            "ApplyOn": "None",
            **self.others.get("SnapStart", {}),
            "OptimizationStatus": "Off",
        }
        if self.variables:
            told["Environment"] = {"Variables": dict(self.variables)}
        return told


@dataclass
class Function:
    """A function with its versions and what is set for it."""

    latest: Version
    published: dict[str, Version] = field(default_factory=dict)
    count: int = 0  # versions ever published
    aliases: dict[str, dict[str, Any]] = field(default_factory=dict)
    reserved: int | None = None  # concurrent executions
    event_configs: dict[str, dict[str, Any]] = field(default_factory=dict)  # by qualifier
    recursion: str = "Terminate"
    tags: dict[str, str] = field(default_factory=dict)
    statements: dict[str, dict[str, Any]] = field(default_factory=dict)  # of its policy

    @property
    def versions(self) -> list[Version]:
        return [self.latest, *self.published.values()]

    def version(self, qualifier: str | None) -> Version | None:
        """What a qualifier names: a version's number or an alias; None if nothing."""
        if qualifier is None or qualifier == LATEST:
            return self.latest
        alias = self.aliases.get(qualifier)
        number = alias["FunctionVersion"] if alias else qualifier
        return self.latest if number == LATEST else self.published.get(number)


def configured(request: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Version` that a create or an update request sets.

    Raises
    ------
    ApiFault : a value is not what Lambda allows, or asks for what this host has not.
    """
    fields: dict[str, Any] = {}
    for name, why in _REFUSED.items():
        if request.get(name):
            raise invalid(f"{name}: the local Lambda host {why}")
    if request.get("PackageType", "Zip") != "Zip":
        raise invalid("PackageType: the local Lambda host runs zip packages only")
    if "Handler" in request:
        fields["handler"] = request["Handler"]
    if "Runtime" in request:
        if not re.fullmatch(r"python3\.\d+", request["Runtime"]):
            raise constraint(request["Runtime"], "runtime", "satisfy enum value set: [python3.x]")
        fields["runtime"] = request["Runtime"]
    for name, field_name, low, high in (
        ("MemorySize", "memory", 128, 10_240),
        ("Timeout", "timeout", 1, 900),
    ):
        if name in request:
            fields[field_name] = _within(request[name], name, low, high)
    if "Environment" in request:
        fields["variables"] = _variables(request["Environment"].get("Variables") or {})
    fields["others"] = {name: request[name] for name in _ECHOED if request.get(name)}
    return fields


def _within(value: Any, name: str, low: int, high: int) -> int:
    shown = name[0].lower() + name[1:]
    if not isinstance(value, int) or value < low:
        raise constraint(value, shown, f"have value greater than or equal to {low}")
    if value > high:
        raise constraint(value, shown, f"have value less than or equal to {high}")
    return value


def _variables(given: Mapping[str, str]) -> dict[str, str]:
    reserved = [name for name in given if _RESERVED.fullmatch(name)]
    if reserved:
        raise invalid(
            "Lambda was unable to configure your environment variables because the environment "
            "variables you have provided contains reserved keys that are currently not supported "
            f"for modification. Reserved keys used in this request: {', '.join(reserved)}"
        )
    size = sum(len(name.encode()) + len(value.encode()) for name, value in given.items())
    if size > VARIABLES:
        raise invalid(
            "Lambda was unable to configure your environment variables because the environment "
            "variables you have provided exceeded the 4KB limit."
        )
    return dict(given)


_NAME = re.compile(
    r"(?:arn:aws[\w-]*:lambda:[a-z0-9-]+:(?P<account>\d{12}):function:|(?:\d{12}:)?(?:function:)?)"
    r"(?P<name>[A-Za-z0-9_-]{1,64})(?::(?P<qualifier>\$LATEST|[A-Za-z0-9_-]+))?"
)


def parse_name(given: str, qualifier: str | None = None) -> tuple[str, str | None]:
    """Name and qualifier from a name, a partial ARN or an ARN, and a `Qualifier` beside it."""
    match = _NAME.fullmatch(given)
    if match is None:
        raise ApiFault(
            400,
            "ValidationException",
            f"1 validation error detected: Value '{given}' at 'functionName' failed to satisfy "
            "constraint: Member must satisfy regular expression pattern: "
            r"(arn:(aws[a-zA-Z-]*)?:lambda:)?([a-z]{2}(-gov)?-[a-z]+-\d{1}:)?(\d{12}:)?"
            r"(function:)?([a-zA-Z0-9-_]+)(:(\$LATEST|[a-zA-Z0-9-_]+))?",
        )
    inside = match["qualifier"]
    if inside and qualifier and inside != qualifier:
        raise invalid(
            "The derived qualifier from the function name does not match the specified qualifier."
        )
    return match["name"], qualifier or inside


def memory_bytes(version: Version) -> int:
    return version.memory * MB
