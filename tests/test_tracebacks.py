"""What a user sees of an error that a task raised: in a terminal, a cell, a debugger."""

from __future__ import annotations

import inspect
import linecache
import os
import pdb
import re
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fsdray as fsd
from fsdray import api, tracebacks
from fsdray.errors import FunctionCrashed, RankFailed, TaskError
from fsdray.tracebacks import Place


def raised(function: Callable[..., object], *args: Any) -> TracebackType:
    """The traceback of what `function` raises, from its own frame on."""
    with pytest.raises((ArithmeticError, LookupError, TypeError)) as caught:
        function(*args)
    assert caught.tb.tb_next is not None
    return caught.tb.tb_next


def crossed(trace: TracebackType) -> TracebackType:
    rebuilt = tracebacks.rebuild(tracebacks.take(trace))
    assert rebuilt is not None
    return rebuilt


# As a module


def a_long_expression(table: dict[str, int]) -> int:
    return (
        len(table)
        + table[
            "missing"
        ]
    )  # fmt: skip


def unicode_columns() -> object:
    grün, größe = 1, 0
    return "äöü", grün / größe


def comprehension() -> list[object]:
    return [(lambda divisor: 1 / divisor)(each) for each in (1, 0)]


def dynamic() -> object:
    return eval("int(1) / 0")


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (a_long_expression, ({},)),
        (unicode_columns, ()),
        (comprehension, ()),
        (dynamic, ()),
        (textwrap.dedent, (3,)),
    ],
)
def test_a_rebuilt_traceback_is_shown_as_the_original(
    function: Callable[..., object], args: tuple[Any, ...]
) -> None:
    trace = raised(function, *args)
    assert traceback.format_tb(crossed(trace)) == traceback.format_tb(trace)
    assert traceback.format_tb(crossed(crossed(trace))) == traceback.format_tb(trace)


@st.composite
def places(draw: st.DrawFn) -> Place:
    number = st.integers(0, 100_000)
    line = draw(st.integers(1, 100_000))
    positions: tuple[int, int | None, int | None] = (line, None, None)
    if draw(st.booleans()):
        positions = (line + draw(st.integers(0, 500)), draw(number), draw(number))
    name = st.text(st.characters(codec="utf-8"), min_size=1)
    filename = draw(st.sampled_from(["<stdin>", "/nowhere/at/all.py", "<ipython-input-3>"]))
    return Place(
        filename, draw(name), draw(name), draw(st.integers(1, 100_000)), line, *positions, ""
    )


@given(st.lists(places(), min_size=1, max_size=20))
def test_what_is_taken_of_a_rebuilt_traceback_is_what_it_was_built_from(given: list[Place]) -> None:
    assert tracebacks.take(tracebacks.rebuild(given)) == tuple(given)


def test_rebuilt_frames_know_no_variables_and_no_callers() -> None:
    trace: TracebackType | None = crossed(raised(a_long_expression, {}))
    while trace is not None:
        assert trace.tb_frame.f_locals == {}
        assert trace.tb_frame.f_back is None
        assert trace.tb_frame.f_lineno == trace.tb_lineno
        trace = trace.tb_next
    assert inspect.getinnerframes(crossed(raised(comprehension)))[0].function == "comprehension"


def recurse(depth: int) -> int:
    return 1 // depth + recurse(depth - 1)


def test_a_deep_traceback_keeps_its_ends_and_tells_what_it_left_out() -> None:
    whole = tracebacks.take(raised(recurse, 127))
    assert len(whole) == 128
    assert "left out" not in "".join(place.name for place in whole)
    cut = tracebacks.take(raised(recurse, 850))
    assert len(cut) == 129
    assert cut[64].name == "<723 calls left out>"
    assert "<723 calls left out>" in "".join(traceback.format_tb(tracebacks.rebuild(cut)))


def compiled(filename: str, source: str) -> CodeType:
    return compile(textwrap.dedent(source), filename, "exec")


def test_lines_of_a_file_that_is_not_here_are_shown(tmp_path: Path) -> None:
    source = "def far():\n    return {}[\n        'missing'\n    ]\nfar()\n"
    file = tmp_path / "gone.py"
    file.write_text(source)
    taken = tracebacks.take(raised(exec, compiled(str(file), source), {}))
    file.unlink()
    linecache.clearcache()
    shown = "".join(traceback.format_tb(tracebacks.rebuild(taken)))
    assert f'File "{file}", line 2, in far\n    return {{}}[' in shown
    assert f'File "{file}", line 5, in <module>\n    far()' in shown


def test_lines_of_another_version_of_a_file_are_not_taken_for_the_own(tmp_path: Path) -> None:
    file = tmp_path / "changed.py"
    file.write_text("x = 1 / 0\n")
    taken = tracebacks.take(raised(exec, compiled(str(file), "x = 1 / 0\n"), {}))
    file.write_text("y = 'something else'\n")
    linecache.clearcache()
    for _ in range(2):
        shown = "".join(traceback.format_tb(tracebacks.rebuild(taken)))
        assert f'File "{file} (remote)", line 1' in shown
        assert "x = 1 / 0" in shown


