"""The public names, and what importing them costs: a change here is a change of the interface."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import fsdray
from fsdray import collective, errors, testing

NAMES = [
    "Executor",
    "ObjectRef",
    "ObjectRefGenerator",
    "RemoteFunction",
    "__version__",
    "as_completed",
    "cancel",
    "cluster_resources",
    "collective",
    "errors",
    "exceptions",
    "get",
    "get_runtime_context",
    "inference",
    "init",
    "is_initialized",
    "per_rank",
    "put",
    "receipt",
    "remote",
    "shutdown",
    "wait",
]

COLLECTIVE_NAMES = [
    "ANY_SOURCE",
    "ANY_TAG",
    "BAND",
    "BOR",
    "BXOR",
    "LAND",
    "LOR",
    "LXOR",
    "MAX",
    "MAXLOC",
    "MIN",
    "MINLOC",
    "PROC_NULL",
    "PROD",
    "SUM",
    "UNDEFINED",
    "AsyncCommunicator",
    "AsyncRequest",
    "Communicator",
    "Request",
    "Status",
    "destroy_group",
    "init_group",
    "run",
    "world",
]

TESTING_NAMES = [
    "EXPRESS",
    "FUNCTION_CHECKS",
    "LambdaHost",
    "MESSAGE_CHECKS",
    "OBJECT_CHECKS",
    "STOP_CHECKS",
    "Deadlock",
    "Death",
    "Faults",
    "FaultyMessages",
    "FaultyObjects",
    "Latency",
    "Network",
    "Simulation",
    "ThroughNear",
    "Trace",
    "call_function",
    "check_functions",
    "check_messages",
    "check_objects",
    "compute",
    "decode_reply",
    "encode_call",
    "run_ranks",
    "simulate",
]

# DESIGN: who catches the class on the right catches the one on the left.
ERRORS = {
    "FsdrayError": ("Exception",),
    "TaskError": ("FsdrayError",),
    "PlatformError": ("FsdrayError",),
    "FunctionCrashed": ("PlatformError",),
    "OutOfMemory": ("PlatformError",),
    "FunctionTimeout": ("PlatformError",),
    "Throttled": ("PlatformError",),
    "ServiceError": ("PlatformError",),
    "TaskCancelled": ("FsdrayError",),
    "GetTimeout": ("FsdrayError", "TimeoutError"),
    "ObjectLost": ("FsdrayError",),
    "CollectiveError": ("FsdrayError",),
    "RankFailed": ("CollectiveError",),
    "CollectiveTimeout": ("CollectiveError",),
    "MismatchedCollective": ("CollectiveError",),
    "EnvironmentMismatch": ("FsdrayError",),
    "CostLimitExceeded": ("FsdrayError",),
    "SessionError": ("FsdrayError", "RuntimeError"),
    "SettingsError": ("FsdrayError", "ValueError"),
    "NotPicklable": ("SettingsError", "TypeError"),
}


def test_fsdray_exports_these_names() -> None:
    assert sorted(fsdray.__all__) == NAMES
    assert len(set(fsdray.__all__)) == len(fsdray.__all__)


def test_collective_exports_these_names() -> None:
    assert sorted(collective.__all__) == sorted(COLLECTIVE_NAMES)


def test_the_testing_kit_exports_these_names() -> None:
    assert sorted(testing.__all__) == sorted(TESTING_NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_exported_name_is_there(name: str) -> None:
    assert getattr(fsdray, name) is not None


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'fsdray' has no attribute 'actor'"):
        _ = fsdray.actor


def test_the_tree_of_errors_is_this_one() -> None:
    tree = {
        name: tuple(base.__name__ for base in value.__bases__)
        for name, value in vars(errors).items()
        if inspect.isclass(value)
        and issubclass(value, Exception)
        and value.__module__ == errors.__name__
    }
    assert tree == ERRORS


def test_the_tree_that_is_drawn_names_every_error() -> None:
    assert errors.__doc__ is not None
    drawn = [
        line.split("──")[-1].split()[0] for line in errors.__doc__.splitlines() if "──" in line
    ]
    assert drawn == [name for name in ERRORS if name != "FsdrayError"]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "__version__"])
def test_each_public_name_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(getattr(fsdray, name))


def test_importing_fsdray_imports_nothing_heavy() -> None:
    code = (
        "import sys, fsdray; "
        "heavy = {'scipy', 'numba', 'boto3', 'botocore', 'aiobotocore', 'sklearn', 'mtkahypar'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
