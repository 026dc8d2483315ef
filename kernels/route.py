"""route: which page each token of a batch uses at one layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Route:
    """Tokens of a batch sorted by page.

    `pages` are the distinct pages in use, `ends[g]` the exclusive end of group g in the sorted order.
    `order` (int64, [tokens]) gives the token at each sorted position and `inverse` the sorted position of
    each token; both are None when the tokens already stand in that order. `group` (int64, [tokens]) is the index in
    `pages` of each token's.
    """

    pages: tuple[int, ...]
    ends: tuple[int, ...]
    order: torch.Tensor | None = None
    inverse: torch.Tensor | None = None
    group: torch.Tensor | None = None

    @classmethod
    def of(cls, page_of_token: Sequence[int] | torch.Tensor, device: torch.device | str = "cpu") -> "Route":
        """The route of tokens whose page ids are given, in batch order."""
        ids = torch.as_tensor(page_of_token, dtype=torch.int64)
        if ids.numel() == 0:
            return cls((), ())
        pages, group, counts = torch.unique(ids, return_inverse=True, return_counts=True)
        found = tuple(pages.tolist()), tuple(counts.cumsum(0).tolist())
        order = torch.argsort(group, stable=True)
        if bool((order[1:] > order[:-1]).all()):
            return cls(*found, group=group.to(device))
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel())
        return cls(*found, order.to(device), inverse.to(device), group.to(device))


def by_page(route: Route, run: Callable[..., Any], *xs: torch.Tensor) -> Any:
    """Calls run(page, rows of that page's tokens…) for every group; results come back in batch order.

    Every x is [tokens, ...]; run returns a tensor of [its tokens, ...] or a tuple of such, and by_page
    returns the same. Rows past the last routed token (padding of a captured batch) go with the last group.
    """
    if len(route.pages) == 1:
        return run(route.pages[0], *xs)
    tokens = xs[0].shape[0]
    order, inverse = route.order, route.inverse
    if order is not None and inverse is not None:
        if tokens != order.numel():
            padding = torch.arange(order.numel(), tokens, device=order.device)
            order, inverse = torch.cat((order, padding)), torch.cat((inverse, padding))
        xs = tuple(x.index_select(0, order) for x in xs)
    ends = (*route.ends[:-1], tokens)
    parts = [
        run(page, *(x[start:end] for x in xs)) for page, start, end in zip(route.pages, (0, *ends), ends, strict=False)
    ]

    def joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        out = torch.cat(tuple(tensors))
        return out if inverse is None else out.index_select(0, inverse)

    if isinstance(parts[0], tuple):
        return tuple(joined(column) for column in zip(*parts, strict=True))
    return joined(parts)
