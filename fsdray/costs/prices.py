"""The dated price table: what one counted request costs, in dollars.

A table is a JSON file that users can replace (the setting ``prices``); here it is read, validated
and looked up by the meter's names. What was counted lives in `meter`, adding it up in `receipt`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fsdray.errors import SettingsError
from fsdray.settings import Settings

Architecture: TypeAlias = Literal["x86_64", "arm64"]
Storage: TypeAlias = Literal["standard", "express"]
_OF_ARCHITECTURE = {"x86_64": "lambda_gb_second_x86", "arm64": "lambda_gb_second_arm"}

_DEFAULT = "us-east-1-2026-11.json"
_FIELDS = ("region", "date", "source", "items")
_ITEMS = frozenset(
    {
        "lambda_request",
        "lambda_gb_second_x86",
        "lambda_gb_second_arm",
        "sns_unit",
        "sns_to_sqs_byte",
        "sns_to_sqs_byte_disputed",
        "sqs_unit",
        "s3_standard_put",
        "s3_standard_get",
        "s3_express_put",
        "s3_express_get",
        "s3_express_byte_up",
        "s3_express_byte_down",
    }
)


@dataclass(frozen=True)
class Price:
    """`usd` dollars for every `per` of something, as the price pages say it."""

    usd: float
    per: float = 1.0
    note: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.usd) and self.usd >= 0):
            raise SettingsError(f'"usd" is {self.usd}: give dollars, 0 or more')
        if not (math.isfinite(self.per) and self.per > 0):
            raise SettingsError(f'"per" is {self.per}: give how many that buys, above 0')

    @property
    def each(self) -> float:
        """Dollars for one."""
        return self.usd / self.per


@dataclass(frozen=True)
class Prices:
    """One region's prices on one date, and which of them apply.

    Parameters
    ----------
    region, date, source
        Where and when (``YYYY-MM``) the prices held, and who says so.
    items
        The table, by item; every item must be there.
    architecture
        What the functions run on: ``"x86_64"`` or ``"arm64"``.
    storage
        What holds the objects: S3 ``"standard"`` or ``"express"`` (One Zone).

    Raises
    ------
    SettingsError
        When an item is missing or unknown, or a field is not what it must be.
    """

    region: str
    date: str
    source: str
    items: Mapping[str, Price] = field(repr=False)
    architecture: Architecture = "x86_64"
    storage: Storage = "standard"

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", dict(self.items))
        if self.architecture not in _OF_ARCHITECTURE:
            raise SettingsError(f'architecture={self.architecture!r}: choose "x86_64" or "arm64"')
        if self.storage not in ("standard", "express"):
            raise SettingsError(f'storage={self.storage!r}: choose "standard" or "express"')
        if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", self.date, re.ASCII):
            raise SettingsError(f'"date" is {self.date!r}: give year and month, YYYY-MM')
        if missing := sorted(_ITEMS - self.items.keys()):
            raise SettingsError(f"no price for {', '.join(missing)}")
        if unknown := sorted(self.items.keys() - _ITEMS):
            raise SettingsError(f"unknown item {', '.join(unknown)}: {', '.join(sorted(_ITEMS))}")

    def of(self, name: str) -> float:
        """Dollars for one `name`, as the meter counts it; 0 for what is free.

        The names are those of `fsdray.services.Count`. Calls that are billed by the 64 KB unit
        (``publish``, ``receive``) are free themselves: their units are not.
        """
        if name == "lease":  # a read and a write of one object
            return self.of("get") + self.of("put")
        item = self._billed().get(name)
        return 0.0 if item is None else self.items[item].each

    @property
    def disputed(self) -> float:
        """Dollars a byte published that the other reading of the SNS price page would add."""
        return self.items["sns_to_sqs_byte_disputed"].each - self.items["sns_to_sqs_byte"].each

    def _billed(self) -> dict[str, str]:
        """Which item prices which count."""
        put, get = f"s3_{self.storage}_put", f"s3_{self.storage}_get"
        billed = {
            "invoke": "lambda_request",
            "gb_seconds": _OF_ARCHITECTURE[self.architecture],
            "publish_units": "sns_unit",
            "publish_bytes": "sns_to_sqs_byte",
            "send_units": "sqs_unit",
            "receive_units": "sqs_unit",
            "acknowledge": "sqs_unit",
            "put": put,
            "list": put,
            "get": get,
            "miss": get,
        }
        if self.storage == "express":
            billed |= {"put_bytes": "s3_express_byte_up", "get_bytes": "s3_express_byte_down"}
        return billed


def load_prices(
    path: str | Path | None = None,
    *,
    architecture: Architecture = "x86_64",
    storage: Storage = "standard",
) -> Prices:
    """Read a price table.

    Parameters
    ----------
    path
        A JSON file laid out as the packaged ``us-east-1-2026-11.json``. None: the packaged one.
        (The setting ``prices``, ``FSDRAY_PRICES`` in the environment, gives a session's.)
    architecture, storage
        As in `Prices`.

    Raises
    ------
    SettingsError
        When the file cannot be read or is not such a table; the message names file and fault.
    """
    if path is None:
        from importlib import resources  # slower to import than all of the costs together

        name, text = _DEFAULT, resources.files(__package__).joinpath(_DEFAULT).read_text("utf-8")
    else:
        name, text = str(path), _text(Path(path))
    try:
        return _prices(json.loads(text), architecture, storage)
    except json.JSONDecodeError as error:
        raise SettingsError(f"price table {name}, line {error.lineno}: {error.msg}") from error
    except SettingsError as error:
        raise SettingsError(f"price table {name}: {error}") from error


def prices_of(settings: Settings, architecture: str) -> Prices:
    """The table that a session's receipts are priced by; `architecture` is its functions'.

    Raises
    ------
    SettingsError : as `load_prices`.
    """
    storage: Storage = "express" if settings.storage == "express" else "standard"
    processor: Architecture = "arm64" if architecture == "arm64" else "x86_64"
    return load_prices(settings.prices, architecture=processor, storage=storage)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"price table {path} cannot be read: {error}") from error


def _prices(document: object, architecture: Architecture, storage: Storage) -> Prices:
    """Check what JSON cannot: the kinds of the fields."""
    table = _object(document, "the file", _FIELDS)
    words = {name: table[name] for name in ("region", "date", "source")}
    for name, word in words.items():
        if not isinstance(word, str) or not word:
            raise SettingsError(f'"{name}" is {word!r}: give a text')
    items = _object(table["items"], '"items"')
    prices = {name: _price(name, entry) for name, entry in items.items()}
    return Prices(**words, items=prices, architecture=architecture, storage=storage)


def _price(name: str, entry: object) -> Price:
    fields = _object(entry, f'"{name}"', ("usd",), optional=("per", "note"))
    for key in ("usd", "per"):
        number = fields.get(key, 1)
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise SettingsError(f'"{name}": "{key}" is {number!r}: give a number')
    try:
        return Price(fields["usd"], fields.get("per", 1.0), str(fields.get("note", "")))
    except SettingsError as error:
        raise SettingsError(f'"{name}": {error}') from error


def _object(
    value: object,
    what: str,
    required: tuple[str, ...] = (),
    optional: tuple[str, ...] | None = None,
) -> dict[str, Any]:
    """Return a JSON object that has the required fields and, where said, no other."""
    if not isinstance(value, dict):
        raise SettingsError(f"{what} must be a JSON object")
    for name in required:
        if name not in value:
            raise SettingsError(f'{what} has no "{name}"')
    if optional is not None and (unknown := sorted(value.keys() - {*required, *optional})):
        raise SettingsError(f'{what} has an unknown field "{unknown[0]}"')
    return value
