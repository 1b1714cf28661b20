"""What a stack is deployed with: checked here, kept in the stack, and read back from it.

A deploy that is not told of an option keeps what the stack has. How options become a template's
parameters is in `template`; how they are given, in `commands`.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fsdray.errors import SettingsError

LADDER = (512, 1024, 1769, 3008)
"""MB. At 1,769 a function has one whole processor; a new account may have 3,008 and no more (Lambda
Developer Guide, "Configure memory")."""

MOST_SLOTS = 1000  # as many as calls an account may run at one time, unless AWS raised it
_MOST_FUNCTIONS = 16  # the policy of their role names each, in 10,240 bytes (IAM quotas)
_LOG_DAYS = (1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557)
_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}[a-z0-9]")
_VARIABLE = re.compile(r"[A-Za-z][A-Za-z0-9_]+")
_SECRET = re.compile(r"arn:[\w-]+:(secretsmanager:[^:]*:\d*:secret:|ssm:[^:]*:\d*:parameter/)\S+")
_IMAGE = re.compile(
    r"\d{12}\.dkr\.ecr(-fips)?\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/[a-z0-9][a-z0-9._/-]*"
    r"(:[\w][\w.-]{0,127}|@sha256:[0-9a-f]{64})"
)
# Lambda's own, and those that say where fsdray and AWS are.
_TAKEN = re.compile(r"(AWS_|FSDRAY_|LAMBDA_|_HANDLER|_X_AMZN|PYTHON)\w*")
_NOT_KEPT = ("python", "architecture", "requirements")
_MOST_KEPT = 4096  # bytes of a parameter's value


def _here() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _machine() -> str:
    return "arm64" if platform.machine() in ("aarch64", "arm64") else "x86_64"


@dataclass(frozen=True)
class Options:
    """What a stack is to be like.

    Parameters
    ----------
    slots : inboxes of ranks: the sum of all gangs that can run at one time.
    memory : MB, one function each.
    python, architecture : where the functions run; as here, unless told otherwise.
    snapstart : whether functions start from a snapshot; from Python 3.12 on.
    storage : MB in ``/tmp``.
    log_days : that logs are kept.
    reserved : executions reserved for each function; None for none.
    subnets, security_groups : of a VPC that functions run in.
    boundary : ARN of a permissions boundary for their role.
    policies : ARNs of policies that their role has besides its own.
    environment : variables that they find.
    secrets : variables that they find, and the ARNs of secrets (of Secrets Manager, or parameters
        of Systems Manager) whose values these get when a function starts.
    topic_key : ARN of a KMS key for the topics.
    express_zone : id of an availability zone for a directory bucket.
    tags : of all resources.
    extras : of fsdray, that the code has, as ``inference``.
    requirements : lines of the user's own.
    image : URI of a container image in ECR that is the functions' code, instead of a package.

    Raises
    ------
    SettingsError : for what cannot be.
    """

    slots: int = 64
    memory: tuple[int, ...] = LADDER
    python: str = field(default_factory=_here)
    architecture: str = field(default_factory=_machine)
    snapstart: bool = False
    storage: int = 512
    log_days: int = 14
    reserved: int | None = None
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    boundary: str = ""
    policies: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    topic_key: str = ""
    express_zone: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    extras: tuple[str, ...] = ("inference",)
    requirements: tuple[str, ...] = ()
    image: str = ""

    def __post_init__(self) -> None:
        def check(fine: bool, name: str, wanted: str) -> None:
            if not fine:
                raise SettingsError(f"{name}={getattr(self, name)!r}: give {wanted}")

        check(1 <= self.slots <= MOST_SLOTS, "slots", f"a number from 1 to {MOST_SLOTS}")
        check(
            0 < len(self.memory) <= _MOST_FUNCTIONS
            and all(128 <= each <= 10_240 for each in self.memory)
            and len(set(self.memory)) == len(self.memory),
            "memory",
            f"up to {_MOST_FUNCTIONS} different sizes from 128 to 10240 MB",
        )
        minor = re.fullmatch(r"3\.(\d+)", self.python)
        check(minor is not None and int(minor[1]) >= 11, "python", "3.11 or newer, as 3.12")
        check(self.architecture in ("x86_64", "arm64"), "architecture", "x86_64 or arm64")
        if self.snapstart and self.python == "3.11":
            raise SettingsError("snapstart: Lambda has it from Python 3.12 on; this is 3.11")
        if self.image:
            self._check_image()
        check(512 <= self.storage <= 10_240, "storage", "MB from 512 to 10240")
        check(
            self.log_days in _LOG_DAYS,
            "log_days",
            f"what CloudWatch has: {', '.join(map(str, _LOG_DAYS))}",
        )
        check(self.reserved is None or self.reserved >= 0, "reserved", "a number from 0")
        check(
            bool(self.subnets) == bool(self.security_groups),
            "subnets",
            "subnets and security groups, or neither",
        )
        for name in (*self.environment, *self.secrets):
            if not _VARIABLE.fullmatch(name) or _TAKEN.fullmatch(name):
                raise SettingsError(
                    f"{name!r} cannot be a variable of functions: give two or more letters, digits "
                    "and _, and no name of AWS's, Lambda's, Python's or fsdray's own"
                )
        for name, arn in self.secrets.items():
            if not _SECRET.fullmatch(arn):
                raise SettingsError(
                    f"secrets: {name}={arn!r} is no ARN of a secret (arn:aws:secretsmanager:…) or "
                    "of a parameter (arn:aws:ssm:…:parameter/…). Its value stays where it is"
                )
        if len(self.dump().encode()) > _MOST_KEPT:
            raise SettingsError(
                f"the options hold {len(self.dump())} bytes, and a stack keeps {_MOST_KEPT}: put "
                "long values into a secret or into a package of yours"
            )

    def _check_image(self) -> None:
        if not _IMAGE.fullmatch(self.image):
            raise SettingsError(
                f"image={self.image!r}: give the URI of an image in ECR, with its tag or digest, "
                "as 123456789012.dkr.ecr.eu-west-1.amazonaws.com/fsdray:1. Lambda takes no others"
            )
        for name, why in (
            ("requirements", "install them in the image"),
            ("extras", "install fsdray with its extras in the image"),
            ("snapstart", "Lambda has it for packages alone"),
        ):
            if getattr(self, name) != _default(name):
                raise SettingsError(f"{name} cannot be given with an image: {why}")

    def dump(self) -> str:
        """As the stack keeps them: what differs from the defaults.

        Python and architecture are always those of who deploys, unless that is told otherwise.
        Requirements may be long: they are kept in the bucket.
        """
        kept = {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in _NOT_KEPT and value != _default(name)
        }
        return json.dumps(kept, separators=(",", ":"), sort_keys=True)

    @classmethod
    def load(cls, text: str, changes: Mapping[str, Any] | None = None) -> Options:
        """What `dump` wrote, with what was given since."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        told = {k: v for k, v in json.loads(text).items() if k in known}
        told |= {k: v for k, v in (changes or {}).items() if v is not None}
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
        return cls(**given)


def _default(name: str) -> Any:
    made = next(each for each in dataclasses.fields(Options) if each.name == name)
    if made.default_factory is not dataclasses.MISSING:
        return made.default_factory()
    return made.default


def check_name(name: str) -> None:
    """Raise `SettingsError` for what cannot name a stack with its bucket."""
    if not _NAME.fullmatch(name) or "--" in name:
        raise SettingsError(
            f"stack={name!r}: give 2 to 32 lower-case letters, digits and hyphens, beginning with "
            "a letter: the stack's bucket has the name too"
        )
