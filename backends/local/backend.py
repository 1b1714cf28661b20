"""Puts the local services together for the driver; `process` does so for a worker."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from fsdray.backends.local.directory import SessionDirectory
from fsdray.backends.local.forking import Template, Worker
from fsdray.backends.local.functions import LocalFunctions
from fsdray.backends.local.link import Handler
from fsdray.backends.local.messages import Inboxes, LocalMessages
from fsdray.backends.local.objects import Files, LocalObjects, Watchers
from fsdray.backends.local.pool import Outcome, Pool
from fsdray.services import Count, FunctionLimits, MessageLimits, ObjectLimits
from fsdray.settings import Settings

_CONCURRENCY = max(32, 4 * (os.cpu_count() or 1))  # calls, where the settings do not say


class LocalBackend:
    """Worker processes, inboxes and shared memory of this machine."""

    name = "local"

    def __init__(
        self, functions: LocalFunctions, messages: LocalMessages, objects: LocalObjects
    ) -> None:
        self.functions = functions
        self.messages = messages
        self.objects = objects

    async def close(self) -> None:
        """A worker's end is the driver's to close."""


class _DriverBackend(LocalBackend):
    """The same, with the processes and the directory that it owns."""

    def __init__(
        self,
        functions: LocalFunctions,
        messages: LocalMessages,
        objects: LocalObjects,
        template: Template,
        inboxes: Inboxes,
        directories: Sequence[SessionDirectory],
    ) -> None:
        super().__init__(functions, messages, objects)
        self._template = template
        self._inboxes = inboxes
        self._directories = directories

    async def close(self) -> None:
        await self._template.close()
        self._inboxes.close()
        for directory in self._directories:
            directory.close()


async def connect(
    settings: Settings,
    count: Count,
    *,
    message_limits: MessageLimits = MessageLimits(),
    object_limits: ObjectLimits = ObjectLimits(),
) -> LocalBackend:
    """Start the local backend, as the driver of a session.

    Parameters
    ----------
    settings : of these it uses concurrency, directory and log_to_caller.
    count : told of each request that AWS would bill.
    message_limits, object_limits : by default those of SNS, SQS and S3.
    """
    directory = SessionDirectory(settings.directory)
    for_modules = directory if directory.runs_code else SessionDirectory(tempfile.gettempdir())
    function_limits = FunctionLimits(concurrency=settings.concurrency or _CONCURRENCY)
    files = Files(directory.path / "objects")
    watchers = Watchers(files.exists)
    inboxes = Inboxes(directory.path / "inboxes", message_limits, lambda key: files.delete([key]))
    config = {
        "directory": str(directory.path),
        "modules": str(for_modules.path),
        "functions": dataclasses.asdict(function_limits),
        "messages": dataclasses.asdict(message_limits),
        "objects": dataclasses.asdict(object_limits),
    }
    template = Template(
        config,
        lambda worker: _handlers(worker, pool, watchers),
        settings.log_to_caller,
    )

    def ended(pid: int) -> None:
        inboxes.ended(pid)
        files.ended(pid)

    pool = Pool(template, function_limits, ended)
    template.start()
    return _DriverBackend(
        LocalFunctions(_Here(pool), count, function_limits),
        LocalMessages(inboxes, count, message_limits),
        LocalObjects(files, watchers, count, object_limits),
        template,
        inboxes,
        list(dict.fromkeys((directory, for_modules))),
    )


class _Here:
    """The pool as the driver itself uses it: the driver is no worker, so it never yields."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.prepare = pool.prepare
        self.admit = pool.admit
        self.dismiss = pool.dismiss

    async def run(self, payload: bytes, memory: int, timeout: float, label: str) -> Outcome:
        return await self._pool.run(payload, memory, timeout, label)

    def waiting(self, is_waiting: bool) -> None:
        """The driver holds no slot that it could give back."""


def _handlers(worker: Worker, pool: Pool, watchers: Watchers) -> Mapping[str, Handler]:
    """What a worker may ask of the driver: the calls of `process._Driver`."""

    async def run(*args: Any) -> Outcome:
        return await pool.run_for(worker, *args)

    async def admit(count: int) -> None:
        await pool.admit(count)
        worker.admitted += count

    async def dismiss(count: int) -> None:
        worker.admitted -= count
        await pool.dismiss(count)

    def waiting(number: int, is_waiting: bool) -> None:
        pool.waiting(worker, number, is_waiting)

    def prepare(names: Sequence[str]) -> None:
        pool.prepare(names)

    return {
        "run": run,
        "admit": admit,
        "dismiss": dismiss,
        "waiting": waiting,
        "prepare": prepare,
        "touched": watchers.touched,
        "appeared": watchers.appeared,
    }
