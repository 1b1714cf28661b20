"""The first five minutes: a prompt, a script, a notebook; and every way to stop in the midst."""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import nbformat
import pexpect
import pytest
from nbclient import NotebookClient

from fsdray.backends.local.directory import SHARED_MEMORY
from tests.test_readme import SAMPLES

SOON = 60  # seconds: what should come at once, on a busy machine

SQUARE = """
import os, time
import fsdray as fsd

@fsd.remote
def square(x):
    return x * x

"""
STUCK = """
@fsd.remote
def stuck(x):
    print("begun", os.getpid(), flush=True)
    time.sleep(1000)

"""
BAD = """
@fsd.remote
def bad(x):
    empty = {}
    return empty[x]

"""
WAITS = [
    "fsd.get([stuck.remote(n) for n in range(2)])",
    "fsd.wait([stuck.remote(n) for n in range(2)])",
    "next(fsd.as_completed([stuck.remote(n) for n in range(2)]))",
    "list(stuck.map(range(2)))",
    "list(stuck.map(range(2), ordered=False))",
    "fsd.get(square.remote(stuck.remote(0)))",
    "fsd.get(fsd.remote(lambda refs: fsd.get(refs)).remote([stuck.remote(0)]))",
    "fsd.get(fsd.remote(lambda: fsd.get(stuck.remote(0))).remote())",
    "fsd.get(stuck.options(world_size=2).remote(0))",
    "fsd.Executor().submit(stuck.__wrapped__, 0).result()",
    "list(fsd.Executor().map(stuck.__wrapped__, range(2)))",
    "Pool(2).map(stuck.__wrapped__, range(2))",
    "next(Pool(2).imap(stuck.__wrapped__, range(2)))",
]


