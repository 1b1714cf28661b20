"""The Graph Challenge's files: read, written, and refused with the line that is wrong."""

from __future__ import annotations

import gzip
import io
import math
import re
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from fsdray.errors import SettingsError
from fsdray.inference.formats import load, load_categories, load_samples, save, save_samples
from fsdray.inference.model import Layer, Model
from fsdray.inference.radixnet import radixnet

GOOD = "1\t2\t0.5\n3\t1\t-6.25e-02\n"


def folder(path: Path, *layers: str, neurons: int = 3) -> Path:
    for number, text in enumerate(layers, start=1):
        (path / f"n{neurons}-l{number}.tsv").write_text(text)
    return path


def archive(path: Path, members: dict[str, bytes]) -> Path:
    mode = {"xz": "w:xz", "gz": "w:gz", "tar": "w"}[path.suffix[1:]]
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_rows_are_inputs_and_columns_outputs(tmp_path: Path) -> None:
    model = load(folder(tmp_path, GOOD), bias=-0.1)
    expected = np.zeros((3, 3), np.float32)
    expected[1, 0], expected[0, 2] = 0.5, -0.0625
    np.testing.assert_array_equal(model.layers[0].weights.toarray(), expected)
    layer = model.layers[0]
    assert (layer.bias, layer.bias_on, layer.relu, layer.clamp) == (-0.1, "nonzero", True, 32)


@pytest.mark.parametrize("clamp", [5.0, math.inf])
def test_clamp_can_be_another_or_none(tmp_path: Path, clamp: float) -> None:
    model = load(folder(tmp_path, GOOD), bias=0, clamp=clamp)
    assert model.layers[0].clamp == (None if clamp == math.inf else clamp)


def test_a_network_is_found_in_folders_and_archives_of_every_kind(tmp_path: Path) -> None:
    model = radixnet(64, layers=3)
    saved = save(model, tmp_path / "plain")
    files = {f"neuron64/{file.name}": file.read_bytes() for file in saved.iterdir()}
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    for name, content in files.items():
        (zipped / f"{Path(name).name}.gz").write_bytes(gzip.compress(content))
    (tmp_path / "holder").mkdir()
    places = [saved, saved.parent, zipped, tmp_path / "holder"]
    places += [archive(tmp_path / f"net.{kind}", files) for kind in ("tar.xz", "tar.gz", "tar")]
    archive(tmp_path / "holder" / "neuron64.tar.xz", files)
    for place in places:
        assert load(place, bias=-0.3).digest() == model.digest()


def test_windows_line_ends_and_a_missing_last_one_are_accepted(tmp_path: Path) -> None:
    plain = load(folder(tmp_path, GOOD), bias=0).digest()
    (tmp_path / "n3-l1.tsv").write_bytes(GOOD.rstrip().replace("\n", "\r\n").encode())
    assert load(tmp_path, bias=0).digest() == plain


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False).filter(bool), min_size=1)
)
def test_values_are_read_back_to_the_bit(values: list[float]) -> None:
    size = len(values)
    weights = csr_array((np.array(values, np.float32), (range(size), range(size))))
    model = Model((Layer(weights, bias=-0.3),), name="m")
    with tempfile.TemporaryDirectory() as directory:
        assert load(save(model, directory), bias=-0.3).digest() == model.digest()
        for name in ("samples.tsv", "samples.tsv.gz"):
            save_samples(weights, Path(directory, name))
            read = load_samples(Path(directory, name), size)
            np.testing.assert_array_equal(read.toarray(), weights.toarray())


MALFORMED = [
    ("1\t1", "three fields"),
    ("1\t1\t1\t1", "three fields"),
    ("1 1 1", "three fields"),
    ("", "three fields"),
    ("1\t1\t", "not a finite number"),
    ("\t1\t1", "not a whole number"),
    ("1\t\t1-1", "not a whole number"),
    ("1\t1\tx", "not a finite number"),
    ("1\t1\t1_0", "not a finite number"),
    ("1\t1\t1-1", "not a finite number"),
    ("1\t1\tnan", "not a finite number"),
    ("1\t1\tinf", "not a finite number"),
    ("1\t1\t1e39", "not a finite number"),
    ("1.5\t1\t1", "not a whole number"),
    ("1\t-1\t1", "not a whole number"),
    ("0\t1\t1", "out of range: they go from 1 to 3"),
    ("4\t1\t1", "out of range: they go from 1 to 3"),
    ("1\t4\t1", "out of range: they go from 1 to 3"),
    ("9999999999999999999\t1\t1", "not a whole number"),
    ("é\t1\t1", "not a whole number"),
]


