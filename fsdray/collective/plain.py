"""The communicator that tasks use: `AsyncCommunicator`, run on the loop for plain code.

Nothing happens here but the waiting, and telling those who come from mpi4py which name to use.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Literal, NoReturn, TypeVar

from fsdray import loop
from fsdray.collective.communicator import AsyncCommunicator
from fsdray.collective.envelope import ANY_SOURCE, ANY_TAG, Status
from fsdray.collective.explain import Explanation
from fsdray.collective.ops import SUM, Op
from fsdray.collective.requests import AsyncRequest, Request
from fsdray.collective.tail import Tail, is_ours

T = TypeVar("T")

_NOT_HERE = {
    "ssend": "send() does not wait for the receiver; have it answer with a message of its own",
    "issend": "isend() does not wait for the receiver; have it answer with a message of its own",
    "mprobe": "a recv() of the source and tag that probe() reports takes that message",
    "improbe": "a recv() of the source and tag that iprobe() reports takes that message",
    "bsend": "send() is buffered",
    "ibsend": "isend() is buffered",
    "clone": "use dup()",
    "create": "use split()",
}


class Communicator:
    """What the ranks of a group talk through.

    Names, arguments, defaults and results are those of mpi4py's lower-case methods. `split`, `dup`,
    `abort`, `reduce_scatter`, the collectives with an ``i``, `neighbor_alltoall` and `run` are
    ours; docs/collectives.md has the table.
    """

    def __init__(self, inner: AsyncCommunicator) -> None:
        self._inner = inner

    @property
    def rank(self) -> int:
        """This rank, from 0."""
        return self._inner.rank

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return self._inner.size

    def Get_rank(self) -> int:  # noqa: N802  mpi4py's name
        """`rank`."""
        return self.rank

    def Get_size(self) -> int:  # noqa: N802  mpi4py's name
        """`size`."""
        return self.size

    def run(
        self,
        program: Callable[..., Coroutine[Any, Any, T]],
        *args: Any,
        **kwargs: Any,
    ) -> T:
        """Run ``await program(comm, *args, **kwargs)`` with this one's `AsyncCommunicator`.

        The program shares fsdray's own event loop: what takes its time belongs in
        ``await comm.compute(function, *args)``.
        """
        return loop.run(program(self._inner, *args, **kwargs))

    def explain(self, operation: str | None = None, nbytes: int | None = None) -> Explanation:
        """See `AsyncCommunicator.explain`; printed, it is a table."""
        return self._inner.explain(operation, nbytes)

    # Point to point

    def send(self, obj: Any, dest: int, tag: int = 0) -> None:
        """See `AsyncCommunicator.send`."""
        self._run(lambda: self._inner.send(obj, dest, tag))

    def recv(
        self,
        buf: Any = None,
        source: int = ANY_SOURCE,
        tag: int = ANY_TAG,
        status: Status | None = None,
    ) -> Any:
        """See `AsyncCommunicator.recv`."""
        return self._run(lambda: self._inner.recv(buf, source, tag, status))

    def isend(self, obj: Any, dest: int, tag: int = 0) -> Request:
        """See `AsyncCommunicator.isend`."""
        return self._begun(lambda: self._inner.isend(obj, dest, tag))

    def irecv(self, buf: Any = None, source: int = ANY_SOURCE, tag: int = ANY_TAG) -> Request:
        """See `AsyncCommunicator.irecv`."""
        return self._begun(lambda: self._inner.irecv(buf, source, tag))

    def sendrecv(
        self,
        sendobj: Any,
        dest: int,
        sendtag: int = 0,
        recvbuf: Any = None,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
        status: Status | None = None,
    ) -> Any:
        """See `AsyncCommunicator.sendrecv`."""
        return self._run(
            lambda: self._inner.sendrecv(sendobj, dest, sendtag, recvbuf, source, recvtag, status)
        )

    def probe(
        self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None
    ) -> Literal[True]:
        """See `AsyncCommunicator.probe`."""
        return self._run(lambda: self._inner.probe(source, tag, status))

    def iprobe(
        self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None
    ) -> bool:
        """See `AsyncCommunicator.iprobe`."""
        return self._run(lambda: self._inner.iprobe(source, tag, status))

    # Collectives

    def bcast(self, obj: Any, root: int = 0) -> Any:
        """See `AsyncCommunicator.bcast`."""
        return self._run(lambda: self._inner.bcast(obj, root))

    def scatter(self, sendobj: Sequence[Any] | None, root: int = 0) -> Any:
        """See `AsyncCommunicator.scatter`."""
        return self._run(lambda: self._inner.scatter(sendobj, root))

    def gather(self, sendobj: Any, root: int = 0) -> list[Any] | None:
        """See `AsyncCommunicator.gather`."""
        return self._run(lambda: self._inner.gather(sendobj, root))

    def reduce(self, sendobj: Any, op: Op = SUM, root: int = 0) -> Any:
        """See `AsyncCommunicator.reduce`."""
        return self._run(lambda: self._inner.reduce(sendobj, op, root))

    def allgather(self, sendobj: Any) -> list[Any]:
        """See `AsyncCommunicator.allgather`."""
        return self._run(lambda: self._inner.allgather(sendobj))

    def alltoall(self, sendobj: Sequence[Any]) -> list[Any]:
        """See `AsyncCommunicator.alltoall`."""
        return self._run(lambda: self._inner.alltoall(sendobj))

    def allreduce(self, sendobj: Any, op: Op = SUM) -> Any:
        """See `AsyncCommunicator.allreduce`."""
        return self._run(lambda: self._inner.allreduce(sendobj, op))

    def reduce_scatter(self, sendobj: Sequence[Any], op: Op = SUM) -> Any:
        """See `AsyncCommunicator.reduce_scatter`."""
        return self._run(lambda: self._inner.reduce_scatter(sendobj, op))

    def scan(self, sendobj: Any, op: Op = SUM) -> Any:
        """See `AsyncCommunicator.scan`."""
        return self._run(lambda: self._inner.scan(sendobj, op))

    def exscan(self, sendobj: Any, op: Op = SUM) -> Any:
        """See `AsyncCommunicator.exscan`."""
        return self._run(lambda: self._inner.exscan(sendobj, op))

    def barrier(self) -> None:
        """See `AsyncCommunicator.barrier`."""
        self._run(lambda: self._inner.barrier())

    def neighbor_alltoall(self, sends: Mapping[int, Any], sources: Iterable[int]) -> dict[int, Any]:
        """See `AsyncCommunicator.neighbor_alltoall`."""
        return self._run(lambda: self._inner.neighbor_alltoall(sends, sources))

    # The same, begun and waited for later

    def ibcast(self, obj: Any, root: int = 0) -> Request:
        """See `AsyncCommunicator.ibcast`."""
        return self._begun(lambda: self._inner.ibcast(obj, root))

    def iscatter(self, sendobj: Sequence[Any] | None, root: int = 0) -> Request:
        """See `AsyncCommunicator.iscatter`."""
        return self._begun(lambda: self._inner.iscatter(sendobj, root))

    def igather(self, sendobj: Any, root: int = 0) -> Request:
        """See `AsyncCommunicator.igather`."""
        return self._begun(lambda: self._inner.igather(sendobj, root))

    def ireduce(self, sendobj: Any, op: Op = SUM, root: int = 0) -> Request:
        """See `AsyncCommunicator.ireduce`."""
        return self._begun(lambda: self._inner.ireduce(sendobj, op, root))

    def iallgather(self, sendobj: Any) -> Request:
        """See `AsyncCommunicator.iallgather`."""
        return self._begun(lambda: self._inner.iallgather(sendobj))

    def ialltoall(self, sendobj: Sequence[Any]) -> Request:
        """See `AsyncCommunicator.ialltoall`."""
        return self._begun(lambda: self._inner.ialltoall(sendobj))

    def iallreduce(self, sendobj: Any, op: Op = SUM) -> Request:
        """See `AsyncCommunicator.iallreduce`."""
        return self._begun(lambda: self._inner.iallreduce(sendobj, op))

    def ireduce_scatter(self, sendobj: Sequence[Any], op: Op = SUM) -> Request:
        """See `AsyncCommunicator.ireduce_scatter`."""
        return self._begun(lambda: self._inner.ireduce_scatter(sendobj, op))

    def iscan(self, sendobj: Any, op: Op = SUM) -> Request:
        """See `AsyncCommunicator.iscan`."""
        return self._begun(lambda: self._inner.iscan(sendobj, op))

    def iexscan(self, sendobj: Any, op: Op = SUM) -> Request:
        """See `AsyncCommunicator.iexscan`."""
        return self._begun(lambda: self._inner.iexscan(sendobj, op))

    def ibarrier(self) -> Request:
        """See `AsyncCommunicator.ibarrier`."""
        return self._begun(lambda: self._inner.ibarrier())

    def ineighbor_alltoall(self, sends: Mapping[int, Any], sources: Iterable[int]) -> Request:
        """See `AsyncCommunicator.ineighbor_alltoall`."""
        return self._begun(lambda: self._inner.ineighbor_alltoall(sends, sources))

    # Other communicators

    def split(self, color: int | None = 0, key: int = 0) -> Communicator | None:
        """See `AsyncCommunicator.split`."""
        part = self._run(lambda: self._inner.split(color, key))
        return None if part is None else Communicator(part)

    def dup(self) -> Communicator:
        """See `AsyncCommunicator.dup`."""
        return Communicator(self._run(lambda: self._inner.dup()))

    def free(self) -> None:
        """See `AsyncCommunicator.free`."""
        self._run(lambda: self._inner.free())

    def abort(self, errorcode: int = 0) -> NoReturn:
        """See `AsyncCommunicator.abort`."""
        self._run(lambda: self._inner.abort(errorcode))
        raise AssertionError("abort has raised")

    def __getattr__(self, name: str) -> Any:
        lower = name.lower()
        if lower in _NOT_HERE:
            raise AttributeError(f"{name}() is not here: {_NOT_HERE[lower]}")
        if name != lower and hasattr(Communicator, lower):
            raise AttributeError(
                f"{name}() is mpi4py's name for buffers or handles; here use {lower}(), which "
                "takes any object and sends arrays as buffers"
            )
        raise AttributeError(f"a communicator has no {name!r}")

    def __repr__(self) -> str:
        return f"<Communicator rank {self.rank} of {self.size}>"

    def _run(self, operation: Callable[[], Awaitable[T]]) -> T:
        async def on_loop() -> T:
            is_ours.set(True)
            return await operation()

        result = loop.step(on_loop())
        return result.result() if isinstance(result, Tail) else result

    def _begun(self, operation: Callable[[], AsyncRequest]) -> Request:
        async def on_loop() -> AsyncRequest:
            return operation()

        begun = Request(loop.run(on_loop()))
        loop.go_on()
        return begun
