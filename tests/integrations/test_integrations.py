"""What holds for all of the interfaces that other libraries know."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from typing import Any

import dask
import joblib
import pytest

import fsdray as fsd
from fsdray.integrations.dask import get
from fsdray.integrations.joblib import register
from fsdray.integrations.multiprocessing import Pool


@pytest.mark.local_only("it waits for what a call prints, which on AWS comes with the reply")
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


def _stuck(key: str) -> None:
    """A call that says which process it runs in, and does not end."""
    fsd.loop.run(fsd.session.current().backend.objects.put(key, str(os.getpid()).encode()))
    threading.Event().wait()


def _process_of(key: str) -> int:
    """A descriptor of the process that runs the stuck call, once it has begun."""
    blob = fsd.loop.run(fsd.session.current().backend.objects.get(key, wait=60))
    assert blob is not None
    return os.pidfd_open(int(bytes(blob.data)))


def _abandoned(key: str) -> int:
    executor = fsd.Executor()
    executor.submit(_stuck, key)
    process = _process_of(key)
    executor.abandon()
    return process


def _terminated(key: str) -> int:
    pool = Pool(2)
    pool.map_async(_stuck, [key])
    process = _process_of(key)
    pool.terminate()
    return process


def _terminated_imap(key: str) -> int:
    with Pool(2) as pool:
        pool.imap(_stuck, [key])
        return _process_of(key)


def _fails_once_begun(key: str) -> None:
    assert fsd.loop.run(fsd.session.current().backend.objects.get(key, wait=60)) is not None
    raise KeyError(key)


def _failed_loop(key: str) -> int:
    register()
    calls = [joblib.delayed(_stuck)(key), joblib.delayed(_fails_once_begun)(key)]
    with pytest.raises(KeyError):
        joblib.Parallel(n_jobs=2, backend="fsdray", batch_size=1)(calls)
    return _process_of(key)


def _failed_graph(key: str) -> int:
    both = [dask.delayed(_stuck)(key), dask.delayed(_fails_once_begun)(key)]
    with pytest.raises(KeyError):
        dask.delayed(list)([dask.delayed(id)(both[0]), both[1]]).compute(scheduler=get)
    return _process_of(key)


@pytest.mark.usefixtures("own_session")
@pytest.mark.parametrize(
    "stop", [_abandoned, _terminated, _terminated_imap, _failed_loop, _failed_graph]
)
def test_what_is_not_wanted_any_more_is_stopped(stop: Any) -> None:
    process = stop(stop.__name__)
    try:
        assert select.select([process], [], [], 60)[0], "the call goes on"
    finally:
        os.close(process)
    assert fsd.get(fsd.remote(abs).remote(-3)) == 3
