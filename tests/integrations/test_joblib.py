"""joblib's loops and scikit-learn's searches run on fsdray with the results they have elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

import fsdray as fsd
from fsdray.errors import FunctionTimeout, SettingsError, TaskError
from fsdray.integrations.joblib import register
from tests.test_executor import fail, gate, opened, wait_for

pytestmark = pytest.mark.usefixtures("session")


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    register()


def square(n: int) -> int:
    return n * n


def total(array: Any) -> tuple[float, int]:
    return float(array.sum()), os.getpid()


def backend_of_a_loop_inside() -> tuple[str, int, bool]:
    loop = joblib.Parallel(n_jobs=4)
    pids = joblib.Parallel(n_jobs=4, backend="fsdray")(
        joblib.delayed(os.getpid)() for _ in range(3)
    )
    return type(loop._backend).__name__, loop._effective_n_jobs(), set(pids) == {os.getpid()}


@settings(max_examples=10)
@given(items=st.lists(st.integers(), max_size=50), n_jobs=st.sampled_from([-1, 1, 2, 4]))
@pytest.mark.slow_on_aws
def test_a_loop_gives_the_values_in_order(items: list[int], n_jobs: int) -> None:
    with joblib.parallel_config(backend="fsdray", n_jobs=n_jobs):
        got = joblib.Parallel()(joblib.delayed(square)(n) for n in items)
    assert got == [square(n) for n in items]


def test_the_older_context_manager_and_the_argument_choose_it_too() -> None:
    loop = [joblib.delayed(os.getpid)() for _ in range(4)]
    with joblib.parallel_backend("fsdray", n_jobs=2):
        assert os.getpid() not in joblib.Parallel()(loop)
    assert os.getpid() not in joblib.Parallel(n_jobs=2, backend="fsdray")(loop)


@pytest.mark.parametrize("n_jobs", [-1, 4])
@pytest.mark.slow_on_aws
def test_a_grid_search_has_the_results_of_the_sequential_one(n_jobs: int) -> None:
    images, digits = load_digits(return_X_y=True)

    def search() -> Any:
        return GridSearchCV(SVC(), {"C": [0.1, 10], "gamma": [1e-3, 1e-4]}, cv=3)

    expected = search().fit(images, digits)
    before = fsd.receipt().requests.get("invoke", 0)
    with joblib.parallel_config(backend="fsdray", n_jobs=n_jobs):
        got = search().fit(images, digits)
    assert fsd.receipt().requests["invoke"] > before
    assert got.best_params_ == expected.best_params_
    for name, scores in expected.cv_results_.items():
        if "time" not in name:
            assert np.array_equal(got.cv_results_[name], scores), name
    assert (got.predict(images) == expected.predict(images)).all()


def test_a_forest_that_asks_for_shared_memory_still_fits() -> None:
    images, digits = load_digits(return_X_y=True)

    def forest() -> Any:
        return RandomForestClassifier(20, random_state=0, n_jobs=4)

    expected = forest().fit(images, digits).predict_proba(images)
    with joblib.parallel_config(backend="fsdray"):
        got = forest().fit(images, digits).predict_proba(images)
    assert np.allclose(got, expected)


def test_a_large_array_is_stored_once_for_the_whole_loop() -> None:
    array = np.random.default_rng(0).random(200_000)
    columns = sparse.random(1000, 1000, density=0.1, random_state=0, format="csr")
    with joblib.parallel_config(backend="fsdray", n_jobs=2):  # what is stored for any loop, is now
        joblib.Parallel(batch_size=1)(joblib.delayed(total)(array[:1]) for _ in range(2))
    for large in (array, columns):
        before = fsd.receipt().requests.get("put", 0)
        with joblib.parallel_config(backend="fsdray", n_jobs=2):
            sums = joblib.Parallel(batch_size=1)(joblib.delayed(total)(large) for _ in range(20))
        assert {value for value, _ in sums} == {float(large.sum())}
        assert fsd.receipt().requests["put"] - before == 1


def test_a_loop_inside_a_loop_is_sequential() -> None:
    with joblib.parallel_config(backend="fsdray", n_jobs=2):
        inside = joblib.Parallel()(joblib.delayed(backend_of_a_loop_inside)() for _ in range(2))
    assert inside == [("SequentialBackend", 1, True)] * 2


def test_an_exception_keeps_its_type_and_the_next_loop_runs() -> None:
    with joblib.parallel_config(backend="fsdray", n_jobs=2):
        with joblib.Parallel() as loop:
            with pytest.raises(KeyError) as raised:
                loop(joblib.delayed(fail)(KeyError(n)) for n in range(5))
            assert loop(joblib.delayed(square)(n) for n in range(3)) == [0, 1, 4]
        assert joblib.Parallel()(joblib.delayed(square)(n) for n in range(3)) == [0, 1, 4]
    assert isinstance(raised.value, TaskError)


def test_an_input_that_raises_ends_the_loop() -> None:
    def calls() -> Iterator[Any]:
        yield joblib.delayed(square)(1)
        raise LookupError("no more input")

    with (
        joblib.parallel_config(backend="fsdray", n_jobs=2),
        pytest.raises(LookupError, match="no more input"),
    ):
        joblib.Parallel()(calls())


def test_results_can_be_taken_while_the_loop_runs() -> None:
    key = gate()
    with joblib.parallel_config(backend="fsdray", n_jobs=2):
        values = joblib.Parallel(return_as="generator_unordered", batch_size=1)(
            joblib.delayed(call)(x) for call, x in ((wait_for, key), (square, 7))
        )
        assert next(values) == 49
        opened(key)
        assert list(values) == ["open"]


def test_options_are_those_of_the_calls() -> None:
    with (
        joblib.parallel_config(backend="fsdray", n_jobs=2, timeout=0.2),
        pytest.raises(FunctionTimeout),
    ):
        joblib.Parallel()(joblib.delayed(wait_for)(gate()) for _ in range(2))
    with pytest.raises(SettingsError, match="memory"):
        joblib.parallel_config(backend="fsdray", memory=-1)


def test_minus_one_is_what_the_session_lets_run() -> None:
    most = fsd.session.current().backend.functions.limits.concurrency
    with joblib.parallel_config(backend="fsdray"):
        assert joblib.effective_n_jobs(-1) == most
        assert joblib.effective_n_jobs(-3) == most - 2
        assert joblib.effective_n_jobs(4) == 4


def test_without_joblib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "joblib", None)
    with pytest.raises(SettingsError, match="pip install 'joblib"):
        register()


def test_a_joblib_that_is_too_old_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(joblib.parallel.ParallelBackendBase, "submit")
    with pytest.raises(SettingsError, match="too old"):
        register()


def test_a_loop_inside_a_task_gives_its_place_to_its_calls() -> None:
    fsd.shutdown()
    fsd.init(concurrency=1)

    @fsd.remote
    def outer() -> Any:
        register()
        with joblib.parallel_config(backend="fsdray", n_jobs=2):
            return joblib.Parallel()(joblib.delayed(square)(n) for n in range(5))

    assert fsd.get(outer.remote(), timeout=60) == [0, 1, 4, 9, 16]
