"""Simulated blobs: kept once in memory, written and read in virtual time.

`Store` holds the objects of a simulation, `SimulatedObjects` is one node's access to them. Who
waits for a key does not look again and again: the looks that `Pace` would have made are counted,
and the first one after the key is there finds it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

from fsdray import buffers
from fsdray.backends.simulated.world import Node, World
from fsdray.services import Blob, Buffer, ObjectLimits, Pace, gets, puts


class Store:
    """Keys, their bytes and etags, and who waits for a key."""

    def __init__(self) -> None:
        self._objects: dict[str, tuple[memoryview, str]] = {}
        self._etags = itertools.count()
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}

    def write(
        self, key: str, data: memoryview, if_absent: bool, if_match: str | None
    ) -> str | None:
        held = self._objects.get(key)
        if (if_absent and held) or (if_match is not None and (not held or held[1] != if_match)):
            return None
        etag = f"e{next(self._etags)}"
        self._objects[key] = (data, etag)
        for woken in self._waiting.pop(key, ()):
            if not woken.done():
                woken.set_result(None)
        return etag

    def read(self, key: str, span: tuple[int, int] | None) -> Blob | None:
        """A copy of what is wanted: a reader may write into it."""
        held = self._objects.get(key)
        if held is None:
            return None
        data, etag = held
        start, end = (0, len(data)) if span is None else span
        return Blob(memoryview(buffers.own([data[start:end]])), len(data), etag)

    def has(self, key: str) -> bool:
        return key in self._objects

    def keys(self, prefix: str = "") -> list[str]:
        return sorted(key for key in self._objects if key.startswith(prefix))

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._objects.pop(key, None)

    def watch(self, key: str, woken: asyncio.Future[None]) -> None:
        """Set `woken` when the key is written."""
        self._waiting.setdefault(key, []).append(woken)

    def unwatch(self, key: str, woken: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(key, [])
        if woken in waiting:
            waiting.remove(woken)
            if not waiting:
                del self._waiting[key]


class SimulatedObjects:
    """`fsdray.services.Objects` of one node: it takes time, checks limits and counts requests."""

    def __init__(
        self, world: World, node: Node, store: Store, limits: ObjectLimits = ObjectLimits()
    ) -> None:
        self._world = world
        self._node = node
        self._store = store
        self.limits = limits

    async def put(
        self,
        key: str,
        data: Buffer | Sequence[Buffer],
        *,
        if_absent: bool = False,
        if_match: str | None = None,
        is_attached: bool = False,
    ) -> str | None:
        self.limits.check_put(key, if_absent, if_match)
        world = self._world
        parts = [data] if isinstance(data, bytes | bytearray | memoryview) else data
        whole = memoryview(buffers.joined(parts))

        async def once() -> str | None:
            world.count("put", puts(whole.nbytes))
            world.count("put_bytes", whole.nbytes)
            takes = world.latency(world.network.put)
            start = world.puts.end(self._node.connect(takes), 1)
            await world.until(self._node.up.end(start, whole.nbytes) + takes)
            if if_absent and world.happens(world.faults.twin):
                world.record(self._node.rank, "twin", key=key)
                self._store.write(key, whole, if_absent, if_match)
            etag = self._store.write(key, whole, if_absent, if_match)
            world.record(
                self._node.rank, "put", key=key, bytes=whole.nbytes, written=int(etag is not None)
            )
            return etag

        return await world.request(self._node, "a put", once)

    async def get(
        self,
        key: str,
        *,
        range: tuple[int, int] | None = None,  # noqa: A002 - S3's own word
        wait: float | None = None,
        pace: Pace = Pace(),
    ) -> Blob | None:
        self.limits.check_get(key, range)
        world = self._world

        async def once() -> Blob | None:
            deadline = world.now + (wait or 0)
            while True:
                if not self._store.has(key) and not await self._appear(key, deadline, pace):
                    world.record(self._node.rank, "miss", key=key)
                    return None
                takes = world.latency(world.network.get)
                start = world.gets.end(self._node.connect(takes), 1)
                await world.until(start + takes)
                blob = self._store.read(key, range)
                if blob is not None:
                    break
                world.count("miss", 1)  # deleted again before it could be read
            size = len(blob.data)
            world.count("get", gets(size))
            world.count("get_bytes", size)
            await world.until(self._node.down.end(world.now, size))
            world.record(self._node.rank, "get", key=key, bytes=size)
            return blob

        return await world.request(self._node, "a get", once)

    async def list(self, prefix: str) -> list[str]:
        async def once() -> list[str]:
            self._world.count("list", 1)
            await self._world.until(self._world.now + self._world.latency(self._world.network.list))
            keys = self._store.keys(prefix)
            self._world.record(self._node.rank, "list", prefix=prefix, keys=len(keys))
            return keys

        return await self._world.request(self._node, "a listing", once)

    async def delete(self, keys: Sequence[str]) -> None:
        most = self.limits.delete_keys
        for start in range(0, len(keys), most):
            some = keys[start : start + most]

            async def once(some: Sequence[str] = some) -> None:
                self._world.count("delete", 1)
                await self._world.until(
                    self._world.now + self._world.latency(self._world.network.delete)
                )
                self._store.delete(some)
                self._world.record(self._node.rank, "delete", keys=len(some))

            await self._world.request(self._node, "a delete", once)

    async def _appear(self, key: str, deadline: float, pace: Pace) -> bool:
        """Wait for a key, and until the look that finds it; count those before, that did not."""
        world = self._world
        began = world.now
        if deadline <= began:
            world.count("miss", 1)
            await world.until(began + world.latency(world.network.get))
            return False
        woken = world.loop.create_future()
        self._store.watch(key, woken)
        timer = world.loop.call_idle_at(deadline, _end, woken)
        try:
            await woken
        finally:
            timer.cancel()
            self._store.unwatch(key, woken)
            world.count("miss", pace.misses(world.now - began))
        found = began + pace.look(world.now - began)
        if found >= deadline:
            return self._store.has(key)
        await world.until(found)
        return True


def _end(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
