from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import load_npz

from fsdray.cli import main
from fsdray.inference.formats import load_samples, save, save_samples
from fsdray.inference.model import Model
from fsdray.inference.radixnet import radixnet
from fsdray.inference.samples import digits

NEURONS, LAYERS, SAMPLES, BIAS = 256, 4, 60, -0.30
RADIXNET = ["--model", f"radixnet:{NEURONS}x{LAYERS}", "--inputs", f"digits:{SAMPLES}"]

Output = pytest.CaptureFixture[str]


def expected(model: Model, samples: Any) -> NDArray[np.float32]:
    """The last layer by NumPy: float64 sums, float32 activations, samples × neurons."""
    rows = samples.toarray().T.astype(np.float32)
    for layer in model.layers:
        sums = layer.weights.toarray().astype(np.float64) @ rows.astype(np.float64)
        sums = np.where(sums != 0, sums + layer.bias, 0.0)
        rows = np.clip(sums, 0, layer.clamp).astype(np.float32)
    result: NDArray[np.float32] = rows.T
    return result


def alive(activations: NDArray[np.float32]) -> list[int]:
    return [int(row) + 1 for row in np.flatnonzero(activations.sum(axis=1))]


@pytest.fixture(scope="session")
def last_layer() -> NDArray[np.float32]:
    activations = expected(radixnet(NEURONS, LAYERS), digits(SAMPLES, NEURONS))
    assert 0 < len(alive(activations)) < SAMPLES, "else the tests below would prove little"
    assert np.unique(activations).size > 10
    return activations


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network, samples and categories as files in the challenge's format."""
    folder = tmp_path_factory.mktemp("challenge")
    model, samples = radixnet(NEURONS, LAYERS), digits(SAMPLES, NEURONS)
    save(model, folder)
    save_samples(samples, folder / "samples.tsv.gz")
    categories = alive(expected(model, samples))
    text = "".join(f"{sample}\n" for sample in categories)
    (folder / "categories.tsv").write_text(text, encoding="utf-8")
    return folder


