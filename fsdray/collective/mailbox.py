"""The mailbox: exactly once, over channels that deliver at least once and in any order.

Frames are deposited as they come; a message is there once all its parts are, it is taken once,
and whatever arrives of it afterwards is dropped. Nothing above knows that services repeat and
reorder. Virtual time needs nothing here: there is no clock in it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fsdray import buffers
from fsdray.collective.frames import Codec, Frame, Key, Operation
from fsdray.collective.matching import Matching
from fsdray.collective.parcels import Outgoing
from fsdray.services import Buffer


class Letter(NamedTuple):
    """A whole message; the `tag` of a collective's is its root."""

    source: int
    operation: Operation
    tag: int
    codec: Codec
    payload: Buffer


class Called(NamedTuple):
    """What a rank called, as its messages say."""

    operation: Operation
    root: int

    @classmethod
    def of(cls, message: Letter | Frame) -> Called:
        """What the source of a message called."""
        return cls(message.operation, message.tag)


@dataclass
class _Wanted:
    """What one waits for: all of these messages of one collective, as it called it."""

    missing: set[Key]
    called: Called
    communicator: int
    number: int

    def is_due(self, key: Key, letter: Letter) -> bool:
        """Whether who waits is to look, now that this message is there."""
        if key in self.missing and Called.of(letter) == self.called:
            self.missing.discard(key)
            return not self.missing
        # Of an earlier one it may be one too many, which is an error; a later one came early.
        return key.communicator == self.communicator and key.number <= self.number


@dataclass
class _Sends:
    """Sends of one rank on one communicator, made ready in the order in which it sent them."""

    next: int = 0
    early: dict[int, Letter] = field(default_factory=dict)


