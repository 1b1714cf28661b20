"""What may be wrong with an account, a stack or this machine, and what to run about it.

``fsdray doctor`` asks one thing after another and says of each whether it is as it should be.
It changes nothing unless told to ``--fix``, which removes what bears the stack's names and
belongs to no stack (`orphans`).
"""

from __future__ import annotations

import email.utils
import enum
import functools
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fsdray._version import __version__
from fsdray.backends.aws import border, orphans, policies, pool
from fsdray.backends.aws.stack import OUTPUT, Stack, deploying, is_under_way, read_stack
from fsdray.errors import FsdrayError
from fsdray.settings import Settings

SKEW = 300.0  # seconds that AWS's signatures allow a clock to be wrong (S3 allows 900)
FEW = 100  # concurrent calls: new accounts may have 10, where others have 1,000

_BEGINS = ("CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS", "DELETE_IN_PROGRESS")

Connect = Callable[[str], Any]
"""Gives boto3's client of a service."""


class Level(enum.Enum):
    """How a finding is to be taken; the worst decides the exit status."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """What one look found.

    Parameters
    ----------
    check : what was looked at, in a word or two.
    level : whether that is as it should be.
    text : what there is.
    fix : what to run, or to do, about it.
    """

    check: str
    level: Level
    text: str
    fix: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The same for programs."""
        told = {"check": self.check, "level": self.level.value, "text": self.text}
        return told if self.fix is None else told | {"fix": self.fix}


def ok(check: str, text: str) -> Finding:
    """A finding that is as it should be."""
    return Finding(check, Level.OK, text)


def warning(check: str, text: str, fix: str | None = None) -> Finding:
    """A finding that some will have to do something about."""
    return Finding(check, Level.WARNING, text, fix)


def error(check: str, text: str, fix: str | None = None) -> Finding:
    """A finding with which nothing runs."""
    return Finding(check, Level.ERROR, text, fix)


@dataclass
class Patient:
    """Whom the doctor looks at; what one look found out, later ones use."""

    settings: Settings
    connect: Connect
    account: str | None = None
    arn: str | None = None
    stack: Stack | None = None
    is_there: bool = True  # whether there is a stack of the name, in whatever state
    orphans: tuple[orphans.Resource, ...] = ()

    @property
    def name(self) -> str:
        return self.settings.stack

    @classmethod
    def of_settings(cls, settings: Settings) -> Patient:
        """Whom these settings name."""
        import boto3

        with border.crossing("looking for AWS's settings"):
            session = boto3.Session(profile_name=settings.profile, region_name=settings.region)

        @functools.cache  # a client takes long to make
        def connect(service: str) -> Any:
            with border.crossing(f"connecting to {service}"):
                return session.client(service)

        return cls(settings, connect)


def examine(patient: Patient, is_to_fix: bool = False) -> Iterator[Finding]:
    """All findings, each as soon as it is known; what cannot be asked is a finding too."""
    looks: list[tuple[str, Callable[[Patient], Iterator[Finding]], bool]] = [
        ("credentials", credentials, False),
        ("stack", stack, True),
        ("code", code, True),
        ("functions", functions, True),
        ("slots", slots, True),
        ("quota", quota, True),
        ("permissions", permissions, True),
        ("leases", leases, True),
        ("leftovers", leftovers, True),
    ]
    for name, look, needs_account in looks:
        if needs_account and patient.account is None:
            return  # who cannot sign in can ask nothing
        try:
            yield from look(patient)
        except FsdrayError as failed:
            yield _unasked(patient, name, failed)
    if is_to_fix:
        yield from remedy(patient)


def _unasked(patient: Patient, name: str, failed: FsdrayError) -> Finding:
    # Only who may deploy is allowed all that is asked here: a user's session may do without.
    if "access denied" in str(failed):
        return warning(name, f"could not be asked: {failed}", "ask who deployed the stack")
    told = re.fullmatch(r"(.*?): ((?:run|set|check|see|to sign in) .*)", str(failed), re.DOTALL)
    said, fix = told.groups() if told else (str(failed), None)
    if "is not there (" in said:  # its own advice is to come here
        fix = _anew(patient)
    return error(name, said, fix)


def _anew(patient: Patient) -> str:
    """What makes again what is not there any more: CloudFormation changes what a template says."""
    return (
        f"`fsdray destroy --stack {patient.name}`, then {_deploy(patient)} with its options: what "
        "something else than fsdray removed, CloudFormation does not make again"
    )


