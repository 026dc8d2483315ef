"""routes: the pages of the coming step's tokens, as its engine is told of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from layerloom.composer.pages.engine import Engine

Pages = tuple[Any, ...]
"""A composition in the engine: a page for every layer, then the stem's."""

Routed = tuple[list[Pages], np.ndarray, bool]
"""What `EnginePages.route` takes."""


PagesOf = Callable[[int], tuple[Pages, bool]]
"""The pages of an adapter's id, 0 for the base's; and whether it stands for no composition."""


class EnginePages(Engine, Protocol):
    """How pages are kept: packed on a CPU (packed.py), in one tensor on a GPU (arena.py)."""

    device: torch.device
    """Where pages are composed."""

    @property
    def generation(self) -> int:
        """Grows when pages have moved and must be routed again."""

    @property
    def free(self) -> float:
        """Bytes that no composition has taken."""

    def give(self, memory: int) -> None:
        """Lets compositions take `memory` bytes."""

    def hold_still(self, still: bool) -> None:
        """Whether pages must stay where they are for now."""

    def route(self, compositions: list[Pages], position: np.ndarray, replayed: bool) -> None:
        """Uses composition position[t] for token t of the coming steps.

        `replayed` says that the launch is captured in a CUDA graph, and replayed with other pages in their place.
        """

    def route_head(self, compositions: list[Pages], position: np.ndarray, replayed: bool) -> None:
        """The same for the output head, whose rows are the sampled tokens."""


class Routes:
    """What was last routed, and so need not be again: most steps are for the same rows as the one before."""

    def __init__(self, pages: EnginePages, base: Pages) -> None:
        self._pages = pages
        self._base = base
        self.forget()

    def forget(self) -> None:
        """Lets go of the pages of past steps; the next step is routed anew."""
        self._tokens: tuple[int, ...] | None = None
        self._samples: tuple[int, ...] | None = None
        self._rows: Routed = [self._base], np.zeros(0, dtype=np.int64), False
        self._head = self._rows
        self._pages.route(*self._rows)
        self._pages.route_head(*self._head)

    def tokens(self, ids: tuple[int, ...], pages_of: PagesOf) -> None:
        """The tokens of the coming steps, each by the id of its adapter."""
        if ids != self._tokens:
            self._tokens = ids
            self._rows = routed(ids, pages_of)
            self._pages.route(*self._rows)

    def samples(self, ids: tuple[int, ...], pages_of: PagesOf) -> None:
        """Those of them that are sampled."""
        if ids != self._samples:
            self._samples = ids
            self._head = routed(ids, pages_of)
            self._pages.route_head(*self._head)

    def head_for_tokens(self, first: int, count: int) -> AbstractContextManager[None]:
        """The output head for some of the step's tokens, in place of those that are sampled."""
        compositions, position, _ = self._rows
        return self._head_of(compositions, position[first : first + count])

    def head_for(self, pages: Pages) -> AbstractContextManager[None]:
        """The output head for one token of this composition."""
        return self._head_of([pages], np.zeros(1, dtype=np.int64))

    @contextmanager
    def _head_of(self, compositions: list[Pages], position: np.ndarray) -> Iterator[None]:
        self._pages.route_head(compositions, position, False)
        try:
            yield
        finally:
            self._pages.route_head(*self._head)


def routed(ids: Sequence[int], pages_of: PagesOf) -> Routed:
    """The distinct compositions of a batch, the index among them of each token's, and whether one is a dummy."""
    distinct, position = np.unique(np.asarray(ids, dtype=np.int64), return_inverse=True)
    active = [pages_of(int(adapter_id)) for adapter_id in distinct] or [pages_of(0)]
    return [pages for pages, _ in active], position, any(dummy for _, dummy in active)
