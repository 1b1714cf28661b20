"""What programs written for Ray say, in our words: arguments of `init`, and names not here.

Options of a task are translated where they are checked, in `fsdray.remote`; Ray's names of errors
are in `fsdray.exceptions`. `docs/ray.md` tells all differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsdray.errors import SettingsError

# They tune Ray's own processes and logs; what a program computes does not depend on them.
_HINTS = frozenset(
    {
        "cgroup_path",
        "configure_logging",
        "dashboard_host",
        "dashboard_port",
        "enable_resource_isolation",
        "logging_config",
        "logging_format",
        "logging_level",
        "namespace",
        "object_store_memory",
        "system_reserved_cpu",
        "system_reserved_memory",
    }
)

_REFUSED = {
    "include_dashboard": "there is no dashboard; fsdray.receipt() says what was asked for",
    "job_config": "settings are arguments of init, and runtime_env",
    "labels": "there are no nodes to label",
    "local_mode": "call f.__wrapped__(...) to run a function here",
    "num_gpus": "functions have no GPUs",
    "proxy_server_url": "there is no Ray cluster to connect to: choose a backend",
    "resources": "functions have memory, and CPUs in proportion to it",
}

_NO_ACTORS = (
    "fsdray has tasks and gangs, not actors. Keep state in the caller, in fsdray.put, or in the "
    "ranks of a gang"
)
_NO_CLUSTER = "there are no nodes: a backend runs each call where it has room"

_ABSENT = {
    **dict.fromkeys(("kill", "get_actor", "method", "actor"), _NO_ACTORS),
    **dict.fromkeys(("nodes", "get_gpu_ids", "autoscaler", "available_resources"), _NO_CLUSTER),
    "ObjectID": "it is called ObjectRef",
    "client": "there is no Ray cluster to connect to: choose a backend with fsdray.init(backend)",
    "cloudpickle": "import cloudpickle itself",
    "dag": "a graph of calls is made by passing refs to calls",
    "data": "it is a library on top of Ray's actors; f.map runs a function over many inputs",
    "rllib": "it is a library on top of Ray's actors",
    "serve": "it is a library on top of Ray's actors",
    "timeline": "fsdray.receipt() says what was asked for",
    "train": "it is a library on top of Ray's actors; gangs are @fsdray.remote(world_size=P)",
    "tune": "it is a library on top of Ray's actors; f.map runs a function over many inputs",
    "util": "pools are in fsdray.integrations, and collectives in fsdray.collective",
    "workflow": "tasks pass refs to tasks",
}


def settings_of(backend: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `init` as settings, those that Ray's `init` takes among them.

    Raises
    ------
    SettingsError
        for one of Ray's that asks for what is not here.
    """
    arguments = dict(given)
    address = arguments.pop("address", None)
    if backend is None or address is None:
        backend = _backend_at(backend if address is None else address)
    else:
        raise SettingsError(f"backend={backend!r} and address={address!r}: give one of them")
    for name in _HINTS & set(arguments):
        del arguments[name]
    for name, reason in _REFUSED.items():
        if arguments.pop(name, None):
            raise SettingsError(f"{name} has no meaning here: {reason}")
    for theirs, ours in (("num_cpus", "concurrency"), ("log_to_driver", "log_to_caller")):
        value = arguments.pop(theirs, None)
        if value is None:
            continue
        if arguments.get(ours) is not None:
            raise SettingsError(f"{theirs} and {ours} are one setting: give one of them")
        if theirs == "num_cpus" and (
            not isinstance(value, int) or isinstance(value, bool) or value < 1
        ):
            raise SettingsError(
                f"num_cpus={value!r}: give how many calls may run at one time, from 1"
            )
        arguments[ours] = value
    return {"backend": backend, **arguments}


def _backend_at(address: Any) -> Any:
    """The backend at what Ray calls an address; ``"auto"`` is the configured one."""
    if isinstance(address, str) and ":" in address:
        raise SettingsError(
            f"{address!r}: there is no Ray cluster to connect to; give the name of a backend"
        )
    return None if address == "auto" else address


def why_absent(name: str) -> str:
    """A sentence on a name of Ray's that is not here; empty for names that Ray has not either."""
    return _ABSENT.get(name, "")