@pytest.mark.parametrize(("line", "complaint"), MALFORMED)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    folder(tmp_path, GOOD, f"2\t2\t1\n{line}\n3\t3\t1\n")
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, bias=0)
    message = str(caught.value)
    assert "n3-l2.tsv, line 2:" in message
    assert complaint in message
    assert any(repr(text) in message for text in [line, *line.split("\t")])


def test_lines_that_only_add_up_to_threes_are_malformed(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"n3-l1\.tsv, line 1: '1\\t1'"):
        load(folder(tmp_path, "1\t1\n1\t2\t2\t1\n"), bias=0)


def read_slowly(text: str) -> dict[tuple[int, int], float] | None:
    """Return the entries of three pixels' samples line by line, or None where one is wrong."""
    entries: dict[tuple[int, int], float] = {}
    for line in text.replace("\r\n", "\n").rstrip("\n").split("\n"):
        fields = re.fullmatch(r"([0-9]+)\t([0-9]+)\t([-+.e0-9]+)", line)
        if fields is None:
            return None
        key = int(fields[1]), int(fields[2])
        try:
            value = float(fields[3])
        except ValueError:
            return None
        if key in entries or not (1 <= key[0] <= 10**4 and 1 <= key[1] <= 3 and abs(value) < 3e38):
            return None
        entries[key] = value
    return entries


TABLES = st.text("123\t\n.-e+ x\r", max_size=40) | st.lists(
    st.lists(st.text("123.-e+", max_size=3), min_size=3, max_size=3).map("\t".join), max_size=3
).map("\n".join)


@given(TABLES)
def test_any_text_is_read_as_its_lines_say_or_refused(text: str) -> None:
    expected = read_slowly(text)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "s.tsv")
        path.write_bytes(text.encode())
        if expected is None:
            with pytest.raises(SettingsError, match=r"s\.tsv"):
                load_samples(path, 3, count=10**4)
        else:
            found = load_samples(path, 3, count=10**4)
            for (sample, pixel), number in expected.items():
                assert found[sample - 1, pixel - 1] == np.float32(number)


def test_a_repeated_entry_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"n3-l1\.tsv, line 3 repeats"):
        load(folder(tmp_path, GOOD + "1\t2\t1\n"), bias=0)


def test_a_missing_layer_is_named(tmp_path: Path) -> None:
    folder(tmp_path, GOOD, GOOD, GOOD)
    (tmp_path / "n3-l2.tsv").unlink()
    with pytest.raises(SettingsError, match=r"layer 2 is missing.*n3-l2\.tsv.*is 3"):
        load(tmp_path, bias=0)


def test_a_bias_that_the_challenge_does_not_name_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no bias for 3 neurons.*--bias"):
        load(folder(tmp_path, GOOD))
    (tmp_path / "other").mkdir()
    folder(tmp_path / "other", "1\t1\t1\n", neurons=4096)
    assert load(tmp_path / "other").layers[0].bias == -0.35


def test_two_networks_in_one_place_are_refused(tmp_path: Path) -> None:
    folder(folder(tmp_path, GOOD), "1\t1\t1\n", neurons=4)
    with pytest.raises(SettingsError, match="3 and of 4 neurons"):
        load(tmp_path, bias=0)


def test_one_layer_twice_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, GOOD)
    (tmp_path / "n3-l1.tsv.gz").write_bytes(gzip.compress(GOOD.encode()))
    with pytest.raises(SettingsError, match="layer 1 twice"):
        load(tmp_path, bias=0)


def test_what_is_missing_empty_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        load(tmp_path / "nothing")
    with pytest.raises(SettingsError, match="no layer in"):
        load(tmp_path)
    with pytest.raises(SettingsError, match=r"n3-l1\.tsv is empty"):
        load(folder(tmp_path, ""), bias=0)
    (tmp_path / "net.zip").write_text("x")
    with pytest.raises(SettingsError, match=r"net\.zip is of no known kind: use \.tsv"):
        load(tmp_path / "net.zip")
    with pytest.raises(SettingsError, match="no known kind"):
        load_samples(tmp_path, 3)


