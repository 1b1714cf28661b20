"""The command line: ``fsdray infer``, and the commands that backends bring.

The run is set up here, and the exit status decided. The options are in `fsdray.arguments`, what
is said of a run in `fsdray.observe.summary`. Heavy imports wait until the arguments are good.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsdray.arguments import Digits, Radixnet, UsageError, parse
from fsdray.errors import FsdrayError, SettingsError, TaskError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from scipy.sparse import csr_array

    from fsdray.inference import Model
    from fsdray.observe.progress import Progress
    from fsdray.observe.summary import Run

_DONE, _FAILED, _USAGE, _INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments without the program's name; by default those of the process.

    Returns
    -------
    int
        The exit status: 0 done; 1 failed, or other categories than expected; 2 usage;
        130 interrupted. An error is one line on stderr; ``--debug`` adds the traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        given = parse(arguments)
        return int(given.run(given)) if "run" in given else _infer(given)
    except UsageError as error:
        return _complain(error, _USAGE, debug)
    except KeyboardInterrupt:
        print("fsdray: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except ModuleNotFoundError as error:
        if error.name not in ("scipy", "numba", "sklearn", "mtkahypar"):
            raise
        missing = f"{error.name} is not installed: pip install 'fsdray[inference]'"
        return _complain(missing, _FAILED, debug)
    except OSError as error:
        parts = (error.filename, error.strerror)
        return _complain(": ".join(filter(None, parts)) or str(error), _FAILED, debug)
    except MemoryError as error:
        return _complain(f"out of memory: {error}", _FAILED, debug)
    except FsdrayError as error:
        return _complain(error, _FAILED, debug)


def _complain(what: BaseException | str, status: int, debug: bool) -> int:
    """Say in one line what is wrong; with `debug`, where."""
    if debug:
        traceback.print_exc()
    lines = str(what).strip().splitlines() or [type(what).__name__]
    more = " (--debug shows more)" if len(lines) > 1 and not debug else ""
    print(f"fsdray: error: {lines[0]}{more}", file=sys.stderr)
    return status


def _infer(arguments: argparse.Namespace) -> int:
    _check_options(arguments)
    from fsdray.observe.progress import live

    # Whatever a library prints belongs to stderr: stdout holds the answer and nothing else.
    with contextlib.redirect_stdout(sys.stderr), live(sys.stderr) as progress:
        model, samples, truth = _read(arguments, progress)
        run = _run(arguments, model, samples, truth, progress)
    try:
        if arguments.output is not None:
            _save(run.answer.activations, arguments.output)
    finally:  # an answer that cannot be saved is told all the same
        if arguments.json:
            print(run.text(), file=sys.stderr)
            _tell(json.dumps(run.to_json()))
        else:
            _tell(run.text())
    if faults := run.faults():
        return _complain("; ".join(faults), _FAILED, debug=False)
    return _DONE


def _tell(text: str) -> None:
    """Print to stdout, and make sure that it arrives."""
    try:
        print(text, flush=True)
    except OSError:
        # Python flushes what is left at exit, and would complain about it a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _read(
    arguments: argparse.Namespace, progress: Progress
) -> tuple[Model, csr_array, NDArray[np.int64] | None]:
    """Read model, samples and true categories, and check that they and the options agree."""
    progress.phase("reading")
    from fsdray import inference

    if isinstance(arguments.model, Radixnet):
        with _blaming_usage():
            model = inference.radixnet(
                arguments.model.neurons, arguments.model.layers, arguments.seed
            )
    else:
        model = inference.load(arguments.model, bias=arguments.bias, clamp=arguments.clamp)
    narrowest = min(layer.outputs for layer in model.layers)
    if arguments.workers > narrowest:
        raise UsageError(
            f"--workers {arguments.workers}: at most {narrowest}, the neurons of the smallest layer"
        )
    if isinstance(arguments.inputs, Digits):
        samples = inference.digits(arguments.inputs.count, model.inputs)
    else:
        samples = inference.load_samples(arguments.inputs, model.inputs)
    truth = None if arguments.truth is None else inference.load_categories(arguments.truth)
    count = samples.shape[0]
    if truth is not None and truth.size and truth.max() > count:
        raise SettingsError(
            f"{arguments.truth} names sample {truth.max()}, but there are {count} samples: "
            "give the categories of these inputs"
        )
    return model, samples, truth


def _run(
    arguments: argparse.Namespace,
    model: Model,
    samples: csr_array,
    truth: NDArray[np.int64] | None,
    progress: Progress,
) -> Run:
    """Run the model in a session of its own; with ``--verify``, serially too."""
    import fsdray
    from fsdray import inference
    from fsdray.observe.summary import Run, match, verification

    with _blaming_usage():
        options = _session_options(arguments)
        fsdray.init(**options)
    try:
        with _blaming_usage():
            answer = inference.run(
                model,
                samples,
                workers=arguments.workers,
                strategy=arguments.strategy,
                channel=arguments.channel,
                partition=arguments.partition,
                seed=arguments.seed,
                max_retries=arguments.retries,
                progress=progress,
            )
        serial = None
        if arguments.verify:
            progress.phase("verifying against a serial run")
            other = inference.run(model, samples, strategy="serial")
            serial = verification(answer, other)
    finally:
        fsdray.shutdown()
    return Run(
        answer,
        model,
        samples=samples.shape[0],
        backend=options["backend"],
        partition=None if arguments.strategy == "serial" else arguments.partition,
        seed=arguments.seed,
        truth=None if truth is None else match(answer.categories, truth),
        serial=serial,
    )


def _session_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `fsdray.init` is told: what was asked for, and concurrency enough for the workers."""
    from fsdray.costs.prices import load_prices
    from fsdray.settings import resolve

    names = ("backend", "memory", "timeout", "branching")
    settings = resolve({name: getattr(arguments, name) for name in names})
    load_prices(settings.prices)  # a bad table is refused before the run, not after it
    options: dict[str, Any] = {name: getattr(settings, name) for name in names}
    return options | {"concurrency": max(settings.concurrency or 32, arguments.workers)}


