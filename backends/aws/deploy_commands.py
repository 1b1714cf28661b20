"""``fsdray deploy``, ``fsdray destroy`` and ``fsdray emulate``: their options, and what they show.

Nothing of AWS is imported before a command runs. What they do is in `deploy` and `emulate`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fsdray.backends.aws.options import Options
from fsdray.errors import SettingsError
from fsdray.settings import Settings, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsdray.arguments import Commands
    from fsdray.backends.aws.cloudformation import Event
    from fsdray.observe.progress import Progress

_DEPLOY = """\
Make the stack that sessions with the aws backend run on, or change it to what is asked for. What
is not given stays as it is. Unused it costs nothing but the storage of its code."""

_DESTROY = """\
Remove a stack with all that is in it: functions, queues, topics, objects and logs."""

_EMULATE = """\
Serve AWS on this machine: Lambda, S3, SQS, SNS and CloudFormation, with a stack deployed. It needs
no account. What it prints makes a shell's programs use it:

  fsdray emulate > emulated.sh &      then, when the file is there,      . emulated.sh

It serves until it is interrupted, and leaves nothing behind."""


def add(commands: Commands) -> None:
    """Add them to the command line's parser."""
    deploy = _add(commands, "deploy", "make or change the stack on AWS", _DEPLOY)
    add_place(deploy)
    _add_options(deploy)
    deploy.add_argument(
        "--reset", action="store_true", help="what is not given goes back to its default"
    )
    deploy.add_argument("--dry-run", action="store_true", help="say what would be done")
    deploy.set_defaults(run=_deploy)

    destroy = _add(commands, "destroy", "remove the stack from AWS, with all in it", _DESTROY)
    add_place(destroy)
    destroy.add_argument("--yes", action="store_true", help="do not ask")
    destroy.add_argument("--dry-run", action="store_true", help="say what would be done")
    destroy.set_defaults(run=_destroy)

    emulate = _add(commands, "emulate", "serve AWS on this machine, with a stack", _EMULATE)
    emulate.add_argument(
        "--stack", metavar="NAME", help=f"the stack's name (default: {Settings.stack})"
    )
    emulate.add_argument(
        "--port", type=int, default=0, help="of all but Lambda (default: a free one)"
    )
    emulate.add_argument(
        "--concurrency", type=int, default=1000, help="calls at one time (default: 1000)"
    )
    _add_code(emulate)
    emulate.set_defaults(run=_emulate)


