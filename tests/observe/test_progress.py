from __future__ import annotations

import io
import sys
import threading
import types
from contextlib import suppress

import pytest

from fsdray.observe import progress
from fsdray.observe.progress import Silent, live


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and can be waited on."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Condition()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self.written:
            self.written.notify_all()
            return super().write(text)

    def wait_for(self, text: str) -> None:
        """Wait until `text` was written, but not for ever."""
        with self.written:
            assert self.written.wait_for(lambda: text in self.getvalue(), timeout=60), text

    def screen(self) -> str:
        """What the last line of the terminal shows now."""
        line = ""
        for part in self.getvalue().rpartition("\n")[2].split("\r"):
            line = part + line[len(part) :]
        return line.rstrip()


def clocks() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "fsdray-progress"]


def test_a_pipe_gets_not_a_byte() -> None:
    stream = io.StringIO()
    with live(stream) as shown:
        assert isinstance(shown, Silent)
        shown.phase("partition", total=120)
        shown.advance(60)
        assert clocks() == []
    assert stream.getvalue() == ""


def test_a_terminal_shows_the_phase_and_how_far_it_is() -> None:
    stream = Terminal()
    with live(stream) as shown:
        shown.phase("partition", total=120)
        stream.wait_for("0/120")
        assert "partition" in stream.screen()
        shown.advance(120)
        stream.wait_for("120/120")


def test_the_next_phase_takes_the_place_of_the_one_before() -> None:
    stream = Terminal()
    with live(stream) as shown:
        shown.phase("partition", total=120)
        shown.phase("placement", total=8)
        stream.wait_for("0/8")
        assert "placement" in stream.screen()
        assert "partition" not in stream.screen()
    assert "\n" not in stream.getvalue()


def test_the_line_is_clear_when_the_work_is_done() -> None:
    stream = Terminal()
    with live(stream) as shown:
        shown.phase("run", total=10)
        shown.advance(3)
        stream.wait_for("run")
    assert stream.screen() == ""
    assert clocks() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_line_is_clear_after_an_error_or_ctrl_c(error: type[BaseException]) -> None:
    stream = Terminal()

    def work() -> None:
        with live(stream) as shown:
            shown.phase("run", total=10)
            stream.wait_for("run")
            raise error

    with pytest.raises(error):
        work()
    assert stream.screen() == ""
    assert clocks() == []


def test_a_phase_of_unknown_length_shows_a_clock_that_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "_TICK", 0.02)
    stream = Terminal()
    with live(stream) as shown:
        shown.phase("run")
        stream.wait_for("run: 00:00")
        stream.wait_for("run: 00:01")


def test_advancing_before_any_phase_or_after_the_end_shows_nothing() -> None:
    stream = Terminal()
    with live(stream) as shown:
        shown.advance()
        assert stream.getvalue() == ""
    shown.phase("late", total=3)
    shown.advance()
    assert stream.screen() == ""
    assert "late" not in stream.getvalue()


def test_steps_may_come_from_many_threads() -> None:
    stream = Terminal()
    with live(stream) as shown:
        shown.phase("run", total=4000)

        def work() -> None:
            for _ in range(1000):
                shown.advance()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        shown.advance(0)
        stream.wait_for("4000/4000")


def test_stderr_is_where_it_shows_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with live() as shown:
        shown.phase("run", total=10)
        stream.wait_for("run")


def test_a_notebook_shows_the_bar_though_it_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", types.ModuleType("zmqshell"))
    monkeypatch.setattr(Terminal, "isatty", lambda _: False)
    stream = Terminal()
    with live(stream) as shown:
        shown.phase("run", total=10)
        stream.wait_for("run")


def test_a_ctrl_c_at_any_moment_ends_the_work_and_clears_the_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # tqdm in the main thread would be left with its lock taken, and its clock wait for ever.
    monkeypatch.setattr(progress, "_TICK", 1e-4)
    left = 0

    def interrupt(frame: object, event: str, arg: object) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            sys.settrace(None)
            raise KeyboardInterrupt
        return interrupt

    def work(stream: Terminal) -> None:
        with live(stream) as shown:
            sys.settrace(interrupt)
            for step in range(20):
                shown.phase(f"run {step}", total=10)
                shown.advance()
            sys.settrace(None)

    for after in range(0, 4000, 61):
        stream = Terminal()
        left = after
        with suppress(KeyboardInterrupt):
            work(stream)
        sys.settrace(None)
        assert stream.screen() == ""
        assert clocks() == []


def test_a_stream_that_is_closed_ends_no_work() -> None:
    stream = Terminal()
    with live(stream) as shown:
        shown.phase("run", total=10)
        stream.wait_for("run")
        stream.close()
        shown.advance()
        shown.phase("more")
    assert clocks() == []
