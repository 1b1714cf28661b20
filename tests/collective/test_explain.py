"""`explain` says what is chosen, with the numbers of all ways."""

from __future__ import annotations

from typing import Any

import pytest

from fsdray.collective import AsyncCommunicator
from fsdray.errors import SettingsError
from fsdray.testing import simulate
from tests.collective import run_plain


def test_it_compares_the_ways_before_any_call_and_asks_for_nothing() -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        return comm.explain("allreduce", 1024)

    run = simulate(program, 64, channel="queue")
    assert run.counts == {}
    said = run.values[0]
    assert [each.name for each in said.alternatives] == ["one round", "through root", "pieces"]
    assert said.chosen == "through root"
    (mine,) = (each for each in said.alternatives if each.name == said.chosen)
    assert mine.dollars <= 90e-6
    assert mine.requests["send"] == 63
    assert "* through root: 81.7 µ$" in str(said)
    assert "cheapest" in said.why


def test_the_last_call_is_explained_with_its_own_size() -> None:
    async def program(comm: AsyncCommunicator) -> Any:
        with pytest.raises(SettingsError, match="nothing was called yet"):
            comm.explain()
        await comm.bcast(bytes(2_000_000) if comm.rank == 0 else None)
        return comm.explain()

    said = simulate(program, 3, channel="auto", prefer="fastest").values[0]
    assert said.operation == "bcast"
    assert said.nbytes < 2_000_000  # zeros are packed
    large = simulate(program_of("gather", 10**7), 64, channel="auto").values[3]
    assert large.form == "in objects, with pointers in messages"
    assert (
        simulate(program_of("gather", 10**7), 64, channel="queue").values[3].form == "in messages"
    )


def program_of(operation: str, nbytes: int) -> Any:
    async def program(comm: AsyncCommunicator) -> Any:
        return comm.explain(operation, nbytes)

    return program


def test_plain_code_asks_too_and_what_is_unknown_is_refused() -> None:
    def program(comm: Any) -> str:
        for operation, nbytes in (("shuffle", 1), ("abort", 1), ("bcast", -1)):
            with pytest.raises(SettingsError):
                comm.explain(operation, nbytes)
        comm.barrier()
        return str(comm.explain())

    first, second = run_plain("auto", 2, program)
    assert first == second
    assert first.startswith("barrier of")
