"""Batches, and weights in an arena of poison, for the tests of the paged operators."""

import torch

from layerloom.kernels.assign import assign_torch, buffers
from layerloom.kernels.tiles import Rows, Tiles

UNIT = 16
TOKENS = [1, 3, 17, 129]
# Page of each slot, -1 for none; and the slots that have no tokens.
KINDS = {
    "one page": ([0, 0, 0], ()),
    "shared": ([0, 1, 1, 2, 1], (2,)),
    "nine": (list(range(8, -1, -1)), ()),
    "holes": ([1, -1, 1, 1, 0, 0, 2], (3, 4)),
}


def generator(*seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(7**i * n for i, n in enumerate(seed)))


def slots_of(tokens: int, kind: str, padding: int = 0) -> torch.Tensor:
    """A slot for each token, in no order; the last ones are padding."""
    pages, empty = KINDS[kind]
    live = torch.tensor([s for s in range(len(pages)) if s not in empty], dtype=torch.int32)
    slots = live[torch.randint(0, len(live), (tokens,), generator=generator(tokens))]
    slots[tokens - padding :] = -1
    return slots


class Arena:
    """Pages with poison around them: `ids` of page 0, 1, …, and `view` of all pages as kernels are given it."""

    def __init__(self, pages: list[torch.Tensor]) -> None:
        like = pages[0]
        each = -(-like.numel() // UNIT) + 1
        # The last page comes first in the arena.
        self.ids = [1 + (len(pages) - 1 - i) * each for i in range(len(pages))]
        size = UNIT * (2 + each * len(pages)) + like.numel()
        poison = float("nan") if like.is_floating_point() else -1
        self.memory = torch.full((size,), poison, dtype=like.dtype)
        shape = (1 + each * len(pages), *like.shape)
        self.view = self.memory.as_strided(shape, (UNIT, *like.contiguous().stride()), 3)
        for i, page in zip(self.ids, pages, strict=True):
            self.view[i] = page


def routed(tokens: int, kind: str, ids: list[int], padding: int = 0) -> tuple[Rows, Tiles, list[int]]:
    """The batch as kernels read it, and the page of each token, -1 for none. Poisoned where nothing is defined."""
    slots, (pages, _) = slots_of(tokens, kind, padding), KINDS[kind]
    device_pages = torch.tensor([[-1 if p < 0 else ids[p] for p in pages]], dtype=torch.int32)
    order, tables = buffers(tokens, *device_pages.shape)
    order.fill_(1 << 30)
    assign_torch(slots, device_pages, order, tables)
    tiles = Tiles(order, {block: table[0] for block, table in tables.items()}, len(pages))
    return Rows(slots, device_pages[0]), tiles, [-1 if s < 0 else pages[s] for s in slots.tolist()]


def numbers(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(*shape)).to(dtype)


def tolerance(dtype: torch.dtype) -> float:
    """Of a sum that was rounded once: a little more than one unit in the last place."""
    return {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}[dtype]


def close(found: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact.double(), rtol=tolerance(dtype), atol=tolerance(dtype))