@pytest.mark.parametrize("kind", ["tar.xz", "tar.gz", "tar"])
def test_damaged_archives_are_refused(tmp_path: Path, kind: str) -> None:
    path = archive(tmp_path / f"net.{kind}", {"n3-l1.tsv": GOOD.encode() * 2000})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(SettingsError, match=rf"net\.{kind} cannot be read"):
        load(path, bias=0)
    path.write_bytes(b"not an archive")
    with pytest.raises(SettingsError, match=rf"net\.{kind} cannot be read"):
        load(path, bias=0)


@pytest.mark.parametrize(
    "damage", [b"no gzip", gzip.compress(GOOD.encode() * 99)[:-9]], ids=["other", "cut short"]
)
def test_damaged_gzip_is_refused(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "s.tsv.gz").write_bytes(damage)
    with pytest.raises(SettingsError, match=r"s\.tsv\.gz cannot be read"):
        load_samples(tmp_path / "s.tsv.gz", 3)


def test_samples_are_as_many_as_the_largest_number_or_the_count_says(tmp_path: Path) -> None:
    path = tmp_path / "s.tsv"
    path.write_text("2\t1\t1\n2\t3\t1\n")
    assert load_samples(path, 3).toarray().tolist() == [[0, 0, 0], [1, 0, 1]]
    assert load_samples(path, 4, count=5).shape == (5, 4)
    with pytest.raises(SettingsError, match="2 samples, more than count=1"):
        load_samples(path, 3, count=1)
    with pytest.raises(SettingsError, match=r"line 2: pixel '3' is out of range: .* 1 to 2"):
        load_samples(path, 2)


def test_samples_come_from_an_archive_of_one_file(tmp_path: Path) -> None:
    assert load_samples(archive(tmp_path / "a.tar.xz", {"s.tsv": GOOD.encode()}), 3).nnz == 2
    two = archive(tmp_path / "b.tar.xz", {"s.tsv": GOOD.encode(), "t.tsv": GOOD.encode()})
    with pytest.raises(SettingsError, match=r"holds 2 \.tsv files"):
        load_samples(two, 3)


def test_categories_are_one_number_a_line(tmp_path: Path) -> None:
    path = tmp_path / "categories.tsv"
    path.write_text("3\n17\n")
    assert load_categories(path).tolist() == [3, 17]
    path.write_text("")
    assert load_categories(path).shape == (0,)
    path.write_text("3\n0\n")
    with pytest.raises(SettingsError, match=r"categories\.tsv, line 2: '0'"):
        load_categories(path)


def test_networks_of_several_sizes_are_not_written(tmp_path: Path) -> None:
    model = Model((Layer(np.ones((2, 3)), bias=0),), name="odd")
    with pytest.raises(SettingsError, match="one size only"):
        save(model, tmp_path)
    with pytest.raises(SettingsError, match=r"\.tsv or \.tsv\.gz"):
        save_samples(csr_array(np.eye(2)), tmp_path / "s.npz")


def test_the_challenges_own_files_are_read(challenge_1024: Path) -> None:
    model = load(challenge_1024)
    assert (model.inputs, model.depth, model.edges) == (1024, 120, 3_932_160)
    assert (model.layers[0].bias, model.layers[0].clamp) == (-0.30, 32)
    samples = load_samples(challenge_1024 / "sparse-images-1024-first2000.tsv.gz", 1024)
    assert samples.shape == (2000, 1024)
    assert samples.nnz == 211_986
    truth = load_categories(challenge_1024 / "neuron1024-l120-categories-first2000.tsv")
    active = samples.T.toarray().astype(np.float64)
    alive = np.arange(1, 2001)
    for layer in model.layers:
        sums = layer.weights.astype(np.float64) @ active
        active = np.where(sums != 0, sums + layer.bias, 0).clip(0, 32)
        living = active.any(axis=0)
        alive, active = alive[living], active[:, living]
    np.testing.assert_array_equal(alive, truth)
