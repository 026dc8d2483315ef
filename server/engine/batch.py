"""batch: which pages of the arena the rows of a launch use, in buffers on the device."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from layerloom.composer.pages.arena import Arena, Region
from layerloom.composer.sources.codecs import Codec
from layerloom.kernels import Rows, Tiles, assign, buffers


@dataclass(frozen=True, eq=False)
class ArenaPage:
    """A part's parameters in the arena, in its own layout. It is also the room in which it is composed."""

    arena: Arena
    region: Region
    dtype: torch.dtype
    size: int

    @property
    def id(self) -> int:
        return self.region.id

    @property
    def flat(self) -> torch.Tensor:
        return self.arena.flat(self.region, self.dtype, self.size)


@dataclass(frozen=True, eq=False)
class DeltaPage:
    """A layer that computes with the base's matrices and their packed differences; its vectors are its own."""

    base: ArenaPage
    codec: Codec
    region: Region

    @property
    def id(self) -> int:
        return self.region.id


AnyPage = ArenaPage | DeltaPage


class Packings:
    """The pages of deltas of one codec in a batch, and the tiles of the tokens that use them."""

    def __init__(self, batch: "Batch") -> None:
        self.pages = torch.full_like(batch.pages, -1)
        _, self.tables = buffers(len(batch.slots), *batch.pages.shape, batch.slots.device)
        self.live = False


class Batch:
    """Where each row of a launch finds its pages: device buffers of fixed size, filled for every step.

    `parts` pages for each of `slots` compositions and `rows` rows at most; `codecs` are those of pages of deltas.
    """

    def __init__(self, rows: int, parts: int, slots: int, codecs: Iterable[Codec], device: torch.device) -> None:
        self.slots = torch.full((rows,), -1, dtype=torch.int32, device=device)
        self.pages = torch.full((parts, slots), -1, dtype=torch.int32, device=device)
        self.vectors = torch.full_like(self.pages, -1)
        self.order, self.tables = buffers(rows, parts, slots, device)
        self.deltas = {codec: Packings(self) for codec in codecs}
        self.single: list[ArenaPage | None] = [None] * parts
        """The page that all rows of this step use at a part, for launches that are not replayed."""
        self._placed: tuple[list[Sequence[AnyPage]], bool] = [], False
        """What was last routed, and so is in the buffers of pages: most steps change only the rows."""
        self._rank = np.zeros(0, dtype=np.int64)

    def route(self, compositions: Sequence[Sequence[AnyPage]], position: np.ndarray, replayed: bool) -> None:
        """Row t uses composition position[t]; `replayed` says that the launch is captured, for other pages to come."""
        if (list(compositions), replayed) != self._placed:
            self._place(compositions, replayed)
            self._placed = list(compositions), replayed
        rows = np.full(len(self.slots), -1, dtype=np.int32)
        rows[: len(position)] = self._rank[position]
        copy(self.slots, rows)
        assign(self.slots, self.pages, self.order, self.tables)
        for packings in self.deltas.values():
            if packings.live:
                assign(self.slots, packings.pages, self.order, packings.tables)

    def _place(self, compositions: Sequence[Sequence[AnyPage]], replayed: bool) -> None:
        """Gives each composition a slot, and each slot its pages."""
        parts, slots = self.pages.shape
        ids = np.array([[page.id for page in pages] for pages in compositions], dtype=np.int32).T
        # Neighbours share as many layers as they can: the middle ones, which is where compositions are alike.
        turned = np.roll(ids, -parts // 2, axis=0)
        order = np.lexsort(turned[::-1])
        self._rank = np.empty_like(order)
        self._rank[order] = np.arange(len(order))

        def fill(table: torch.Tensor, id_of: Callable[[AnyPage], int]) -> None:
            host = np.full((parts, slots), -1, dtype=np.int32)
            for slot, composition in enumerate(order):
                host[:, slot] = [id_of(page) for page in compositions[composition]]
            copy(table, host)

        fill(self.pages, lambda page: page.base.id if isinstance(page, DeltaPage) else page.id)
        fill(self.vectors, lambda page: page.id)
        for codec, packings in self.deltas.items():
            live = replayed or any(page_codec(page) == codec for pages in compositions for page in pages)
            if live or packings.live:
                fill(packings.pages, lambda page, codec=codec: page.id if page_codec(page) == codec else -1)
            if packings.live and not live:
                # A replayed graph reads the tables in any case: no tile may be left in them.
                assign(self.slots, packings.pages, self.order, packings.tables)
            packings.live = live
        self.single = [None] * parts
        for part, pages in enumerate(zip(*compositions, strict=True)):
            if not replayed and isinstance(pages[0], ArenaPage) and all(page is pages[0] for page in pages):
                self.single[part] = pages[0]

    def tiles(self, part: int) -> Tiles:
        return self._tiles(part, self.tables)

    def delta_tiles(self, part: int) -> dict[Codec, Tiles]:
        return {codec: self._tiles(part, packings.tables) for codec, packings in self.deltas.items()}

    def _tiles(self, part: int, tables: dict[int, torch.Tensor]) -> Tiles:
        return Tiles(self.order, {block: table[part] for block, table in tables.items()}, self.pages.shape[1])

    def rows(self, part: int) -> Rows:
        """The pages of vectors: norms, biases, and the stem's tables."""
        return Rows(self.slots, self.vectors[part])


def page_codec(page: AnyPage) -> Codec | None:
    return page.codec if isinstance(page, DeltaPage) else None


def copy(device: torch.Tensor, host: np.ndarray) -> None:
    """Without waiting for the device: memory pinned for one copy is not used again before that copy is done."""
    source = torch.from_numpy(host)
    device.copy_(source.pin_memory() if device.is_cuda else source, non_blocking=True)
