"""coding_loops: the compiled loops of `coding`, through numba: row by row, what a row needs stays in the L1 cache."""

import numpy as np

from .compose_loops import compiled
from .lanes import LANES

EVEN = np.float32(12582912.0)
"""1.5 · 2^23: added and taken away, it rounds to whole numbers, to nearest even."""


@compiled
def read_delta(delta, spare, ours, theirs):
    """E - B in fp32; whether that is finite. Patterns of 2 bytes are bf16."""
    shift = 16 if ours.itemsize == 2 else 0
    one, other = delta.view(np.int32), spare.view(np.int32)
    for at in range(len(ours)):
        one[at] = np.int64(ours[at]) << shift
        other[at] = np.int64(theirs[at]) << shift
    for at in range(len(ours)):
        delta[at] -= spare[at]
    wild = 0
    for at in range(len(ours)):
        wild |= (one[at] & 0x7F800000) == 0x7F800000
    return wild == 0


@compiled
def pack_row(words, codes, k, bits):
    """As planar.pack."""
    fields = 32 // bits
    words[:] = 0
    full = k - k % (LANES * fields)
    for tile in range(0, full, LANES * fields):
        at = tile // fields
        for field in range(fields):
            for word in range(LANES):
                words[at + word] |= codes[tile + field * LANES + word] << (field * bits)
    width = -(-(k - full) // fields)
    for field in range(fields):
        first = full + field * width
        for word in range(min(width, k - first)):
            words[full // fields + word] |= codes[first + word] << (field * bits)


@compiled
def to_bf16(number, room):
    """The pattern, rounded to nearest even, of a finite number; 0 below the smallest normal one."""
    room[0] = number
    pattern = np.int64(room.view(np.uint32)[0])
    pattern = (pattern + 0x7FFF + ((pattern >> 16) & 1)) >> 16
    return pattern if pattern >= 0x80 else 0


@compiled(kept=True)
def quantize(words, scales, ours, theirs, bits, group):
    """words [rows, words] int32, scales [rows, groups] uint16, of patterns [rows, k]; the first row not finite."""
    rows, k = ours.shape
    delta, spare = np.empty(k, np.float32), np.empty(k, np.float32)
    codes, room = np.empty(k, np.int32), np.empty(1, np.float32)
    most = np.float32((1 << (bits - 1)) - 1)
    zero = 1 << (bits - 1)
    for row in range(rows):
        if not read_delta(delta, spare, ours[row], theirs[row]):
            return row
        for number in range(scales.shape[1]):
            first, last = number * group, min(k, (number + 1) * group)
            largest = 0
            # Of numbers without a sign the patterns are in their order.
            for at in range(first, last):
                largest = max(largest, delta.view(np.int32)[at] & 0x7FFFFFFF)
            room.view(np.int32)[0] = largest
            pattern = to_bf16(room[0] / most, room)
            scales[row, number] = pattern
            room.view(np.uint32)[0] = pattern << 16
            scale = room[0] if pattern else np.float32(np.inf)
            for at in range(first, last):
                code = delta[at] / scale
                code = min(max((code + EVEN) - EVEN, -most), most)
                codes[at] = np.int32(code) + zero
        pack_row(words[row], codes, k, bits)
    return rows


@compiled(kept=True)
def take_signs(words, scales, ours, theirs):
    """words [rows, words] int32 and scales [rows] fp32 of patterns [rows, k]; the first row not finite, or rows."""
    rows, k = ours.shape
    delta, spare = np.empty(k, np.float32), np.empty(k, np.float32)
    codes, sums = np.empty(k, np.int32), np.empty(LANES, np.float64)
    for row in range(rows):
        if not read_delta(delta, spare, ours[row], theirs[row]):
            return row
        sums[:] = 0
        whole = k - k % LANES
        for first in range(0, whole, LANES):
            for lane in range(LANES):
                sums[lane] += np.float64(abs(delta[first + lane]))
        for at in range(whole, k):
            sums[at - whole] += np.float64(abs(delta[at]))
        for at in range(k):
            codes[at] = delta[at] < 0
        scales[row] = sums.sum() / k
        pack_row(words[row], codes, k, 1)
    return rows
