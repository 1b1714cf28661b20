"""Dask's collections and graphs give on fsdray what Dask's own synchronous scheduler gives."""

from __future__ import annotations

import operator
import os
import sys
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import numpy as np
import pytest
from dask._task_spec import Alias, DataNode, List, Task, TaskRef
from hypothesis import given, settings
from hypothesis import strategies as st

import fsdray as fsd
from fsdray.errors import SettingsError, TaskError
from fsdray.integrations.dask import get
from tests.test_executor import add, fail

pytestmark = pytest.mark.usefixtures("session")


def combine(*values: int) -> int:
    total = 7
    for value in values:
        total = (31 * total + value) % 1_000_003
    return total


def test_a_graph_of_tuples_runs() -> None:
    dsk = {
        "x": 1,
        "y": (add, "x", 10),
        "z": "y",
        ("w", 0): (sum, ["x", "y", (add, "z", "z")]),
        "list": [("w", 0), "x", "text"],
    }
    assert get(dsk, "x") == 1
    assert get(dsk, "z") == 11
    assert get(dsk, [["y", ("w", 0)], "x"]) == ((11, 34), 1)
    assert get(dsk, "list") == [34, 1, "text"]
    assert get(dsk, []) == ()
    with pytest.raises(KeyError):
        get(dsk, "nothing")


def test_a_graph_of_task_objects_runs() -> None:
    dsk = {
        "x": DataNode("x", 1),
        "y": Task("y", add, TaskRef("x"), right=10),
        "z": Alias("z", "y"),
        "sum": Task("sum", sum, List(TaskRef("x"), TaskRef("z"))),
    }
    assert get(dsk, ["sum", "z"]) == (12, 11)


@settings(max_examples=15)
@given(
    parents=st.lists(st.lists(st.integers(0, 100), max_size=4), min_size=1, max_size=15),
    asked=st.lists(st.integers(0, 100), min_size=1, max_size=4),
)
def test_any_graph_gives_what_dask_gives(parents: list[list[int]], asked: list[int]) -> None:
    dsk: dict[Any, Any] = {0: 5}
    for number, wanted in enumerate(parents, 1):
        dsk[number] = (combine, *(f"k{w % number}" for w in wanted))
    named = {f"k{number}": node for number, node in dsk.items()}
    keys = [f"k{number % len(named)}" for number in asked]
    assert get(named, keys) == dask.get(named, keys)


def test_delayed_calls_run_elsewhere() -> None:
    @dask.delayed
    def pid(*after: Any) -> int:
        return os.getpid()

    first = pid()
    results = dask.compute(first, pid(first), {"nested": [pid()]}, scheduler=get)
    assert os.getpid() not in (results[0], results[1], results[2]["nested"][0])
    total = dask.delayed(sum)([dask.delayed(add)(n) for n in range(10)])
    assert total.compute(scheduler=get) == 55


@pytest.mark.slow_on_aws
def test_arrays_are_those_of_the_synchronous_scheduler() -> None:
    array = da.from_array(np.random.default_rng(0).random((300, 300)), chunks=100)
    sums = (array + array.T).cumsum(axis=0) - array.mean(axis=0)
    assert np.array_equal(sums.compute(scheduler=get), sums.compute(scheduler="sync"))
    # BLAS may add in another order on another number of threads.
    product = (array @ array.T).std(axis=1)
    assert np.allclose(product.compute(scheduler=get), product.compute(scheduler="sync"))
    q, r = da.linalg.qr(da.random.default_rng(1).random((200, 10), chunks=(50, 10)))
    for got, known in zip(
        dask.compute(q, r, scheduler=get), dask.compute(q, r, scheduler="sync"), strict=True
    ):
        assert np.allclose(got, known)


def test_bags_are_those_of_the_synchronous_scheduler() -> None:
    words = db.from_sequence(("a rose is a rose is a rose " * 5).split(), npartitions=4)
    counted = words.frequencies().topk(2, key=operator.itemgetter(1))
    assert counted.compute(scheduler=get) == [("a", 15), ("rose", 15)]
    odd = db.range(100, npartitions=5).filter(lambda n: n % 2).map(lambda n: n * n)
    assert odd.compute(scheduler=get) == [n * n for n in range(1, 100, 2)]
    groups = dict(db.range(20, npartitions=4).groupby(lambda n: n % 3).compute(scheduler=get))
    assert {key: sorted(group) for key, group in groups.items()} == {
        rest: list(range(rest, 20, 3)) for rest in range(3)
    }


def test_it_can_be_set_as_the_scheduler_of_all_collections() -> None:
    with dask.config.set(scheduler=get):
        assert da.ones(10, chunks=5).sum().compute() == 10
        kept = da.arange(10, chunks=5).persist()
    assert kept.sum().compute(scheduler="sync") == 45


def test_results_between_tasks_do_not_pass_through_the_caller() -> None:
    dsk = {"large": (np.ones, 1_000_000), "twice": (operator.mul, "large", 2), "n": (sum, "twice")}
    fetched: list[str] = []
    objects = fsd.session.current().backend.objects
    plain = objects.get

    async def watched(key: str, **options: Any) -> Any:
        fetched.append(key)
        return await plain(key, **options)

    objects.get = watched
    try:
        assert get(dsk, "n") == 2_000_000
    finally:
        objects.get = plain
    assert fetched == []
    fsd.loop.run(fsd.session.current().flush())
    assert fsd.loop.run(objects.list("values/")) == [], "and none of them is kept"


def test_a_large_value_of_the_graph_is_stored_once() -> None:
    before = fsd.receipt().requests.get("put", 0)
    dsk: dict[str, Any] = {"data": np.ones(200_000)}
    dsk |= {f"sum{n}": (np.sum, "data") for n in range(10)}
    assert get(dsk, list(dsk)[1:]) == (200_000.0,) * 10
    assert fsd.receipt().requests["put"] - before == 1


def test_only_what_the_keys_need_is_run() -> None:
    before = fsd.receipt().requests.get("invoke", 0)
    assert get({"a": (add, 1), "b": (fail, KeyError("not needed"))}, "a") == 2
    assert fsd.receipt().requests["invoke"] - before == 1


def test_an_exception_keeps_its_type_and_names_its_task() -> None:
    broken = dask.delayed(fail)(ZeroDivisionError("first"))
    with pytest.raises(ZeroDivisionError) as raised:
        dask.delayed(add)(broken).compute(scheduler=get)
    assert isinstance(raised.value, TaskError)


def test_options_are_those_of_the_tasks() -> None:
    with pytest.raises(SettingsError, match="memory"):
        get({"a": (add, 1)}, "a", memory=-1)
    assert dask.delayed(add)(1).compute(scheduler=get, memory=512, num_workers=4) == 2


def test_without_dask_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask.core", None)
    with pytest.raises(SettingsError, match="pip install 'dask"):
        get({}, [])
