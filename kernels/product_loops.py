"""product_loops: b @ a of low rank on a CPU, by compiled loops, through numba.

A BLAS sums in an order that hangs on its threads and on the shapes; what an expert is must not.
"""

import numpy as np

from .compose_loops import compiled
from .lanes import LANES, add, load_floats, mul, peek, splat, store_floats

COLUMNS = 256
"""Of `a` at a time, so that 16 rows of it stay in the L1 cache."""


@compiled
def number(address):
    return splat(peek(address, np.float32(0)))


@compiled(kept=True)
def product(out, b, a, rows, rank, wide, scale):
    """out [rows, wide] = scale·Σ_n b[:, n]·a[n], in order of n; each product and each sum is rounded to fp32.

    Addresses of contiguous fp32 tensors b [rows, rank] and a [rank, wide]; `wide` is a multiple of LANES.
    """
    scales = splat(scale)
    for first in range(0, wide, COLUMNS):
        # Two rows at a time: one's sums would wait for each other.
        for row in range(0, rows, 2):
            other = min(row + 1, rows - 1)
            for at in range(first, min(first + COLUMNS, wide), LANES):
                total = more = splat(np.float32(0))
                for n in range(rank):
                    values = load_floats(a + (n * wide + at) * 4)
                    total = add(total, mul(values, number(b + (row * rank + n) * 4)))
                    more = add(more, mul(values, number(b + (other * rank + n) * 4)))
                store_floats(out + (row * wide + at) * 4, mul(total, scales))
                store_floats(out + (other * wide + at) * 4, mul(more, scales))
