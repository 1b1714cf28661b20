"""``fsdray deploy`` and ``fsdray destroy``: a stack made, changed in place, and removed.

A first deploy has two steps: the bucket alone, then, with the code in it, all the rest. What is to
be is in `template`, the code in `package`, how CloudFormation does it in `cloudformation`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fsdray.backends.aws import border, template
from fsdray.backends.aws.cloudformation import CloudFormation, Event
from fsdray.backends.aws.options import Options, check_name
from fsdray.backends.aws.package import Package, build
from fsdray.backends.aws.stack import OUTPUT, Stack
from fsdray.backends.aws.template import Plan
from fsdray.errors import ServiceError, SettingsError
from fsdray.services import MIB
from fsdray.settings import Settings

CODE = "code/"
"""What the keys of code and templates in the bucket begin with."""

TEMPLATE = "code/stack.yaml"
"""Where the template is kept: a request holds a short one only."""

REQUIREMENTS = "code/requirements.txt"
"""Where the user's own requirements are kept; a parameter of the stack may be too short."""

_STORAGE = 0.023  # dollars a GB and month of S3 Standard (us-east-1, 2026-11)
_FAILED_FIRST = ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED")
_PART = 1000  # keys that one request deletes


class Show(Protocol):
    """What is told of a deploy as it goes on."""

    def say(self, text: str) -> None:
        """One line."""

    def begin(self, what: str, total: int) -> None:
        """Something begins that has so many resources."""

    def event(self, event: Event) -> None:
        """Something happened to one of them."""

    def end(self) -> None:
        """It is over."""


@dataclass(frozen=True)
class Account:
    """Where a deploy is done, and boto3's clients for it."""

    session: Any
    region: str
    number: str
    partition: str

    @classmethod
    def of(cls, settings: Settings) -> Account:
        """The account of the settings' credentials.

        Raises
        ------
        SettingsError : no credentials, or no region.
        """
        import boto3

        with border.crossing("asking whose account this is"):
            session = boto3.Session(
                profile_name=settings.profile,
                region_name=settings.region or _region_of_environment(),
            )
            sts = session.client("sts")
            told = sts.get_caller_identity()
        partition = told["Arn"].split(":")[1]
        return cls(session, sts.meta.region_name, told["Account"], partition)

    def client(self, service: str) -> Any:
        """A client, which asks again where AWS limits the rate."""
        from botocore.config import Config

        with border.crossing(f"connecting to {service}"):
            return self.session.client(
                service, config=Config(retries={"mode": "standard", "total_max_attempts": 10})
            )


def _region_of_environment() -> str | None:
    # botocore reads AWS_DEFAULT_REGION alone.
    return os.environ.get("AWS_REGION")


@dataclass(frozen=True)
class Deployed:
    """What a deploy came to.

    Parameters
    ----------
    changed : whether anything had to be done.
    """

    stack: Stack
    changed: bool


def deploy(
    settings: Settings,
    changes: Mapping[str, Any],
    show: Show,
    *,
    is_reset: bool = False,
    is_dry: bool = False,
    is_bare: bool = False,
) -> Deployed:
    """Make a stack, or change it to what is wanted.

    Parameters
    ----------
    settings : of these it uses stack, profile, region and cache.
    changes : `Options` by name; what is not given stays as it is.
    is_reset : what is not given goes back to its default.
    is_dry : say what would be done, and do nothing.
    is_bare : as for `package.build`.

    Raises
    ------
    SettingsError : for what cannot be.
    Failed : with the reasons; the stack is as it was before, or is not there if it was not.
    """
    check_name(settings.stack)
    account = Account.of(settings)
    stack = CloudFormation(account.client("cloudformation"), settings.stack, show.event)
    found = _settled(stack, show, is_dry)
    options = _options(account, found, changes, is_reset)
    plan = template.plan(
        settings.stack,
        options,
        region=account.region,
        account=account.number,
        partition=account.partition,
    )
    _check_kind(stack.name, found, options)
    package = None
    if not options.image:
        package = build(options, settings.cache_directory, is_bare=is_bare)
    parameters = plan.parameters(package.key if package else "")
    if found is not None and _is_same(found, parameters, options.tags):
        show.say(f"The stack {stack.name!r} in {account.region} is as it should be: nothing to do")
        return Deployed(plan.stack, changed=False)
    is_new = found is None or found["StackStatus"] in _FAILED_FIRST
    for line in described(plan, package, set() if is_new else set(stack.resources())):
        show.say(line)
    if is_dry:
        show.say("Nothing was done (--dry-run)")
        return Deployed(plan.stack, changed=True)
    if found is not None and is_new:
        show.say(f"The stack {stack.name!r} is {found['StackStatus']}: it is removed first")
        _remove(account, stack, found, show)
    with _watched(show, f"deploying {stack.name}", len(plan.resources())):
        try:
            if is_new:
                bare = parameters | {"Release": ""}
                stack.change({"TemplateBody": plan.bare}, bare, options.tags, is_new=True)
            url = _upload(account, plan, package, parameters["Release"])
            stack.change({"TemplateURL": url}, parameters, options.tags, is_new=False)
        except BaseException:
            if is_new and (made := stack.describe()) is not None:
                _remove(account, stack, made, show)
            raise
    _tidy(account, plan, package)
    show.say(f"The stack {stack.name!r} in {account.region} is deployed")
    return Deployed(plan.stack, changed=True)


