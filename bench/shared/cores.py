"""cores: who may compute on which, so that one engine and several have the same."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .systems import System


@contextmanager
def one_computes(systems: Sequence[System]) -> Iterator[None]:
    """The engines share the first core, whichever of them computes; HTTP servers and clients have the others.

    Else several engines would compute on as many cores, and one on one. Where there is but one core, nothing changes.
    """
    first, *others = sorted(os.sched_getaffinity(0))
    if others:
        for running in (each for system in systems for each in system.servers):
            for pid in running.processes:
                pin(pid, [first] if pid == running.engine else others)
        os.sched_setaffinity(0, others)
    try:
        yield
    finally:
        os.sched_setaffinity(0, [first, *others])
        for running in (each for system in systems for each in system.servers):
            for pid in running.processes:
                pin(pid, [first, *others])


def pin(process: int, cores: Sequence[int]) -> None:
    for thread in Path(f"/proc/{process}/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), cores)
        except ProcessLookupError:  # it has ended meanwhile
            continue