def left_over(pid: int) -> list[str]:
    """Processes and directories of the session of process `pid`."""
    name = f"fsdray-{os.getuid()}-{pid}-"
    found = [str(path) for path in SHARED_MEMORY.glob(f"{name}*")]
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                command = (process / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if name.encode() in command:
                found.append(f"{process.name}: {command!r}")
    return found


def assert_ends(pid: int) -> None:
    """The process, which is no child of this one, ends soon."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], SOON)[0], f"process {pid} goes on"
    finally:
        os.close(descriptor)


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, prompt: str, *words: str) -> None:
        self.prompt = prompt
        environment = {
            **os.environ,
            "TERM": "dumb",
            "NO_COLOR": "1",
            "PYTHON_BASIC_REPL": "1",
            "PYTHONSTARTUP": "",
            "IPYTHONDIR": "/nonexistent",
        }
        # Whoever runs the tests in the background has it ignored, and children inherit that.
        self.child = pexpect.spawn(
            sys.executable,
            list(words),
            env=environment,  # type: ignore[arg-type]
            encoding="utf-8",
            timeout=SOON,
            dimensions=(50, 1000),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.close(force=True)

    def type(self, code: str) -> str:
        """Type lines as they are; what came after the last of them, up to the next prompt."""
        for line in code.lstrip("\n").removesuffix("\n").split("\n"):
            self.child.sendline(line)
            self.child.expect([self.prompt, r"\n\.\.\. ", r"\n +\.\.\.: "])
        return self.said()

    def said(self) -> str:
        before = self.child.before
        assert isinstance(before, str)
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", before).replace("\r", "")

    def interrupt(self, code: str) -> str:
        """Type a line that does not end, and Ctrl-C once a task has begun; what came then."""
        self.child.sendline(code)
        self.child.expect(r"begun (\d+)")
        assert self.child.match
        begun = int(self.child.match[1])
        self.child.sendintr()
        self.child.expect(self.prompt)
        said = self.said()
        assert_ends(begun)
        return said

    def ends(self) -> str:
        """What comes until the program ends; nothing of its session may be left then."""
        self.child.expect(pexpect.EOF)
        said = self.said()
        self.child.wait()
        assert left_over(self.child.pid) == []
        return said


def python() -> Terminal:
    terminal = Terminal(">>> ", "-q")
    terminal.child.expect(">>> ")
    return terminal


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


# A prompt


def test_the_readmes_sample_works_at_a_prompt() -> None:
    with python() as prompt:
        said = prompt.type(SAMPLES[0])
        assert said.count("499999.5") == 8
        assert prompt.type("_ = 1; fsd.get(square.remote(12))").endswith("144\n")
        prompt.child.sendline("exit()")
        prompt.ends()


def test_at_a_prompt_an_exception_shows_the_tasks_own_lines_and_few_of_ours() -> None:
    with python() as prompt:
        prompt.type(SQUARE + BAD)
        prompt.type("@fsd.remote\ndef outer(x):\n    return fsd.get(bad.remote(x))\n\n")
        for call in ("fsd.get(outer.remote(7))", "list(bad.map([7]))"):
            said = lines(prompt.type(call))
            assert any(re.fullmatch(r'File "<.*>", line \d+, in bad', line) for line in said), said
            ours = [line for line in said if re.match(r'File ".*/fsdray/', line)]
            assert len(ours) == 1, said
            error = said.index("KeyError: 7")
            assert all(line.startswith("in task ") for line in said[error + 1 :])
        assert "9" in lines(prompt.type("fsd.get(square.remote(3))"))


def test_a_ctrl_c_at_a_prompt_stops_what_was_waited_for_and_the_session_goes_on() -> None:
    with python() as prompt:
        prompt.type("from fsdray.integrations.multiprocessing import Pool" + SQUARE + STUCK)
        for number, wait in enumerate(WAITS):
            said = lines(prompt.interrupt(wait))
            assert any(line.startswith("KeyboardInterrupt") for line in said), (wait, said)
            said = lines(prompt.type(f"fsd.get(square.remote({number}))"))
            assert str(number * number) in said, (wait, said)
        prompt.child.sendline("exit()")
        prompt.ends()


def test_a_ctrl_c_at_a_prompt_says_what_it_did_without_our_frames() -> None:
    with python() as prompt:
        prompt.type(SQUARE + STUCK)
        said = lines(prompt.interrupt("fsd.get([stuck.remote(n) for n in range(2)])"))
        assert sum("/fsdray/" in line for line in said) == 1, said
        end = said.index("KeyboardInterrupt")
        assert said[end + 1] == "2 tasks that this waited for were cancelled"


def test_what_is_defined_anew_at_a_prompt_is_what_runs() -> None:
    with python() as prompt:
        prompt.type(SQUARE)
        assert "16" in lines(prompt.type("fsd.get(square.remote(4))"))
        prompt.type("@fsd.remote\ndef square(x):\n    return helper(x) + step\n\n")
        prompt.type("def helper(x): return x\n\nstep = 1")
        assert "5" in lines(prompt.type("fsd.get(square.remote(4))"))
        prompt.type("def helper(x): return 10 * x\n\nstep = 2")
        assert "42" in lines(prompt.type("fsd.get(square.remote(4))"))
        prompt.type("class Box:\n    def __init__(self, x): self.x = x\n\n")
        said = prompt.type("type(fsd.get(fsd.remote(lambda b: b).remote(Box(1)))) is Box")
        assert "True" in lines(said)


def test_a_second_init_at_a_prompt_is_a_clear_error_and_the_session_goes_on() -> None:
    with python() as prompt:
        prompt.type(SQUARE + "fsd.init()")
        assert "shutdown()" in lines(prompt.type("fsd.init()"))[-1]
        assert "9" in lines(prompt.type("fsd.get(square.remote(3))"))


# IPython


def test_ipython_shows_the_tasks_lines_and_a_ctrl_c_stops_it() -> None:
    words = ("-m", "IPython", "--simple-prompt", "--no-banner", "--colors=NoColor", "--quick")
    with Terminal(r"In \[\d+\]: ", *words) as prompt:
        prompt.child.expect(prompt.prompt)
        prompt.type("import os, time, fsdray as fsd")
        for code in (SQUARE.partition("fsd\n")[2], STUCK, BAD):
            prompt.type(code)
        assert "9" in prompt.type("fsd.get(square.remote(3))")
        said = prompt.type("fsd.get(bad.remote(7))")
        assert "return empty[x]" in said, "the remote line itself"
        assert "KeyError: 7" in said
        assert "KeyboardInterrupt" in prompt.interrupt("fsd.get(stuck.remote(0))")
        assert "16" in prompt.type("fsd.get(square.remote(4))")
        prompt.child.sendline("exit")
        prompt.ends()


# A script


@pytest.mark.parametrize(
    ("times", "rest"),
    [
        (1, "fsd.get([stuck.remote(n) for n in range(2)])"),
        (1, "list(stuck.map(range(2)))"),
        (1, "fsd.get(stuck.options(world_size=2).remote(0))"),
        (1, "fsd.Executor().submit(stuck.__wrapped__, 0).result()"),
        (1, "future = fsd.Executor().submit(stuck.__wrapped__, 0); time.sleep(1000)"),
        (1, "next(Pool(2).imap(stuck.__wrapped__, range(2)))"),
        (3, "fsd.get([stuck.remote(n) for n in range(2)])"),
        (3, "refs = [stuck.remote(n) for n in range(2)]; time.sleep(1000)"),
        (3, "future = fsd.Executor().submit(stuck.__wrapped__, 0); time.sleep(1000)"),
    ],
)
def test_a_ctrl_c_ends_a_script_by_its_signal_and_leaves_nothing(
    times: int, rest: str, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    imports = "from fsdray.integrations.multiprocessing import Pool\n"
    script.write_text(imports + SQUARE + STUCK + rest)
    with Terminal("", str(script)) as terminal:
        terminal.child.expect(r"begun \d+")
        for _ in range(times):
            terminal.child.sendintr()
        said = terminal.ends()
        assert "KeyboardInterrupt" in said
        assert terminal.child.signalstatus == signal.SIGINT, said


def test_a_script_that_raises_ends_with_the_users_own_exception(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SQUARE + BAD + "print(fsd.get(square.remote(3)))\nfsd.get(bad.remote(7))\n")
    with Terminal("", str(script)) as terminal:
        said = lines(terminal.ends())
        assert said[0] == "9"
        assert "return empty[x]" in said
        assert sum(bool(re.match(r'File ".*/fsdray/', line)) for line in said) == 1
        assert said[-2] == "KeyError: 7"
        assert said[-1].startswith("in task bad (id ")
        assert terminal.child.exitstatus == 1


# A notebook


class Notebook(NotebookClient):  # type: ignore[misc]  # its traits have no types
    """Runs cells one by one, and interrupts the kernel once a cell says what it should."""

    interrupts_at = ""

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        text = msg["content"].get("text", "") if msg["msg_type"] == "stream" else ""
        if self.interrupts_at and self.interrupts_at in text:
            self.interrupts_at = ""
            self.interrupting = asyncio.ensure_future(self.km.interrupt_kernel())
        return super().process_message(msg, cell, cell_index)

    async def cell(self, code: str, interrupts_at: str = "") -> tuple[str, str, str]:
        """Run a cell: its value, what was printed, and its error."""
        self.interrupts_at = interrupts_at
        cell = nbformat.v4.new_code_cell(code)
        self.nb.cells.append(cell)
        await self.async_execute_cell(cell, len(self.nb.cells) - 1)
        value, printed, error = "", "", ""
        for output in cell.outputs:
            if output.output_type == "stream":
                printed += output.text
            elif output.output_type == "error":
                error += re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback))
            else:
                value += output.data["text/plain"]
        return value, printed, error


async def _in_a_notebook() -> int:
    notebook = Notebook(
        nbformat.v4.new_notebook(), timeout=SOON, kernel_name="python3", allow_errors=True
    )
    async with notebook.async_setup_kernel():
        run = notebook.cell
        await run(SQUARE + "fsd.init()")
        pid, _, _ = await run("os.getpid()")
        assert (await run("fsd.get(square.remote(3))"))[0] == "9"
        await run("@fsd.remote\ndef speak(n): print('said', n)")
        for cell in range(2):  # of a later cell it comes in that cell
            numbers = list(range(cell, cell + 4))
            _, printed, _ = await run(f"fsd.get([speak.remote(n) for n in {numbers}])")
            told = sorted(re.findall(r"\(speak [0-9a-f]{4}-\d+, pid \d+\) said (\d)", printed))
            assert told == [str(n) for n in numbers]
        await run(BAD)
        _, _, error = await run("fsd.get(bad.remote(7))")
        assert "return empty[x]" in error
        assert "/fsdray/" not in error
        assert re.search(r"KeyError: 7\nin task bad \(id .*\), attempt 1, on pid \d+$", error)
        assert "/fsdray/" not in (await run("list(bad.map([7]))"))[2]
        await run(STUCK)
        for wait in WAITS[:4]:
            _, _, error = await run(wait, interrupts_at="begun")
            assert "KeyboardInterrupt" in error
            assert (await run("fsd.get(square.remote(3))"))[0] == "9"
        assert "shutdown()" in (await run("fsd.init()"))[2]
        await run("def helper(): return 1")
        await run("@fsd.remote\ndef helped(): return helper()")
        assert (await run("fsd.get(helped.remote())"))[0] == "1"
        await run("def helper(): return 2")
        assert (await run("fsd.get(helped.remote())"))[0] == "2"
        assert (await run("await helped.remote()"))[0] == "2"
    return int(pid)


def test_a_notebook_shows_what_tasks_print_and_raise_and_can_be_interrupted() -> None:
    pid = asyncio.run(_in_a_notebook())
    waited = threading.Event()
    for _ in range(10 * SOON):  # the kernel may have been killed: its session ends by itself
        if not left_over(pid):
            break
        waited.wait(0.1)
    assert left_over(pid) == []
