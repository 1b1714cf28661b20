"""`get`: a scheduler for Dask's collections, over fsdray's tasks.

Each task of a graph is a task of fsdray, and its dependencies are refs among its arguments:
results go from task to task through the platform and not through the caller.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fsdray import api, session
from fsdray.errors import SettingsError
from fsdray.refs import ObjectRef
from fsdray.remote import remote
from fsdray.values import Entry

if TYPE_CHECKING:
    from dask._task_spec import GraphNode

# Workers that are forked with these loaded need not import them one by one.
_PRELOAD = ("dask.array", "dask.bag", "dask.delayed")


def get(
    dsk: Any,
    keys: Any,
    *,
    memory: int | None = None,
    timeout: float | None = None,
    **_: Any,
) -> Any:
    """Run a Dask graph: ``dask.compute(..., scheduler=fsdray.integrations.dask.get)``.

    Arrays in the result are read-only, as `fsdray.get` gives them. Options that other schedulers
    of Dask take (``num_workers``, …) say nothing here.

    Parameters
    ----------
    dsk : the graph: a mapping in either of Dask's forms, or an object that has one.
    keys : a key, or a list (of lists) of keys.
    memory : MB that each task may use. timeout : seconds that it may take.

    Returns
    -------
    The key's value; for a list a tuple of values, nested as the list is.

    Raises
    ------
    SettingsError
        where Dask is not installed, or an option cannot be had.
    KeyError
        for a key that is not in the graph.
    Exception
        what a task raised: an instance of its own type and of `fsdray.errors.TaskError`.
    """
    try:
        from dask.core import flatten
        from dask.local import nested_get
    except ImportError as error:
        raise SettingsError(
            "fsdray.integrations.dask needs Dask: pip install 'dask[array]'"
        ) from error
    wanted = set(flatten([keys]))  # type: ignore[no-untyped-call]  # Dask has few types
    # Weakly: a result goes when the last task that needs it has ended.
    started: weakref.WeakSet[Entry] = weakref.WeakSet()
    values = _submit(dsk, wanted, memory, timeout, started)
    refs = {key: value for key, value in values.items() if isinstance(value, ObjectRef)}
    try:
        values.update(zip(refs, api.get(list(refs.values())), strict=True))
    except BaseException:
        # What the others were for will not be.
        session.current().stop(ObjectRef(entry) for entry in list(started))
        raise
    return nested_get(keys, values)  # type: ignore[no-untyped-call]


def _submit(
    dsk: Any,
    wanted: set[Any],
    memory: int | None,
    timeout: float | None,
    started: weakref.WeakSet[Entry],
) -> dict[Any, Any]:
    """Start the tasks that the wanted keys need; a ref or a plain value for each of those.

    All other refs end here.
    """
    from dask._task_spec import Alias, DataNode, convert_legacy_graph, cull
    from dask.order import order
    from dask.utils import key_split

    graph: Mapping[Any, GraphNode] = cull(
        convert_legacy_graph(dsk if isinstance(dsk, Mapping) else dsk.__dask_graph__()), wanted
    )
    preload = [name for name in _PRELOAD if name in sys.modules]
    run = remote(memory=memory, timeout=timeout, preload=preload)(_run)
    values: dict[Any, Any] = {}
    first = order(graph)
    for key in sorted(graph, key=first.__getitem__):
        node = graph[key]
        if isinstance(node, Alias):
            values[key] = values[node.target]
        elif isinstance(node, DataNode):
            values[key] = _data(node.value, key in wanted)
        else:
            names = list(node.dependencies)
            given = [values[name] for name in names]
            ref = run.options(name=key_split(key)).remote(node, names, *given)
            started.add(ref._entry)
            values[key] = ref
    return {key: values[key] for key in wanted}


def _data(value: Any, is_wanted: bool) -> Any:
    """A value of the graph itself: stored once where it is large, else given to each task."""
    from dask.sizeof import sizeof

    if is_wanted or sizeof(value) <= session.current().settings.inline_limit:
        return value
    return api.put(value)


def _run(node: GraphNode, names: list[Any], *values: Any) -> Any:
    return node(dict(zip(names, values, strict=True)))
