"""fresh: memory that the kernel has yet to give, and how fast it does.

A virtual machine's host may take back memory that has not been used for seconds, and giving it again is several times
slower than giving what another process has just freed. So what allocates is timed after `warm`, unless the host is
what is to be measured. This file is also the program of the child process that allocates; it imports no torch.
"""

import mmap
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

STEP = 2 << 20
"""Bytes written at a time: a huge page, and little enough to be copied from a cache."""


def warm(size: int) -> int:
    """Lets a child take and free `size` bytes, or as many as there are to spare; returns how many."""
    size = min(size, available() * 3 // 4)
    with held(size, "huge"):
        return size


def rates(size: int) -> dict[str, float]:
    """GB/s of writing `size` bytes of new memory, by kind of page and by what the memory was before.

    What was used lately comes first, so others keep theirs while the last one writes; and of what that gets, the
    slowest quarter is taken for memory that was not.
    """
    found = {}
    with held(2 * size, "huge"), held(size, "small") as small, held(size, "huge") as huge:
        found |= {"small pages, not used lately": small.slowest, "huge pages, not used lately": huge.slowest}
    for kind in ("small", "huge"):
        with held(size, kind) as rate:
            found[f"{kind} pages, just freed"] = rate.whole
    return found


@dataclass(frozen=True)
class Rate:
    """GB/s of writing all of some memory, and the quarter of it that took longest."""

    whole: float
    slowest: float


@contextmanager
def held(size: int, kind: str) -> Iterator[Rate]:
    """A child that has written `size` bytes to memory of its own, and keeps them until the end."""
    command = [sys.executable, str(Path(__file__)), str(size), kind]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Rate(*map(float, child.stdout.readline().split()))
    finally:
        child.communicate()


def available() -> int:
    """Bytes that a process can have without anybody else's being written to a disk."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def write(size: int, kind: str) -> tuple[mmap.mmap, Rate]:
    """Memory in which every step has been written, and how fast."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE if kind == "huge" else mmap.MADV_NOHUGEPAGE)
    block = b"\1" * STEP
    stamps = [time.perf_counter()]
    for offset in range(0, size - STEP + 1, STEP):
        memory[offset : offset + STEP] = block
        stamps.append(time.perf_counter())
    times = sorted(end - start for start, end in pairwise(stamps))
    slowest = times[len(times) * 3 // 4 :]
    return memory, Rate(*(len(steps) * STEP / sum(steps) / 1e9 for steps in (times, slowest)))


if __name__ == "__main__":
    kept, rate = write(max(STEP, int(sys.argv[1])), sys.argv[2])
    print(rate.whole, rate.slowest, flush=True)
    sys.stdin.read()
