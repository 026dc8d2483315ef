"""tiles: the tokens of a batch grouped by page, as kernels read it: on the device, in buffers of fixed size.

What changes from step to step is in these buffers alone, so a CUDA graph that was captured with them can be replayed.
"""

from dataclasses import dataclass

import torch

BLOCKS = (16, 64, 128)
"""Rows of a tile. A launch takes the table of its block size, whatever that is when a graph is captured."""


@dataclass(frozen=True)
class Rows:
    """The page of each token, for what is done row by row.

    slots [tokens] int32: the slot of each token, in batch order; -1 for padding. pages [slots] int32: the page of each
    slot at one layer.
    """

    slots: torch.Tensor
    pages: torch.Tensor


@dataclass(frozen=True)
class Tiles:
    """The tokens of each page in tiles of `block` rows, for what is done matrix by matrix.

    order [tokens] int32: the token at each position when they are sorted by slot. tables[block] [tiles, 3] int32: page,
    first position and end of each tile; page -1, first and end 0 past the last one. Consecutive slots with one page
    are one group; slots whose page is negative have no tiles. A launch with T tokens and V slots looks at the first
    ceil(T / block) + V tiles.
    """

    order: torch.Tensor
    tables: dict[int, torch.Tensor]
    slots: int
