"""step_widths: how many bits a block's numbers take in `steps`, chosen by compiled loops, through numba.

numba's cache looks only at the file of the function that it keeps: after a change here touch step_packing.py.
"""

import numpy as np

from .compose_loops import compiled
from .lanes import LANES
from .step_blocks import FAR, SPAN


@compiled
def code_of(moved):
    """0, -1, 1, -2, … as 0, 1, 2, 3, …: it has as many bits as the move takes."""
    return (moved << 1) ^ (moved >> 63)


@compiled
def sample(far, deep, ours, theirs, size, shift, field):
    """Moves and exponents of every eighth row of a block, which says enough, or of all of few.

    Returns how many rows one stands for, how many numbers there are, and the largest exponent.
    """
    count, largest, found = len(ours), 0, 0
    half = 1 << (8 * size - 1)
    stride = LANES * 8 if count >= 64 * LANES else LANES
    for first in range(0, count, stride):
        for at in range(first, min(first + LANES, count)):
            under = np.int64(theirs[at])
            far[found] = ((np.int64(ours[at]) - under + half) & (2 * half - 1)) - half
            deep[found] = under >> shift & field
            largest = max(largest, int(deep[found]))
            found += 1
    return stride // LANES, found, largest


@compiled
def tally(tables, lengths, far, deep, largest, raw):
    """How many moves have which exponent and how many bits above the raw bytes; and so without the 0s, less 1."""
    tables[:] = 0
    for at in range(len(far)):
        depth = min(largest - np.int64(deep[at]), SPAN - 1)
        code = min(code_of(np.int64(far[at]) >> (8 * raw)), 511)
        tables[0, depth, lengths[code]] += 1
        tables[1, depth, lengths[max(code - 1, 0)]] += code > 0


@compiled
def weigh(cost, table, size):
    """cost[depth, width]: bits, of codes of that width and of patches for what does not fit."""
    for depth in range(SPAN):
        total = 0
        for length in range(FAR + 1):
            total += table[depth, length]
        over = total
        far = table[depth, FAR] * 8 * (1 + size)
        for width in range(9):
            over -= table[depth, width]
            cost[depth, width] = total * width + (over - table[depth, FAR]) * 16 + far


@compiled
def total(cost, low, high, top):
    """`top` is the width at depth 0, not cut."""
    found = 0
    for depth in range(SPAN):
        found += cost[depth, min(max(top + depth, low), high)]
    return found


@compiled
def settle(cost, best):
    """Makes low, high and top better step by step; returns what they cost."""
    least = total(cost, best[0], best[1], best[2])
    better = True
    while better:
        better = False
        for which in range(3):
            for by in (-1, 1):
                low, high, top = best[0], best[1], best[2]
                if which == 0:
                    low += by
                elif which == 1:
                    high += by
                else:
                    top += by
                if 0 <= low <= high <= 8 and -SPAN <= top <= 8:
                    found = total(cost, low, high, top)
                    if found < least:
                        least, better = found, True
                        best[0], best[1], best[2] = low, high, top
    return least


@compiled
def choose(cost, tables, lengths, far, deep, largest, share, last, size, count):
    """(raw, masked, low, high, top) that should take least. `last` is what was found before, for raw and masked."""
    least, found = 8 * size * count, (size - 1, 0, 8, 8, 0)
    best = np.empty(3, np.int64)
    for raw in range(size):
        tally(tables, lengths, far, deep, largest, raw)
        for masked in range(2):
            weigh(cost, tables[masked], size)
            for seed in range(2):
                best[:] = 0
                if seed:
                    best[:] = last[raw, masked]
                bits = share * settle(cost, best) + (8 * raw + masked) * count
                if bits < least:
                    least, found = bits, (raw, masked, best[0], best[1], min(max(best[2] + largest, 0), 255))
                    last[raw, masked] = best
        # No more raw bytes where all is small.
        if least < 4 * size * count:
            break
    return found