def test_pdb_walks_rebuilt_frames(capsys: pytest.CaptureFixture[str]) -> None:
    debugger = pdb.Pdb(nosigint=True, readrc=False)
    debugger.cmdqueue = ["w", "u", "d", "l", "ll", "a", "p depth", "p 1 + 1", "up 9", "q"]
    debugger.reset()
    debugger.interaction(None, crossed(raised(recurse, 3)))
    said = capsys.readouterr().out
    assert "return 1 // depth + recurse(depth - 1)" in said
    assert "NameError: name 'depth' is not defined" in said
    assert "\n2\n" in said


# Through real tasks


def ran(
    *arguments: str, text: str | None = None, folder: Path | None = None, fails: bool = True
) -> str:
    """What a program writes to its terminal, without what differs from run to run."""
    done = subprocess.run(
        [sys.executable, *arguments],
        input=text,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert (done.returncode != 0) is fails, done.stdout
    said = done.stdout.replace(api.__file__, "api.py")
    said = re.sub(r"id [0-9a-f]+-\d+", "id ID", said)
    said = re.sub(r"pid \d+", "pid PID", said)
    return re.sub(r'(File "api.py", line )\d+', r"\1N", re.sub(r"\n +[~^]+(?=\n)", "", said))


def script(folder: Path, source: str) -> str:
    """What a script that ends in an error says, with its own name as script.py."""
    file = folder / "script.py"
    file.write_text("import fsdray as fsd\n" + textwrap.dedent(source).lstrip())
    return ran(str(file)).replace(str(file), "script.py")


def test_in_a_terminal_the_users_line_is_followed_by_the_remote_ones(tmp_path: Path) -> None:
    assert script(
        tmp_path,
        """
        def look_up(key):
            return {}[key]

        @fsd.remote
        def inner(key):
            try:
                return look_up(key)
            except KeyError as error:
                error.add_note("a note of the user")
                raise ValueError("no luck") from error

        @fsd.remote
        def middle(key):
            return fsd.get(inner.remote(key))

        @fsd.remote
        def outer(key):
            return fsd.get(middle.remote(key))

        fsd.get(outer.remote("k"))
        """,
    ) == textwrap.dedent(
        """\
        Traceback (most recent call last):
          File "script.py", line 8, in inner
            return look_up(key)
          File "script.py", line 3, in look_up
            return {}[key]
        KeyError: 'k'
        a note of the user

        The above exception was the direct cause of the following exception:

        Traceback (most recent call last):
          File "script.py", line 21, in <module>
            fsd.get(outer.remote("k"))
          File "api.py", line N, in get
            raise error
          File "script.py", line 19, in outer
            return fsd.get(middle.remote(key))
          File "script.py", line 15, in middle
            return fsd.get(inner.remote(key))
          File "script.py", line 11, in inner
            raise ValueError("no luck") from error
        ValueError: no luck
        in task inner (id ID), attempt 1, on pid PID
        in task middle (id ID), attempt 1, on pid PID
        in task outer (id ID), attempt 1, on pid PID
        """
    )


def test_a_class_of_the_script_itself_is_caught_with_its_fields_three_tasks_up(
    tmp_path: Path,
) -> None:
    said = script(
        tmp_path,
        """
        class Mine(Exception):
            def __init__(self, code, *, hint):
                super().__init__(code)
                self.code, self.hint = code, hint

            def __reduce__(self):
                return make, (self.code, self.hint)

        def make(code, hint):
            return Mine(code, hint=hint)

        @fsd.remote
        def down(levels):
            if levels:
                fsd.get(down.remote(levels - 1))
            raise Mine(4, hint="h")

        try:
            fsd.get(down.remote(2))
        except Mine as error:
            raise SystemExit(f"{error!r} {error.code} {error.hint} {len(error.__notes__)}")
        """,
    )
    assert said == "Mine(4) 4 h 3\n"


def test_in_a_terminal_a_rank_says_which_it_is_and_why_the_others_failed(tmp_path: Path) -> None:
    said = script(
        tmp_path,
        """
        @fsd.remote(world_size=3)
        def sums():
            comm = fsd.collective.world()
            if comm.rank == 1:
                raise KeyError("mine")
            return comm.allreduce(1)

        fsd.get(sums.remote()[2])
        """,
    )
    cause, _, error = said.partition("\nThe above exception was the direct cause")
    assert cause == textwrap.dedent(
        """\
        Traceback (most recent call last):
          File "script.py", line 6, in sums
            raise KeyError("mine")
        KeyError: 'mine'
        in task sums (id ID), rank 1 of 3, attempt 1, on pid PID
        """
    )
    assert 'File "script.py", line 7, in sums\n    return comm.allreduce(1)\n' in error
    assert error.endswith(
        "RankFailed: rank 1 failed: KeyError: 'mine'\n"
        "in task sums (id ID), rank 2 of 3, attempt 1, on pid PID\n"
    )


def test_a_file_that_is_gone_is_shown_in_a_terminal_too(tmp_path: Path) -> None:
    said = script(
        tmp_path,
        f"""
        from pathlib import Path
        import linecache
        from fsdray import failure

        file = Path({str(tmp_path / "remote.py")!r})
        file.write_text("def far():\\n    raise KeyError('far away')\\n")
        names = {{}}
        exec(compile(file.read_text(), str(file), "exec"), names)
        try:
            names["far"]()
        except KeyError as error:
            left = failure.encode(failure.capture(error, "far"))
        file.unlink()
        linecache.clearcache()
        raise failure.decode(left)
        """,
    )
    assert "line 2, in far\n    raise KeyError('far away')\nKeyError: 'far away'\n" in said


def test_code_that_was_typed_in_has_frames() -> None:
    typed = (
        "import fsdray as fsd\n"
        "@fsd.remote\n"
        "def fail(x):\n"
        "    raise KeyError(x)\n"
        "\n"
        "fsd.get(fail.remote(1))\n"
        "import sys, pdb\n"
        "pdb.post_mortem(sys.last_traceback)\n"
        "w\nu\nl\nd\nl\nq\n"
    )
    said = ran("-i", "-q", text=typed, fails=False)
    assert re.search(r"""line \d+, in fail\n(    raise KeyError\(x\)\n)?KeyError: 1\n""", said)
    assert "in task fail (id ID)" in said
    in_frame = re.search(r"> [^\n]*<stdin[^\n]*\(\d+\)fail\(\)", said)
    assert in_frame, "the debugger stands in the task's frame"
    assert said.count("Traceback") == 1


def test_a_cells_lines_are_known_to_the_caller_alone_and_shown(session: None) -> None:
    source = "@fsd.remote\ndef in_cell(x):\n    doubled = x * 2\n    raise KeyError(doubled)\n"
    linecache.cache["<cell 7>"] = (len(source), None, source.splitlines(True), "<cell 7>")
    names: dict[str, Any] = {"fsd": fsd, "__name__": "__main__"}
    exec(compile(source, "<cell 7>", "exec"), names)
    with pytest.raises(KeyError) as caught:
        fsd.get(names["in_cell"].remote(2))
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.filename, last.lineno, last.name) == ("<cell 7>", 4, "in_cell")
    assert last.line == "raise KeyError(doubled)"


