"""What the command line accepts: options of ``fsdray infer``, their kinds of values, the help on
them; and how a backend adds commands of its own.

Only what can be said of one option by itself is checked here; how options agree with one
another, with files and with the model is checked by `fsdray.cli`, before anything starts.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from fsdray._version import __version__
from fsdray.errors import SettingsError
from fsdray.settings import CHANNELS, Settings

STRATEGIES = ("serial", "model")
PARTITIONS = ("hypergraph", "random", "block")
ALL_DIGITS = 1797  # images in scikit-learn's set of handwritten digits

_INFER = """\
Run a sparse network over samples, on one worker or many, and say which samples end in a
category, how long that took and what it costs."""

_EPILOG = """\
examples:
  fsdray infer --model radixnet:1024 --inputs digits --workers 8 --verify
      a benchmark network of 120 layers, on 1,797 real handwritten digits
  fsdray infer --model neuron1024.tar.xz --inputs sparse-images-1024.tsv.gz \\
      --truth neuron1024-l120-categories.tsv --workers 8 --channel object
      the Graph Challenge's own files, and whether its categories are found
  fsdray infer --model my-network/ --bias -0.2 --clamp inf --inputs mine.tsv \\
      --output last-layer.npz --json > answer.json
      a network of your own, for other programs to read

exit status: 0 done; 1 failed, or other categories than expected; 2 usage; 130 interrupted
"""


COMMANDS = "fsdray.commands"
"""The group of entry points whose functions add commands: each is given what `add_parser` is
called on, and sets ``run``, which takes the parsed arguments and returns the exit status."""

Commands: TypeAlias = "argparse._SubParsersAction[Any]"
AddCommands: TypeAlias = Callable[[Commands], None]


class UsageError(SettingsError):
    """The command line asks for what cannot be."""


@dataclass(frozen=True)
class Radixnet:
    """``radixnet:NxL``: a network to build."""

    neurons: int
    layers: int


@dataclass(frozen=True)
class Digits:
    """``digits:COUNT``: samples that come with scikit-learn."""

    count: int


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read a command line, without the program's name.

    Raises
    ------
    UsageError
        When it is not one; ``--help`` and ``--version`` print and raise `SystemExit`.
    """
    return _parser().parse_args(arguments)


