"""threads: work shared among as many threads as torch uses, for code that lets go of the interpreter's lock."""

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_own = threading.local()
# Where OpenMP is loaded, as torch loads it, its functions are found among the process' own.
_openmp = ctypes.CDLL(None)


def shared(do: Callable[[slice], None], count: int, most: int | None = None) -> None:
    """`do` of slices that make up range(count), one for each thread, and no more than `most`.

    Of several exceptions the first slice's is raised, after all have ended.
    """
    threads = getattr(_own, "count", None) or torch.get_num_threads()
    threads = max(1, min(threads, count, count if most is None else most))
    if threads == 1:
        do(slice(0, count))
        return
    edges = [count * n // threads for n in range(threads + 1)]
    # A pool for the call takes some 50 µs a thread, and leaves none behind for a fork to lose.
    with ThreadPoolExecutor(threads, initializer=be_alone) as pool:
        list(pool.map(do, map(slice, edges, edges[1:])))


def be_alone(count: int = 1) -> None:
    """OpenMP gives this thread no others; `shared`, called in it, uses `count`.

    While there are more of OpenMP's threads than cores, none of them spins while it waits, and all loops get slower.
    """
    _own.count = count
    set_openmp(1)


def set_openmp(threads: int) -> None:
    """How many threads OpenMP's loops have that this thread starts."""
    set_threads = getattr(_openmp, "omp_set_num_threads", None)
    if set_threads is not None:
        set_threads(threads)
