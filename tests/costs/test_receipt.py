from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdray.costs.prices import load_prices
from fsdray.costs.receipt import Receipt, dollars, number
from fsdray.errors import SettingsError

NAMES = (
    "invoke", "gb_seconds", "publish", "publish_units", "publish_bytes", "receive",
    "receive_units", "acknowledge", "put", "put_bytes", "get", "get_bytes", "miss", "list",
    "delete",
)  # fmt: skip
PRICES = load_prices()
COUNTS = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 10**9))


def test_a_receipt_prices_every_billed_request_once() -> None:
    counts = {
        "invoke": 9,
        "gb_seconds": 100.0,
        "publish": 500,
        "publish_units": 960,
        "receive": 2000,
        "receive_units": 2100,
        "acknowledge": 300,
        "put": 10,
        "get": 20,
        "miss": 30,
        "list": 1,
        "delete": 40,
    }
    expected = (
        9 * 0.2e-6 + 100 * 0.0000166667 + 960 * 0.5e-6 + (2100 + 300) * 0.4e-6
        + (10 + 1) * 5e-6 + (20 + 30) * 0.4e-6
    )  # fmt: skip
    assert Receipt(counts, PRICES).cost_usd == pytest.approx(expected, rel=1e-12)


def test_the_transfer_of_the_papers_run_comes_to_what_the_paper_paid_for_it() -> None:
    # FSD-Inference at N = 65536, P = 20 over queues: 12.3 GB at $0.09 make up most of $1.2172.
    receipt = Receipt({"publish_bytes": 12.3e9}, PRICES)
    assert receipt.cost_usd == 0
    assert receipt.cost_with_transfer_usd == pytest.approx(1.03, abs=0.01)


@given(COUNTS, COUNTS)
def test_adding_receipts_adds_every_count_and_the_cost(
    one: dict[str, float], other: dict[str, float]
) -> None:
    total = Receipt(one, PRICES) + Receipt(other, PRICES)
    for name in NAMES:
        assert total.requests.get(name, 0) == one.get(name, 0) + other.get(name, 0)
    separate = Receipt(one, PRICES).cost_usd + Receipt(other, PRICES).cost_usd
    assert total.cost_usd == pytest.approx(separate, rel=1e-12)


@given(COUNTS)
def test_the_lines_add_up_to_the_cost(counts: dict[str, float]) -> None:
    receipt = Receipt(counts, PRICES)
    assert sum(line.cost_usd for line in receipt.lines) == pytest.approx(receipt.cost_usd)
    assert {line.name for line in receipt.lines} == set(counts)
    assert receipt.cost_with_transfer_usd >= receipt.cost_usd


def test_receipts_of_a_gang_can_be_summed() -> None:
    ranks = [Receipt({"put": rank}, PRICES) for rank in range(5)]
    assert sum(ranks[1:], start=ranks[0]).requests == {"put": 10}


def test_receipts_of_two_price_tables_do_not_add_up() -> None:
    with pytest.raises(SettingsError, match="two price tables"):
        Receipt({}, PRICES) + Receipt({}, load_prices(architecture="arm64"))


def test_a_receipt_names_its_requests_in_one_line() -> None:
    counts = {"publish": 960, "invoke": 8, "publish_units": 960, "miss": 1, "gb_seconds": 12.345}
    said = "$0.00069: 8 invocations, 12.3 GB-seconds, 960 publishes, 1 miss"
    assert str(Receipt(counts, PRICES)) == said


def test_a_receipt_of_nothing_says_so() -> None:
    assert str(Receipt({}, PRICES)) == "$0: nothing was asked for"


def test_the_disputed_transfer_is_said_only_where_it_matters() -> None:
    counts = {"publish": 1000, "publish_units": 1000}
    little, much = counts | {"publish_bytes": 1000}, counts | {"publish_bytes": 64_000_000}
    assert "transfer" not in str(Receipt(little, PRICES))
    assert "transfer" not in Receipt(little, PRICES).table()
    assert str(Receipt(much, PRICES)).startswith(
        "$0.00050 ($0.0059 if SNS to SQS transfer is billed): "
    )
    assert "if SNS to SQS transfer is billed" in Receipt(much, PRICES).table()


def test_the_table_has_a_line_a_count_under_its_service() -> None:
    table = Receipt({"invoke": 8, "gb_seconds": 2.5, "put": 1200, "delete": 3}, PRICES).table()
    rows = [" ".join(line.split()) for line in table.splitlines()]
    assert rows == [
        "service request quantity $ a million cost",
        "Lambda invocations 8 0.2 $0.0000016",
        "GB-seconds 2.5 16.6667 $0.000042",
        "S3 puts 1,200 5 $0.0060",
        "deletes 3 free",
        "total $0.0060",
        "prices us-east-1, 2026-11",
    ]


def test_a_count_without_a_price_is_shown_as_free() -> None:
    receipt = Receipt({"teleport": 2}, PRICES)
    assert receipt.cost_usd == 0
    assert "teleport" in receipt.table()


def test_the_json_form_is_plain_and_complete() -> None:
    receipt = Receipt({"put": 2, "publish_bytes": 2**30}, PRICES)
    document = json.loads(json.dumps(receipt.to_json(), allow_nan=False))
    assert document["requests"] == {"put": 2, "publish_bytes": 2**30}
    assert document["cost_usd"] == pytest.approx(1e-5)
    assert document["cost_with_transfer_usd"] == pytest.approx(0.09001)
    assert document["lines"][1]["unit_usd"] == pytest.approx(5e-6)
    assert document["prices"]["date"] == "2026-11"


def test_a_receipt_travels_by_pickle() -> None:
    receipt = Receipt({"put": 2}, PRICES)
    assert pickle.loads(pickle.dumps(receipt)) == receipt


@pytest.mark.parametrize("count", [-1, float("nan"), float("inf")])
def test_a_count_that_is_no_count_is_refused(count: float) -> None:
    with pytest.raises(SettingsError, match="the count of put"):
        Receipt({"put": count}, PRICES)


@given(st.floats(1e-12, 1e6))
def test_money_in_words_is_right_to_two_digits(amount: float) -> None:
    assert float(dollars(amount).strip("$").replace(",", "")) == pytest.approx(amount, rel=0.051)


@pytest.mark.parametrize(
    ("amount", "said"),
    [(0, "$0"), (0.00413, "$0.0041"), (0.5, "$0.50"), (12.345, "$12.35"), (1234.5, "$1,234.50")],
)
def test_money_is_written_as_people_do(amount: float, said: str) -> None:
    assert dollars(amount) == said


@pytest.mark.parametrize(
    ("quantity", "said"),
    [(0, "0"), (8.0, "8"), (1234567, "1,234,567"), (0.01234, "0.0123"), (1234.5, "1,234")],
)
def test_counts_are_written_as_people_do(quantity: float, said: str) -> None:
    assert number(quantity) == said


def test_no_cost_of_a_table_of_zeros_is_a_cost(tmp_path: Path) -> None:
    items = {name: {"usd": 0} for name in PRICES.items}
    table = {"region": "home", "date": "2026-11", "source": "nobody", "items": items}
    path = tmp_path / "free.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    receipt = Receipt(dict.fromkeys(NAMES, 1000), load_prices(path))
    assert receipt.cost_usd == receipt.cost_with_transfer_usd == 0
