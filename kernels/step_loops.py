"""step_loops: what `steps` packed, unpacked by compiled loops, through numba.

The bytes are a file's, and all goes by addresses: each is compared with the end before it is read.
"""

import numpy as np

from .compose_loops import compiled
from .lanes import LANES, copy, peek
from .shorts import (
    above,
    appended,
    dealt,
    exponents,
    less_by,
    lowest,
    more_at,
    negative,
    ones,
    poke_cut,
    rest,
    short,
    signed,
    step,
    widths,
)
from .step_blocks import BLOCK, HEAD


@compiled
def byte(address):
    return np.int64(peek(address, np.uint8(0)))


@compiled
def pair(address):
    return byte(address) | byte(address + 1) << 8


@compiled
def sections(at, end, count, size):
    """Where mask, codes, near and far patches of a block of `count` numbers begin, and where it ends, or 0s.

    Before them, after the head, are the raw bytes.
    """
    if end - at < HEAD:
        return 0, 0, 0, 0, 0
    raw, masked, low, high = byte(at), byte(at + 1), byte(at + 2), byte(at + 3)
    mask = at + HEAD + raw * count
    codes = mask + masked * 4 * ((count + LANES - 1) // LANES)
    near = codes + pair(at + 6)
    far = near + 2 * pair(at + 8)
    last = far + (1 + size) * pair(at + 10)
    if raw >= size or masked > 1 or high > 8 or low > high or byte(at + 5) or last > end:
        return 0, 0, 0, 0, 0
    return mask, codes, near, far, last


@compiled(kept=True)
def walk(starts, end, count, size):
    """Sets where each block starts, after the first; how many are there, of which the last must end where all ends."""
    for number in range(len(starts)):
        last = sections(starts[number], end, min(BLOCK, count - number * BLOCK), size)[4]
        if last == 0:
            return number
        if number + 1 < len(starts):
            starts[number + 1] = last
        elif last != end:
            return number
    return len(starts)


@compiled
def deal(out, base, at, mask, codes, end, count, size, like, room):
    """Numbers by their raw bytes and the codes in lanes; whether there are as many codes as that takes."""
    raw, masked = byte(at), byte(at + 1)
    low, high, top, eight, one = short(byte(at + 2)), short(byte(at + 3)), short(byte(at + 4)), short(8), short(1)
    held = left = short(0)
    for first in range(0, count, LANES):
        live = np.uint32(0xFFFFFFFF)
        under, into = base + first * size, out + first * size
        if count - first < LANES:
            live = np.uint32((1 << (count - first)) - 1)
            copy(room, under, (count - first) * size)
            under = into = room
        here = live
        if masked:
            here = live & peek(mask + first // 8, np.uint32(0))
        width = widths(exponents(under, like), top, low, high, here)
        after = less_by(left, width)
        need = negative(after)
        taken = ones(need)
        if codes + taken > end:
            return False
        held = above(held, dealt(codes, need), left)
        codes += taken
        left = more_at(after, need, eight)
        code = lowest(held, width)
        held = rest(held, width)
        if masked:
            # 0 is not among them.
            code = more_at(code, here & ~negative(code), one)
        number = signed(code, like)
        for plane in range(raw - 1, -1, -1):
            number = appended(number, dealt(at + HEAD + plane * count + first, live))
        step(into, under, number, like)
        if into == room:
            copy(out + first * size, room, (count - first) * size)
    return codes == end


@compiled
def patch(out, at, end, wide, count, size, like):
    """Moves single numbers by codes of `wide` bytes, each after how many to skip; whether all are within."""
    place, sign = 0, 1 << 8 * wide
    while at < end:
        place += byte(at)
        if place >= count:
            return False
        moved = byte(at + 1)
        for more in range(1, wide):
            moved |= byte(at + 1 + more) << 8 * more
        # The first bit is the sign.
        moved -= (moved << 1) & sign
        number = out + place * size
        poke_cut(number, np.int64(peek(number, like)) + moved, like)
        place += 1
        at += 1 + wide
    return True


@compiled(kept=True)
def unpack(out, base, starts, end, first, stop, count, size, like, room):
    """Blocks `first` to `stop`, of which `walk` has seen the starts; the first that is wrong, or -1.

    `room` is the address of LANES numbers.
    """
    for number in range(first, stop):
        at = starts[number]
        here = number * BLOCK
        some = min(BLOCK, count - here)
        into, under = out + here * size, base + here * size
        mask, codes, near, far, last = sections(at, end, some, size)
        if last == 0:
            return number
        if byte(at) or byte(at + 1) or byte(at + 3):
            if not deal(into, under, at, mask, codes, near, some, size, like, room):
                return number
        elif codes != near:
            return number
        elif into != under:
            copy(into, under, some * size)
        if not (patch(into, near, far, 1, some, size, like) and patch(into, far, last, size, some, size, like)):
            return number
    return -1
