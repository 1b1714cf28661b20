"""Settings: which source wins, and what is refused with which words."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from fsdray.errors import FsdrayError, SettingsError
from fsdray.services import MIB
from fsdray.settings import CHANNELS, Settings, check_channel, resolve


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, so that no config file of another is found."""
    monkeypatch.chdir(tmp_path)


def config(text: str, name: str = "fsdray.toml") -> str:
    Path(name).write_text(text)
    return str(Path(name).absolute())


def test_nothing_given_means_the_defaults() -> None:
    assert resolve({}, {}) == Settings()


def test_none_means_not_given() -> None:
    assert resolve({"memory": None, "channel": None}, {}) == Settings()


def test_an_argument_wins_over_the_environment_and_that_over_the_file() -> None:
    named = config("memory = 100\ntimeout = 100\nbranching = 100\n")
    environment = {"FSDRAY_CONFIG": named, "FSDRAY_MEMORY": "200", "FSDRAY_TIMEOUT": "200"}
    settings = resolve({"memory": 300}, environment)
    assert (settings.memory, settings.timeout, settings.branching) == (300, 200, 100)


def test_the_working_directory_s_file_is_read_where_none_is_named() -> None:
    config("memory = 512\n")
    assert resolve({}, {}).memory == 512


def test_the_named_file_is_read_instead_of_the_working_directory_s() -> None:
    config("memory = 512\n")
    named = config("branching = 7\n", "other.toml")
    settings = resolve({}, {"FSDRAY_CONFIG": named})
    assert (settings.memory, settings.branching) == (Settings().memory, 7)


def test_the_process_s_own_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSDRAY_BRANCHING", "9")
    assert resolve({}).branching == 9


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("backend", "other", "other"),
        ("concurrency", "12", 12),
        ("memory", "2048", 2048),
        ("timeout", "1.5", 1.5),
        ("channel", "object", "object"),
        ("branching", "2", 2),
        ("inline_limit", "1000", 1000),
        ("directory", "somewhere", "somewhere"),
        ("log_to_caller", "false", False),
        ("log_to_caller", "TRUE", True),
        ("log_to_caller", "0", False),
        ("log_to_caller", "1", True),
        ("grace", "2", 2.0),
        ("prices", "table.json", "table.json"),
    ],
)
def test_each_setting_is_read_from_the_environment_as_its_type(
    name: str, text: str, value: object
) -> None:
    got = getattr(resolve({}, {f"FSDRAY_{name.upper()}": text}), name)
    assert got == value
    assert type(got) is type(value)


_CHOICES = {"channel": "object", "prefer": "fastest", "storage": "express"}


def test_every_setting_can_come_from_the_environment() -> None:
    texts = {field.name: _CHOICES.get(field.name, "1") for field in dataclasses.fields(Settings)}
    settings = resolve({}, {f"FSDRAY_{name.upper()}": text for name, text in texts.items()})
    assert {name: str(getattr(settings, name)) for name in texts} == {
        **texts,
        "timeout": "1.0",
        "grace": "1.0",
        "log_to_caller": "True",
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [("memory", "much"), ("memory", "1.5"), ("timeout", "long"), ("log_to_caller", "perhaps")],
)
def test_a_bad_text_in_the_environment_is_named_with_its_variable(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=f"FSDRAY_{name.upper()}='{text}'"):
        resolve({}, {f"FSDRAY_{name.upper()}": text})


@pytest.mark.parametrize("name", ["concurrency", "memory", "branching", "inline_limit"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "12", [1]])
def test_what_is_counted_must_be_a_whole_number_from_1(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings(**{name: value})


@pytest.mark.parametrize("name", ["timeout", "grace"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "60"])
def test_seconds_must_be_a_number_above_0(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings(**{name: value})


@pytest.mark.parametrize("name", ["backend", "directory", "prices"])
@pytest.mark.parametrize("value", [7, b"bytes", ["list"]])
def test_a_name_must_be_text(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings(**{name: value})


@pytest.mark.parametrize("value", ["yes", 2, []])
def test_a_switch_must_be_true_or_false(value: Any) -> None:
    with pytest.raises(SettingsError, match="log_to_caller"):
        Settings(log_to_caller=value)


def test_a_directory_may_be_a_path(tmp_path: Path) -> None:
    directory = resolve({"directory": tmp_path}, {}).directory
    assert directory is not None
    assert Path(directory) == tmp_path


def test_an_inline_limit_that_no_payload_holds_is_refused() -> None:
    assert Settings(inline_limit=4 * MIB).inline_limit == 4 * MIB
    with pytest.raises(SettingsError, match=r"inline_limit.*at most"):
        Settings(inline_limit=4 * MIB + 1)


def test_an_unknown_argument_is_named_with_those_that_exist() -> None:
    with pytest.raises(SettingsError, match=r"unknown setting 'memmory'.*memory"):
        resolve({"memmory": 1}, {})


def test_an_unknown_name_in_the_file_is_named_with_the_file() -> None:
    named = config("memmory = 1\n")
    with pytest.raises(SettingsError, match=r"fsdray\.toml: unknown setting 'memmory'"):
        resolve({}, {"FSDRAY_CONFIG": named})


def test_a_file_that_is_no_toml_is_named() -> None:
    named = config("memory = = 1\n")
    with pytest.raises(SettingsError, match=r"cannot read the config file .*fsdray\.toml"):
        resolve({}, {"FSDRAY_CONFIG": named})


def test_a_file_that_is_not_utf_8_is_named() -> None:
    Path("fsdray.toml").write_bytes(b'directory = "\xff"\n')
    with pytest.raises(SettingsError, match=r"cannot read the config file .*fsdray\.toml"):
        resolve({}, {})


def test_a_named_file_that_is_missing_is_an_error() -> None:
    with pytest.raises(SettingsError, match=r"cannot read the config file missing\.toml"):
        resolve({}, {"FSDRAY_CONFIG": "missing.toml"})


def test_a_bad_value_in_the_file_is_refused() -> None:
    config('memory = "much"\n')
    with pytest.raises(SettingsError, match="memory='much'"):
        resolve({}, {})


@pytest.mark.parametrize("channel", CHANNELS)
def test_each_channel_is_accepted(channel: str) -> None:
    check_channel(channel)
    assert Settings(channel=channel).channel == channel


@pytest.mark.parametrize("prefer", ["best", "", None, 1])
def test_an_unknown_preference_is_refused_with_those_that_exist(prefer: Any) -> None:
    assert Settings(prefer="fastest").prefer == "fastest"
    with pytest.raises(SettingsError, match="cheapest, fastest"):
        Settings(prefer=prefer)


@pytest.mark.parametrize("channel", ["pigeon", "", "Queue", None, 1])
def test_an_unknown_channel_is_refused_with_those_that_exist(channel: Any) -> None:
    with pytest.raises(SettingsError, match="choose one of queue, object"):
        Settings(channel=channel)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().memory = 1  # type: ignore[misc]


def test_a_settings_error_is_both_ours_and_a_value_error() -> None:
    assert issubclass(SettingsError, FsdrayError)
    assert issubclass(SettingsError, ValueError)
