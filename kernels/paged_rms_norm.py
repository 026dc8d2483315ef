"""paged_rms_norm: RMSNorm whose weight depends on the token."""

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch.nn.functional import pad

from .dispatch import use_triton
from .floats import rounded, widen
from .route import Route
from .settings import Settings, Variant
from .tiles import Rows

NUMBERS = 1024
"""Numbers that a program normalises at least, where the tokens have heads enough."""
WIDEST = 1 << 15


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """y = round(z / sqrt(mean(z²) + eps)) · weight, with z = x + residual (arXiv 1910.07467).

    x and residual [tokens, ..., H]; the weight's shape broadcasts against them, so it may have a row for
    each token. Sums are fp32. The normalised value is rounded to the weight's dtype before the product and
    the product to x's dtype, as vLLM does; a weight in fp32 (Gemma's 1 + w) therefore costs one rounding.
    Returns (y, z rounded to x's dtype), or (y, None) without a residual.
    """
    z = x.float() if residual is None else x.float() + residual.float()
    y = z * torch.rsqrt(z.pow(2).mean(dim=-1, keepdim=True) + eps)
    y = (y.to(weight.dtype) * weight).to(x.dtype)
    return y, None if residual is None else z.to(x.dtype)


def paged_rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | Sequence[torch.Tensor],
    route: Route | Rows,
    eps: float,
    residual: torch.Tensor | None = None,
    unit_offset: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`rms_norm` with weight[page(t)] for token t.

    x and residual [tokens, ..., H], weight [pages, H] (or, with a Route, a sequence of [H]). With `unit_offset` the
    factor is 1 + weight in fp32, as in Gemma. Returns what `rms_norm` does. With Rows the weight is a view of an arena,
    with any stride between pages; padding, and tokens whose page is negative, become zeros in both results. Raises
    ValueError for arguments that do not fit.
    """
    if isinstance(route, Route):
        rows = paged_rows(weight, route, x)
        return rms_norm(x, rows.float() + 1.0 if unit_offset else rows, eps, residual)
    if not isinstance(weight, torch.Tensor) or weight.shape[1:] != x.shape[-1:] or x.dim() < 2:
        raise ValueError(f"paged_rms_norm: x is {tuple(x.shape)}, and with Rows the weight is [pages, {x.shape[-1]}]")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"paged_rms_norm: x is {tuple(x.shape)}, residual {tuple(residual.shape)}")
    implementation = paged_rms_norm_triton if use_triton(x) and x.shape[-1] <= WIDEST else paged_rms_norm_torch
    return implementation(x, weight, route, eps, residual, unit_offset)


def paged_rows(weight: torch.Tensor | Sequence[torch.Tensor], route: Route | Rows, x: torch.Tensor) -> torch.Tensor:
    """The weight of each token's page, [tokens, 1, ..., H], to broadcast against x [tokens, ..., H].

    `weight` is [pages, H] or, with a Route, a sequence of [H]. With a Route, rows past the last routed token take the
    last group's page; with Rows, tokens without a page have zeros.
    """
    shape = (x.shape[0], *(1,) * (x.dim() - 2), -1)
    if isinstance(route, Rows):
        assert isinstance(weight, torch.Tensor)
        page = page_of(route)[: x.shape[0]]
        return weight[page.clamp(min=0)].where((page >= 0).unsqueeze(-1), 0).view(shape)
    stacked = torch.stack([weight[page] for page in route.pages])
    group = torch.empty(0, dtype=torch.int64, device=stacked.device) if route.group is None else route.group
    if group.numel() != x.shape[0]:
        group = pad(group, (0, x.shape[0] - group.numel()), value=len(route.pages) - 1)
    return stacked.index_select(0, group).view(shape)


def paged_rms_norm_torch(
    x: torch.Tensor, weight: torch.Tensor, rows: Rows, eps: float, residual: torch.Tensor | None, unit_offset: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    factor = paged_rows(weight, rows, x)
    y, z = rms_norm(x, factor.float() + 1.0 if unit_offset else factor, eps, residual)
    routed = (page_of(rows)[: x.shape[0]] >= 0).view(-1, *(1,) * (x.dim() - 1))
    return y.where(routed, 0), None if z is None else z.where(routed, 0)


def paged_rms_norm_triton(
    x: torch.Tensor, weight: torch.Tensor, rows: Rows, eps: float, residual: torch.Tensor | None, unit_offset: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    tokens, width = x.shape[0], x.shape[-1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    z = None if residual is None else torch.empty_like(y)
    if y.numel() == 0:
        return y, z
    flat, other = (t if t is None else t.view(tokens, -1, width) for t in (_with_heads(x), _with_heads(residual)))
    assert flat is not None
    heads = flat.shape[1]
    block = triton.next_power_of_2(width)
    together = min(max(1, NUMBERS // block), triton.next_power_of_2(heads))
    _paged_rms_norm[(tokens, triton.cdiv(heads, together))](
        flat,
        flat if other is None else other,
        weight,
        y,
        y if z is None else z,
        rows.slots,
        rows.pages,
        heads,
        width,
        flat.stride(0),
        flat.stride(1),
        0 if other is None else other.stride(0),
        0 if other is None else other.stride(1),
        weight.stride(0),
        eps,
        RESIDUAL=residual is not None,
        UNIT_OFFSET=unit_offset,
        HEADS=together,
        BLOCK=block,
        num_warps=_warps(together * block),
        enable_fp_fusion=False,
    )
    return y, z


def page_of(rows: Rows) -> torch.Tensor:
    """The page of each token, int64; negative for none."""
    page = rows.pages[rows.slots.clamp(min=0).long()]
    return page.where(rows.slots >= 0, -1).long()


def _with_heads(x: torch.Tensor | None) -> torch.Tensor | None:
    """[tokens, heads, H] with contiguous H, without a copy where there is one stride over all heads."""
    if x is None:
        return None
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    return x if x.stride(-1) == 1 else x.contiguous()


def _warps(numbers: int) -> int:
    """Sixteen numbers a thread, or what a program can have."""
    return min(16, max(1, numbers // 512))


@triton.jit
def _paged_rms_norm(
    x_ptr,
    residual_ptr,
    w_ptr,
    y_ptr,
    z_ptr,
    slots_ptr,
    pages_ptr,
    heads,
    width,
    x_token,
    x_head,
    residual_token,
    residual_head,
    w_page,
    eps,
    RESIDUAL: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    column = tl.arange(0, BLOCK)
    inside = column < width
    slot = tl.load(slots_ptr + token)
    page = tl.where(slot >= 0, tl.load(pages_ptr + tl.maximum(slot, 0)), -1)
    stored = (head < heads) & inside[None, :]
    # A token without a page reads nothing, and so is zeros through and through.
    read = column < tl.where(page >= 0, width, 0)
    mask = (head < heads) & read[None, :]
    z = widen(tl.load(x_ptr + token * x_token + head * x_head + column[None, :], mask=mask, other=0.0))
    at = (token * heads + head) * width + column[None, :]
    if RESIDUAL:
        other = residual_ptr + token * residual_token + head * residual_head + column[None, :]
        z += widen(tl.load(other, mask=mask, other=0.0))
        tl.store(z_ptr + at, rounded(z, z_ptr.dtype.element_ty), mask=stored)
    y = z * tl.rsqrt(tl.sum(z * z, axis=1) / width + eps)[:, None]
    w = tl.load(w_ptr + page.to(tl.int64) * w_page + column, mask=read, other=0.0)
    if UNIT_OFFSET:
        y = y * (widen(w) + 1.0)[None, :]
    else:
        y = widen(rounded(y, w_ptr.dtype.element_ty)) * widen(w)[None, :]
        y = widen(rounded(y, w_ptr.dtype.element_ty))
    tl.store(y_ptr + at, rounded(y, y_ptr.dtype.element_ty), mask=stored)


def variants(arch: str) -> Iterator[Variant]:
    pointers = ("x_ptr", "residual_ptr", "w_ptr", "y_ptr", "z_ptr")
    sizes = ("width", "x_token", "x_head", "residual_token", "residual_head", "w_page")
    for dtype in ("bf16", "fp16", "fp32"):
        for name, residual, unit, heads, block in (
            ("", False, False, 1, 4096),
            ("residual", True, False, 1, 4096),
            ("residual, 1 + w", True, True, 1, 8192),
            ("of heads", False, False, 8, 128),
            ("of heads, 1 + w", False, True, 4, 256),
        ):
            types = dict.fromkeys(pointers, f"*{dtype}") | {"slots_ptr": "*i32", "pages_ptr": "*i32", "eps": "fp32"}
            types |= dict.fromkeys(("heads", *sizes), "i32")
            constants = {"RESIDUAL": residual, "UNIT_OFFSET": unit, "HEADS": heads, "BLOCK": block}
            chosen = Settings(heads, block, 0, _warps(heads * block), 3)
            aligned = (*pointers, *sizes, "slots_ptr", "pages_ptr")
            yield Variant(f"paged_rms_norm {dtype} {name}".strip(), _paged_rms_norm, types, constants, aligned, chosen)
