"""compose_loops: one compiled pass over a page on a CPU, through numba.

Vectors of 32 numbers are written out (lanes.py), so that nothing hangs on what a compiler finds in a loop: numba
computes with integers of 64 bits, and its plain loops were two to four times slower. A block of a row goes term by term
through a sum that stays in the L1 cache; each input is read once.
"""

from typing import Any

import numba
import numpy as np

from .lanes import (
    LANES,
    add,
    bf16,
    codes,
    copy,
    joined,
    load,
    load_floats,
    mul,
    peek,
    poke,
    rounded,
    signs,
    splat,
    store,
    store_floats,
    widen,
    xor,
)

BLOCK = 1024
"""Numbers in a block: a multiple of every tile (planar.py)."""

DENSE, XOR, INT4, INT8, SIGNS, ADDED = range(6)
"""What a term is: ADDED is E = round(B + Δ) with Δ in fp32."""
KIND, DATA, DATA_STRIDE, SCALES, SCALES_STRIDE, GROUP, COLUMNS = range(7)
"""The columns of a table of terms: addresses and strides in bytes; GROUP is log2 of the columns of a scale."""


def compiled(function: Any = None, kept: bool = False) -> Any:
    """numba.njit. `kept` on disk, beside this file or in the user's cache; where there is neither, for this process."""
    if function is None:
        return lambda function: compiled(function, kept)
    try:
        return numba.njit(cache=kept, nogil=True, error_model="numpy")(function)
    except RuntimeError:
        return numba.njit(nogil=True, error_model="numpy")(function)


@compiled
def pair(out, one, other, weight, second, count, size, like):
    """out = round(weight·one + second·other), for `count` numbers."""
    weights, seconds = splat(weight), splat(second)
    for at in range(0, count * size, LANES * size):
        first = mul(widen(load(one + at, like), like), weights)
        store(out + at, rounded(add(first, mul(widen(load(other + at, like), like), seconds)), like), like)


@compiled
def start(total, one, other, weight, second, count, size, like):
    """total = weight·one + second·other in fp32."""
    weights, seconds = splat(weight), splat(second)
    for at in range(0, count, LANES):
        first = mul(widen(load(one + at * size, like), like), weights)
        store_floats(total + at * 4, add(first, mul(widen(load(other + at * size, like), like), seconds)))


@compiled
def more(total, one, weight, count, size, like):
    """total = total + weight·one."""
    weights = splat(weight)
    for at in range(0, count, LANES):
        term = mul(widen(load(one + at * size, like), like), weights)
        store_floats(total + at * 4, add(load_floats(total + at * 4), term))


@compiled
def finish(out, total, one, weight, count, size, like):
    """out = round(total + weight·one)."""
    weights = splat(weight)
    for at in range(0, count, LANES):
        term = mul(widen(load(one + at * size, like), like), weights)
        store(out + at * size, rounded(add(load_floats(total + at * 4), term), like), like)


@compiled
def join(out, base, pattern, count, size, like):
    """out = base XOR pattern."""
    for at in range(0, count * size, LANES * size):
        store(out + at, xor(load(base + at, like), load(pattern + at, like)), like)


@compiled
def plus(out, base, delta, count, size, like):
    """out = round(base + delta)."""
    for at in range(0, count, LANES):
        total = add(widen(load(base + at * size, like), like), load_floats(delta + at * 4))
        store(out + at * size, rounded(total, like), like)