class Mailbox:
    """Messages of one rank of one gang; used on the loop only.

    Parameters
    ----------
    aborted : told what an abort frame says, once for each that comes; it is to call `fail`.
    moved : told what a frame says that tells of a rank's new inbox.
    """

    def __init__(
        self,
        epoch: bytes,
        rank: int,
        aborted: Callable[[bytes], None] = lambda _: None,
        moved: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        self._epoch = epoch
        self._rank = rank
        self._told = {Operation.ABORT: aborted, Operation.MOVED: moved}
        # By the incarnation of their source: who started anew may cut its message elsewhere.
        self._parts: dict[Key, dict[int, dict[int, Frame]]] = {}
        # Of what says something of the gang itself: by who says what.
        self._news: dict[tuple[Operation, int, int], dict[int, Buffer]] = {}
        self._letters: dict[Key, Letter] = {}
        self._taken: dict[int, set[tuple[int, int]]] = {}  # (number, source), by communicator
        self._floor: dict[int, int] = {}  # collectives before this number are over
        self._sends: defaultdict[tuple[int, int], _Sends] = defaultdict(_Sends)
        self._matching: defaultdict[int, Matching[Letter]] = defaultdict(Matching)
        self._forgotten: set[int] = set()  # communicators that this rank has freed
        self._waiting: dict[asyncio.Future[None], _Wanted | None] = {}
        self._failure: Callable[[], BaseException] | None = None
        self.dropped = 0  # frames that were duplicates, stale, or not for this rank

    def deposit(self, frame: Frame) -> None:
        """Keep a frame, unless it is known, over, or another gang's."""
        key = frame.key
        if not self.is_for_us(frame):
            self.dropped += 1
            return
        if frame.operation in self._told:  # it has no number: it is never one too many
            self._hear(frame)
            return
        if self._is_known(key):
            self.dropped += 1
            return
        if frame.parts == 1:
            self._parts.pop(key, None)
            self._complete(key, [frame])
            return
        parts = self._parts.setdefault(key, {}).setdefault(frame.incarnation, {})
        if frame.part in parts:
            self.dropped += 1
            return
        parts[frame.part] = frame
        if len(parts) == frame.parts:
            del self._parts[key]
            self._complete(key, [parts[i] for i in range(frame.parts)])

    def is_for_us(self, frame: Frame) -> bool:
        """Whether a frame is of this gang, and for this rank."""
        return frame.epoch == self._epoch and self._rank in frame.destinations

    def outstanding(self, key: Key) -> int:
        """At least how many frames of a message that is not there are still to come."""
        cuts = self._parts.get(key)
        if not cuts:
            return 1
        return min(next(iter(parts.values())).parts - len(parts) for parts in cuts.values())

    def knows(self, key: Key) -> bool:
        """Whether a message is there, was there, or is wanted no more."""
        return self._is_known(key)

    def _hear(self, frame: Frame) -> None:
        parts = self._news.setdefault((frame.operation, frame.source, frame.number), {})
        parts[frame.part] = frame.payload
        if len(parts) == frame.parts:
            self._told[frame.operation](b"".join(parts[i] for i in range(frame.parts)))

    def keep_own(self, outgoing: Outgoing) -> None:
        """Keep what this rank sends to itself."""
        for parcel in outgoing.parcels:
            payload = buffers.own(parcel.payload)
            key = Key(outgoing.communicator, True, outgoing.number, self._rank)
            self._keep(
                key,
                Letter(self._rank, outgoing.operation, outgoing.tag, parcel.codec, payload),
            )

    def has(self, key: Key) -> bool:
        """Whether the whole message is there, to be taken."""
        return key in self._letters

    def called(self, key: Key) -> Called | None:
        """What the source of a message called, as soon as any part of it is there."""
        letter = self._letters.get(key)
        if letter is not None:
            return Called.of(letter)
        parts = self._parts.get(key)
        if not parts:
            return None
        return Called.of(next(iter(next(iter(parts.values())).values())))

    def unasked(self, communicator: int, number: int) -> Key | None:
        """A message of this collective that is held, at least a part of it, and not taken."""
        for kept in (self._letters, self._parts):
            for key in kept:
                if (key.communicator, key.is_send, key.number) == (communicator, False, number):
                    return key
        return None

    def others(self, communicator: int, number: int, called: Called) -> Key | None:
        """A message of this collective's number that is held, and of another operation."""
        for kept in (self._letters, self._parts):
            for key in kept:
                at = (key.communicator, key.is_send, key.number)
                if at == (communicator, False, number) and self.called(key) != called:
                    return key
        return None

    def take(self, key: Key) -> Letter:
        """Take a message that is there."""
        self._taken.setdefault(key.communicator, set()).add((key.number, key.source))
        return self._letters.pop(key)

    def close_below(self, communicator: int, number: int) -> None:
        """All collectives of a communicator before `number` are over at this rank."""
        self._floor[communicator] = number
        taken = self._taken.get(communicator)
        if taken is not None:
            taken -= {known for known in taken if known[0] < number}
        # What nobody asked for while it could be asked for, nobody will.
        for kept in (self._letters, self._parts):
            if kept:
                for key in [key for key in kept if self._is_over(key, communicator)]:
                    del kept[key]

    def forget(self, communicator: int) -> None:
        """A communicator is freed at this rank: what is or will be there for it is dropped."""
        self._forgotten.add(communicator)
        for kept in (self._letters, self._parts):
            for key in [key for key in kept if key.communicator == communicator]:
                del kept[key]
        for pair in [pair for pair in self._sends if pair[0] == communicator]:
            del self._sends[pair]
        self._matching.pop(communicator, None)
        self._taken.pop(communicator, None)
        self._floor.pop(communicator, None)

    def sends(self, communicator: int) -> Matching[Letter]:
        """The sends that are there, and who takes them."""
        return self._matching[communicator]

    def next_send(self, communicator: int, source: int) -> Key:
        """The key of the first send of `source` that is not there yet."""
        return Key(communicator, True, self._sends[communicator, source].next, source)

    def changed(
        self, keys: Sequence[Key] = (), called: Called | None = None
    ) -> asyncio.Future[None]:
        """Done when a message has become whole; it raises where the gang is broken.

        With `called` it is when all of `keys`, of one collective, are, or one that is wrong.
        """
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._failure is not None:
            woken.set_exception(self._failure())
            return woken
        wanted = None
        if called is not None:
            missing = {key for key in keys if key not in self._letters}
            wanted = _Wanted(missing, called, keys[0].communicator, keys[0].number)
        self._waiting[woken] = wanted
        woken.add_done_callback(self._waiting.pop)
        return woken

    def check(self) -> None:
        """Raise if the gang is broken."""
        if self._failure is not None:
            raise self._failure()

    def fail(self, failure: Callable[[], BaseException]) -> None:
        """The gang is broken: waits for what is not there raise an error of their own each."""
        self._failure = failure
        for woken in list(self._waiting):
            if not woken.done():
                woken.set_exception(failure())

    def _is_over(self, key: Key, communicator: int) -> bool:
        is_collective = key.communicator == communicator and not key.is_send
        return is_collective and key.number < self._floor[communicator]

    def _is_known(self, key: Key) -> bool:
        if key.communicator in self._forgotten:
            return True
        if key.is_send:
            sends = self._sends[key.communicator, key.source]
            return key.number < sends.next or key.number in sends.early
        return (
            key.number < self._floor.get(key.communicator, 0)
            or key in self._letters
            or (key.number, key.source) in self._taken.get(key.communicator, ())
        )

    def _complete(self, key: Key, frames: list[Frame]) -> None:
        first = frames[0]
        payload = first.payload
        if len(frames) > 1 or memoryview(payload).readonly:
            # Receivers may write what they receive, and want it aligned.
            payload = buffers.own([frame.payload for frame in frames])
        self._keep(key, Letter(key.source, first.operation, first.tag, first.codec, payload))

    def _keep(self, key: Key, letter: Letter) -> None:
        if key.is_send:
            sends = self._sends[key.communicator, key.source]
            sends.early[key.number] = letter
            while sends.next in sends.early:
                self._matching[key.communicator].arrive(sends.early.pop(sends.next))
                sends.next += 1
        else:
            self._letters[key] = letter
        for woken, wanted in list(self._waiting.items()):
            if not woken.done() and (wanted is None or wanted.is_due(key, letter)):
                woken.set_result(None)
