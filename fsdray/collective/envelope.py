"""What stands on a message's envelope: ranks, tags, the wildcards for them, and `Status`.

The numbers that mean something else than a rank or a tag are Open MPI's, except `PROC_NULL`.
Messages themselves are in `fsdray.collective.mailbox`.
"""

from __future__ import annotations

import operator
from typing import Any, SupportsIndex

from fsdray.errors import SettingsError

ANY_SOURCE = -1
ANY_TAG = -1
PROC_NULL = -10
"""A partner that is not there: sends to it and receives from it are done at once."""
UNDEFINED = -32766
"""No color (`split`), no index (`waitany`)."""
MAX_TAG = 2**31 - 1  # what MPI libraries give at most (MPI_TAG_UB)


class Status:
    """Who sent the message that a receive took, and with which tag; mpi4py's names.

    Pass one to `recv`, `sendrecv`, `probe` or a request's `wait` to have it filled in.
    """

    def __init__(self) -> None:
        self.source = ANY_SOURCE
        self.tag = ANY_TAG
        self.cancelled = False

    def Get_source(self) -> int:  # noqa: N802  mpi4py's name
        """`source`: a rank of the communicator that received."""
        return self.source

    def Get_tag(self) -> int:  # noqa: N802
        """`tag`."""
        return self.tag

    def Is_cancelled(self) -> bool:  # noqa: N802
        """`cancelled`: whether the receive was given up before a message came."""
        return self.cancelled

    def fill(self, other: Status) -> None:
        """Say what `other` says."""
        self.source, self.tag, self.cancelled = other.source, other.tag, other.cancelled

    def __repr__(self) -> str:
        gone = ", cancelled" if self.cancelled else ""
        return f"<Status source {self.source}, tag {self.tag}{gone}>"


def status_of(source: int, tag: int) -> Status:
    """A status that says this."""
    status = Status()
    status.source, status.tag = source, tag
    return status


def rank_in(rank: SupportsIndex, size: int, what: str) -> int:
    """A rank as a plain int, from whatever counts as one, such as NumPy's integers.

    Raises
    ------
    SettingsError
        where it is no rank of a communicator of `size`; `what` is the argument's name.
    """
    if type(rank) is int and 0 <= rank < size:  # else it costs 10 µs to ask what it is
        return rank
    if not isinstance(rank, SupportsIndex) or not 0 <= operator.index(rank) < size:
        raise SettingsError(f"{what}={rank!r}: ranks go from 0 to {size - 1}")
    return operator.index(rank)


def tag_in(tag: SupportsIndex) -> int:
    """A tag as a plain int.

    Raises
    ------
    SettingsError
        where it is no tag.
    """
    if type(tag) is int and 0 <= tag <= MAX_TAG:
        return tag
    if not isinstance(tag, SupportsIndex) or not 0 <= operator.index(tag) <= MAX_TAG:
        raise SettingsError(f"tag={tag!r}: a tag is a whole number from 0 to {MAX_TAG}")
    return operator.index(tag)


def is_number(value: Any, number: int) -> bool:
    """Whether `value` counts as this number."""
    if type(value) is int:
        return value == number
    return isinstance(value, SupportsIndex) and operator.index(value) == number


def check_buffer(buf: Any, names: str) -> None:
    """Allow mpi4py's receive buffers, which are not needed here, and catch what was meant else.

    Raises
    ------
    SettingsError
        for a number, which in mpi4py is a buffer's size and never a rank.
    """
    if buf is not None and isinstance(buf, SupportsIndex):
        raise SettingsError(
            f"buf={buf!r}: the first argument is mpi4py's receive buffer, which is not needed "
            f"here; name the rank: {names}={buf!r}"
        )
