"""speeds: how fast this machine copies memory and reads what is in the page cache."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

SIZE = 256 << 20
"""Bytes a buffer: more than caches hold."""
STEP = 8 << 20
ROUNDS = 5
THREADS = (1, 2)


class Speeds:
    """Buffers that have been written to, and what is measured with them: GB/s by number of threads."""

    def __init__(self) -> None:
        self._from, self._to = (np.full(SIZE, value, dtype=np.uint8) for value in (1, 2))
        self._pool = ThreadPoolExecutor(max(THREADS))

    def copy(self) -> dict[int, float]:
        """Of copying memory to memory that is there, counted once."""

        def run(start: int, end: int) -> None:
            np.copyto(self._to[start:end], self._from[start:end])

        return self._rates(run, SIZE)

    def read(self, file: Path) -> dict[int, float]:
        """Of reading a file that is in the page cache into memory that is there; its first 256 MB at most."""
        size = min(SIZE, file.stat().st_size)
        descriptor = os.open(file, os.O_RDONLY)
        view = memoryview(self._to)

        def run(start: int, end: int) -> None:
            for offset in range(start, end, STEP):
                os.preadv(descriptor, [view[offset : min(end, offset + STEP)]], offset)

        try:
            run(0, size)
            return self._rates(run, size)
        finally:
            os.close(descriptor)

    def _rates(self, run: Callable[[int, int], None], size: int) -> dict[int, float]:
        found = {}
        for threads in THREADS:
            cuts = [size * i // threads for i in range(threads + 1)]
            times = []
            for _ in range(ROUNDS):
                start = time.perf_counter()
                list(self._pool.map(run, cuts[:-1], cuts[1:]))
                times.append(time.perf_counter() - start)
            found[threads] = size / statistics.median(times) / 1e9
        return found


def read_all(files: Sequence[Path]) -> None:
    """Reads files once, so that they are in the page cache."""
    buffer = bytearray(STEP)
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