def destroy(settings: Settings, show: Show, *, is_dry: bool = False) -> bool:
    """Remove a stack with all that is in it; whether there was one.

    Raises
    ------
    Failed : something could not be removed, with the reasons.
    """
    check_name(settings.stack)
    account = Account.of(settings)
    stack = CloudFormation(account.client("cloudformation"), settings.stack, show.event)
    found = _settled(stack, show, is_dry)
    if found is None:
        show.say(f"There is no stack {stack.name!r} in {account.region}: nothing to do")
        return False
    resources = list(stack.resources())
    show.say(f"Remove the stack {stack.name!r} in {account.region}:")
    for line in _counted(kind for _, kind, _ in resources):
        show.say(line)
    if is_dry:
        show.say("Nothing was done (--dry-run)")
        return True
    with _watched(show, f"removing {stack.name}", len(resources)):
        _remove(account, stack, found, show)
    show.say(f"The stack {stack.name!r} is gone, with its bucket and its logs")
    return True


def described(
    plan: Plan, package: Package | None, there: set[tuple[str, str, str]]
) -> Iterator[str]:
    """What will be done, line by line, and what it costs while it is unused."""
    stack, options = plan.stack, plan.options
    wanted = {(name, kind) for name, kind in plan.resources()}
    known = {(name, kind) for name, kind, _ in there}
    verb = "Change" if known else "Create"
    yield f"{verb} the stack {stack.name!r} in {stack.region}, account {stack.account}:"
    yield from _counted(kind for _, kind in (wanted - known))
    if known:
        yield f"  {len(wanted & known)} resources stay, and are changed where that is needed"
    if gone := known - wanted:
        yield "  removed:"
        yield from _counted(kind for _, kind in gone)
    ladder = ", ".join(str(memory) for memory in stack.functions)
    yield f"  functions of {ladder} MB, Python {options.python} on {options.architecture}"
    if package is None:
        yield f"  code in the image {options.image}"
        yield "Unused it costs nothing; ECR bills the storage of the image"
        return
    late = f", and {len(package.late)} packages beside it" if package.late else ""
    yield f"  code of {package.unpacked / MIB:.0f} MB{late}"
    if not package.is_compiled:
        yield (
            f"  no bytecode: there is no python{options.python} here to compile it, so that cold "
            "starts take longer"
        )
    size = sum(path.stat().st_size for path in package.files.values())
    yield (
        f"Unused it costs ${size / 1e9 * _STORAGE:.3f} a month, for {size / 1e6:.0f} MB of code in "
        "S3, and nothing else"
    )


def _check_kind(name: str, found: Mapping[str, Any] | None, options: Options) -> None:
    """Raise `SettingsError` where functions would have to become others of the same name."""
    outputs = (found or {}).get("Outputs") or ()
    if found is None or not any(each["OutputKey"] == OUTPUT for each in outputs):
        return  # it has no functions yet
    told = {each["ParameterKey"]: each.get("ParameterValue") for each in found["Parameters"]}
    images = told.get("Image"), options.image
    before, after = ("an image" if each else "a package" for each in images)
    if before != after:
        raise SettingsError(
            f"the functions of the stack {name!r} have {before} for code, and {after} needs new "
            f"ones: `fsdray destroy` it first, or deploy another with --stack NAME"
        )


def _counted(kinds: Iterator[str]) -> Iterator[str]:
    counts: dict[str, int] = {}
    for kind in kinds:
        counts[kind] = counts.get(kind, 0) + 1
    for kind in sorted(counts):
        yield f"  {counts[kind]:4} {kind}"


def _settled(stack: CloudFormation, show: Show, is_dry: bool) -> dict[str, Any] | None:
    """The stack's description, once nobody works on it any more."""
    found = stack.describe()
    if found is None or is_dry:
        return found
    status = found["StackStatus"]
    if status == "REVIEW_IN_PROGRESS":  # a change set that nobody executed
        stack.delete()
        return None
    if status.endswith("_IN_PROGRESS"):
        show.say(f"The stack {stack.name!r} is {status}: waiting until that is done")
        stack.wait(stack=found["StackId"])
        found = stack.describe()
    elif status == "UPDATE_ROLLBACK_FAILED":
        show.say(f"The stack {stack.name!r} is {status}: going on with that first")
        stack.roll_back_further()
        found = stack.describe()
    return found


