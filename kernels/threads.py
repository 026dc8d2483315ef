"""threads: work shared among as many threads as torch uses, for code that lets go of the interpreter's lock."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def shared(do: Callable[[slice], None], count: int, most: int | None = None) -> None:
    """`do` of slices that make up range(count), one for each thread, and no more than `most`.

    Of several exceptions the first slice's is raised, after all have ended.
    """
    threads = max(1, min(torch.get_num_threads(), count, count if most is None else most))
    if threads == 1:
        do(slice(0, count))
        return
    edges = [count * n // threads for n in range(threads + 1)]
    # A pool for the call takes some 50 µs a thread, and leaves none behind for a fork to lose.
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(do, map(slice, edges, edges[1:])))
