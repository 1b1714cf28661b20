"""A receipt: the requests that were counted, priced by one table, as text and as JSON.

Counting is `meter`'s and the prices are `prices`'s; predicting costs before a run is not here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fsdray.costs.prices import Prices
from fsdray.errors import SettingsError

# What a count is called, in the order of a receipt: service, one of them, more of them. The
# local backend's requests go by AWS's names too, since theirs is the bill they stand for.
_WORDS = {
    "invoke": ("Lambda", "invocation", "invocations"),
    "gb_seconds": ("Lambda", "GB-second", "GB-seconds"),
    "publish": ("SNS", "publish", "publishes"),
    "publish_units": ("SNS", "64 KB unit published", "64 KB units published"),
    "publish_bytes": ("SNS", "byte published", "bytes published"),
    "send": ("SQS", "send", "sends"),
    "send_units": ("SQS", "64 KB unit sent", "64 KB units sent"),
    "send_bytes": ("SQS", "byte sent", "bytes sent"),
    "receive": ("SQS", "receive", "receives"),
    "receive_units": ("SQS", "64 KB unit received", "64 KB units received"),
    "acknowledge": ("SQS", "acknowledgement", "acknowledgements"),
    "put": ("S3", "put", "puts"),
    "put_bytes": ("S3", "byte put", "bytes put"),
    "get": ("S3", "get", "gets"),
    "get_bytes": ("S3", "byte got", "bytes got"),
    "miss": ("S3", "miss", "misses"),
    "list": ("S3", "listing", "listings"),
    "delete": ("S3", "delete", "deletes"),
    "lease": ("S3", "lease of inboxes", "leases of inboxes"),
}
_BRIEF = (
    "invoke", "gb_seconds", "publish", "send", "receive", "acknowledge", "put", "get", "miss",
    "list",
)  # fmt: skip
_WORTH_SAYING = 0.01  # of the cost: below it the disputed transfer would change no digit shown


@dataclass(frozen=True)
class Line:
    """`quantity` of the count `name`, requests to `service`, at `unit_usd` dollars each."""

    service: str
    name: str
    quantity: float
    unit_usd: float

    @property
    def cost_usd(self) -> float:
        """Dollars."""
        return self.quantity * self.unit_usd


@dataclass(frozen=True)
class Receipt:
    """What was asked of the services, and what AWS bills for it.

    Receipts of one price table can be added: ``a + b``, or ``sum(some, start=first)``.

    Parameters
    ----------
    requests
        Counts by name, as `fsdray.costs.meter.Meter.counts` gives them; the names are told at
        `fsdray.services.Count`. A name that has no price is free, and shown.
    prices
        The table to price them by.

    Raises
    ------
    SettingsError
        When a count is negative or not a number.
    """

    requests: Mapping[str, float]
    prices: Prices = field(repr=False)

    def __post_init__(self) -> None:
        known = {name: self.requests[name] for name in _WORDS if name in self.requests}
        object.__setattr__(self, "requests", known | dict(self.requests))
        for name, quantity in self.requests.items():
            if not (math.isfinite(quantity) and quantity >= 0):
                raise SettingsError(f"the count of {name} is {quantity}: counts are 0 or more")

    @property
    def lines(self) -> tuple[Line, ...]:
        """One line a count, the free ones too, by service."""
        return tuple(
            Line(_WORDS.get(name, ("other",))[0], name, quantity, self.prices.of(name))
            for name, quantity in self.requests.items()
        )

    @property
    def cost_usd(self) -> float:
        """Dollars, without what is disputed."""
        return math.fsum(line.cost_usd for line in self.lines)

    @property
    def cost_with_transfer_usd(self) -> float:
        """Dollars, if transfer from SNS to SQS were billed at the table's disputed price.

        Each byte published is counted once, as FSD-Inference's cost model does (arXiv
        2403.15195); a message to several inboxes might be billed for each.
        """
        return self.cost_usd + self.requests.get("publish_bytes", 0) * self.prices.disputed

    def __add__(self, other: Receipt) -> Receipt:
        if self.prices != other.prices:
            raise SettingsError("receipts of two price tables do not add up: price both by one")
        names = self.requests.keys() | other.requests.keys()
        both = {name: self.requests.get(name, 0) + other.requests.get(name, 0) for name in names}
        return Receipt(dict(sorted(both.items())), self.prices)

    def __str__(self) -> str:
        parts = [
            f"{number(quantity)} {_words(name, quantity)}"
            for name in _BRIEF
            if (quantity := self.requests.get(name, 0))
        ]
        cost = dollars(self.cost_usd)
        if self._transfer_matters:
            cost += f" ({dollars(self.cost_with_transfer_usd)} if SNS to SQS transfer is billed)"
        return f"{cost}: {', '.join(parts) or 'nothing was asked for'}"

    def table(self) -> str:
        """The receipt for people, a line a count, without a line break at the end."""
        rows = [("service", "request", "quantity", "$ a million", "cost")]
        for line in self.lines:
            service = "" if any(line.service == row[0] for row in rows) else line.service
            price = f"{line.unit_usd * 1e6:,.6g}" if line.unit_usd else "free"
            cost = dollars(line.cost_usd) if line.unit_usd else ""
            rows.append((service, _words(line.name, 2), number(line.quantity), price, cost))
        rows.append(("total", "", "", "", dollars(self.cost_usd)))
        if self._transfer_matters:
            with_transfer = dollars(self.cost_with_transfer_usd)
            rows.append(("", "if SNS to SQS transfer is billed", "", "", with_transfer))
        rows.append(("prices", f"{self.prices.region}, {self.prices.date}", "", "", ""))
        return _aligned(rows)

    def to_json(self) -> dict[str, object]:
        """The receipt as plain values: what `json.dumps` takes; money in dollars."""
        return {
            "requests": dict(self.requests),
            "lines": [
                {
                    "service": line.service,
                    "name": line.name,
                    "quantity": line.quantity,
                    "unit_usd": line.unit_usd,
                    "cost_usd": line.cost_usd,
                }
                for line in self.lines
            ],
            "cost_usd": self.cost_usd,
            "cost_with_transfer_usd": self.cost_with_transfer_usd,
            "prices": {
                "region": self.prices.region,
                "date": self.prices.date,
                "architecture": self.prices.architecture,
                "storage": self.prices.storage,
            },
        }

    @property
    def _transfer_matters(self) -> bool:
        return self.cost_with_transfer_usd - self.cost_usd >= _WORTH_SAYING * self.cost_usd > 0


def dollars(amount: float) -> str:
    """Money for people: two digits after the point, or two that are not zero in small sums."""
    if amount >= 1 or amount == 0:
        return f"${amount:,.2f}" if amount else "$0"
    places = 1 - math.floor(math.log10(amount))
    return f"${amount:.{places}f}"


def number(quantity: float) -> str:
    """A count for people: whole numbers in groups of three, others to three digits."""
    if quantity == int(quantity) or quantity >= 1000:
        return f"{quantity:,.0f}"
    return f"{quantity:.3g}"


def _words(name: str, quantity: float) -> str:
    _, one, more = _WORDS.get(name, ("other", name, name))
    return one if quantity == 1 else more


def _aligned(rows: list[tuple[str, str, str, str, str]]) -> str:
    """Columns side by side: words to the left, figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        cells += [text.rjust(width) for text, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