def _options(
    account: Account, found: Mapping[str, Any] | None, changes: Mapping[str, Any], is_reset: bool
) -> Options:
    """What the stack is to be like: what it is, with the changes."""
    if found is None or is_reset:
        return Options.load("{}", changes)
    told = found.get("Parameters") or ()
    kept = {each["ParameterKey"]: each.get("ParameterValue", "") for each in told}
    text = ""
    bucket = f"{found['StackName']}-{account.number}-{account.region}"
    s3 = account.client("s3")
    with border.crossing(f"reading {REQUIREMENTS} in {bucket}"):
        try:
            text = s3.get_object(Bucket=bucket, Key=REQUIREMENTS)["Body"].read().decode()
        except s3.exceptions.ClientError as error:
            # A stack that was not made to its end may have neither.
            if border.code_of(error) not in ("NoSuchKey", "NoSuchBucket"):
                raise
    before = {"requirements": tuple(text.splitlines())}
    return Options.load(kept.get("Options", "{}"), before | dict(changes))


def _is_same(
    found: Mapping[str, Any], parameters: Mapping[str, str], tags: Mapping[str, str]
) -> bool:
    """Whether the stack is whole, and what it is to be."""
    outputs = {each["OutputKey"]: each["OutputValue"] for each in found.get("Outputs") or ()}
    had = {each["Key"]: each["Value"] for each in found.get("Tags") or ()}
    return outputs.get("Release") == parameters["Release"] and had == dict(tags)


def _upload(account: Account, plan: Plan, package: Package | None, release: str) -> str:
    """Put code and templates into the bucket, where they are not there yet; the template's URL."""
    s3, bucket = account.client("s3"), plan.stack.bucket
    with border.crossing(f"uploading the code to {bucket}"):
        there = _keys(s3, bucket, CODE)
        for key, path in (package.files if package else {}).items():
            if key not in there:
                s3.upload_file(str(path), bucket, key)
        own = "\n".join(plan.options.requirements)
        s3.put_object(Bucket=bucket, Key=REQUIREMENTS, Body=own.encode())
        for ending, text in plan.nested.items():
            s3.put_object(Bucket=bucket, Key=plan.slots_key + ending, Body=text.encode())
        s3.put_object(Bucket=bucket, Key=TEMPLATE, Body=plan.template(release).encode())
    domain = "amazonaws.com.cn" if account.partition == "aws-cn" else "amazonaws.com"
    return f"https://s3.{account.region}.{domain}/{bucket}/{TEMPLATE}"


def _tidy(account: Account, plan: Plan, package: Package | None) -> None:
    """Remove code and templates of earlier releases."""
    s3, bucket = account.client("s3"), plan.stack.bucket
    used = {
        REQUIREMENTS,
        TEMPLATE,
        *(package.files if package else ()),
        *(plan.slots_key + ending for ending in plan.nested),
    }
    with border.crossing(f"removing old code from {bucket}"):
        _delete(s3, bucket, sorted(_keys(s3, bucket, CODE) - used))


def _remove(account: Account, stack: CloudFormation, found: Mapping[str, Any], show: Show) -> None:
    """Delete a stack with what its buckets hold, and logs that outlived their groups."""
    buckets = [
        name
        for _, kind, name in stack.resources()
        if kind in ("AWS::S3::Bucket", "AWS::S3Express::DirectoryBucket")
    ]
    s3 = account.client("s3")
    for bucket in buckets:
        _empty(s3, bucket)
    try:
        stack.delete()
    except ServiceError:
        # A call that still ran may have put something there meanwhile.
        for bucket in buckets:
            _empty(s3, bucket)
        stack.delete()
    logs = account.client("logs")
    prefix = f"/aws/lambda/{stack.name}-"
    with border.crossing("removing the logs"):
        for page in logs.get_paginator("describe_log_groups").paginate(logGroupNamePrefix=prefix):
            for group in page["logGroups"]:
                # Of functions alone: another stack's name may begin with this one's.
                if re.fullmatch(r"\d+", group["logGroupName"].removeprefix(prefix)):
                    logs.delete_log_group(logGroupName=group["logGroupName"])


def _empty(s3: Any, bucket: str) -> None:
    with border.crossing(f"emptying the bucket {bucket}"), _unless_gone(s3):
        for page in s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket):
            for upload in page.get("Uploads") or ():
                s3.abort_multipart_upload(
                    Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                )
        _delete(s3, bucket, sorted(_keys(s3, bucket, "")))


@contextlib.contextmanager
def _unless_gone(s3: Any) -> Iterator[None]:
    try:
        yield
    except s3.exceptions.ClientError as error:
        if border.code_of(error) != "NoSuchBucket":
            raise


def _keys(s3: Any, bucket: str, prefix: str) -> set[str]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {each["Key"] for page in pages for each in page.get("Contents") or ()}


def _delete(s3: Any, bucket: str, keys: list[str]) -> None:
    for at in range(0, len(keys), _PART):
        named = [{"Key": key} for key in keys[at : at + _PART]]
        told = s3.delete_objects(Bucket=bucket, Delete={"Objects": named, "Quiet": True})
        if told.get("Errors"):
            first = told["Errors"][0]
            raise ServiceError(
                f"{first['Key']!r} in {bucket} cannot be deleted: {first.get('Message')}"
            )


@contextlib.contextmanager
def _watched(show: Show, what: str, total: int) -> Iterator[None]:
    show.begin(what, total)
    try:
        yield
    finally:
        show.end()
