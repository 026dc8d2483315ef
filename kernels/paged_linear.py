"""paged_linear: one matrix product whose weight depends on the token."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from .dispatch import use_triton
from .floats import product, rounded, widen
from .route import Route, by_page
from .settings import Settings, Variant, every, settings
from .tiles import Rows, Tiles

TOGETHER = 8
"""Tiles that take one strip of columns after each other, so that tiles of one page find its weight in the L2 cache."""


def paged_linear(
    x: torch.Tensor,
    weight: torch.Tensor | Sequence[torch.Tensor],
    route: Route | Tiles,
    bias: torch.Tensor | Sequence[torch.Tensor] | None = None,
    bias_rows: Rows | None = None,
    out: torch.Tensor | None = None,
    accumulate: bool = False,
) -> torch.Tensor:
    """y[t] = x[t] @ weight[page(t)]ᵀ + bias[page(t)], summed in fp32 and rounded once.

    x [tokens, K], weight [pages, N, K], bias [pages, N]; y [tokens, N], all of one dtype (bf16, fp16 or fp32).

    With a Route each group of tokens is one library GEMM, so a route with one page costs what F.linear does, and
    weight and bias may be sequences. With Tiles the weight and the bias are views of an arena, with any stride between
    pages and rows, and pages that overlap. `bias_rows` gives the bias pages of its own; a negative one is no bias.
    y is written to `out` where it is given; with `accumulate` it is added, in fp32, to what `out` holds. Tokens
    without a tile are left as they are: in a new y, uninitialised. Raises ValueError for arguments that do not fit.
    """
    if isinstance(route, Route):
        if bias_rows is not None or out is not None or accumulate:
            raise ValueError("paged_linear: bias_rows, out and accumulate are for Tiles")

        def run(page: int, rows: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(rows, weight[page], None if bias is None else bias[page])

        y: torch.Tensor = by_page(route, run, x)
        return y
    if not isinstance(weight, torch.Tensor) or not isinstance(bias, torch.Tensor | None):
        raise ValueError("paged_linear: with Tiles, weight and bias are tensors")
    if accumulate and out is None:
        raise ValueError("paged_linear: there is no out to accumulate into")
    if x.dim() != 2 or weight.dim() != 3 or weight.shape[2] != x.shape[1]:
        raise ValueError(f"paged_linear: x is {tuple(x.shape)}, weight {tuple(weight.shape)}")
    shape = (x.shape[0], weight.shape[1])
    if out is not None and out.shape != shape:
        raise ValueError(f"paged_linear: out is {tuple(out.shape)}, the result {shape}")
    if bias is not None and bias.shape[1:] != weight.shape[1:2]:
        raise ValueError(f"paged_linear: bias is {tuple(bias.shape)}, weight {tuple(weight.shape)}")
    for tensor in (x, weight, *(t for t in (bias, out) if t is not None)):
        if tensor.dtype != x.dtype or (tensor.stride(-1) != 1 and tensor.shape[-1] > 1):
            raise ValueError("paged_linear: x, weight, bias and out have one dtype and contiguous rows")
    implementation = paged_linear_triton if use_triton(x) else paged_linear_torch
    return implementation(x, weight, route, bias, bias_rows, out, accumulate)


def groups(tiles: Tiles) -> Iterator[tuple[int, torch.Tensor]]:
    """(page, its tokens int64) of each group. Waits for the device."""
    page, first, end = -1, 0, 0
    for next_page, next_first, next_end in [*tiles.tables[max(tiles.tables)].tolist(), (-1, 0, 0)]:
        if (next_page, next_first) == (page, end):
            end = next_end
            continue
        if page >= 0:
            yield page, tiles.order[first:end].long()
        if next_page < 0:
            return
        page, first, end = next_page, next_first, next_end


def paged_linear_torch(
    x: torch.Tensor,
    weight: torch.Tensor,
    tiles: Tiles,
    bias: torch.Tensor | None,
    bias_rows: Rows | None,
    out: torch.Tensor | None,
    accumulate: bool,
) -> torch.Tensor:
    """`paged_linear` over Tiles as library GEMMs; one page for all is exactly F.linear(x, weight[page], bias[page])."""
    linear = torch.nn.functional.linear
    parts = list(groups(tiles))
    if bias is not None and bias_rows is not None:
        bias_of = bias_rows.pages[bias_rows.slots.clamp(min=0).long()]
        split = [(page, int(own), rows[bias_of[rows] == own]) for page, rows in parts for own in bias_of[rows].unique()]
    else:
        split = [(page, -1 if bias is None else page, rows) for page, rows in parts]
    if len(split) == 1 and out is None:
        page, own, _ = split[0]
        return linear(x, weight[page], bias[own] if bias is not None and own >= 0 else None)
    y = x.new_empty(x.shape[0], weight.shape[1]) if out is None else out
    for page, own, rows in split:
        shift = bias[own] if bias is not None and own >= 0 else None
        if accumulate:
            total = linear(x[rows].float(), weight[page].float(), None if shift is None else shift.float())
            y[rows] = (y[rows].float() + total).to(y.dtype)
        else:
            y[rows] = linear(x[rows], weight[page], shift)
    return y


def paged_linear_triton(
    x: torch.Tensor,
    weight: torch.Tensor,
    tiles: Tiles,
    bias: torch.Tensor | None,
    bias_rows: Rows | None,
    out: torch.Tensor | None,
    accumulate: bool,
) -> torch.Tensor:
    tokens, k = x.shape
    n = weight.shape[1]
    y = x.new_empty(tokens, n) if out is None else out
    if tokens == 0 or n == 0:
        return y
    chosen = settings("paged_linear", x.device, tokens)
    block_n, block_k = chosen.block_n, chosen.block_k // (2 if x.dtype == torch.float32 else 1)
    table = tiles.tables[chosen.block_m]
    count = min(triton.cdiv(tokens, chosen.block_m) + tiles.slots, table.shape[0])
    _paged_linear[(count * triton.cdiv(n, block_n),)](
        x,
        weight,
        y if bias is None else bias,
        y,
        tiles.order,
        table,
        tiles.order if bias_rows is None else bias_rows.slots,
        tiles.order if bias_rows is None else bias_rows.pages,
        count,
        n,
        k,
        x.stride(0),
        weight.stride(0),
        weight.stride(1),
        0 if bias is None else bias.stride(0),
        y.stride(0),
        BIAS="" if bias is None else "page" if bias_rows is None else "slot",
        ACCUMULATE=accumulate,
        EVEN_N=n % block_n == 0,
        EVEN_K=k % block_k == 0,
        BLOCK_M=chosen.block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        TOGETHER=TOGETHER,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
        enable_fp_fusion=False,
    )
    return y


@triton.jit
def _paged_linear(
    x_ptr,
    w_ptr,
    bias_ptr,
    y_ptr,
    order_ptr,
    table_ptr,
    slots_ptr,
    bias_pages_ptr,
    tiles,
    n,
    k,
    x_stride,
    w_page,
    w_row,
    bias_page,
    y_stride,
    BIAS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    # Programs in the order (tiles / TOGETHER, strips, TOGETHER).
    strips = tl.cdiv(n, BLOCK_N)
    band = tl.program_id(0) // (TOGETHER * strips)
    within = tl.program_id(0) % (TOGETHER * strips)
    width = tl.minimum(tiles - band * TOGETHER, TOGETHER)
    tile = band * TOGETHER + within % width
    strip = within // width

    page = tl.load(table_ptr + 3 * tile)
    if page < 0:
        return
    position = tl.load(table_ptr + 3 * tile + 1) + tl.arange(0, BLOCK_M)
    here = position < tl.load(table_ptr + 3 * tile + 2)
    # Rows past the tile's end read token 0 and are not stored.
    token = tl.load(order_ptr + position, mask=here, other=0).to(tl.int64)
    column = strip * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < n
    row = column.to(tl.int64)
    # Columns past the last one read the first: no mask in the loop.
    row = row if EVEN_N else tl.where(inside, row, 0)
    depth = tl.arange(0, BLOCK_K)
    x_at = x_ptr + token[:, None] * x_stride + depth[None, :]
    w_at = w_ptr + page.to(tl.int64) * w_page + row[None, :] * w_row + depth[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        if EVEN_K:
            total = product(tl.load(x_at), tl.load(w_at), total)
        else:
            left = depth < k - start
            a = tl.load(x_at, mask=left[None, :], other=0.0)
            total = product(a, tl.load(w_at, mask=left[:, None], other=0.0), total)
        x_at += BLOCK_K
        w_at += BLOCK_K

    if BIAS == "page":
        shift = tl.load(bias_ptr + page.to(tl.int64) * bias_page + column, mask=inside, other=0.0)
        total += widen(shift)[None, :]
    if BIAS == "slot":
        slot = tl.load(slots_ptr + token, mask=here, other=-1)
        own = tl.load(bias_pages_ptr + slot, mask=here & (slot >= 0), other=-1).to(tl.int64)
        shift_at = bias_ptr + own[:, None] * bias_page + column[None, :]
        total += widen(tl.load(shift_at, mask=(own >= 0)[:, None] & inside[None, :], other=0.0))
    y_at = y_ptr + token[:, None] * y_stride + column[None, :]
    mask = here[:, None] & inside[None, :]
    if ACCUMULATE:
        total = widen(tl.load(y_at, mask=mask, other=0.0)) + total
    tl.store(y_at, rounded(total, y_ptr.dtype.element_ty), mask=mask)


def variants(arch: str) -> Iterator[Variant]:
    pointers = ("x_ptr", "w_ptr", "bias_ptr", "y_ptr")
    indices = ("order_ptr", "table_ptr", "slots_ptr", "bias_pages_ptr")
    sizes = ("n", "k", "x_stride", "w_page", "w_row", "bias_page", "y_stride")

    def variant(name: str, chosen: Settings, dtype: str, **options: Any) -> Variant:
        types = dict.fromkeys(pointers, f"*{dtype}") | dict.fromkeys(indices, "*i32")
        types |= dict.fromkeys(("tiles", *sizes), "i32")
        constants = {
            "BIAS": "",
            "ACCUMULATE": False,
            "EVEN_N": True,
            "EVEN_K": True,
            "BLOCK_M": chosen.block_m,
            "BLOCK_N": chosen.block_n,
            "BLOCK_K": chosen.block_k // (2 if dtype == "fp32" else 1),
            "TOGETHER": TOGETHER,
        } | options
        aligned = (*pointers, *indices, *sizes)
        return Variant(f"paged_linear {dtype} {name}".strip(), _paged_linear, types, constants, aligned, chosen)

    for chosen in every("paged_linear", arch):
        for dtype in ("bf16", "fp16", "fp32"):
            yield variant("", chosen, dtype)
        yield variant("bias", chosen, "bf16", BIAS="page")
        yield variant("bias by slot", chosen, "bf16", BIAS="slot")
        yield variant("accumulate", chosen, "bf16", ACCUMULATE=True)
        yield variant("uneven", chosen, "bf16", EVEN_N=False, EVEN_K=False)
