"""What an emulator's own log says that AWS would bill, in the meter's words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fsdray.backends.aws.clients import COUNTED
from fsdray.services import units

FREE = {"GetAccountSettings", "DescribeStacks"}
"""Asked once by a session, and not billed."""


def billed(requests: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Counts by name, as `fsdray.services.Count` tells them, line by line of an access log."""
    counts: Counter[str] = Counter()
    for line in requests:
        operation, status = line["operation"], line["status"]
        if operation in FREE or status == 429 or status >= 500:
            continue
        if line["service"] == "logs":  # the emulator's own
            continue
        if line.get("key", "").endswith("/pool.json"):
            counts["lease"] += operation == "GetObject"
            continue
        name = COUNTED[operation]
        counts[name] += 1
        size = sum(line.get("messages", ()))
        if name in ("publish", "send"):
            counts[f"{name}_units"] += units(size)
            counts[f"{name}_bytes"] += size
        elif name == "receive":
            counts["receive_units"] += units(size)
    return dict(counts)


def same_names(counts: Mapping[str, float], like: Mapping[str, int]) -> dict[str, float]:
    """Those of a receipt that a log can tell: not bytes of objects, nor seconds.

    Misses are gets here: whether a look that was given up before its answer came would have found
    something, only the server knows. They are billed alike.
    """
    more = ("lease", "publish_units", "publish_bytes", "send_units", "send_bytes", "receive_units")
    told = {name: counts.get(name, 0) for name in {*COUNTED.values(), *more}}
    told["get"] += counts.get("miss", 0)
    return {name: number for name, number in told.items() if number or name in like}
