"""`ObjectRef`: what stands for a value that is, or will be, somewhere.

A ref knows its entry in the session that made it; where values are kept and when they go is the
session's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fsdray import wire

if TYPE_CHECKING:
    from fsdray.costs.receipt import Receipt
    from fsdray.values import Entry

T_co = TypeVar("T_co", covariant=True)


class ObjectRef(Generic[T_co]):
    """A value that a task returns, or that `fsdray.put` stored.

    Refs are equal when they stand for the same value; they can be hashed, copied, pickled within
    tasks' arguments and results, and awaited.
    """

    __slots__ = ("__weakref__", "_entry")

    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    @property
    def id(self) -> str:
        """A name for the value that is unique in the session."""
        return self._entry.id

    def hex(self) -> str:
        """`id`, under Ray's name."""
        return self._entry.id

    def future(self) -> Future[T_co]:
        """A `concurrent.futures.Future` of the value."""
        return self._entry.session.future(self)

    def receipt(self) -> Receipt:
        """What the call behind this ref asked of the services, priced; of a gang, this rank."""
        from fsdray.costs.receipt import Receipt

        return Receipt(self._entry.counts, self._entry.session.prices)

    def __await__(self) -> Generator[Any, None, T_co]:
        session = self._entry.session
        return asyncio.wrap_future(
            session.awaited(session.future(self, gives_back=False))
        ).__await__()

    def __repr__(self) -> str:
        return f"ObjectRef({self._entry.label}, {self._entry.state()})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectRef) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self._entry.id)

    def __reduce__(self) -> tuple[Any, ...]:
        wire.collect(self)
        self._entry.session.escape(self._entry)
        return _received, (self._entry.id, self._entry.label)


def _received(entry_id: str, label: str) -> ObjectRef[Any]:
    """A ref that came from another process; this process's session knows how to wait for it."""
    from fsdray.session import current

    return current().receive(entry_id, label)
