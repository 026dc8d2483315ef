"""paged_embedding: a table look-up whose table depends on the token."""

from collections.abc import Sequence

import torch

from .route import Route, by_page


def paged_embedding(ids: torch.Tensor, weight: torch.Tensor | Sequence[torch.Tensor], route: Route) -> torch.Tensor:
    """y[t] = weight[page(t)][ids[t]].

    ids [tokens] int32 or int64, weight [pages, vocabulary, H] (or a sequence of [vocabulary, H]);
    y [tokens, H] in the weight's dtype.
    """

    def run(page: int, rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding(rows, weight[page])

    y: torch.Tensor = by_page(route, run, ids)
    return y
