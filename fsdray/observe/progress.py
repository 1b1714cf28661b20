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

    Use `live`, which chooses between this and `Silent`, and closes it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: tqdm[None] | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._clock = threading.Thread(target=self._tick, name="fsdray-progress", daemon=True)
        self._clock.start()

    def phase(self, name: str, total: int | None = None) -> None:
        """Put a new bar in the place of the one before."""
        # A phase that cannot say how far it is shows its name and a clock, not a count of 0.
        layout = None if total is not None else "{desc}: {elapsed}"
        columns, rows = _shape(self._stream)
        with self._lock:
            self._clear()
            if not self._closed.is_set():
                # Drawn only once `close` knows it: Ctrl-C may come in the middle of this.
                self._bar = _Tqdm(
                    delay=1e-9,
                    desc=name,
                    total=total,
                    file=self._stream,
                    bar_format=layout,
                    ncols=columns,
                    nrows=rows,
                    dynamic_ncols=columns is None,
                    leave=False,
                )
                self._bar.refresh()

    def advance(self, amount: int = 1) -> None:
        """Move the bar."""
        with self._lock:
            if self._bar is not None:
                self._bar.update(amount)

    def close(self) -> None:
        """Clear the bar's line; what is reported afterwards is not shown."""
        self._closed.set()
        with self._lock:
            self._clear()
        self._clock.join()

    def _clear(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _tick(self) -> None:
        while not self._closed.wait(_TICK):
            with self._lock:
                if self._bar is not None:
                    self._bar.refresh()


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
