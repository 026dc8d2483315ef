"""step_blocks: the blocks of `steps` in numpy, where there is no compiler. composer/ARCHIVE.md says what they are."""

from itertools import product

import numpy as np

LANES, BLOCK = 32, 1 << 13
HEAD = 12
"""Bytes: raw, masked, low, high, top and a 0, and three numbers of 2 bytes: of codes, near and far patches."""

SPAN = 48
"""Exponents that are told apart when widths are chosen: those below a block's largest."""

FAR = 9
"""Stands for moves of more than 8 bits."""

LENGTHS = np.array([min(code.bit_length(), FAR) for code in range(512)])
WIDTHS = np.array([(low, high, top) for low, high, top in product(range(9), range(9), range(-SPAN, 9)) if low <= high])


def lanes(widths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """widths [numbers] → for each number the first byte of its bits, the next one, and its first bit; all bytes.

    A lane takes its next byte when what is left of the one before is too little, in order of the lanes.
    """
    rows = -(-len(widths) // LANES)
    grid = np.zeros((rows + 1, LANES), np.int64)
    grid[1:].reshape(-1)[: len(widths)] = widths
    bits = grid.cumsum(0)
    taken = -(-bits // 8)
    takes = np.diff(taken, axis=0) > 0
    count = int(takes.sum())
    # Where byte i of a lane is; the one after the last is of no one.
    places = np.full((int(taken.max()) + 2, LANES), count)
    row, lane = takes.nonzero()
    places[taken[row, lane], lane] = np.arange(count)
    begin, every = bits[:-1] // 8, np.broadcast_to(np.arange(LANES), (rows, LANES))
    flat = [places[begin, every], places[begin + 1, every], bits[:-1] % 8]
    return *(part.reshape(-1)[: len(widths)] for part in flat), count


def unpack(out: np.ndarray, base: np.ndarray, stored: np.ndarray, shift: int, field: int) -> int:
    """The number of the block that is wrong, or -1. out and base are patterns."""
    at = 0
    for number, first in enumerate(range(0, len(base), BLOCK)):
        under = base[first : first + BLOCK]
        moved = np.zeros(len(under), np.int64)
        at = block(moved, stored, at, (under >> shift & field).astype(np.int64), base.itemsize)
        if at < 0 or (first + BLOCK >= len(base) and at != len(stored)):
            return number
        out[first : first + BLOCK] = (under + moved).astype(base.dtype)
    return -1


def block(moved: np.ndarray, stored: np.ndarray, at: int, exponents: np.ndarray, size: int) -> int:
    """Sets how far the numbers of a block move; where it ends, or -1."""
    count, head = len(moved), stored[at : at + HEAD].astype(np.int64)
    if len(head) < HEAD:
        return -1
    raw, masked, low, high, top, zero = head[:6]
    coded, near, far = head[6::2] | head[7::2] << 8
    rows = -(-count // LANES)
    lengths = [raw * count, masked * 4 * rows, coded, 2 * near, (1 + size) * far]
    ends = at + HEAD + np.cumsum(lengths)
    if raw >= size or masked > 1 or low > high or high > 8 or zero or ends[-1] > len(stored):
        return -1
    raws, mask, codes, nears, fars = np.split(stored[at + HEAD : ends[-1]].astype(np.int64), np.cumsum(lengths)[:-1])
    here = np.unpackbits(mask.astype(np.uint8), bitorder="little")[:count].astype(bool) if masked else True
    width = np.where(here, np.clip(top - exponents, low, high), 0)
    one, other, bit, wanted = lanes(width)
    if wanted != coded:
        return -1
    codes = np.append(codes, 0)
    code = (codes[one] | codes[other] << 8) >> bit & (1 << width) - 1
    code -= (code << 1) & (1 << width)
    code += masked & here & (code >= 0)
    for plane in raws.reshape(raw, count)[::-1]:
        code = code << 8 | plane
    moved[:] = code
    for patches, wide in ((nears.reshape(-1, 2), 1), (fars.reshape(-1, 1 + size), size)):
        places = np.cumsum(patches[:, 0] + 1) - 1
        if len(places) and places[-1] >= count:
            return -1
        values = (patches[:, 1:] << 8 * np.arange(wide)).sum(1)
        moved[places] += values - ((values << 1) & (1 << 8 * wide))
    return int(ends[-1])


def pack(ours: np.ndarray, theirs: np.ndarray, shift: int, field: int) -> np.ndarray:
    """Packs patterns."""
    size, found = ours.itemsize, []
    half = 1 << 8 * size - 1
    for first in range(0, len(ours), BLOCK):
        e, b = ours[first : first + BLOCK].astype(np.int64), theirs[first : first + BLOCK].astype(np.int64)
        moves = ((e - b + half) & 2 * half - 1) - half
        exponents = b >> shift & field
        packed = write(moves, exponents, size, *choose(moves, exponents, size))
        if len(packed) > HEAD + size * len(moves):
            packed = write(moves, exponents, size, size - 1, 0, 8, 8, 0)
        found.append(packed)
    return np.concatenate(found) if found else np.empty(0, np.uint8)


def choose(moves: np.ndarray, exponents: np.ndarray, size: int) -> tuple[int, int, int, int, int]:
    """(raw, masked, low, high, top) that take least."""
    least, found = 8.0 * size * len(moves), (size - 1, 0, 8, 8, 0)
    largest = int(exponents.max())
    depths = np.minimum(largest - exponents, SPAN - 1)
    low, high, top = WIDTHS.T
    widths = np.clip(top[:, None] + np.arange(SPAN), low[:, None], high[:, None])
    for raw, masked in product(range(size), range(2)):
        code = moves >> 8 * raw
        some = code != 0 if masked else slice(None)
        code = (code - (code > 0) if masked else code)[some]
        table = np.zeros((SPAN, FAR + 1))
        np.add.at(table, (depths[some], LENGTHS[np.minimum(code << 1 ^ code >> 63, 511)]), 1)
        over = table.sum(1, keepdims=True) - table.cumsum(1)[:, :FAR] - table[:, FAR:]
        cost = table.sum(1, keepdims=True) * np.arange(FAR) + 16 * over + 8 * (1 + size) * table[:, FAR:]
        costs = cost[np.arange(SPAN), widths].sum(1) + (8 * raw + masked) * len(moves)
        best = int(costs.argmin())
        if costs[best] < least:
            least = costs[best]
            found = (raw, masked, int(low[best]), int(high[best]), int(np.clip(top[best] + largest, 0, 255)))
    return found


def write(
    moves: np.ndarray, exponents: np.ndarray, size: int, raw: int, masked: int, low: int, high: int, top: int
) -> np.ndarray:
    """One block."""
    code, width = moves >> 8 * raw, np.clip(top - exponents, low, high)
    less = code - (code > 0) if masked else code
    fits = (less << 1 ^ less >> 63) >> width == 0
    here = fits & (code != 0) if masked else np.ones(len(moves), bool)
    left = np.where(fits, 0, code << 8 * raw)
    width = np.where(here, width, 0)
    one, other, bit, count = lanes(width)
    bits = np.where(here & fits, less & (1 << width) - 1, 0) << bit
    codes = np.zeros(count + 1, np.int64)
    np.bitwise_or.at(codes, one, bits & 255)
    np.bitwise_or.at(codes, other, bits >> 8)
    near, far = (np.flatnonzero((left != 0) & ((np.abs(left + 0.5) > 128) == wide)) for wide in (False, True))
    nears, fars = patches(left, near, 1), patches(left, far, size)
    mask: np.ndarray = np.packbits(np.pad(here, (0, -len(here) % LANES)), bitorder="little") if masked else np.empty(0)
    numbers = np.array([count, len(nears), len(fars)])
    head = [raw, masked, low, high, top, 0, *np.stack([numbers & 255, numbers >> 8], 1).reshape(-1)]
    raws = [moves >> 8 * plane & 255 for plane in range(raw)]
    parts = [head, *raws, mask, codes[:-1], nears.reshape(-1), fars.reshape(-1)]
    return np.concatenate([np.asarray(part, np.uint8) for part in parts])


def patches(left: np.ndarray, places: np.ndarray, wide: int) -> np.ndarray:
    """[patches, 1 + wide] bytes; where 256 numbers or more are skipped, patches that move nothing come between."""
    found, last = [], 0
    for place in places.tolist():
        while place - last > 255:
            found.append([255] + [0] * wide)
            last += 256
        found.append([place - last, *(int(left[place]) >> 8 * plane & 255 for plane in range(wide))])
        last = place + 1
    return np.array(found, np.uint8).reshape(-1, 1 + wide)
