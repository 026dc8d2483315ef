"""paged_linear: one matrix product whose weight depends on the token."""

from collections.abc import Sequence

import torch

from .route import Route, by_page


def paged_linear(
    x: torch.Tensor,
    weight: torch.Tensor | Sequence[torch.Tensor],
    route: Route,
    bias: torch.Tensor | Sequence[torch.Tensor] | None = None,
) -> torch.Tensor:
    """y[t] = x[t] @ weight[page(t)]ᵀ + bias[page(t)].

    x [tokens, K], weight [pages, N, K] (or a sequence of [N, K]), bias [pages, N]; y [tokens, N], all of
    one dtype. Each group of tokens is one library GEMM, so a route with one page costs what F.linear does.
    """

    def run(page: int, rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(rows, weight[page], None if bias is None else bias[page])

    y: torch.Tensor = by_page(route, run, x)
    return y