def _add(commands: Commands, name: str, note: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=note,
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return parser


def add_place(parser: argparse.ArgumentParser) -> None:
    """Options of all commands: which stack, and where."""
    parser.add_argument(
        "--stack", metavar="NAME", help=f"the stack's name (default: {Settings.stack})"
    )
    parser.add_argument("--profile", metavar="NAME", help="the profile of AWS's configuration")
    parser.add_argument("--region", metavar="NAME", help="the AWS region")


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings that the place's options, the environment and the config file give."""
    names = ("stack", "profile", "region")
    return resolve({name: getattr(arguments, name, None) for name in names})


def _add_code(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--slots",
        type=int,
        metavar="N",
        help=f"ranks of all gangs that run at one time, up to 1000 (default: {Options.slots})",
    )
    parser.add_argument(
        "--memory",
        type=_sizes,
        metavar="MB,MB,...",
        help=f"functions, by memory (default: {','.join(map(str, Options.memory))})",
    )
    parser.add_argument(
        "--requirements",
        type=_requirements,
        metavar="FILE",
        help="packages of yours that functions have, as pip reads them",
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    _add_code(parser)
    more = parser.add_argument_group("functions")

    def add(name: str, note: str, **how: Any) -> None:
        more.add_argument(f"--{name}", help=note, **how)

    def add_many(name: str, note: str, to: str, metavar: str, kind: Any = str) -> None:
        add(name, f"{note}; again for more", action="append", dest=to, metavar=metavar, type=kind)

    image = "URI of a container image in ECR that is their code, instead of a package (docs/aws.md)"
    add("image", image, metavar="URI")
    add("extras", "of fsdray, with commas (default: inference)", type=_names, metavar="NAMES")
    add("python", "their version (default: as here)", metavar="3.N")
    add("architecture", "x86_64 or arm64 (default: as here)", metavar="NAME")
    add(
        "snapstart",
        "start them from a snapshot, which Lambda bills by itself (Python 3.12 on)",
        action=argparse.BooleanOptionalAction,
        default=None,
    )
    add("tmp", f"MB in /tmp (default: {Options.storage})", type=int, dest="storage", metavar="MB")
    add("reserved", "executions reserved for each of them", type=int, metavar="N")
    add("log-days", f"that logs are kept (default: {Options.log_days})", type=int, metavar="DAYS")
    add_many("env", "a variable that they find", "environment", "NAME=VALUE", _pair)
    secret = "a variable, and the ARN of the secret or parameter whose value it gets"
    add_many("secret", secret, "secrets", "NAME=ARN", _pair)
    add_many("policy", "ARN of a policy that they have besides their own", "policies", "ARN")
    add("boundary", "ARN of a permissions boundary for their role", metavar="ARN")
    add_many("subnet", "of the VPC that they run in", "subnets", "ID")
    add_many("security-group", "of theirs in the VPC", "security_groups", "ID")
    add("topic-key", "ARN of a KMS key for the topics", metavar="ARN")
    zone = "id of an availability zone, for a directory bucket of S3 Express One Zone"
    add("express-zone", zone, metavar="ID")
    add_many("tag", "of all resources", "tags", "NAME=VALUE", _pair)


def changes_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """`Options` that the command line gives, by name."""
    import dataclasses

    found: dict[str, Any] = {}
    for each in dataclasses.fields(Options):
        value = getattr(arguments, each.name, None)
        if value is None:
            continue
        if each.name in ("environment", "secrets", "tags"):
            value = dict(value)
        found[each.name] = tuple(value) if isinstance(value, list) else value
    return found


class Screen:
    """Shows a deploy: what is done as lines, how far it is as a bar.

    Parameters
    ----------
    stream : where lines go. progress : what the bar is.
    """

    def __init__(self, stream: TextIO, progress: Progress) -> None:
        self._stream = stream
        self._progress = progress
        self._done: set[tuple[str, str]] = set()

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=self._stream, flush=True)

    def begin(self, what: str, total: int) -> None:
        """Show a bar of so many resources."""
        self._done.clear()
        self._progress.phase(what, total)

    def event(self, event: Event) -> None:
        """Count a resource that is done, and tell of one that failed."""
        if event.is_done and (event.name, event.kind) not in self._done:
            self._done.add((event.name, event.kind))
            self._progress.advance()
        elif event.status.endswith("_FAILED") and event.reason:
            print(f"{event.name}: {event.reason}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """The bar goes with what shows it."""


@contextmanager
def screen(stream: TextIO) -> Iterator[Screen]:
    """A `Screen` while the block runs."""
    from fsdray.observe.progress import live

    with live(sys.stderr) as progress:
        yield Screen(stream, progress)


def _deploy(arguments: argparse.Namespace) -> int:
    from fsdray.backends.aws.deploy import deploy

    settings, changes = settings_of(arguments), changes_of(arguments)
    with screen(sys.stdout) as shown:
        deploy(settings, changes, shown, is_reset=arguments.reset, is_dry=arguments.dry_run)
    return 0


def _destroy(arguments: argparse.Namespace) -> int:
    from fsdray.backends.aws.deploy import destroy

    settings = settings_of(arguments)
    if not (arguments.yes or arguments.dry_run):
        if not sys.stdin.isatty():
            raise SettingsError("destroy asks before it removes a stack: give --yes")
        with screen(sys.stdout) as shown:
            if not destroy(settings, shown, is_dry=True):
                return 0
        if input(f"Type {settings.stack} to remove all of it: ").strip() != settings.stack:
            print("Nothing was removed", file=sys.stderr)
            return 1
    with screen(sys.stdout) as shown:
        destroy(settings, shown, is_dry=arguments.dry_run)
    return 0


def _emulate(arguments: argparse.Namespace) -> int:
    from fsdray.backends.aws.emulate import emulate

    settings, changes = settings_of(arguments), changes_of(arguments)
    with screen(sys.stderr) as shown:
        return emulate(
            settings, changes, shown, port=arguments.port, concurrency=arguments.concurrency
        )


def _sizes(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,5}(,\d{1,5})*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not MB, or several with commas")
    return tuple(sorted(int(each) for each in text.split(",")))


def _names(text: str) -> tuple[str, ...]:
    return tuple(each for each in text.split(",") if each)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _requirements(text: str) -> tuple[str, ...]:
    """The lines of a file of requirements, and of those that it names."""
    from fsdray.packages import Requirements

    try:
        wanted = Requirements.of(text, is_caller=True)
        assert wanted is not None
        return tuple(_plain(wanted.contents()))
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _plain(contents: Iterable[tuple[str, str]]) -> Iterator[str]:
    keep: Callable[[str], bool] = re.compile(r"(?!\s*(#|$|-r|--requirement))").match  # type: ignore[assignment]
    for path, text in contents:
        for line in text.replace("\\\n", " ").splitlines() if path else ():
            if re.match(r"\s*(-c|--constraint)\b", line):
                raise SettingsError(
                    f"{Path(path).name} has {line.strip()!r}: functions have the versions that are "
                    "installed here; write others into the file itself"
                )
            if keep(line):
                yield line.strip()
