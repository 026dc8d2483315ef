"""compose on a CPU by compiled loops (compose_loops.py).

What they do not read goes to `compose_torch`, which does the same to the last bit.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from .compose_loops import ADDED, BLOCK, DATA, DATA_STRIDE, DENSE, INT4, INT8, SIGNS, XOR, blend_rows
from .compose_torch import CHUNK, compose_torch
from .delta import BITS, Delta, Dense, Factors, Packed, Signs, Xor, size
from .lanes import HAS_HALF, LANES, LIKE
from .planar import word_count
from .product_loops import product
from .threads import shared


def compose_compiled(
    out: torch.Tensor, base: torch.Tensor | None, terms: Sequence[tuple[float, list[Delta]]], rest: float
) -> None:
    """As `compose_torch`, and the same bits (but for a NaN's payload)."""
    if not terms:
        compose_torch(out, base, terms, rest)
    start = 0
    for deltas in zip(*(page for _, page in terms), strict=True):
        span = slice(start, start + size(deltas[0]))
        weighted = [(w, delta) for (w, _), delta in zip(terms, deltas, strict=True)]
        blend(out[span], None if base is None else base[span], weighted, rest)
        start = span.stop


def blend(out: torch.Tensor, base: torch.Tensor | None, terms: list[tuple[float, Delta]], rest: float) -> None:
    """One run: each term is one delta."""
    weight, delta = terms[0]
    if not all(readable(delta, out) for _, delta in terms):
        compose_torch(out, base, [(w, [delta]) for w, delta in terms], rest)
    elif len(terms) == 1 and weight == 1.0 and isinstance(delta, Dense):
        out.copy_(delta.values.reshape(-1))
    elif len(terms) == 1 and weight == 1.0 and isinstance(delta, Xor) and base is not None:
        bits = delta.pattern.dtype
        torch.bitwise_xor(base.view(bits), delta.pattern.reshape(-1), out=out.view(bits))
    else:
        # Without a base no delta reads it: any address will do.
        under = out if base is None else base
        run(out, under, [(rest, Dense(under)), *terms] if rest != 0.0 else terms)


def run(out: torch.Tensor, base: torch.Tensor, terms: list[tuple[float, Delta]]) -> None:
    shape = next((delta.shape for _, delta in terms if not isinstance(delta, Dense | Xor)), None)
    rows, k = shape or (1, out.numel())
    width, like = out.element_size(), LIKE[out.dtype]
    held: list[torch.Tensor] = []
    table = np.array([entry(delta, k, width, held) for _, delta in terms], np.int64)
    weights = np.array([w for w, _ in terms], np.float32)
    factors = [(number, delta) for number, (_, delta) in enumerate(terms) if isinstance(delta, Factors)]
    odd = any(isinstance(delta, Packed) and delta.group & (delta.group - 1) for _, delta in terms)
    whole = 0 if odd else k - k % max(tile(delta) for _, delta in terms)

    def matrix(part: slice, table: Any = table) -> None:
        place = out.data_ptr(), base.data_ptr(), table, weights, part.start, part.stop
        blend_rows(*place, k, whole, width, like, *scratch(len(terms), k - whole))

    def flat(part: slice) -> None:
        first, last = part.start * BLOCK, min(k, part.stop * BLOCK)
        here, count = table.copy(), last - first
        here[:, DATA] += first * width
        out_at, base_at = out.data_ptr() + first * width, base.data_ptr() + first * width
        space = scratch(len(terms), count % LANES)
        blend_rows(out_at, base_at, here, weights, 0, 1, count, count - count % LANES, width, like, *space)

    def products(part: slice) -> None:
        step = max(1, CHUNK // max(1, k))
        room = np.empty((len(factors), step, wide), np.float32)
        for first in range(part.start, part.stop, step):
            here, own = slice(first, min(first + step, part.stop)), table.copy()
            for into, (number, _), (a, b, scale) in zip(room, factors, padded, strict=True):
                place = into.ctypes.data, b[here].data_ptr(), a.data_ptr()
                product(*place, here.stop - first, b.shape[1], wide, np.float32(scale))
                own[number, DATA], own[number, DATA_STRIDE] = into.ctypes.data - first * wide * 4, wide * 4
            matrix(here, own)

    if shape is None:
        shared(flat, -(-k // BLOCK), k // CHUNK)
    elif not factors:
        shared(matrix, rows, rows * k // CHUNK)
    else:
        wide = k + -k % LANES
        padded = [
            (pad(delta.a.float(), (0, wide - k)).contiguous(), delta.b.float().contiguous(), delta.scale)
            for _, delta in factors
        ]
        shared(products, rows, rows * k // CHUNK)


def scratch(terms: int, rest: int) -> tuple[Any, Any]:
    """Room for `blend_rows`."""
    return np.empty((terms + 1, BLOCK), np.float32), np.zeros((terms + 3, rest + 3 * LANES), np.float32)


def tile(delta: Delta) -> int:
    """Of how many columns a whole number must come first."""
    if isinstance(delta, Signs):
        return LANES * 32
    return LANES * 32 // delta.bits if isinstance(delta, Packed) else LANES


def readable(delta: Delta, out: torch.Tensor) -> bool:
    """Whether the tensors are what delta.py says: the kernel goes by addresses."""
    if out.dtype not in LIKE or (out.dtype == torch.float16 and not HAS_HALF):
        return False
    rows, k = delta.shape
    wanted: dict[torch.dtype, tuple[torch.Tensor, tuple[int, ...]]]
    if isinstance(delta, Dense):
        wanted = {out.dtype: (delta.values, delta.values.shape)}
    elif isinstance(delta, Xor):
        wanted = {BITS[out.element_size()]: (delta.pattern, delta.pattern.shape)}
    elif isinstance(delta, Packed):
        groups = (rows, -(-k // delta.group))
        wanted = {torch.int32: (delta.words, (rows, word_count(k, delta.bits))), torch.bfloat16: (delta.scales, groups)}
    elif isinstance(delta, Signs):
        wanted = {torch.int32: (delta.words, (rows, word_count(k, 1))), torch.float32: (delta.scales, (rows,))}
    else:
        return delta.a.device.type == "cpu"
    return all(
        tensor.dtype == dtype and tensor.shape == shape and tensor.device.type == "cpu"
        for dtype, (tensor, shape) in wanted.items()
    )


def entry(delta: Delta, k: int, width: int, held: list[torch.Tensor]) -> list[int]:
    """The delta's line of the table. What it points to is put in `held`."""

    def at(tensor: torch.Tensor) -> int:
        held.append(tensor.contiguous())
        return held[-1].data_ptr()

    if isinstance(delta, Packed):
        kind, groups = (INT4 if delta.bits == 4 else INT8), delta.scales.shape[1]
        words, scales = at(delta.words), at(delta.scales)
        return [kind, words, delta.words.shape[1] * 4, scales, groups * 2, delta.group.bit_length() - 1, delta.group]
    if isinstance(delta, Signs):
        return [SIGNS, at(delta.words), delta.words.shape[1] * 4, at(delta.scales), 4, 0, k]
    if isinstance(delta, Factors):
        return [ADDED, 0, 0, 0, 0, 0, 0]
    kind, numbers = (DENSE, delta.values) if isinstance(delta, Dense) else (XOR, delta.pattern)
    return [kind, at(numbers), k * width, 0, 0, 0, 0]
