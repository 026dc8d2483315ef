"""paged_rms_norm: RMSNorm whose weight depends on the token."""

from collections.abc import Sequence

import torch

from .route import Route


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
    route: Route,
    eps: float,
    residual: torch.Tensor | None = None,
    unit_offset: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`rms_norm` with weight[page(t)] for token t.

    x and residual [tokens, ..., H], weight [pages, H] (or a sequence of [H]). With `unit_offset` the factor
    is 1 + weight in fp32, as in Gemma. Returns what `rms_norm` does.
    """
    rows = paged_rows(weight, route, x)
    return rms_norm(x, rows.float() + 1.0 if unit_offset else rows, eps, residual)


def paged_rows(weight: torch.Tensor | Sequence[torch.Tensor], route: Route, x: torch.Tensor) -> torch.Tensor:
    """The weight of each token's page, [tokens, 1, ..., H], to broadcast against x [tokens, ..., H].

    `weight` is [pages, H] or a sequence of [H]. Rows past the last routed token take the last group's page.
    """
    sizes = [b - a for a, b in zip((0, *route.ends), (*route.ends[:-1], x.shape[0]), strict=False)]
    stacked = torch.stack([weight[page] for page in route.pages])
    rows = stacked.repeat_interleave(torch.tensor(sizes, device=stacked.device), 0, output_size=x.shape[0])
    if route.inverse is not None:
        padding = torch.arange(route.inverse.numel(), x.shape[0], device=rows.device)
        rows = rows.index_select(0, torch.cat((route.inverse, padding)))
    return rows.view(x.shape[0], *(1,) * (x.dim() - 2), -1)
