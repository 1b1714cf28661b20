"""fsdray: Ray-style tasks and MPI-style collectives on serverless functions.

The public names stand here; `fsdray.collective` and `fsdray.inference` are packages of their own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fsdray import errors, exceptions, from_ray
from fsdray._version import __version__
from fsdray.api import (
    as_completed,
    cancel,
    cluster_resources,
    get,
    init,
    is_initialized,
    put,
    receipt,
    shutdown,
    wait,
)
from fsdray.context import get_runtime_context
from fsdray.executor import Executor
from fsdray.refs import ObjectRef
from fsdray.remote import RemoteFunction, remote
from fsdray.streams import ObjectRefGenerator
from fsdray.submission import per_rank

if TYPE_CHECKING:
    from fsdray import collective as collective
    from fsdray import inference as inference

__all__ = [
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


def __getattr__(name: str) -> Any:
    # Loaded when first used: SciPy alone takes longer to import than all of the rest.
    if name in ("collective", "inference"):
        return importlib.import_module(f"fsdray.{name}")
    why = from_ray.why_absent(name)
    raise AttributeError(f"module 'fsdray' has no attribute {name!r}" + (why and f": {why}"))
