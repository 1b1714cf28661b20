"""Sessions: `init` in the forms that programs use, `shutdown`, and doing without either."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.semantics.differs import differs

QUIET: dict[str, Any] = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False}


@pytest.mark.parametrize(
    "options",
    [
        {"num_cpus": 2, "num_gpus": 0, "resources": None, "local_mode": False},
        {"address": None, "include_dashboard": False, "logging_level": logging.ERROR},
        {"address": "local", "namespace": "ours", "object_store_memory": 200_000_000},
        {
            "ignore_reinit_error": True,
            "configure_logging": False,
            "log_to_driver": False,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": None,
            "job_config": None,
        },
    ],
    ids=lambda options: next(iter(options)),
)
def test_init_takes_what_programs_say(bare: Any, options: dict[str, Any]) -> None:
    bare.init(**options)
    assert bare.is_initialized()
    assert bare.get(bare.put(1)) == 1


def test_init_takes_local_by_position(bare: Any) -> None:
    bare.init("local", **QUIET)
    assert bare.get(bare.remote(lambda: 2).remote()) == 2


def test_a_second_init_is_a_runtime_error_unless_said_otherwise(bare: Any) -> None:
    bare.init(**QUIET)
    ref = bare.put("kept")
    with pytest.raises(RuntimeError, match="shutdown"):
        bare.init(**QUIET)
    assert bare.init(ignore_reinit_error=True) is not None
    assert bare.get(ref) == "kept", "it is still the same session"


def test_inside_a_task_there_is_a_session_already(bare: Any) -> None:
    bare.init(**QUIET)

    @bare.remote
    def look():
        before = bare.is_initialized()
        bare.init(ignore_reinit_error=True)
        try:
            bare.init()
        except RuntimeError:
            return before
        return None

    assert bare.get(look.remote()) is True


def test_shutdown_may_come_twice_and_init_again(bare: Any) -> None:
    assert not bare.is_initialized()
    bare.shutdown()

    @bare.remote
    def answer():
        return 42

    for _ in range(2):
        bare.init(**QUIET)
        assert bare.is_initialized()
        assert bare.get(answer.remote()) == 42, "a function outlives a session"
        bare.shutdown()
        bare.shutdown()
        assert not bare.is_initialized()


def test_init_is_a_context_manager(bare: Any) -> None:
    with bare.init(**QUIET):
        assert bare.get(bare.put(1)) == 1
    assert not bare.is_initialized()
    with pytest.raises(KeyError), bare.init(**QUIET):
        raise KeyError("from within")
    assert not bare.is_initialized()


@pytest.mark.parametrize(
    "first",
    [
        lambda ray: ray.get(ray.remote(lambda: 1).remote()),
        lambda ray: ray.get(ray.put(1)),
        lambda ray: ray.get_runtime_context(),
    ],
    ids=["remote", "put", "context"],
)
def test_the_first_use_starts_a_session(bare: Any, first: Any) -> None:
    first(bare)
    assert bare.is_initialized()


def test_num_cpus_bounds_what_runs_at_one_time(bare: Any, tmp_path: Any) -> None:
    from tests.semantics.signals import Bell, Gate

    bell, gate = Bell(tmp_path / "bell"), Gate(tmp_path / "gate")
    bare.init(**QUIET)
    assert bare.cluster_resources()["CPU"] == 2

    @bare.remote
    def held(bell, gate):
        bell.ring()
        gate.wait()

    refs = [held.remote(bell, gate) for _ in range(3)]
    bell.hear(2)
    assert len(bare.wait(refs, num_returns=3, timeout=0.2)[0]) == 0
    assert bell.is_silent()
    gate.open()
    bare.get(refs)
    bell.hear()


@pytest.mark.slow_on_aws
def test_nested_waits_never_deadlock(bare: Any) -> None:
    bare.init(**QUIET)

    @bare.remote
    def deep(depth):
        return 1 if depth == 0 else sum(bare.get([deep.remote(depth - 1) for _ in range(2)]))

    assert bare.get(deep.remote(3), timeout=120) == 8


def test_a_sessions_runtime_env_is_that_of_all_its_tasks(bare: Any) -> None:
    bare.init(runtime_env={"env_vars": {"SEMANTICS_ALL": "1", "SEMANTICS_ONE": "1"}}, **QUIET)

    @bare.remote
    def look():
        return os.environ.get("SEMANTICS_ALL"), os.environ.get("SEMANTICS_ONE")

    @bare.remote
    def outer():
        return bare.get(look.remote())

    one = {"env_vars": {"SEMANTICS_ONE": "2"}}
    assert bare.get(look.remote()) == ("1", "1")
    assert bare.get(outer.remote()) == ("1", "1")
    assert bare.get(look.options(runtime_env=one).remote()) == ("1", "2")
    assert "SEMANTICS_ALL" not in os.environ


@pytest.mark.parametrize("log", [True, False])
def test_what_a_task_prints_appears_where_log_to_driver_says_so(
    bare: Any, system: str, log: bool, tmp_path: Any
) -> None:
    script = tmp_path / "speak.py"
    script.write_text(
        f"import {system} as ray\n"
        f"ray.init(num_cpus=1, include_dashboard=False, log_to_driver={log})\n"
        "@ray.remote\n"
        "def speak(n): print('spoken', n)\n"
        "ray.get([speak.remote(n) for n in (1, 2)])\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=True
    )
    spoken = [line for line in (done.stdout + done.stderr).splitlines() if "spoken" in line]
    assert all("(speak" in line for line in spoken), spoken
    assert len(spoken) == (2 if log else 0)


at_auto = differs(
    '`address="auto"` is the backend that `FSDRAY_BACKEND` or the config file names, and '
    '`"local"` is this machine; there is no cluster to connect to, so any other address is an '
    "error that says so."
)


@at_auto.in_ray
def test_auto_is_a_cluster_that_runs(bare: Any) -> None:
    with pytest.raises(ConnectionError):
        bare.init(address="auto")


@at_auto.here
def test_auto_is_the_configured_backend(bare: Any) -> None:
    for arguments in ({"address": "auto"}, {"backend": "auto"}):
        with bare.init(**arguments) as session:
            assert session.settings.backend == os.environ.get("FSDRAY_BACKEND", "local")
    for address in ("ray://head:10001", "10.0.0.1:6379"):
        with pytest.raises(ValueError, match="no Ray cluster"):
            bare.init(address=address)
    with pytest.raises(ValueError, match="one of them"):
        bare.init("local", address="local")


cpus = differs(
    "`init(num_cpus=n)` is `concurrency=n`: n calls at one time, each counts as one whatever its "
    "own `num_cpus`; n is at least 1. `cluster_resources()` tells it as `CPU`, and nothing else."
)


@cpus.in_ray
def test_a_driver_may_have_no_cpus(bare: Any) -> None:
    bare.init(num_cpus=0, include_dashboard=False)
    assert bare.cluster_resources().get("CPU", 0) == 0


@cpus.here
def test_num_cpus_is_concurrency(bare: Any) -> None:
    with bare.init(num_cpus=3) as session:
        assert session.settings.concurrency == 3
        assert bare.cluster_resources() == {"CPU": 3.0}
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="num_cpus"):
            bare.init(num_cpus=wrong)
    with pytest.raises(ValueError, match="one setting"):
        bare.init(num_cpus=3, concurrency=3)


refused = differs(
    "`init` ignores what only tunes Ray's processes (`object_store_memory`, `logging_level`, "
    "`dashboard_host`, `namespace`, ...) and refuses with the reason what would be missed: "
    "`num_gpus`, `resources`, `include_dashboard=True`, `job_config`, names that begin with `_`."
)


@refused.in_ray
def test_ray_has_resources_of_any_name(bare: Any) -> None:
    bare.init(resources={"unicorn": 2}, **QUIET)
    assert bare.cluster_resources()["unicorn"] == 2


@refused.here
def test_what_would_be_missed_is_refused(bare: Any) -> None:
    for arguments in (
        {"num_gpus": 1},
        {"resources": {"unicorn": 2}},
        {"labels": {"a": "b"}},
        {"include_dashboard": True},
        {"local_mode": True},
        {"job_config": object()},
        {"_temp_dir": "/tmp"},
        {"nonsense": 1},
    ):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            bare.init(**arguments)
    assert not bare.is_initialized()


quits = differs(
    "`shutdown` inside a task is a `RuntimeError`: the session is its caller's. Inside a task, "
    "Ray does nothing for it."
)


def _quits(ray: Any) -> Any:
    @ray.remote(max_retries=0)
    def quits():
        ray.shutdown()
        return "went on"

    return quits


@quits.here
def test_a_task_cannot_end_the_session(bare: Any) -> None:
    bare.init(**QUIET)
    with pytest.raises(RuntimeError, match="caller's session"):
        bare.get(_quits(bare).remote())


@quits.in_ray
def test_a_task_can_call_shutdown(bare: Any) -> None:
    bare.init(**QUIET)
    assert bare.get(_quits(bare).remote()) == "went on"


elsewhere = differs(
    "What needs nodes or stands on actors is not there, and its `AttributeError` says why: "
    "`nodes`, `available_resources`, `timeline`, `util`, `data`, `train`, `tune`, `serve`, "
    "`ray.ObjectID`, `dag`."
)


@elsewhere.in_ray
def test_ray_has_nodes(bare: Any) -> None:
    bare.init(**QUIET)
    assert len(bare.nodes()) == 1
    assert bare.available_resources()["CPU"] == 2
    assert bare.util is not None


@elsewhere.here
def test_what_is_not_there_says_why(bare: Any) -> None:
    for name, why in (
        ("nodes", "no nodes"),
        ("available_resources", "no nodes"),
        ("timeline", "receipt"),
        ("util", "integrations"),
        ("data", "f.map"),
        ("train", "world_size"),
        ("tune", "f.map"),
        ("serve", "actors"),
        ("ObjectID", "ObjectRef"),
        ("dag", "refs"),
    ):
        with pytest.raises(AttributeError, match=f"'{name}': .*{why}"):
            getattr(bare, name)
    assert not hasattr(bare, "anything")
