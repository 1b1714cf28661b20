"""What holds for all of the interfaces that other libraries know."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest


@pytest.mark.parametrize(
    "calls",
    [
        "with fsd.Executor() as executor: executor.submit(spin).result()",
        "with Pool(2) as pool: pool.map(spin, range(9))",
        "for _ in Pool(2).imap(spin, range(9)): pass",
        "joblib.Parallel(n_jobs=2, backend='fsdray')(joblib.delayed(spin)() for _ in range(9))",
        "dask.delayed(spin)().compute(scheduler=get)",
    ],
)
def test_a_ctrl_c_ends_a_script_at_once(calls: str, tmp_path: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, time\n"
        # Whoever runs the tests in the background has it ignored, and children inherit that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import dask, joblib\n"
        "import fsdray as fsd\n"
        "from fsdray.integrations.dask import get\n"
        "from fsdray.integrations.joblib import register\n"
        "from fsdray.integrations.multiprocessing import Pool\n"
        "def spin(_=0):\n"
        "    print('begun')\n"
        "    while True: time.sleep(0.01)\n"
        "register()\n"
        f"{calls}\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True) as run:
        try:
            assert run.stderr is not None
            assert "begun" in run.stderr.readline()
            run.send_signal(signal.SIGINT)
            _, said = run.communicate(timeout=30)
        finally:
            run.kill()
    assert run.returncode == -signal.SIGINT
    assert "KeyboardInterrupt\n" in said
    assert said.count("Traceback") == 1


def test_importing_them_imports_no_library() -> None:
    code = (
        "import sys, fsdray.integrations.dask, fsdray.integrations.joblib; "
        "print(sorted({'dask', 'joblib', 'sklearn', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
