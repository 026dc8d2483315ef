"""fresh: memory that the kernel has yet to give, and how fast it does.

A virtual machine's host may take back memory that has been free for a second, and giving it again is several times
slower than giving what another process has just freed. So what allocates is timed in a `warm` machine, unless the host
is what is to be measured. This file is also the program of the child process that allocates; it imports no torch.
"""

import mmap
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

STEP = 2 << 20
"""Bytes written at a time: a huge page, and little enough to be copied from a cache."""

SPARE = 3 << 28
"""Bytes that are free and may not have been used for long."""
AHEAD, CHUNK = 1 << 31, 1 << 26
"""Bytes freed before they are asked for, and how many at a time."""


@contextmanager
def warm(size: int) -> Iterator[None]:
    """As long as this lasts, the memory that processes get, `size` bytes in all, has been used a moment before.

    A child has all that is free but SPARE, and frees it again bit by bit as it is taken.
    """
    with held(max(STEP, min(size, free() - SPARE)), "freeing"):
        yield


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
    return said("MemAvailable")


def free() -> int:
    """Bytes that nothing is in, no file either."""
    return said("MemFree")


def said(what: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{what}:"))


def release(memory: mmap.mmap) -> None:
    """Frees memory as it is taken by others."""
    for offset in range(0, len(memory), CHUNK):
        while free() > SPARE + AHEAD:
            time.sleep(0.01)
        memory.madvise(mmap.MADV_DONTNEED, offset, min(CHUNK, len(memory) - offset))


def write(size: int, kind: str) -> tuple[mmap.mmap, Rate]:
    """Memory in which every step has been written, and how fast."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE if kind == "small" else mmap.MADV_HUGEPAGE)
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
    if sys.argv[2] == "freeing":
        threading.Thread(target=release, args=(kept,), daemon=True).start()
    sys.stdin.read()