@contextlib.contextmanager
def _blaming_usage() -> Iterator[None]:
    """Inside, a setting that is refused is one that the command line gave."""
    try:
        yield
    except SettingsError as error:
        if isinstance(error, TaskError):  # raised in a function, which was not asked for options
            raise
        raise UsageError(str(error)) from error


def _save(activations: csr_array, path: Path) -> None:
    """Write the matrix whole or not at all."""
    from scipy.sparse import save_npz

    path = path.resolve()  # a link is followed, not replaced
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("xb") as file:
            save_npz(file, activations)
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse what can be known to fail before anything is read."""
    if arguments.strategy == "serial" and arguments.workers > 1:
        raise UsageError(f"--strategy serial is one worker, not {arguments.workers}")
    if isinstance(arguments.model, Radixnet):
        for name in ("bias", "clamp"):
            if getattr(arguments, name) is not None:
                raise UsageError(f"--{name} is for a --model that is read from files")
    for name in ("model", "inputs", "truth"):
        path = getattr(arguments, name)
        if not isinstance(path, Path):
            continue
        if not path.exists():
            raise UsageError(f"--{name} {path} does not exist")
        if not os.access(path, os.R_OK):
            raise UsageError(f"--{name} {path} may not be read")
    if arguments.output is not None:
        _check_output(arguments.output)


def _check_output(path: Path) -> None:
    if path.suffix != ".npz":
        raise UsageError(f"--output {path}: the name must end in .npz")
    if path.is_dir():
        raise UsageError(f"--output {path} is a directory: name a file")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"--output {path}: there is no directory {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"--output {path}: the directory {folder} may not be written")
