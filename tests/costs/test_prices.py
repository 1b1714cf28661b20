from __future__ import annotations

import dataclasses
import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from fsdray.costs.prices import Price, load_prices, prices_of
from fsdray.errors import SettingsError
from fsdray.settings import Settings


def packaged() -> dict[str, Any]:
    """The packaged table, as JSON, to be changed by a test."""
    files = resources.files("fsdray.costs")
    table: dict[str, Any] = json.loads(files.joinpath("us-east-1-2026-11.json").read_text("utf-8"))
    return table


def write(path: Path, table: object) -> Path:
    path.write_text(json.dumps(table), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "usd", "per"),
    [
        ("invoke", 0.20, 1e6),
        ("gb_seconds", 0.0000166667, 1),
        ("publish_units", 0.50, 1e6),
        ("receive_units", 0.40, 1e6),
        ("acknowledge", 0.40, 1e6),
        ("put", 5.0, 1e6),
        ("list", 5.0, 1e6),
        ("get", 0.40, 1e6),
        ("miss", 0.40, 1e6),
    ],
)
def test_each_billed_request_has_the_price_of_the_price_page(
    name: str, usd: float, per: float
) -> None:
    assert load_prices().of(name) == pytest.approx(usd / per, rel=1e-12)


@pytest.mark.parametrize(
    "name",
    ["publish", "publish_bytes", "receive", "put_bytes", "get_bytes", "delete", "something_else"],
)
def test_what_is_not_billed_is_free(name: str) -> None:
    assert load_prices().of(name) == 0


def test_express_storage_has_cheaper_requests_and_bills_bytes() -> None:
    prices = load_prices(storage="express")
    assert prices.of("put") == prices.of("list") == pytest.approx(1.13e-6)
    assert prices.of("get") == prices.of("miss") == pytest.approx(0.03e-6)
    assert prices.of("put_bytes") * 2**30 == pytest.approx(0.0032)
    assert prices.of("get_bytes") * 2**30 == pytest.approx(0.0006)


def test_express_storage_reproduces_the_worked_example_of_the_s3_faq() -> None:
    # S3 FAQ, S3 Express One Zone, example 1: 1,000,000 writes and 9,000,000 reads of 10 KB.
    prices = load_prices(storage="express")
    writes, reads, size = 1_000_000, 9_000_000, 10 * 1024
    assert round(writes * prices.of("put"), 2) == 1.13
    assert round(reads * prices.of("get"), 2) == 0.27
    assert round(writes * size * prices.of("put_bytes"), 2) == 0.03
    assert round(reads * size * prices.of("get_bytes"), 2) == 0.05


def test_arm_functions_are_cheaper_by_the_second_only() -> None:
    x86, arm = load_prices(), load_prices(architecture="arm64")
    assert arm.of("gb_seconds") == pytest.approx(0.0000133334)
    assert arm.of("invoke") == x86.of("invoke")


def test_the_disputed_transfer_price_is_free_unless_the_table_says_otherwise(
    tmp_path: Path,
) -> None:
    assert load_prices().disputed * 2**30 == pytest.approx(0.09)
    table = packaged()
    table["items"]["sns_to_sqs_byte"]["usd"] = 0.09
    prices = load_prices(write(tmp_path / "mine.json", table))
    assert prices.of("publish_bytes") * 2**30 == pytest.approx(0.09)
    assert prices.disputed == 0


def test_every_item_of_the_packaged_table_says_what_it_is() -> None:
    prices = load_prices()
    assert (prices.region, prices.date) == ("us-east-1", "2026-11")
    assert prices.source
    assert all(price.note for price in prices.items.values())


def test_a_table_of_ones_own_replaces_the_packaged_one(tmp_path: Path) -> None:
    table = packaged()
    table["region"] = "eu-west-1"
    table["items"]["lambda_request"] = {"usd": 3}
    prices = load_prices(str(write(tmp_path / "mine.json", table)))
    assert prices.region == "eu-west-1"
    assert prices.of("invoke") == 3


def test_prices_cannot_be_changed_from_outside() -> None:
    items = dict(load_prices().items)
    prices = dataclasses.replace(load_prices(), items=items)
    items["lambda_request"] = Price(1000.0)
    assert prices.of("invoke") == pytest.approx(2e-7)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"region": ""}, "\"region\" is ''"),
        ({"region": 3}, '"region" is 3'),
        ({"date": "last year"}, "YYYY-MM"),
        ({"date": "2026-13"}, "YYYY-MM"),
        ({"items": []}, '"items" must be a JSON object'),
        ({"items": {}}, "no price for lambda_gb_second_arm, lambda_gb_second_x86"),
    ],
)
def test_a_wrong_field_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    path = write(tmp_path / "mine.json", packaged() | change)
    with pytest.raises(SettingsError) as caught:
        load_prices(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["region", "date", "source", "items"])
def test_a_missing_field_is_refused_by_name(tmp_path: Path, name: str) -> None:
    table = packaged()
    del table[name]
    with pytest.raises(SettingsError, match=f'has no "{name}"'):
        load_prices(write(tmp_path / "mine.json", table))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (3, '"sqs_unit" must be a JSON object'),
        ({"per": 1}, 'has no "usd"'),
        ({"usd": "0.4"}, "give a number"),
        ({"usd": True}, "give a number"),
        ({"usd": -1}, "0 or more"),
        ({"usd": float("nan")}, "0 or more"),
        ({"usd": 1, "per": 0}, "above 0"),
        ({"usd": 1, "pre": 10}, 'unknown field "pre"'),
    ],
)
def test_a_wrong_price_is_refused_by_name(tmp_path: Path, entry: object, said: str) -> None:
    table = packaged()
    table["items"]["sqs_unit"] = entry
    with pytest.raises(SettingsError, match="sqs_unit") as caught:
        load_prices(write(tmp_path / "mine.json", table))
    assert said in str(caught.value)


def test_an_unknown_item_is_refused_since_it_may_be_a_slip(tmp_path: Path) -> None:
    table = packaged()
    table["items"]["sqs_units"] = {"usd": 1}
    with pytest.raises(SettingsError, match="unknown item sqs_units"):
        load_prices(write(tmp_path / "mine.json", table))


def test_a_file_that_is_not_json_is_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{\n  "region": us-east-1\n}', encoding="utf-8")
    with pytest.raises(SettingsError, match="line 2"):
        load_prices(path)


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.json cannot be read"):
        load_prices(tmp_path / "nowhere.json")
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"binary\.json cannot be read"):
        load_prices(binary)


def test_an_unknown_architecture_or_storage_is_refused() -> None:
    with pytest.raises(SettingsError, match='"x86_64" or "arm64"'):
        load_prices(architecture="riscv")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match='"standard" or "express"'):
        load_prices(storage="glacier")  # type: ignore[arg-type]


def test_a_session_s_receipts_are_priced_for_where_its_functions_run() -> None:
    settings = Settings(storage="express")
    assert prices_of(settings, "x86_64") == load_prices(storage="express")
    assert prices_of(settings, "arm64") == load_prices(architecture="arm64", storage="express")