def credentials(patient: Patient) -> Iterator[Finding]:
    """Who calls, where, and by what clock."""
    with border.crossing("signing in"):
        client = patient.connect("sts")
        began = time.time()
        told = client.get_caller_identity()
    patient.account, patient.arn = told["Account"], told["Arn"]
    yield ok("credentials", f"{patient.arn}")
    where = client.meta.endpoint_url
    region = client.meta.region_name
    known = ".amazonaws.com" in where
    yield ok("region", region if known else f"{region}, at {where} (AWS_ENDPOINT_URL is set)")
    date = told["ResponseMetadata"]["HTTPHeaders"].get("date")
    if date is not None:
        now = (began + time.time()) / 2
        # The header has whole seconds, of which half is gone on average.
        ahead = now - (email.utils.parsedate_to_datetime(date).timestamp() + 0.5)
        said = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} AWS's"
        fix = "set this machine's clock (`timedatectl set-ntp true`)"
        if abs(ahead) > SKEW:
            yield error("clock", f"{said}: AWS refuses requests that are so far off", fix)
        elif abs(ahead) > SKEW / 5:
            yield warning("clock", f"{said}: at {SKEW:.0f} s AWS refuses requests", fix)
        else:
            yield ok("clock", "right within a minute")


def stack(patient: Patient) -> Iterator[Finding]:
    """Whether the stack is there, whole, and of this fsdray and Python."""
    client = patient.connect("cloudformation")
    try:
        with border.crossing(f"looking for the stack {patient.name!r}"):
            found = client.describe_stacks(StackName=patient.name)["Stacks"][0]
    except FsdrayError as failed:
        if "does not exist" not in str(failed):
            raise
        patient.is_there = False
        yield error("stack", f"there is no stack {patient.name!r}", _deploy(patient))
        return
    status = found["StackStatus"]
    named = f"{patient.name}: {status}"
    is_whole = OUTPUT in {each["OutputKey"] for each in found.get("Outputs") or ()}
    if is_under_way(status):
        fix = f"wait until that is done, then `{_command(patient)}` again"
        yield warning("stack", named, fix) if is_whole else error("stack", named, fix)
    elif status == "REVIEW_IN_PROGRESS":
        text = f"{named}: a deploy was interrupted before anything of it was made"
        yield error("stack", text, _deploy(patient))
    elif status in ("ROLLBACK_COMPLETE", "CREATE_FAILED", "ROLLBACK_FAILED", "DELETE_FAILED"):
        fix = f"`fsdray destroy --stack {patient.name}`, then {_deploy(patient)}"
        yield error("stack", f"{named}: {_reason(client, patient.name)}", fix)
        return
    elif status == "UPDATE_ROLLBACK_FAILED":
        fix = f"`aws cloudformation continue-update-rollback --stack-name {patient.name}`"
        yield error("stack", f"{named}: {_reason(client, patient.name)}", fix)
        return
    elif not is_whole:
        reason = _reason(client, patient.name) if "ROLLBACK" in status else "it was interrupted"
        text = f"{named}, but its deploy did not come to its end: {reason}"
        yield error("stack", text, _deploy(patient))
    elif status == "UPDATE_ROLLBACK_COMPLETE":
        text = f"{named}: the last change failed and was taken back: "
        yield warning("stack", text + _reason(client, patient.name), f"{_deploy(patient)} again")
    else:
        yield ok("stack", named)
    if not is_whole:
        return
    patient.stack = here = read_stack(patient.settings)
    if here.version == __version__:
        yield ok("version", f"fsdray {__version__} here and there")
    else:
        text = f"the stack has fsdray {here.version}, this is {__version__}"
        yield error("version", text, f"{_deploy(patient)}, or `pip install fsdray=={here.version}`")
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    if here.python == ours:
        yield ok("Python", f"{ours} here and there")
    else:
        text = f"the functions run Python {here.python}, this is {ours}"
        yield error("Python", text, f"{_deploy(patient)} from {ours}, or use {here.python}")


def _reason(client: Any, name: str) -> str:
    """Why CloudFormation gave up."""
    why = "its events say no reason"
    with border.crossing("reading the stack's events"):
        for page in client.get_paginator("describe_stack_events").paginate(StackName=name):
            for event in page["StackEvents"]:  # the newest first
                reason, status = event.get("ResourceStatusReason"), event["ResourceStatus"]
                if event["LogicalResourceId"] == name and status in _BEGINS:
                    return why  # what is older is of another change
                if status.endswith("_FAILED") and reason:
                    # The first failure: what came after followed from it.
                    why = f"{event['LogicalResourceId']}: {reason}"
    return why