class _Parser(argparse.ArgumentParser):
    """Raises an error instead of printing the usage and leaving the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def _parser() -> _Parser:
    parser = _Parser(
        prog="fsdray",
        description="Tasks, gangs and model-parallel inference on serverless functions.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fsdray {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    _add_infer(commands)
    for add in _of_backends():
        add(commands)
    return parser


def _of_backends() -> list[AddCommands]:
    """What adds the commands that backends bring (entry points of the group `COMMANDS`)."""
    from importlib.metadata import entry_points

    return [entry.load() for entry in sorted(entry_points(group=COMMANDS), key=lambda e: e.name)]


def _add_infer(commands: Commands) -> None:
    infer = commands.add_parser(
        "infer",
        help="run a sparse network over samples, on one worker or many",
        description=_INFER,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_data(infer.add_argument_group("what to run"))
    _add_strategy(infer.add_argument_group("how to run it"))
    _add_report(infer.add_argument_group("what to say and keep"))


def _add_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model",
        required=True,
        type=_model,
        metavar="PATH|radixnet:N[xL]",
        help="a directory of nN-l1.tsv, nN-l2.tsv, … or one archive of them (.tar, .tar.gz, "
        ".tar.xz), in the Graph Challenge's format; or a RadiX-Net of N neurons and L layers "
        "(default: 120)",
    )
    group.add_argument(
        "--inputs",
        required=True,
        type=_inputs,
        metavar="PATH|digits[:COUNT]",
        help="samples in the challenge's format (.tsv, .tsv.gz); or COUNT real handwritten "
        f"digits, resized to the network (default: all {ALL_DIGITS})",
    )
    group.add_argument(
        "--truth",
        type=Path,
        metavar="PATH",
        help="the true categories, a 1-based sample number a line (.tsv, .tsv.gz), to compare "
        "with those found",
    )
    group.add_argument(
        "--bias",
        type=_real,
        metavar="B",
        help="added to every sum that is not 0 (default: the challenge's, which names one for "
        "1024, 4096, 16384 and 65536 neurons)",
    )
    group.add_argument(
        "--clamp",
        type=_clamp,
        metavar="C",
        help="upper limit of an activation, or inf for none (default: the challenge's 32)",
    )


def _add_strategy(group: argparse._ArgumentGroup) -> None:
    def add(name: str, default: Any, note: str, **more: Any) -> None:
        group.add_argument(f"--{name}", default=default, help=note, **more)

    def add_choice(name: str, default: str, choices: tuple[str, ...], note: str) -> None:
        add(name, default, f"{note} (default: {default})", choices=choices)

    most = "functions that run it, from 1 to the neurons of the smallest layer (default: 1)"
    add("workers", 1, most, type=_whole(1), metavar="P")
    divided = "serial: one worker has it all; model: each worker has some neurons of every layer"
    add_choice("strategy", "model", STRATEGIES, divided)
    add_choice("channel", "queue", CHANNELS, "how workers talk: by messages, or by objects")
    owners = "who has which neurons; hypergraph sends the fewest rows"
    add_choice("partition", "hypergraph", PARTITIONS, owners)
    seed = "of the partition, and of radixnet's permutations (default: 0)"
    add("seed", 0, seed, type=_whole(0), metavar="S")
    # The default of these is the session's, which the environment or a config file may set.
    platform = f"the platform that runs the functions (default: {Settings.backend})"
    add("backend", None, platform, metavar="NAME")
    memory = f"memory of a function, in MB (default: {Settings.memory})"
    add("memory", None, memory, type=_whole(1), metavar="MB")
    limit = f"how long a function may run, in seconds (default: {Settings.timeout:g})"
    add("timeout", None, limit, type=_positive, metavar="SECONDS")
    again = "times that each worker may be started again after it died (default: 0)"
    add("retries", 0, again, type=_whole(0), metavar="N")
    tree = f"functions that each function starts in its turn (default: {Settings.branching})"
    add("branching", None, tree, type=_whole(1), metavar="B")


def _add_report(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--verify",
        action="store_true",
        help="run it serially too, and compare the categories and, bit for bit, the last layer",
    )
    group.add_argument(
        "--output",
        type=Path,
        metavar="PATH.npz",
        help="write the last layer's activations: a SciPy CSR matrix, samples x neurons, float32",
    )
    group.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object to stdout; the summary goes to stderr",
    )
    group.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,  # or it would undo `fsdray --debug infer`
        help="show the traceback of an error",
    )


def _model(text: str) -> Path | Radixnet:
    if not text.startswith("radixnet:"):
        return Path(text)
    found = re.fullmatch(r"radixnet:(\d{1,9})(?:x([1-9]\d{0,8}))?", text, re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not radixnet:N or radixnet:NxL")
    return Radixnet(int(found[1]), int(found[2] or 120))


def _inputs(text: str) -> Path | Digits:
    if text != "digits" and not text.startswith("digits:"):
        return Path(text)
    found = re.fullmatch(r"digits(?::(\d{1,9}))?", text, re.ASCII)
    count = ALL_DIGITS if found is None or found[1] is None else int(found[1])
    if found is None or not 1 <= count <= ALL_DIGITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not digits:COUNT from 1 to {ALL_DIGITS}")
    return Digits(count)


def _whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return read


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _real(text: str) -> float:
    if not math.isfinite(value := _number(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def _clamp(text: str) -> float:
    if not (value := _number(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def _positive(text: str) -> float:
    if not 0 < (value := _number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value