def from_files(folder: Path) -> list[str]:
    return [
        "--model", str(folder), "--inputs", str(folder / "samples.tsv.gz"), "--bias", str(BIAS),
        "--truth", str(folder / "categories.tsv"),
    ]  # fmt: skip


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it an error to start a session: a bad command line is refused before."""
    import fsdray

    def init(*_: object, **__: object) -> None:
        raise AssertionError("a session was started")

    monkeypatch.setattr(fsdray, "init", init)


def refused(capsys: Output, arguments: list[str], status: int) -> str:
    """Run a command line that fails; return the one line that it leaves on stderr."""
    assert main(arguments) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("fsdray: error: ")
    return line


# -- what it answers ---------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["queue", "object", "auto"])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.on_aws("3-auto")
def test_json_is_one_object_with_the_right_categories(
    capsys: Output, last_layer: NDArray[np.float32], workers: int, channel: str
) -> None:
    arguments = ["infer", *RADIXNET, "--workers", str(workers), "--channel", channel, "--json"]
    assert main([*arguments, "--verify"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    document = json.loads(captured.out)
    assert document["categories"] == alive(last_layer)
    assert document["verified"] is True
    assert document["match"] is None
    assert (document["workers"], document["channel"]) == (workers, channel)
    assert (document["neurons"], document["layers"]) == (NEURONS, LAYERS)
    assert document["samples"] == SAMPLES
    assert document["edges"] == 32 * NEURONS * LAYERS
    assert document["seconds"] > 0
    assert document["requests"]["invoke"] >= workers
    assert document["cost_usd"] > 0
    assert {"partition", "placement", "compute", "waiting"} <= document["phases"].keys()
    rate = SAMPLES * document["edges"] / document["seconds"]
    assert document["edges_per_second"] == pytest.approx(rate)


def test_json_leaves_the_summary_to_stderr(capsys: Output) -> None:
    assert main(["infer", *RADIXNET, "--json"]) == 0
    assert "categories" in capsys.readouterr().err


def test_without_json_the_summary_is_all_of_stdout(
    capsys: Output, last_layer: NDArray[np.float32]
) -> None:
    assert main(["infer", *RADIXNET, "--workers", "2", "--verify"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"categories  {len(alive(last_layer))} of {SAMPLES} samples" in captured.out
    assert "same categories, same bits in the last layer" in captured.out
    assert re.search(r"^partition +hypergraph: ", captured.out, re.MULTILINE)
    assert re.search(r"^ +Lambda +invocations ", captured.out, re.MULTILINE)
    assert "$" in captured.out


def test_files_in_the_challenges_format_of_any_size_are_read(capsys: Output, files: Path) -> None:
    assert main(["infer", *from_files(files), "--workers", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["match"] is True
    assert document["missing"] == document["extra"] == []


def test_a_serial_run_needs_no_partition(capsys: Output, files: Path) -> None:
    assert main(["infer", *from_files(files), "--strategy", "serial", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["match"] is True
    assert (document["strategy"], document["workers"]) == ("serial", 1)
    assert document["partition"] is None
    assert document["rows_sent"] == 0


@pytest.mark.parametrize("partition", ["hypergraph", "random", "block"])
def test_every_partition_gives_the_same_last_layer(
    capsys: Output,
    tmp_path: Path,
    last_layer: NDArray[np.float32],
    partition: str,
) -> None:
    path = tmp_path / "last.npz"
    arguments = ["infer", *RADIXNET, "--workers", "3", "--partition", partition]
    assert main([*arguments, "--output", str(path)]) == 0
    written = load_npz(path)
    assert written.format == "csr"
    assert written.dtype == np.float32
    assert written.shape == (SAMPLES, NEURONS)
    assert written.toarray().tobytes() == last_layer.tobytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.npz"]


def test_output_replaces_a_file_that_is_there(capsys: Output, tmp_path: Path) -> None:
    path = tmp_path / "last.npz"
    path.write_text("something else", encoding="utf-8")
    assert main(["infer", *RADIXNET, "--output", str(path)]) == 0
    assert load_npz(path).shape == (SAMPLES, NEURONS)


def test_the_seed_changes_the_network(capsys: Output) -> None:
    model = ["--model", f"radixnet:{NEURONS}x9", "--inputs", f"digits:{SAMPLES}"]
    assert main(["infer", *model, "--seed", "5", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["seed"] == 5
    changed = expected(radixnet(NEURONS, 9, seed=5), digits(SAMPLES, NEURONS))
    assert document["categories"] == alive(changed)


# -- what it refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["infer"], "required: --model, --inputs"),
        (["infer", *RADIXNET, "--worker", "2"], "unrecognized arguments: --worker"),
        (["infer", *RADIXNET, "--workers", "0"], "--workers: '0' is not a whole number"),
        (["infer", *RADIXNET, "--workers", "-3"], "--workers: '-3' is not a whole number"),
        (["infer", *RADIXNET, "--workers", "two"], "--workers: 'two' is not a whole number"),
        (["infer", *RADIXNET, "--channel", "carrier-pigeon"], "--channel: invalid choice"),
        (["infer", *RADIXNET, "--partition", "fair"], "--partition: invalid choice"),
        (["infer", *RADIXNET, "--strategy", "best"], "--strategy: invalid choice"),
        (["infer", *RADIXNET, "--strategy", "serial", "--workers", "2"], "serial is one worker"),
        (["infer", *RADIXNET, "--seed", "-1"], "--seed: '-1' is not a whole number"),
        (["infer", *RADIXNET, "--memory", "1.5"], "--memory: '1.5' is not a whole number"),
        (["infer", *RADIXNET, "--timeout", "0"], "--timeout: '0' is not a number of seconds"),
        (["infer", *RADIXNET, "--bias", "-0.3"], "--bias is for a --model"),
        (["infer", *RADIXNET, "--clamp", "32"], "--clamp is for a --model"),
        (["infer", *RADIXNET, "--bias", "nan"], "--bias: 'nan' is not a finite number"),
        (["infer", *RADIXNET, "--clamp", "-1"], "--clamp: '-1' is not above 0"),
        (["infer", *RADIXNET, "--truth", "nowhere.tsv"], "--truth nowhere.tsv does not exist"),
        (["infer", *RADIXNET, "--output", "a.txt"], "--output a.txt: the name must end in .npz"),
        (["infer", *RADIXNET, "--output", "none/a.npz"], "--output none/a.npz: there is no dir"),
        (["infer", "--model", "radixnet:", "--inputs", "digits"], "is not radixnet:N or"),
        (["infer", "--model", "radixnet:64x0", "--inputs", "digits"], "is not radixnet:N or"),
        (["infer", "--model", "nowhere", "--inputs", "digits"], "--model nowhere does not exist"),
        (["infer", "--model", "radixnet:64", "--inputs", "x.tsv"], "--inputs x.tsv does not ex"),
        (["infer", "--model", "radixnet:64", "--inputs", "digits:0"], "is not digits:COUNT"),
        (["infer", "--model", "radixnet:64", "--inputs", "digits:9999"], "is not digits:COUNT"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(
    capsys: Output, arguments: list[str], said: str
) -> None:
    assert said in refused(capsys, arguments, status=2)


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "radixnet:65x4", "--inputs", "digits:9"], "the nearest is 64"),
        ([*RADIXNET, "--workers", "257"], "--workers 257: at most 256"),
        ([*RADIXNET, "--workers", "300", "--output", "late.npz"], "--workers 300: at most 256"),
    ],
)
def test_an_option_that_does_not_fit_the_model_is_usage_too(
    capsys: Output, arguments: list[str], said: str
) -> None:
    assert said in refused(capsys, ["infer", *arguments], status=2)


def test_an_unknown_backend_is_usage_too(capsys: Output) -> None:
    assert "atlantis" in refused(capsys, ["infer", *RADIXNET, "--backend", "atlantis"], status=2)


def test_memory_that_no_function_can_have_is_refused(capsys: Output) -> None:
    line = refused(capsys, ["infer", *RADIXNET, "--memory", "64"], status=2)
    assert "64 MB" in line


@pytest.mark.usefixtures("idle")
def test_a_bad_price_table_is_refused_before_anything_starts(
    capsys: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = tmp_path / "mine.json"
    table.write_text("{}", encoding="utf-8")
    monkeypatch.setenv("FSDRAY_PRICES", str(table))
    assert f'{table}: the file has no "region"' in refused(capsys, ["infer", *RADIXNET], status=2)


Spoil = Callable[[Path], list[str]]


def _line_without_value(folder: Path) -> list[str]:
    (folder / f"neuron{NEURONS}" / f"n{NEURONS}-l3.tsv").write_text(
        "1\t1\t0.0625\n2\t2\n", encoding="utf-8"
    )
    return [f"n{NEURONS}-l3.tsv, line 2"]


def _layer_missing(folder: Path) -> list[str]:
    (folder / f"neuron{NEURONS}" / f"n{NEURONS}-l2.tsv").unlink()
    return ["layer 2 is missing"]


def _samples_too_wide(folder: Path) -> list[str]:
    (folder / "samples.tsv").write_text(f"1\t{NEURONS + 1}\t1\n", encoding="utf-8")
    return ["samples.tsv, line 1", f"from 1 to {NEURONS}"]


def _categories_malformed(folder: Path) -> list[str]:
    (folder / "categories.tsv").write_text("3\nfour\n", encoding="utf-8")
    return ["categories.tsv, line 2", "four"]


def _categories_of_other_samples(folder: Path) -> list[str]:
    (folder / "categories.tsv").write_text("3\n61\n", encoding="utf-8")
    return ["names sample 61", "there are 60 samples"]


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    "spoil",
    [
        _line_without_value,
        _layer_missing,
        _samples_too_wide,
        _categories_malformed,
        _categories_of_other_samples,
    ],
)
def test_a_bad_file_is_one_line_and_status_1_before_anything_starts(
    capsys: Output, tmp_path: Path, spoil: Spoil
) -> None:
    save(radixnet(NEURONS, LAYERS), tmp_path)
    save_samples(digits(SAMPLES, NEURONS), tmp_path / "samples.tsv")
    (tmp_path / "categories.tsv").write_text("3\n", encoding="utf-8")
    words = spoil(tmp_path)
    arguments = [
        "--model", str(tmp_path), "--inputs", str(tmp_path / "samples.tsv"),
        "--bias", str(BIAS), "--truth", str(tmp_path / "categories.tsv"),
    ]  # fmt: skip
    line = refused(capsys, ["infer", *arguments], status=1)
    for word in words:
        assert word in line


@pytest.mark.usefixtures("idle")
def test_a_network_without_a_known_bias_asks_for_one(capsys: Output, files: Path) -> None:
    arguments = ["--model", str(files), "--inputs", str(files / "samples.tsv.gz")]
    assert "--bias" in refused(capsys, ["infer", *arguments], status=1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_directory_that_may_not_be_written_is_refused(
    capsys: Output, tmp_path: Path
) -> None:
    tmp_path.chmod(0o500)
    line = refused(capsys, ["infer", *RADIXNET, "--output", str(tmp_path / "a.npz")], status=2)
    assert "may not be written" in line


# -- how it fails ------------------------------------------------------------------------------


def test_other_categories_than_the_true_ones_are_status_1_and_named(
    capsys: Output, tmp_path: Path, files: Path
) -> None:
    true = [int(line) for line in (files / "categories.tsv").read_text("utf-8").splitlines()]
    dead = next(sample for sample in range(1, SAMPLES + 1) if sample not in true)
    wrong = tmp_path / "wrong.tsv"
    wrong.write_text("".join(f"{s}\n" for s in [dead, *true[1:]]), encoding="utf-8")
    arguments = [*from_files(files), "--truth", str(wrong), "--workers", "2", "--json"]
    assert main(["infer", *arguments]) == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["match"] is False
    assert (document["missing"], document["extra"]) == ([dead], [true[0]])
    assert captured.err.splitlines()[-1] == (
        "fsdray: error: the categories differ from --truth: "
        f"1 missing (sample {dead}), 1 extra (sample {true[0]})"
    )


def test_a_failed_rank_is_one_line_and_status_1(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsdray.inference
    from fsdray.errors import FunctionCrashed, RankFailed

    def run(*_: object, **__: object) -> None:
        raise RankFailed([1], FunctionCrashed("killed by signal 9", ["its last words"]))

    monkeypatch.setattr(fsdray.inference, "run", run)
    line = refused(capsys, ["infer", *RADIXNET, "--workers", "2"], status=1)
    assert "rank 1 failed: FunctionCrashed: killed by signal 9" in line
    assert line.endswith("(--debug shows more)")


def test_debug_shows_the_traceback_wherever_it_stands(capsys: Output) -> None:
    wrong = [*RADIXNET, "--bias", "1"]
    for arguments in (["--debug", "infer", *wrong], ["infer", *wrong, "--debug"]):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert "Traceback" in said
        assert said.splitlines()[-1].startswith("fsdray: error: --bias is for")


def test_an_error_of_our_own_making_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsdray.inference

    def run(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(fsdray.inference, "run", run)
    with pytest.raises(ZeroDivisionError):
        main(["infer", *RADIXNET])


def test_ctrl_c_is_status_130_and_ends_the_session(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsdray
    import fsdray.inference

    ended = []
    really_shut_down = fsdray.shutdown

    def run(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def shutdown() -> None:
        ended.append(True)
        really_shut_down()

    monkeypatch.setattr(fsdray.inference, "run", run)
    monkeypatch.setattr(fsdray, "shutdown", shutdown)
    assert main(["infer", *RADIXNET]) == 130
    assert ended == [True]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "fsdray: interrupted\n")


def test_a_full_disk_keeps_the_answer_and_leaves_no_part_of_a_file(
    capsys: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import scipy.sparse

    def save_npz(file: Any, _: object) -> None:
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scipy.sparse, "save_npz", save_npz)
    path = tmp_path / "last.npz"
    assert main(["infer", *RADIXNET, "--json", "--output", str(path)]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["samples"] == SAMPLES
    last = captured.err.splitlines()[-1]
    assert last == f"fsdray: error: {path}: No space left on device"
    assert list(tmp_path.iterdir()) == []


# -- as a process ------------------------------------------------------------------------------

CLI = [sys.executable, "-c", "import sys; from fsdray.cli import main; sys.exit(main())"]


def test_help_explains_every_option_with_an_example(capsys: Output) -> None:
    with pytest.raises(SystemExit) as left:
        main(["infer", "--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    options = set(re.findall(r"^  (--[a-z]+)", said, re.MULTILINE))
    assert options == {
        "--model", "--inputs", "--truth", "--bias", "--clamp", "--workers", "--strategy",
        "--channel", "--partition", "--seed", "--backend", "--memory", "--timeout",
        "--branching", "--retries", "--verify", "--output", "--json", "--debug",
    }  # fmt: skip
    for unit in ("in MB", "in seconds", "1-based", "examples:", "exit status:"):
        assert unit in said
    assert all(len(line) <= 100 for line in said.splitlines())


def test_only_commands_that_exist_are_in_the_help(capsys: Output) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert "infer" in said
    assert not re.search(r"\b(plan|report)\b", said)


def test_version_is_the_packages(capsys: Output) -> None:
    from fsdray._version import __version__

    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"fsdray {__version__}\n"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from fsdray.cli import main\n"
        "try: main(['infer', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'scipy', 'numba', 'tqdm', 'boto3'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_in_a_pipe_stderr_of_a_good_run_is_empty() -> None:
    arguments = ["infer", *RADIXNET, "--workers", "2", "--partition", "block"]
    done = subprocess.run([*CLI, *arguments], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"of {SAMPLES} samples" in done.stdout


def test_an_answer_that_cannot_be_written_is_an_error() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [*CLI, "infer", *RADIXNET], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert done.returncode == 1
    assert done.stderr == "fsdray: error: No space left on device\n"


def test_on_a_terminal_a_bar_shows_and_ctrl_c_clears_it() -> None:
    parent, child = pty.openpty()
    arguments = ["infer", "--model", "radixnet:1024", "--inputs", "digits", "--workers", "4"]
    process = subprocess.Popen([*CLI, *arguments], stdout=subprocess.DEVNULL, stderr=child)
    os.close(child)
    try:
        said = _read_terminal(parent, until=b"partition")
        assert b"partition" in said, said
        process.send_signal(signal.SIGINT)
        said += _read_terminal(parent)
        assert process.wait(timeout=30) == 130, said
    finally:
        process.kill()
        process.wait()
        os.close(parent)
    assert said.decode().endswith("\rfsdray: interrupted\r\n")


def _read_terminal(terminal: int, until: bytes | None = None) -> bytes:
    """Read until `until`, or until every process that holds the other side has ended."""
    said = b""
    while until is None or until not in said:
        assert select.select([terminal], [], [], 60)[0], said
        try:
            said += os.read(terminal, 4096)
        except OSError:  # how Linux reports that the other side is closed
            break
    return said


def test_samples_written_by_the_tests_read_back(files: Path) -> None:
    again = load_samples(files / "samples.tsv.gz", NEURONS, count=SAMPLES)
    assert (again.toarray() == digits(SAMPLES, NEURONS).toarray()).all()
