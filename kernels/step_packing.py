"""step_packing: what `steps` packs, by compiled loops, through numba."""

import numpy as np

from .compose_loops import compiled
from .lanes import LANES, copy, peek, poke
from .short_codes import (
    bits_of,
    chosen,
    get_bytes,
    moved,
    moves,
    only,
    put_bytes,
    short_of,
    squeeze,
    too_wide,
    without_bytes,
    without_zero,
)
from .shorts import above, exponents, less_by, more_at, negative, ones, rest, short, widths
from .step_blocks import BLOCK, FAR, HEAD, SPAN
from .step_widths import choose, sample

ROWS = BLOCK // LANES
ROW = LANES * 4
"""Bytes of what is noted of a row: codes, widths and bits that are free before it, a byte for each, and a mask."""

SCRATCH = LANES * 8 + ROWS * ROW
"""Bytes that packing a block takes beside it."""

SLACK = LANES
"""Bytes past a block's end that may change."""


@compiled
def pair(out, at, value):
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
def outline(begin, e, b, left, places, count, size, like, scratch, raw, masked, low, high, top):
    """Writes raw bytes and mask, and notes for each row the codes and how they lie in bytes.

    Returns how many patches there are, in `left` and `places`.
    """
    low, high, top, eight, free = short(low), short(high), short(top), short(8), short(0)
    spare, rows = scratch, scratch + LANES * 8
    patched, bottom = 0, (1 << (8 * raw)) - 1
    mask = begin + HEAD + raw * count
    for first in range(0, count, LANES):
        live, ours, theirs = np.uint32(0xFFFFFFFF), e + first * size, b + first * size
        some = min(LANES, count - first)
        if some < LANES:
            live = np.uint32((1 << some) - 1)
            for at in range(LANES):
                poke(spare + at * 8, np.uint64(0))
            copy(spare, ours, some * size)
            copy(spare + LANES * 4, theirs, some * size)
            ours, theirs = spare, spare + LANES * 4
        whole = moves(ours, theirs, like)
        width = widths(exponents(theirs, like), top, low, high, live)
        for plane in range(raw):
            place = begin + HEAD + plane * count + first
            if some < LANES:
                put_bytes(spare, without_bytes(whole, plane))
                copy(place, spare, some)
            else:
                put_bytes(place, without_bytes(whole, plane))
        code, coded = without_bytes(whole, raw), live
        if masked:
            coded &= moved(code)
            code = without_zero(code)
        bad = coded & too_wide(code, width)
        if masked:
            coded &= ~bad
            width = only(width, coded)
            poke(mask + first // 8, np.uint32(coded))
        code = only(bits_of(short_of(code), width), coded & ~bad)
        while bad:
            lane = ones(np.uint32(~bad & (bad - np.uint32(1))))
            place = first + lane
            bad &= bad - np.uint32(1)
            far = signed_move(e + place * size, b + place * size, size, like)
            # All but what the raw bytes alone move.
            left[patched], places[patched] = far - (far & bottom), place
            patched += 1
        after = less_by(free, width)
        need = negative(after)
        row = rows + first // LANES * ROW
        put_bytes(row, code)
        put_bytes(row + LANES, width)
        put_bytes(row + LANES * 2, free)
        poke(row + LANES * 3, need)
        free = more_at(after, need, eight)
    return patched


@compiled
def signed_move(e, b, size, like):
    half = 1 << (8 * size - 1)
    return ((bits(e, size, like) - bits(b, size, like) + half) & (2 * half - 1)) - half


@compiled
def bits(address, size, like):
    return np.int64(peek(address, like)) & ((1 << (8 * size)) - 1)


@compiled
def codes(out, count, scratch):
    """The codes that `outline` noted as bytes, lane by lane; where they end.

    A byte of a lane holds codes of several rows: it is put together from the last row on, and complete in the row that
    begins it. There its bits lie above those that are free in the one before.
    """
    rows, later = scratch + LANES * 8, short(0)
    end = rows + (count + LANES - 1) // LANES * ROW
    for at in range(end - ROW, rows - ROW, -ROW):
        free, need = get_bytes(at + LANES * 2), peek(at + LANES * 3, np.uint32(0))
        both = above(get_bytes(at), later, get_bytes(at + LANES))
        put_bytes(at, rest(both, free))
        later = chosen(need, bits_of(both, free), both)
    for at in range(rows, end, ROW):
        need = peek(at + LANES * 3, np.uint32(0))
        squeeze(out, at, need)
        out += ones(need)
    return out


@compiled
def write(out, begin, e, b, left, places, count, size, like, scratch, raw, masked, low, high, top):
    """One block at `begin`, the address of `out`; how long it is. `left` and `places` are room for patches."""
    patched = outline(begin, e, b, left, places, count, size, like, scratch, raw, masked, low, high, top)
    start = HEAD + raw * count + masked * 4 * ((count + LANES - 1) // LANES)
    near = codes(begin + start, count, scratch) - begin
    far = patches(out, near, left[:patched], places, False, 1)
    end = patches(out, far, left[:patched], places, True, size)
    out[0], out[1], out[2], out[3], out[4], out[5] = raw, masked, low, high, top, 0
    pair(out, 6, near - start)
    pair(out, 8, (far - near) // 2)
    pair(out, 10, (end - far) // (1 + size))
    return end


@compiled(kept=True)
def pack(out, one, begin, e, b, ours, theirs, size, shift, field, lengths, like, scratch):
    """Packs patterns of unsigned numbers of `size` bytes, block by block; how many bytes of `out` they take.

    `out` has room for a head and all the numbers of each block. `e`, `b` and `begin` are the addresses of `ours`,
    `theirs` and `one`, in which a block is made; that of `scratch` is of SCRATCH bytes.
    """
    at = 0
    far, deep = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.uint8)
    left, places = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
    cost, tables = np.empty((SPAN, 9), np.int64), np.empty((2, SPAN, FAR + 1), np.int64)
    last = np.empty((size, 2, 3), np.int64)
    last[:, :] = np.array([0, 8, 2])
    for first in range(0, len(ours), BLOCK):
        count = min(BLOCK, len(ours) - first)
        some = slice(first, first + count)
        share, seen, largest = sample(far, deep, ours[some], theirs[some], size, shift, field)
        found = choose(cost, tables, lengths, far[:seen], deep[:seen], largest, share, last, size, count)
        place = e + first * size, b + first * size
        length = write(one, begin, *place, left, places, count, size, like, scratch, *found)
        if length > HEAD + size * count:
            length = write(one, begin, *place, left, places, count, size, like, scratch, size - 1, 0, 8, 8, 0)
        out[at : at + length] = one[:length]
        at += length
    return at