def _deploy(patient: Patient) -> str:
    return deploying(patient.name)


def code(patient: Patient) -> Iterator[Finding]:
    """Whether the bucket and the code package in it are there."""
    if patient.stack is None:
        return
    if patient.stack.image:  # whether it is there, the functions' state says
        yield ok("code", f"the image {patient.stack.image}")
        return
    client = patient.connect("s3")
    bucket = patient.stack.bucket
    with border.crossing(f"looking into the bucket {bucket}"):
        found = client.list_objects_v2(Bucket=bucket, Prefix="code/").get("Contents", [])
    if found:
        size = max(each["Size"] for each in found) / 1e6
        yield ok("code", f"a package of {size:.1f} MB in {bucket}")
    else:
        yield error("code", f"no code package in {bucket}", _anew(patient))


def functions(patient: Patient) -> Iterator[Finding]:
    """Whether all functions are ready to be called."""
    if patient.stack is None:
        return
    client = patient.connect("lambda")
    ready, rest, missing = [], [], []
    for memory, name in sorted(patient.stack.functions.items()):
        with border.crossing(f"looking at the function {name}"):
            try:
                found = client.get_function_configuration(FunctionName=name)
            except client.exceptions.ResourceNotFoundException:
                missing.append(name)
                continue
        state, update = found.get("State", "Active"), found.get("LastUpdateStatus", "Successful")
        if (state, update) in (("Active", "Successful"), ("Inactive", "Successful")):
            ready.append(memory)  # an inactive one wakes up at its next call
        else:
            reason = found.get("StateReason") or found.get("LastUpdateStatusReason") or ""
            rest.append(f"{name} is {state}, {update} {reason}".rstrip())
    if missing:
        yield error("functions", f"missing: {', '.join(missing)}", _anew(patient))
    elif rest:
        yield error("functions", "; ".join(rest), f"wait a minute, then {_deploy(patient)}")
    else:
        yield ok("functions", f"{len(ready)} ready, of {_listed(ready)} MB")


def slots(patient: Patient) -> Iterator[Finding]:
    """Whether each rank slot has its queue, and each topic its subscriptions."""
    if patient.stack is None or patient.account is None:
        return
    here = patient.stack
    named = orphans.found(patient.connect, here.name, patient.account)
    there = {each.name for each in named if each.kind == "queue"}
    missing = sorted({f"{here.name}-slot-{slot:04d}" for slot in range(here.slots)} - there)
    subscribed = 0
    client = patient.connect("sns")
    for topic in here.topics:
        with border.crossing(f"looking at the topic {topic}"):
            pages = client.get_paginator("list_subscriptions_by_topic").paginate(TopicArn=topic)
            subscribed += sum(len(page["Subscriptions"]) for page in pages)
    if missing or subscribed < here.slots:
        text = f"{len(missing)} of {here.slots} queues and {here.slots - subscribed} subscriptions"
        yield error("slots", f"{text} are missing", _anew(patient))
    else:
        topics = "one topic" if len(here.topics) == 1 else f"{len(here.topics)} topics"
        yield ok("slots", f"{here.slots} rank slots, {topics}")


def quota(patient: Patient) -> Iterator[Finding]:
    """How many calls the account may run at one time."""
    with border.crossing("reading the account's limits"):
        told = patient.connect("lambda").get_account_settings()["AccountLimit"]
    most, free = told["ConcurrentExecutions"], told["UnreservedConcurrentExecutions"]
    text = f"{free:,} concurrent calls" + ("" if free == most else f", of {most:,} in the account")
    if free < FEW:
        fix = "Service Quotas, AWS Lambda, Concurrent executions (L-B99A9384): ask for more"
        yield warning("quota", f"{text}: gangs above that cannot start", fix)
    else:
        yield ok("quota", text)


