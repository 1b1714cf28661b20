"""Run the programs on a real MPI; ``mpiexec -n P python -m tests.oracle.under_mpi FILE``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from mpi4py import MPI

from tests.oracle import described
from tests.oracle.programs import OPERATIONS, PROGRAMS


def _split(comm: MPI.Intracomm, color: int, key: int = 0) -> MPI.Comm | None:
    part = comm.Split(color, key)
    return None if part == MPI.COMM_NULL else part


def _reduce_scatter(comm: MPI.Intracomm, values: list[np.ndarray], op: MPI.Op) -> np.ndarray:
    mine = np.empty_like(values[0])
    comm.Reduce_scatter_block(np.concatenate(values), mine, op)
    return mine


NAMES = SimpleNamespace(
    **{name: getattr(MPI, name) for name in OPERATIONS},
    ANY_SOURCE=MPI.ANY_SOURCE,
    ANY_TAG=MPI.ANY_TAG,
    PROC_NULL=MPI.PROC_NULL,
    UNDEFINED=MPI.UNDEFINED,
    Status=MPI.Status,
    Request=MPI.Request,
    split=_split,
    dup=lambda comm: comm.Dup(),
    free=lambda comm: comm.Free(),
    reduce_scatter=_reduce_scatter,
)


def main() -> None:
    world = MPI.COMM_WORLD
    found = {}
    for name, program in PROGRAMS.items():
        # A communicator for each, so that nothing of one is left for the next.
        comm = world.Dup()
        found[name] = world.gather(described(program(comm, NAMES)))
        comm.Free()
    if world.rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
        print(MPI.Get_library_version().splitlines()[0].split(",")[0])


if __name__ == "__main__":
    main()
