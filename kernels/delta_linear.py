"""delta_linear: what an expert adds to the base's matrix product, from the delta as it is packed."""

from collections.abc import Iterator
from dataclasses import replace
from math import gcd
from typing import Any

import torch
import triton
import triton.language as tl

from .delta import Factors, Packed, Signs
from .dispatch import use_triton
from .floats import INTERPRETED, product, rounded, widen
from .paged_linear import TOGETHER, groups, paged_linear
from .planar import LANES, word_count
from .settings import Variant, every, settings
from .tiles import Tiles

UNROLLED = 4
"""Fields of a word that the kernel for bf16 writes out."""


def delta_linear(y: torch.Tensor, x: torch.Tensor, delta: Packed | Signs | Factors, tiles: Tiles) -> torch.Tensor:
    """y[t] += x[t] @ Δ̂[page(t)]ᵀ, in place: summed in fp32, added to y in fp32, rounded once. Returns y.

    x [tokens, K] and y [tokens, N], of one dtype (bf16, fp16 or fp32). `delta` is as in delta.py with pages in front,
    each tensor a view of an arena with any stride between pages and rows: Packed has words [pages, N, words] and scales
    [pages, N, groups], Signs words [pages, N, words] and scales [pages, N]. Factors has a [pages, r, K] and b
    [pages, N, r] of x's dtype, with the scale multiplied into one of them, and rounds x @ aᵀ to that dtype (LoRA).
    Tokens without a tile keep their y. Where a group of Packed is not a multiple of 32 columns, the kernel rounds s·q
    to x's dtype. Raises ValueError for arguments that do not fit.
    """
    if isinstance(delta, Factors):
        if delta.scale != 1.0:
            raise ValueError("delta_linear: multiply the scale of the factors into one of them")
        # Its rows without a tile are never read.
        low = paged_linear(x, delta.a, tiles)
        return paged_linear(low, delta.b, tiles, out=y, accumulate=True)
    (tokens, k), n = x.shape, delta.words.shape[1]
    if k != delta.k or y.shape != (tokens, n) or y.dtype != x.dtype:
        raise ValueError(f"delta_linear: x is {(tokens, k)}, y {tuple(y.shape)}, and the delta {(n, delta.k)}")
    bits = delta.bits if isinstance(delta, Packed) else 1
    if delta.words.shape[2] != word_count(k, bits) or delta.words.stride(2) != 1 or delta.words.dtype != torch.int32:
        raise ValueError(f"delta_linear: words are {tuple(delta.words.shape)}, and {word_count(k, bits)} make a row")
    scales = (n, -(-k // delta.group)) if isinstance(delta, Packed) else (n,)
    if delta.scales.shape[1:] != scales:
        raise ValueError(f"delta_linear: scales are {tuple(delta.scales.shape)}, and must be [pages, {scales}]")
    if any(t.stride(1) != 1 and t.shape[1] > 1 for t in (x, y)):
        raise ValueError("delta_linear: x and y have contiguous rows")
    (delta_linear_triton if use_triton(x) else delta_linear_torch)(y, x, delta, tiles)
    return y


def delta_linear_torch(y: torch.Tensor, x: torch.Tensor, delta: Packed | Signs, tiles: Tiles) -> None:
    for page, rows in groups(tiles):
        dense = replace(delta, words=delta.words[page], scales=delta.scales[page]).delta(slice(None))
        y[rows] = (y[rows].float() + x[rows].float() @ dense.T).to(y.dtype)


def delta_linear_triton(y: torch.Tensor, x: torch.Tensor, delta: Packed | Signs, tiles: Tiles) -> None:
    (tokens, k), n = x.shape, y.shape[1]
    if tokens == 0 or n == 0:
        return
    chosen = settings("delta_linear", x.device, tokens)
    table = tiles.tables[chosen.block_m]
    count = min(triton.cdiv(tokens, chosen.block_m) + tiles.slots, table.shape[0])
    _delta_linear[(count * triton.cdiv(n, chosen.block_n),)](
        x,
        delta.words,
        delta.scales,
        y,
        tiles.order,
        table,
        count,
        n,
        k,
        x.stride(0),
        delta.words.stride(0),
        delta.words.stride(1),
        delta.scales.stride(0),
        delta.scales.stride(1),
        y.stride(0),
        **_form(delta, k),
        BLOCK_M=chosen.block_m,
        BLOCK_N=chosen.block_n,
        UNROLLED=UNROLLED,
        TOGETHER=TOGETHER,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
        enable_fp_fusion=False,
    )


def _form(delta: Packed | Signs, k: int) -> dict[str, Any]:
    """BITS; GROUP, the columns of one scale, 0 for all; SHARED, how many fields after each other have one scale."""
    bits, group = (delta.bits, delta.group) if isinstance(delta, Packed) else (1, k)
    fields = 32 // bits
    if group >= k:
        return {"BITS": bits, "GROUP": 0, "SHARED": fields}
    return {"BITS": bits, "GROUP": group, "SHARED": 0 if group % LANES else gcd(group // LANES, fields, UNROLLED)}


@triton.jit
def _numbers(codes, BITS: tl.constexpr, dtype: tl.constexpr):
    """The codes of one field as numbers of x's dtype, exactly."""
    if BITS == 1:
        if dtype == tl.bfloat16:
            return ((codes << 15) | 0x3F80).to(tl.uint16).to(tl.bfloat16, bitcast=True)
        return (1 - 2 * codes).to(dtype)
    if BITS == 4 and dtype == tl.bfloat16 and not INTERPRETED:
        # The bits of 128 + q.
        return (codes | 0x4300).to(tl.uint16).to(tl.bfloat16, bitcast=True) - 136.0
    return rounded((codes - (1 << (BITS - 1))).to(tl.float32), dtype)


@triton.jit
def _delta_linear(
    x_ptr,
    words_ptr,
    scales_ptr,
    y_ptr,
    order_ptr,
    table_ptr,
    tiles,
    n,
    k,
    x_stride,
    words_page,
    words_row,
    scales_page,
    scales_row,
    y_stride,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNROLLED: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    FIELDS: tl.constexpr = 32 // BITS
    MASK: tl.constexpr = (1 << BITS) - 1
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    # Fields that are written out one after the other; words with more are read again, from a cache.
    STEP: tl.constexpr = min(FIELDS, UNROLLED)
    PARTS: tl.constexpr = FIELDS // STEP
    strips = tl.cdiv(n, BLOCK_N)
    band = tl.program_id(0) // (TOGETHER * strips)
    within = tl.program_id(0) % (TOGETHER * strips)
    width = tl.minimum(tiles - band * TOGETHER, TOGETHER)
    tile = band * TOGETHER + within % width
    strip = within // width

    page = tl.load(table_ptr + 3 * tile).to(tl.int64)
    if page < 0:
        return
    position = tl.load(table_ptr + 3 * tile + 1) + tl.arange(0, BLOCK_M)
    here = position < tl.load(table_ptr + 3 * tile + 2)
    token = tl.load(order_ptr + position, mask=here, other=0).to(tl.int64)
    column = strip * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < n
    row = tl.where(inside, column, 0).to(tl.int64)
    lane = tl.arange(0, 32)
    x_at = x_ptr + token[:, None] * x_stride + lane[None, :]
    words_at = words_ptr + page * words_page + row * words_row
    scales_at = scales_ptr + page * scales_page + row * scales_row
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    part = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)

    # bf16, the full tiles: field i of the 32 words is 32 columns in a row.
    done = 0
    if SHARED != 0 and DTYPE == tl.bfloat16:  # noqa: SIM300
        full = k // (32 * FIELDS)
        done = full * 32 * FIELDS
        for at in range(0, full * PARTS):
            words = tl.load(words_at[None, :] + (at // PARTS * 32 + lane)[:, None]) >> (at % PARTS * STEP * BITS)
            for field in tl.static_range(STEP):
                first = (at * STEP + field) * 32
                part = product(tl.load(x_at + first), _numbers((words >> (field * BITS)) & MASK, BITS, DTYPE), part)
                if GROUP != 0 and field % SHARED == SHARED - 1:
                    total += part * widen(tl.load(scales_at + first // GROUP))[None, :]
                    part = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)

    # All others, and the narrower tile: words are gathered so that 32 columns in a row are multiplied.
    for first in range(done, k, 32):
        left = lane < k - first
        tile_first = first // (32 * FIELDS) * (32 * FIELDS)
        lanes = tl.minimum(tl.cdiv(k - tile_first, FIELDS), 32)
        nth = first - tile_first + lane
        word = tile_first // FIELDS + nth % lanes
        words = tl.load(words_at[None, :] + word[:, None], mask=left[:, None], other=0)
        codes = (words >> (nth // lanes * BITS)[:, None]) & MASK
        a = tl.load(x_at + first, mask=left[None, :], other=0.0)
        if SHARED == 0:
            scale = tl.load(scales_at[None, :] + ((first + lane) // GROUP)[:, None], mask=left[:, None], other=0.0)
            delta = (codes - (1 << (BITS - 1))).to(tl.float32) * widen(scale)
            total = product(a, rounded(delta, DTYPE), total)
        else:
            part = product(a, _numbers(codes, BITS, DTYPE), part)
            if GROUP != 0:
                total += part * widen(tl.load(scales_at + first // GROUP))[None, :]
                part = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)

    if GROUP == 0:
        total = part * widen(tl.load(scales_at))[None, :]
    y_at = y_ptr + token[:, None] * y_stride + column[None, :]
    mask = here[:, None] & inside[None, :]
    total = widen(tl.load(y_at, mask=mask, other=0.0)) + total
    tl.store(y_at, rounded(total, y_ptr.dtype.element_ty), mask=mask)


def variants(arch: str) -> Iterator[Variant]:
    indices = ("words_ptr", "order_ptr", "table_ptr")
    sizes = ("n", "k", "x_stride", "words_page", "words_row", "scales_page", "scales_row", "y_stride")
    for chosen in every("delta_linear", arch):
        for dtype in ("bf16", "fp16", "fp32"):
            for name, bits, group, shared in (
                ("int8", 8, 128, 4),
                ("int4", 4, 128, 4),
                ("sign", 1, 0, 32),
                ("int4, odd groups", 4, 48, 0),
            ):
                types = dict.fromkeys(indices, "*i32") | {"x_ptr": f"*{dtype}", "y_ptr": f"*{dtype}"}
                types |= {"scales_ptr": "*fp32" if bits == 1 else "*bf16"} | dict.fromkeys(("tiles", *sizes), "i32")
                constants = {"BITS": bits, "GROUP": group, "SHARED": shared, "UNROLLED": UNROLLED, "TOGETHER": TOGETHER}
                constants |= {"BLOCK_M": chosen.block_m, "BLOCK_N": chosen.block_n}
                if bits == 1:
                    # One scale after the other: Triton takes a stride of 1 for a constant.
                    constants["scales_row"] = 1
                    del types["scales_row"]
                aligned = (*(name for name in (*indices, *sizes) if name in types), "x_ptr", "y_ptr", "scales_ptr")
                yield Variant(f"delta_linear {dtype} {name}", _delta_linear, types, constants, aligned, chosen)