def test_a_failed_argument_shows_where_it_failed_and_both_tasks(session: None) -> None:
    @fsd.remote
    def first() -> int:
        raise KeyError("x")

    @fsd.remote
    def second(value: int) -> int:
        return value

    with pytest.raises(KeyError) as caught:
        fsd.get(second.remote(first.remote()))
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[1:] == ["get", "first"]
    assert [note.split()[2] for note in caught.value.__notes__] == ["first", "second"]


def test_a_future_and_an_awaited_ref_show_the_same_frames(session: None) -> None:
    @fsd.remote
    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError) as caught:
        fail.remote().future().result(30)
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-1] == "fail"
    assert not {"resolve", "_outcome", "open"} & set(names)


def test_an_error_that_is_got_twice_does_not_grow(session: None) -> None:
    @fsd.remote
    def die() -> None:
        os._exit(3)

    ref = die.remote()
    for _ in range(3):
        with pytest.raises(FunctionCrashed) as caught:
            fsd.get(ref)
        assert len(caught.traceback) == 2
        [note] = caught.value.__notes__
        assert note.startswith("in task die (id ")


def test_a_rank_that_died_is_told_in_the_cause(session: None) -> None:
    @fsd.remote(world_size=2)
    def die() -> None:
        comm = fsd.collective.world()
        if comm.rank == 1:
            os._exit(3)
        comm.barrier()

    with pytest.raises(RankFailed) as caught:
        fsd.get(die.remote())
    assert caught.value.cause is caught.value.__cause__
    assert caught.value.cause is not None
    assert any("rank 1 of 2" in note for note in caught.value.cause.__notes__)


def test_a_group_in_a_task_keeps_the_frames_of_its_members(session: None) -> None:
    @fsd.remote
    def member(number: int) -> None:
        raise KeyError(number)

    @fsd.remote
    def group() -> None:
        errors = []
        for number in range(2):
            try:
                fsd.get(member.remote(number))
            except KeyError as error:
                errors.append(error)
        raise ExceptionGroup("both", errors)

    with pytest.raises(ExceptionGroup) as caught:
        fsd.get(group.remote())
    for number, each in enumerate(caught.value.exceptions):
        assert isinstance(each, KeyError)
        assert isinstance(each, TaskError)
        assert each.args == (number,)
        names = [frame.name for frame in traceback.extract_tb(each.__traceback__)]
        assert names == ["group", "member"]
        assert "in task member" in each.__notes__[0]
