"""Collectives of more than one round: through root, by a grid, and large arrays in pieces.

Who sends to whom is in `algorithms`; here is what the ranks say to one another between the rounds.
Where ranks may differ in what suits their values, the messages say what each did, and root, or
everybody, goes by that: nobody has to know another's size.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from fsdray import wire
from fsdray.collective import bundles, codec, pieces
from fsdray.collective.algorithms import (
    Exchange,
    Setting,
    all_to_all,
    choose,
    cuts,
    each_to_each,
    from_root,
    grid,
    passes_grid,
    passes_root,
    to_root,
)
from fsdray.collective.algorithms.ways import NOMINAL, ONE_ROUND
from fsdray.collective.bundles import Box
from fsdray.collective.explain import Explanation, explain
from fsdray.collective.frames import Codec, Operation
from fsdray.collective.member import copied, opened
from fsdray.collective.ops import Op, fold, is_quick, makes_new
from fsdray.collective.p2p import PointToPoint
from fsdray.collective.parcels import Outgoing, Parcel
from fsdray.collective.pieces import Piece
from fsdray.errors import SettingsError

T = TypeVar("T")
_Posted = asyncio.Future[None] | None

CHOICES = 1024
"""Of what a communicator has chosen it remembers so much: formulas take longer than messages."""


_THROUGH_ROOT = (
    Operation.ALLGATHER,
    Operation.ALLREDUCE,
    Operation.BARRIER,
    Operation.EXSCAN,
    Operation.SCAN,
    Operation.SPLIT,
)
"""Operations in which all may wait for rank 0 to have heard from all."""


class Word(enum.Enum):
    """What root says when it has heard from all, where it has no result yet."""

    CUT = 1  # all have cut arrays that are alike: each reduces its pieces
    WHOLE = 2  # they are not alike: who has cut its array sends it whole


class Relays(PointToPoint):
    """See `AsyncCommunicator`, which is the whole."""

    def setting(self) -> Setting:
        """What algorithms of this communicator are chosen by."""
        channel = self._end.channel
        return Setting(channel.name, self.size, channel.medium, channel.limits)

    def _choice(self, policy: Callable[[Setting, T], Any], about: T) -> Any:
        """What a policy says here; of each thing it is asked once."""
        key = policy, about
        chosen = self._choices.get(key)
        if chosen is None:
            if len(self._choices) > CHOICES:
                self._choices.clear()
            chosen = self._choices[key] = policy(self.setting(), about)
        return chosen

    def explain(self, operation: str | None = None, nbytes: int | None = None) -> Explanation:
        """What is chosen for an operation, with its numbers and those of the other ways.

        It asks for nothing. Every choice is a formula of the number of ranks, the size of a
        message, the price table and the setting ``prefer``.

        Parameters
        ----------
        operation : such as ``"bcast"``; by default the collective that this rank called last.
        nbytes : of each message, as packed; by default those of that call, or 1,024.

        Raises
        ------
        SettingsError
            for an unknown operation, or where there was no call yet.
        """
        last = self._last
        if operation is None:
            if last is None:
                raise SettingsError('nothing was called yet: explain("bcast", nbytes=1024)')
            operation = last[0].name.lower()
        if nbytes is None:
            nbytes = last[1] if last and last[0].name.lower() == operation else NOMINAL
        return explain(operation, nbytes, self.setting())

    def is_one_round(self, operation: Operation) -> bool:
        """Whether an operation is one round here."""
        return self.size == 1 or bool(self._choice(choose, operation) == ONE_ROUND)

    def _is_awaited(self, operation: Operation) -> bool:
        return self.rank == 0 and operation in _THROUGH_ROOT and not self.is_one_round(operation)

    # The same from everybody to everybody

    def _same_from_all(
        self, operation: Operation, value: Any, number: int | None = None
    ) -> Coroutine[Any, Any, dict[int, Any]]:
        """Everybody's value but this rank's own, at everybody."""
        if self.is_one_round(operation):
            pattern = all_to_all(self.rank, self.size)
            given = [value] * len(pattern.destinations)
            return self._exchange(operation, pattern, given, number=number)
        self._check_open()
        parcel = self._parcel((0,), value)
        if self.rank and self._choice(passes_root, parcel.size):
            parcel = parcel._replace(destinations=self._others())
        up = self._number() if number is None else number
        return self._combined(operation, parcel, up, self._number(), self._posted)

    async def _combined(
        self, operation: Operation, parcel: Parcel, up: int, down: int, posted: _Posted
    ) -> dict[int, Any]:
        """All send to root, who sends all together to all; large ones all are sent at once."""
        gather = to_root(self.rank, self.size, 0)
        give = from_root(self.rank, self.size, 0, is_multicast=True)
        try:
            if self.rank == 0:
                letters = await self._swap(self._outgoing(operation, up, gather), gather.sources)
                boxes = [Box(0, 0, parcel.codec, parcel.payload)]
                boxes += [
                    Box(source, 0, letter.codec, [letter.payload])
                    for source, letter in sorted(letters.items())
                ]
                told = boxes[:1]
                told += [b.as_note() if self._choice(passes_root, b.size) else b for b in boxes[1:]]
                both = [self._bundle(ranks, told) for ranks in give.destinations]
                await self._swap(self._outgoing(operation, down, give, both), (), posted)
            else:
                out = self._outgoing(operation, up, gather, [parcel])
                await self._swap(out, (), posted)
                last = self._outgoing(operation, down, give)
                letters = await self._swap(last, give.sources, before=up)
                boxes = bundles.unpack(letters[0].payload)
            boxes = [box for box in boxes if box.source != self.rank]
            return await self._values(operation, boxes, up)
        finally:
            self._over(up, down)

    # Its own from everybody to each

    def _own_from_all(
        self, operation: Operation, values: Sequence[Any]
    ) -> Coroutine[Any, Any, dict[int, Any]]:
        """What each other rank has for this one."""
        pattern = each_to_each(self.rank, self.size)
        if self.is_one_round(operation):
            given = [values[rank] for (rank,) in pattern.destinations]
            return self._exchange(operation, pattern, given)
        self._check_open()
        parcels = {rank: self._parcel((rank,), values[rank]) for (rank,) in pattern.destinations}
        boxes = [Box(self.rank, rank, p.codec, p.payload) for rank, p in parcels.items()]
        return self._by_grid(operation, boxes, (self._number(), self._number()), self._posted)

    async def _by_grid(
        self, operation: Operation, held: list[Box], numbers: Sequence[int], posted: _Posted
    ) -> dict[int, Any]:
        """Each message by way of the rank in its source's row and its destination's column.

        Large ones that would move twice go straight.
        """
        by = grid(self.size)
        straight: list[Parcel] = []
        try:
            for number, is_first in zip(numbers, (True, False), strict=True):
                pattern = by.first(self.rank) if is_first else by.second(self.rank)
                out: dict[int, list[Box]] = {rank: [] for (rank,) in pattern.destinations}
                kept: list[Box] = []
                for box in held:
                    to = by.via(box.source, box.dest) if is_first else box.dest
                    if (
                        is_first
                        and to not in (self.rank, box.dest)
                        and self._choice(passes_grid, box.size)
                    ):
                        ranks = (self._members[box.dest],)
                        straight.append(Parcel.of(ranks, box.codec, box.payload))
                        box = box.as_note()
                    (kept if to == self.rank else out[to]).append(box)
                parcels = [self._bundle((rank,), some) for rank, some in out.items()]
                parcels += straight if is_first else []
                outgoing = self._outgoing(operation, number, pattern, parcels)
                letters = await self._swap(outgoing, pattern.sources, posted if is_first else None)
                held = kept
                for _, letter in sorted(letters.items()):
                    held += bundles.unpack(letter.payload)
            return await self._values(operation, held, numbers[0])
        finally:
            self._over(*numbers)

    async def _values(
        self, operation: Operation, boxes: Sequence[Box], number: int
    ) -> dict[int, Any]:
        """The messages in boxes, by their sources; those that came straight came in `number`."""
        found = {box.source: _value(box) for box in boxes if not box.is_note}
        if len(found) < len(boxes):
            sources = tuple(box.source for box in boxes if box.is_note)
            empty = self._outgoing(operation, number, Exchange((), sources))
            letters = await self._swap(empty, sources)
            found |= {source: opened(letter) for source, letter in letters.items()}
        return found

    # Reduced, at everybody

    def _reduced_for_all(self, value: Any, op: Op) -> Coroutine[Any, Any, Any]:
        """All ranks' values, reduced in rank order: the same bits however it is done."""
        self._check_open()
        own = self._own(value, op)
        is_flat = self.is_one_round(Operation.ALLREDUCE)
        mine: list[Piece] = []
        if self.size > 1 and pieces.can_cut(own, op) and self._choice(cuts, own.nbytes):
            mine = pieces.cut(own, self.size)
            pattern = each_to_each(self.rank, self.size)
            given = [mine[rank] for (rank,) in pattern.destinations]
        else:
            pattern = (all_to_all if is_flat else _to_0)(self.rank, self.size)
            given = [value] * len(pattern.destinations)
        parcels = [
            self._parcel(ranks, each)
            for ranks, each in zip(pattern.destinations, given, strict=True)
        ]
        numbers = [self._number() for _ in range(4)]
        first = self._outgoing(Operation.ALLREDUCE, numbers[0], pattern, parcels)
        return self._reduce_all(op, own, mine, first, numbers, is_flat, self._posted)

    async def _reduce_all(
        self,
        op: Op,
        own: Any,
        mine: list[Piece],
        first: Outgoing,
        numbers: Sequence[int],
        is_flat: bool,
        posted: _Posted,
    ) -> Any:
        up, said, again, down = numbers
        others = all_to_all(self.rank, self.size).sources
        hears = is_flat or self.rank == 0
        try:
            letters = await self._swap(first, others if hears else (), posted)
            values = (
                self._in_order(
                    {rank: opened(letter) for rank, letter in letters.items()},
                    mine[self.rank] if mine else own,
                )
                if hears
                else []
            )
            word: Any = None
            if hears:
                if not any(isinstance(value, Piece) for value in values):
                    word = await self._folded(op, values)
                else:
                    word = Word.CUT if pieces.are_alike(values) else Word.WHOLE
            if not is_flat:
                word = await self._from_0(word, said, before=up)
            if word is Word.CUT:
                if not hears:
                    empty = self._outgoing(Operation.ALLREDUCE, up, _to_0(self.rank, self.size))
                    letters = await self._swap(empty, others)
                    came = {rank: opened(letter) for rank, letter in letters.items()}
                    values = self._in_order(came, mine[self.rank])
                return await self._joined(op, values, again)
            if word is not Word.WHOLE:
                return word
            values = await self._whole(own, bool(mine), values, again, is_flat)
            result = await self._folded(op, values) if hears else None
            return result if is_flat else await self._from_0(result, down)
        finally:
            self._over(*numbers)

    async def _joined(self, op: Op, values: Sequence[Piece], number: int) -> Any:
        """Reduce this rank's piece of everybody's array, and put all reduced pieces together."""
        folded = await self._folded(op, [piece.elements for piece in values])
        pattern = all_to_all(self.rank, self.size)
        parcels = [self._parcel(ranks, folded) for ranks in pattern.destinations]
        out = self._outgoing(Operation.ALLREDUCE, number, pattern, parcels)
        letters = await self._swap(out, pattern.sources)
        came = {rank: opened(letter) for rank, letter in letters.items()}
        return await self.compute(pieces.join, values[0].signature, self._in_order(came, folded))

    async def _whole(
        self, own: Any, has_cut: bool, values: list[Any], number: int, is_flat: bool
    ) -> list[Any]:
        """Where arrays were not alike: those that were cut, whole, at who reduces them."""
        pattern = (all_to_all if is_flat else _to_0)(self.rank, self.size)
        there = pattern.destinations if has_cut else ()
        parcels = [self._parcel(ranks, own) for ranks in there]
        out = self._outgoing(Operation.ALLREDUCE, number, pattern, parcels)
        cut = [r for r, v in enumerate(values) if isinstance(v, Piece) and r != self.rank]
        letters = await self._swap(out, cut)
        came = {rank: opened(letter) for rank, letter in letters.items()}
        return [
            own if rank == self.rank else came.get(rank, value) for rank, value in enumerate(values)
        ]

    async def _from_0(self, value: Any, number: int, before: int | None = None) -> Any:
        """What rank 0 has for all, at everybody."""
        pattern = from_root(self.rank, self.size, 0, is_multicast=True)
        parcels = [self._parcel(ranks, value) for ranks in pattern.destinations]
        out = self._outgoing(Operation.ALLREDUCE, number, pattern, parcels)
        letters = await self._swap(out, pattern.sources, before=before)
        return value if self.rank == 0 else opened(letters[0])

    # Inside

    def _own(self, value: Any, op: Op) -> Any:
        """What this rank itself gives to be reduced, as the others would receive it."""
        has_time = self._posted is not None or self.size == 1
        return value if makes_new(op, value) and not has_time else copied(value)

    async def _folded(self, op: Op, values: list[Any]) -> Any:
        if is_quick(op, values):
            return fold(op, values, self.rank)
        return await self.compute(fold, op, values, self.rank)

    def _outgoing(
        self, operation: Operation, number: int, pattern: Exchange, parcels: Sequence[Parcel] = ()
    ) -> Outgoing:
        self._note(operation, parcels)
        return Outgoing(operation, self._id, number, 0, parcels, pattern.fellows)

    def _bundle(self, ranks: Sequence[int], boxes: Sequence[Box]) -> Parcel:
        members = tuple(self._members[rank] for rank in ranks)
        return Parcel.of(members, Codec.RAW, bundles.pack(boxes))

    def _others(self) -> tuple[int, ...]:
        return tuple(member for rank, member in enumerate(self._members) if rank != self.rank)

    def _in_order(self, got: dict[int, Any], own: Any) -> list[Any]:
        return [own if rank == self.rank else got[rank] for rank in range(self.size)]


def _to_0(rank: int, size: int) -> Exchange:
    return to_root(rank, size, 0)


def _value(box: Box) -> Any:
    """A boxed message's value."""
    (payload,) = box.payload
    return wire.decode(codec.decode(box.codec, payload))