def permissions(patient: Patient) -> Iterator[Finding]:
    """Whether who calls may do what a session does."""
    if patient.stack is None or patient.arn is None:
        return
    if patient.arn.endswith(":root"):
        yield ok("permissions", "all, being the account's root user")
        return
    denied, number = [], 0
    client = patient.connect("iam")
    try:
        for asked in policies.of_session(patient.stack):
            with border.crossing("asking what is allowed"):
                told = client.simulate_principal_policy(
                    PolicySourceArn=policies.principal(patient.arn),
                    ActionNames=list(asked.actions),
                    ResourceArns=[asked.resource],
                )
            for each in told["EvaluationResults"]:
                number += 1
                if each["EvalDecision"] != "allowed":
                    denied.append(f"{each['EvalActionName']} on {asked.resource}")
    except FsdrayError as failed:
        text = f"could not be asked ({failed})"
        yield warning("permissions", text, "allow iam:SimulatePrincipalPolicy on yourself")
        return
    if denied:
        fix = "have the policy of `fsdray policy user` attached"
        yield error("permissions", "not allowed: " + ", ".join(denied), fix)
    else:
        yield ok("permissions", f"all {number} actions of a session are allowed")


def leases(patient: Patient) -> Iterator[Finding]:
    """Who holds slots, and what a session that was killed still seems to hold."""
    if patient.stack is None:
        return
    client = patient.connect("s3")
    with border.crossing(f"reading {pool.KEY}"):
        try:
            told = client.get_object(Bucket=patient.stack.bucket, Key=pool.KEY)
        except client.exceptions.NoSuchKey:
            yield ok("leases", "none yet")
            return
        text = told["Body"].read()
    now = told["ResponseMetadata"]["HTTPHeaders"]["date"]
    moment = email.utils.parsedate_to_datetime(now).timestamp()
    try:
        held = pool.parse(text)
    except FsdrayError as failed:
        where = f"s3://{patient.stack.bucket}/{pool.KEY}"
        said = str(failed).partition(": when no")[0]
        yield error("leases", said, f"when no session runs, `aws s3 rm {where}`")
        return
    over = {name for name, hold in held.holds.items() if hold.until <= moment}
    if over:
        who = ", ".join(f"{len(held.holds[name].slots)} by {held.holds[name].who}" for name in over)
        yield ok("leases", f"{who}: not renewed, so whoever needs slots takes these")
    current = {name: hold for name, hold in held.holds.items() if name not in over}
    free = patient.stack.slots - len(pool.expire(held, moment).taken())
    who = ", ".join(f"{len(hold.slots)} by {hold.who}" for hold in current.values())
    text = f"{who or 'no slot is held'}; {free} of {patient.stack.slots} free"
    if free == 0:
        fix = f"wait, or `fsdray deploy --slots {2 * patient.stack.slots}`"
        yield warning("leases", f"{text}: no gang can start", fix)
    else:
        yield ok("leases", text)


def leftovers(patient: Patient) -> Iterator[Finding]:
    """Resources with the stack's names that no stack has."""
    assert patient.account is not None
    if patient.is_there and patient.stack is None:
        return  # what a half-made stack has is for CloudFormation to remove
    named = orphans.found(patient.connect, patient.name, patient.account)
    rest = patient.orphans = tuple(orphans.orphans(named, patient.stack))
    if rest:
        names = ", ".join(map(str, rest[:5]))
        more = f" and {len(rest) - 5} more" if len(rest) > 5 else ""
        yield warning("leftovers", f"of no stack: {names}{more}", f"`{_command(patient)} --fix`")
    else:
        yield ok("leftovers", "none")


def remedy(patient: Patient) -> Iterator[Finding]:
    """Remove the orphans that `examine` found."""
    for resource in patient.orphans:
        try:
            orphans.remove(patient.connect, resource)
        except FsdrayError as failed:
            yield _unasked(patient, "removing", failed)
        else:
            yield ok("removed", str(resource))


def _command(patient: Patient) -> str:
    named = "" if patient.name == Settings.stack else f" --stack {patient.name}"
    return f"fsdray doctor{named}"


_MARKS = {Level.OK: ("ok", 32), Level.WARNING: ("warning", 33), Level.ERROR: ("error", 31)}


def shown(finding: Finding, is_colored: bool) -> str:
    """A finding for a terminal: a line, and one more where there is something to do."""
    mark, color = _MARKS[finding.level]
    mark = f"{mark:<8}"
    if is_colored:
        mark = f"\x1b[{color}m{mark}\x1b[0m"
    line = f"{mark}{finding.check:<12} {finding.text}"
    return line if finding.fix is None else f"{line}\n{'':<21}-> {finding.fix}"


def worst(findings: Sequence[Finding]) -> Level:
    """The worst level among findings."""
    order = (Level.OK, Level.WARNING, Level.ERROR)
    return max((finding.level for finding in findings), key=order.index, default=Level.OK)


def _listed(numbers: list[int]) -> str:
    return ", ".join(f"{number:,}" for number in numbers)