@compiled
def plus_signs(out, base, words, scale, fields, count, size, like):
    """out = round(base ± scale), for whole tiles of `fields` = 32 times 32 numbers."""
    scales = splat(scale)
    for at in range(0, count, LANES * fields):
        tile = load(words + at // 8, np.uint32(0))
        for field in range(fields):
            here = (at + field * LANES) * size
            total = add(widen(load(base + here, like), like), signs(tile, field, scales))
            store(out + here, rounded(total, like), like)


@compiled
def plus_codes(out, base, words, scales, group, column, bits, count, size, like):
    """out = round(base + s·q), for whole tiles; `scales` are the row's, and `column` the first number's."""
    fields = 32 // bits
    for at in range(0, count, LANES * fields):
        tile = load(words + at * bits // 8, np.uint32(0))
        for field in range(fields):
            first = at + field * LANES
            scale = splat(bf16(peek(scales + ((column + first) >> group) * 2, np.uint16(0))))
            delta = mul(codes(tile, field, bits), scale)
            total = add(widen(load(base + first * size, like), like), delta)
            store(out + first * size, rounded(total, like), like)


@compiled
def decode(out, base, term, row, column, count, size, like):
    """out = E for `count` numbers of a row, from `column` on; `base` is the address of the first of them."""
    kind, data = term[KIND], term[DATA] + row * term[DATA_STRIDE]
    scales = term[SCALES] + row * term[SCALES_STRIDE]
    if kind == XOR:
        join(out, base, data + column * size, count, size, like)
    elif kind == INT4:
        plus_codes(out, base, data + column // 2, scales, term[GROUP], column, 4, count, size, like)
    elif kind == INT8:
        plus_codes(out, base, data + column, scales, term[GROUP], column, 8, count, size, like)
    elif kind == SIGNS:
        plus_signs(out, base, data + column // 8, peek(scales, np.float32(0)), 32, count, size, like)
    else:
        plus(out, base, data + column * 4, count, size, like)


@compiled
def blend_row(out, base, table, weights, row, k, whole, size, like, sums, source, room):
    """`whole` columns of a row, which every term has in full tiles and scales of whole LANES."""
    for column in range(0, whole, BLOCK):
        count = min(BLOCK, whole - column)
        at = (row * k + column) * size
        if len(table) == 1:
            decode(out + at, base + at, table[0], row, column, count, size, like)
            continue
        for number in range(len(table)):
            term = table[number]
            if term[KIND] == DENSE:
                source[number] = term[DATA] + row * term[DATA_STRIDE] + column * size
            else:
                source[number] = room + number * BLOCK * 4
                decode(source[number], base + at, term, row, column, count, size, like)
        if len(table) == 2:
            pair(out + at, source[0], source[1], weights[0], weights[1], count, size, like)
            continue
        start(sums, source[0], source[1], weights[0], weights[1], count, size, like)
        for number in range(2, len(table) - 1):
            more(sums, source[number], weights[number], count, size, like)
        finish(out + at, sums, source[-1], weights[-1], count, size, like)


@compiled
def spread_tile(into, words, width, scale, bits):
    """The numbers of a tile of `width` words, one fp32 each: ±scale of 1 bit, else codes as whole numbers.

    Up to LANES of what follows in `into` and `words` is touched, too.
    """
    tile = load(words, np.uint32(0))
    for field in range(32 // bits):
        numbers = signs(tile, field, splat(scale)) if bits == 1 else codes(tile, field, bits)
        # In order, so that the next one writes over what is too much of this.
        store_floats(into + field * width * 4, numbers)


@compiled
def spread_rest(into, padded, term, row, whole, k):
    """Δ of columns `whole` to k of a row, and up to 64 of anything after them; `whole` is of full tiles, or 0."""
    kind, words = term[KIND], term[DATA] + row * term[DATA_STRIDE]
    scales, group = term[SCALES] + row * term[SCALES_STRIDE], term[COLUMNS]
    bits = 1 if kind == SIGNS else 4 if kind == INT4 else 8
    fields = 32 // bits
    full = k - k % (LANES * fields)
    scale = peek(scales, np.float32(0)) if kind == SIGNS else np.float32(0)
    start = np.int64(into.ctypes.data)
    for tile in range(whole, full, LANES * fields):
        spread_tile(start + (tile - whole) * 4, words + tile // fields * 4, LANES, scale, bits)
    width = -(-(k - full) // fields)
    if width:
        # A narrow tile may be the last thing in memory.
        copy(padded.ctypes.data, words + full // fields * 4, width * 4)
        spread_tile(start + (full - whole) * 4, np.int64(padded.ctypes.data), width, scale, bits)
    if kind == SIGNS:
        return
    first = whole
    while first < k:
        last = min(k, (first // group + 1) * group)
        scale = bf16(peek(scales + first // group * 2, np.uint16(0)))
        for at in range(first - whole, last - whole):
            into[at] *= scale
        first = last


@compiled
def gather_rest(table, plain, spare, padded, row, k, whole, size):
    """What each term has in columns `whole` to k of a row, into the spare rows that `plain` points to."""
    for number in range(len(table)):
        kind = table[number, KIND]
        if kind in (INT4, INT8, SIGNS):
            spread_rest(spare[2 + number], padded, table[number], row, whole, k)
        else:
            width = 4 if kind == ADDED else size
            data = table[number, DATA] + row * table[number, DATA_STRIDE] + whole * width
            copy(plain[number, DATA], data, (k - whole) * width)


@compiled(kept=True)
def blend_rows(out, base, table, weights, first, last, k, whole, size, like, room, spare):
    """Rows `first` to `last`. What is left of a row after `whole` columns is unpacked and filled up to whole LANES.

    Room to work in, fp32: `room` [terms + 1, BLOCK], `spare` [terms + 3, the rest and 96 more]. The caller holds it,
    because numba drops an array after its last use, and does not see the uses of an address.
    """
    room_at, sums_at = room.ctypes.data, room[-1].ctypes.data
    source = np.empty(len(table), np.int64)
    rest = k - whole
    wide = -(-rest // LANES) * LANES
    padded = spare[-1]
    plain = table.copy()
    for number in range(len(table)):
        plain[number, DATA], plain[number, DATA_STRIDE] = spare[2 + number].ctypes.data, 0
        if table[number, KIND] in (INT4, INT8, SIGNS):
            plain[number, KIND] = ADDED
    out_at, base_at = spare[0].ctypes.data, spare[1].ctypes.data
    for row in range(first, last):
        place = (row * k + whole) * size
        # One call for both, because every call's code is compiled again where it is called.
        for left in range(2 if rest else 1):
            if left:
                copy(base_at, base + place, rest * size)
                gather_rest(table, plain, spare, padded, row, k, whole, size)
                place_out, place_base, terms, at, width, count = out_at, base_at, plain, 0, wide, wide
            else:
                place_out, place_base, terms, at, width, count = out, base, table, row, k, whole
            blend_row(place_out, place_base, terms, weights, at, width, count, size, like, sums_at, source, room_at)
        if rest:
            copy(out + place, out_at, rest * size)


@compiled(kept=True)
def join_planes(out, base, planes, count, width, like):
    """out = base XOR numbers whose lowest bytes come first in `planes`, then the next bytes, and so on."""
    whole = count - count % LANES
    for at in range(0, whole, LANES):
        store(out + at * width, xor(load(base + at * width, like), joined(planes + at, count, like)), like)
    for at in range(whole * width, count * width):
        byte = peek(planes + at % width * count + at // width, np.uint8(0))
        poke(out + at, np.uint8(peek(base + at, np.uint8(0)) ^ byte))
