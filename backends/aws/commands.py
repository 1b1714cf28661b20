"""The commands that this backend brings to ``fsdray``: their options, and what runs them.

Nothing of AWS is imported before a command runs: the help of all commands is made each time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from fsdray.backends.aws import deploy_commands
from fsdray.backends.aws.deploy_commands import add_place, settings_of

if TYPE_CHECKING:
    from fsdray.arguments import Commands

_DOCTOR = """\
Look at the account, the stack and this machine, and say of each whether it is as it should be,
and what to run where it is not. Nothing is changed without --fix."""

_LOGS = """\
Show what the functions of a run wrote, by time, from CloudWatch Logs. Without RUN, list the runs
that wrote something. A run is one session, from init to shutdown."""

_POLICY = """\
Print an IAM policy: what who runs sessions must be allowed (user), or who deploys (deployer). It is
for one stack of the account that is signed in to."""


def add(commands: Commands) -> None:
    """Add them to the command line's parser."""
    deploy_commands.add(commands)
    doctor = commands.add_parser(
        "doctor",
        help="say what is wrong with the account, the stack or this machine (AWS)",
        description=_DOCTOR,
        allow_abbrev=False,
    )
    add_place(doctor)
    doctor.add_argument(
        "--fix",
        action="store_true",
        help="remove what bears the stack's names and belongs to no stack",
    )
    doctor.add_argument("--dry-run", action="store_true", help="say what --fix would do")
    doctor.add_argument("--json", action="store_true", help="print one JSON object to stdout")
    doctor.set_defaults(run=_doctor)

    logs = commands.add_parser(
        "logs",
        help="show what the functions of a run wrote (AWS)",
        description=_LOGS,
        allow_abbrev=False,
    )
    logs.add_argument("name", nargs="?", metavar="RUN", help="the run's id")
    add_place(logs)
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what comes")
    logs.add_argument("--rank", type=int, metavar="R", help="of this rank alone")
    logs.add_argument(
        "--since",
        default="1d",
        metavar="WHEN",
        help="how long ago to begin: 90s, 10m, 2h, 1d; or a time, 2026-11-22T10:00 (default: 1d)",
    )
    logs.add_argument("--json", action="store_true", help="print a JSON object a line")
    logs.set_defaults(run=_logs)

    policy = commands.add_parser(
        "policy",
        help="print the IAM policy that a user or a deployer needs (AWS)",
        description=_POLICY,
        allow_abbrev=False,
    )
    policy.add_argument("name", choices=("user", "deployer"))
    add_place(policy)
    policy.set_defaults(run=_policy)


def _doctor(arguments: argparse.Namespace) -> int:
    from fsdray.backends.aws import doctor

    patient = doctor.Patient.of_settings(settings_of(arguments))
    findings = []
    for finding in doctor.examine(patient, arguments.fix and not arguments.dry_run):
        findings.append(finding)
        if not arguments.json:
            print(doctor.shown(finding, _is_colored()), flush=True)
    worst = doctor.worst(findings)
    if arguments.json:
        told = {"level": worst.value, "findings": [finding.to_json() for finding in findings]}
        print(json.dumps(told, indent=2))
    elif arguments.dry_run:
        for each in patient.orphans:
            print(f"--fix would remove the {each}")
    return int(worst is doctor.Level.ERROR)


def _logs(arguments: argparse.Namespace) -> int:
    from fsdray.backends.aws import logs

    settings = settings_of(arguments)
    since = logs.parse_since(arguments.since)
    reader = logs.of_stack(settings, arguments.name, arguments.rank)
    if arguments.name is None and not arguments.follow:
        found = logs.runs(reader.read(since))
        for seen in found:
            print(json.dumps(seen.to_json()) if arguments.json else logs.shown_run(seen))
        if not found:
            print(f"no task printed anything since {arguments.since}", file=sys.stderr)
        return 0
    lines = reader.follow(since) if arguments.follow else reader.read(since)
    count = 0
    for count, line in enumerate(lines, 1):  # noqa: B007 - how many there were
        if arguments.json:
            print(json.dumps(line.to_json()), flush=True)
        else:
            print(logs.shown(line, _is_colored()), flush=True)
    if not count:
        which = f"of the run {arguments.name} " if arguments.name else ""
        print(
            f"no lines {which}since {arguments.since} (`fsdray logs` lists runs)", file=sys.stderr
        )
    return int(not count)


def _policy(arguments: argparse.Namespace) -> int:
    from fsdray.backends.aws import policies
    from fsdray.backends.aws.deploy import Account

    settings = settings_of(arguments)
    account = Account.of(settings)
    policy = policies.load(
        arguments.name,
        stack=settings.stack,
        account=account.number,
        region=account.region,
        partition=account.partition,
        bucket=f"{settings.stack}-{account.number}-{account.region}",
    )
    print(json.dumps(policy, indent=2))
    return 0


def _is_colored() -> bool:
    """Whether stdout is a terminal that is not to be left plain (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
