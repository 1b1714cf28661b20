"""Progress of long work: what the work reports, and the bar that shows it.

Work reports to a `Progress` and knows nothing of terminals. `live` shows a bar on a terminal or
in a notebook, and nothing at all in a pipe.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Protocol, TextIO

from tqdm.auto import tqdm

_TICK = 1.0  # seconds between redraws of a bar that nothing advances: its clock must go on


class Progress(Protocol):
    """What long work reports to, from any thread.

    Phases follow one another: the next `phase` ends the one before.
    """

    def phase(self, name: str, total: int | None = None) -> None:
        """Begin the phase `name`, of `total` steps where their number is known."""
        ...

    def advance(self, amount: int = 1) -> None:
        """Say that `amount` more steps of the phase are done; without a phase, nothing."""
        ...


class Silent:
    """A `Progress` that shows nothing."""

    def phase(self, name: str, total: int | None = None) -> None:
        """Show nothing."""

    def advance(self, amount: int = 1) -> None:
        """Show nothing."""


class Bar:
    """A `Progress` that draws one live bar for the phase that goes on, and leaves no trace.

    Use `live`, which chooses between this and `Silent`, and closes it. A thread of its own draws:
    a Ctrl-C comes in the main thread alone, where it would leave tqdm's lock taken; and a terminal
    that is stopped holds up no work.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._news: SimpleQueue[tuple[str, int | None] | int | None] = SimpleQueue()
        self._is_closed = False
        self._artist = threading.Thread(target=self._draw, name="fsdray-progress", daemon=True)
        self._artist.start()

    def phase(self, name: str, total: int | None = None) -> None:
        """Put a new bar in the place of the one before."""
        if not self._is_closed:
            self._news.put((name, total))

    def advance(self, amount: int = 1) -> None:
        """Move the bar."""
        if not self._is_closed:
            self._news.put(amount)

    def close(self) -> None:
        """Clear the bar's line; what is reported afterwards is not shown."""
        self._is_closed = True
        self._news.put(None)
        self._artist.join()

    def _draw(self) -> None:
        bar: tqdm[None] | None = None
        try:
            while True:
                try:
                    told = self._news.get(timeout=_TICK)
                except Empty:
                    if bar is not None:
                        bar.refresh()
                    continue
                if isinstance(told, int):
                    if bar is not None:
                        bar.update(told)
                    continue
                if bar is not None:
                    bar.close()
                    bar = None
                if told is None:
                    return
                bar = self._begun(*told)
        except (OSError, ValueError):
            return  # the stream is gone or closed: nobody can see it

    def _begun(self, name: str, total: int | None) -> tqdm[None]:
        # A phase that cannot say how far it is shows its name and a clock, not a count of 0.
        layout = None if total is not None else "{desc}: {elapsed}"
        columns, rows = _shape(self._stream)
        return _Tqdm(
            desc=name,
            total=total,
            file=self._stream,
            bar_format=layout,
            ncols=columns,
            nrows=rows,
            dynamic_ncols=columns is None,
            leave=False,
        )


@contextmanager
def live(stream: TextIO | None = None) -> Iterator[Progress]:
    """Show progress while the block runs, however it ends.

    Parameters
    ----------
    stream
        Where to draw; stderr by default. The bar shows if it is a terminal, or in a notebook;
        else not a byte is written.
    """
    stream = stream if stream is not None else sys.stderr
    if not (stream.isatty() or _in_notebook()):
        yield Silent()
        return
    bar = Bar(stream)
    try:
        yield bar
    finally:
        bar.close()


class _Tqdm(tqdm):  # type: ignore[type-arg]  # generic for type checkers only
    """The bar of tqdm, without its own monitoring thread: `Bar` has a clock."""

    monitor_interval = 0


def _shape(stream: TextIO) -> tuple[int, int] | tuple[None, None]:
    """Columns and rows to draw in; None lets tqdm follow the terminal's own.

    In a terminal of 0 columns, as programs that drive one often make it, tqdm would draw nothing.
    """
    try:
        return (None, None) if os.get_terminal_size(stream.fileno()).columns else (80, 24)
    except OSError:  # not one of the system's: a notebook's stream
        return (None, None)


def _in_notebook() -> bool:
    """As tqdm.auto finds out, by what a kernel has imported."""
    return "ipykernel.zmqshell" in sys.modules
