"""step_packing: what `steps` packs, by compiled loops, through numba."""

import numpy as np

from .compose_loops import compiled
from .lanes import LANES
from .step_blocks import BLOCK, FAR, HEAD, SPAN


@compiled
def code_of(moved):
    """0, -1, 1, -2, … as 0, 1, 2, 3, …: it has as many bits as the move takes."""
    return (moved << 1) ^ (moved >> 63)


@compiled
def tally(tables, lengths, moves, exponents, largest, raw, count):
    """How many moves have which exponent and how many bits above the raw bytes; and so without the 0s, less 1."""
    tables[:] = 0
    # Every eighth row says enough.
    stride = LANES * 8 if count >= 64 * LANES else LANES
    for first in range(0, count, stride):
        for at in range(first, min(first + LANES, count)):
            depth = min(largest - np.int64(exponents[at]), SPAN - 1)
            code = min(code_of(np.int64(moves[at]) >> (8 * raw)), 511)
            tables[0, depth, lengths[code]] += 1
            tables[1, depth, lengths[max(code - 1, 0)]] += code > 0
    return stride // LANES


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
def put(out, at, value):
    out[at] = value & 255
    out[at + 1] = value >> 8


@compiled
def patches(out, at, left, places, far, size):
    """Those of one byte, or the `far` ones, of `size` bytes; where they end."""
    last = 0
    for number in range(len(left)):
        moved, place = int(left[number]), int(places[number])
        if (moved < -128 or moved > 127) == far:
            while place - last > 255:
                # One that moves nothing.
                out[at] = 255
                out[at + 1 : at + 1 + size] = 0
                at += 1 + size
                last += 256
            out[at] = place - last
            for more in range(size):
                out[at + 1 + more] = moved >> (8 * more) & 255
            at += 1 + size
            last = place + 1
    return at


@compiled
def write(out, moves, exponents, left, places, count, size, raw, masked, low, high, top):
    """One block; how long it is. `left` and `places` are room for what patches move, and where."""
    at = HEAD
    for plane in range(raw):
        for place in range(count):
            out[at + place] = np.int64(moves[place]) >> (8 * plane) & 255
        at += count
    mask = at
    if masked:
        at += 4 * ((count + LANES - 1) // LANES)
        out[mask:at] = 0
    start = at
    # Of each lane the byte that was begun last, and how many of its bits are free.
    begun, free = np.zeros(LANES, np.int64), np.zeros(LANES, np.int64)
    bottom = (1 << (8 * raw)) - 1
    patched = 0
    for place in range(count):
        whole = np.int64(moves[place])
        code, width = whole >> (8 * raw), min(max(top - np.int64(exponents[place]), low), high)
        coded = np.int64(masked == 0 or code != 0)
        code -= masked & (code > 0)
        if code_of(code) >> width:
            # All but what the raw bytes alone move.
            left[patched], places[patched] = whole - (whole & bottom), place
            patched += 1
            code, coded = 0, 1 - masked
        if masked:
            out[mask + place // 8] |= coded << (place % 8)
        # No branches where they could not be foreseen.
        width *= coded
        code &= (1 << width) - 1
        lane = place % LANES
        room = free[lane]
        out[begun[lane]] |= code << (8 - room) & 255
        out[at] = code >> room
        more = int(width > room)
        begun[lane] += (at - begun[lane]) * more
        at += more
        free[lane] = room - width + 8 * more
    near = at
    at = patches(out, at, left[:patched], places, False, 1)
    far = at
    at = patches(out, at, left[:patched], places, True, size)
    out[0], out[1], out[2], out[3], out[4], out[5] = raw, masked, low, high, top, 0
    put(out, 6, near - start)
    put(out, 8, (far - near) // 2)
    put(out, 10, (at - far) // (1 + size))
    return at


@compiled
def choose(cost, tables, lengths, moves, exponents, largest, last, size, count):
    """(raw, masked, low, high, top) that should take least. `last` is what was found before, for raw and masked."""
    least, found = 8 * size * count, (size - 1, 0, 8, 8, 0)
    best = np.empty(3, np.int64)
    for raw in range(size):
        share = tally(tables, lengths, moves, exponents, largest, raw, count)
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


@compiled(kept=True)
def pack(out, ours, theirs, size, shift, field, lengths):
    """Packs patterns of unsigned numbers of `size` bytes, block by block; how many bytes of `out` they take.

    `out` has room for a head and all the numbers of each block.
    """
    at = 0
    moves, exponents = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.uint8)
    left, places = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
    cost, tables = np.empty((SPAN, 9), np.int64), np.empty((2, SPAN, FAR + 1), np.int64)
    last = np.empty((size, 2, 3), np.int64)
    last[:, :] = np.array([0, 8, 2])
    one = np.empty(HEAD + BLOCK * (4 * size + 4), np.uint8)
    half = 1 << (8 * size - 1)
    for first in range(0, len(ours), BLOCK):
        count = min(BLOCK, len(ours) - first)
        largest = 0
        e, b = ours[first : first + count], theirs[first : first + count]
        for place in range(count):
            moves[place] = ((np.int64(e[place]) - np.int64(b[place]) + half) & (2 * half - 1)) - half
        for place in range(count):
            exponents[place] = np.int64(b[place]) >> shift & field
        for place in range(count):
            largest = max(largest, int(exponents[place]))
        raw, masked, low, high, top = choose(cost, tables, lengths, moves, exponents, largest, last, size, count)
        length = write(one, moves, exponents, left, places, count, size, raw, masked, low, high, top)
        if length > HEAD + size * count:
            length = write(one, moves, exponents, left, places, count, size, size - 1, 0, 8, 8, 0)
        out[at : at + length] = one[:length]
        at += length
    return at
