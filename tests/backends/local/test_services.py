"""The conformance kit on the local backend, in the driver and through the link in a worker."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest

from fsdray import loop, session, testing
from fsdray.backends.local.backend import LocalBackend
from fsdray.testing import calls, function_checks, message_checks, object_checks
from fsdray.testing.function_checks import FunctionCheck
from fsdray.testing.message_checks import MessageCheck
from fsdray.testing.object_checks import ObjectCheck
from tests.backends.local import connected

KIT = (message_checks, object_checks, function_checks)


@pytest.fixture(scope="module")
def backend() -> Iterator[LocalBackend]:
    with connected() as backend:
        yield backend


def check_here(name: str) -> None:
    """Run one check of the kit in this worker, against its own side of the services."""
    backend = session.current().backend
    check = next(getattr(kit, name) for kit in KIT if hasattr(kit, name))
    if check in testing.MESSAGE_CHECKS:
        loop.run(check(backend.messages))
    elif check in testing.OBJECT_CHECKS:
        loop.run(check(backend.objects))
    else:
        loop.run(check(backend.functions, backend.objects))


def run_in_worker(backend: LocalBackend, name: str) -> None:
    loop.run(calls.call_function(backend.functions, check_here, name, memory=1024))


def name_of(check: MessageCheck | ObjectCheck | FunctionCheck) -> str:
    return check.__name__


@pytest.mark.parametrize("check", testing.MESSAGE_CHECKS, ids=name_of)
def test_messages_in_the_driver(backend: LocalBackend, check: MessageCheck) -> None:
    loop.run(check(backend.messages))


@pytest.mark.parametrize("check", testing.MESSAGE_CHECKS, ids=name_of)
def test_messages_that_need_no_task(backend: LocalBackend, check: MessageCheck) -> None:
    loop.run(check(testing.ThroughNear(backend.messages)))


@pytest.mark.parametrize("check", testing.MESSAGE_CHECKS, ids=name_of)
def test_messages_in_a_worker(backend: LocalBackend, check: MessageCheck) -> None:
    run_in_worker(backend, check.__name__)


@pytest.mark.parametrize("check", testing.OBJECT_CHECKS, ids=name_of)
def test_objects_in_the_driver(backend: LocalBackend, check: ObjectCheck) -> None:
    loop.run(check(backend.objects))


@pytest.mark.parametrize("check", testing.OBJECT_CHECKS, ids=name_of)
def test_objects_in_a_worker(backend: LocalBackend, check: ObjectCheck) -> None:
    run_in_worker(backend, check.__name__)


@pytest.mark.parametrize("check", testing.FUNCTION_CHECKS + testing.STOP_CHECKS, ids=name_of)
def test_functions_in_the_driver(backend: LocalBackend, check: FunctionCheck) -> None:
    loop.run(check(backend.functions, backend.objects))


@pytest.mark.parametrize("check", testing.FUNCTION_CHECKS + testing.STOP_CHECKS, ids=name_of)
def test_functions_in_a_worker(backend: LocalBackend, check: FunctionCheck) -> None:
    run_in_worker(backend, check.__name__)


@pytest.mark.parametrize("check", testing.OBJECT_CHECKS, ids=name_of)
def test_objects_on_disk(tmp_path_factory: pytest.TempPathFactory, check: ObjectCheck) -> None:
    with connected(directory=str(tmp_path_factory.mktemp("disk"))) as backend:
        loop.run(check(backend.objects))


def test_the_kit_lists_each_of_its_checks_once() -> None:
    listed = [
        *testing.MESSAGE_CHECKS,
        *testing.OBJECT_CHECKS,
        *testing.FUNCTION_CHECKS,
        *testing.STOP_CHECKS,
    ]
    written = {
        value
        for kit in KIT
        for name, value in vars(kit).items()
        if inspect.iscoroutinefunction(value)
        and not name.startswith(("_", "check_"))
        and value.__module__ == kit.__name__
    }
    assert set(listed) == written
    assert len(listed) == len(written)
