"""arena: pages as views of one tensor on the device, found by ids that kernels read from buffers (a GPU's way).

What changes from step to step is in those buffers, so a CUDA graph captured once serves every mix of compositions. On a
CPU the same code runs with torch's twins of the kernels; packed.py is faster there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.model_executor.layers.layernorm import GemmaRMSNorm
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from layerloom.composer import ComposeError
from layerloom.composer.arena import Arena, Region
from layerloom.kernels import paged_embedding, paged_linear, paged_rms_norm
from layerloom.kernels.assign import assign
from layerloom.kernels.tiles import BLOCKS, Rows, Tiles

from .paged import NORMS, Norm, Slot, page_norm
from .parts import Parts


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


class Batch:
    """Where each row of a launch finds its pages: device buffers of fixed size, filled for every step.

    `parts` pages for each of `slots` compositions and `rows` rows at most.
    """

    def __init__(self, rows: int, parts: int, slots: int, device: torch.device) -> None:
        self.slots = torch.full((rows,), -1, dtype=torch.int32, device=device)
        self.pages = torch.full((parts, slots), -1, dtype=torch.int32, device=device)
        self.order = torch.zeros(rows, dtype=torch.int32, device=device)
        self.tables = {
            block: torch.full((parts, -(-rows // block) + slots, 3), -1, dtype=torch.int32, device=device)
            for block in BLOCKS
        }
        self.single: list[ArenaPage | None] = [None] * parts
        """The page that all rows of this step use at a part, for launches that are not replayed."""

    def route(self, compositions: Sequence[Sequence[ArenaPage]], position: np.ndarray, replayed: bool) -> None:
        """Row t uses composition position[t]; `replayed` says that the launch is captured, for other pages to come."""
        parts, slots = self.pages.shape
        ids = np.array([[page.id for page in pages] for pages in compositions], dtype=np.int32).T
        # Neighbours share as many layers as they can: the middle ones, which is where compositions are alike.
        turned = np.roll(ids, -parts // 2, axis=0)
        order = np.lexsort(turned[::-1])
        table = np.full((parts, slots), -1, dtype=np.int32)
        table[:, : len(compositions)] = ids[:, order]
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        rows = np.full(len(self.slots), -1, dtype=np.int32)
        rows[: len(position)] = rank[position]
        copy(self.slots, rows)
        copy(self.pages, table)
        assign(self.slots, self.pages, self.order, self.tables)
        alike = [all(page is pages[0] for page in pages) and not replayed for pages in zip(*compositions, strict=True)]
        self.single = [page if same else None for page, same in zip(compositions[0], alike, strict=True)]

    def tiles(self, part: int) -> Tiles:
        return Tiles(self.order, {block: table[part] for block, table in self.tables.items()}, self.pages.shape[1])

    def rows(self, part: int) -> Rows:
        return Rows(self.slots, self.pages[part])


def copy(device: torch.Tensor, host: np.ndarray) -> None:
    """Without waiting for the device: memory pinned for one copy is not used again before that copy is done."""
    source = torch.from_numpy(host)
    device.copy_(source.pin_memory() if device.is_cuda else source, non_blocking=True)


class ArenaSlot(Slot):
    """A module whose parameters are at fixed places within a page of its part."""

    def __init__(self, name: str, module: nn.Module, batch: Batch, part: int, weight: torch.Tensor) -> None:
        super().__init__(name, module)
        self.batch = batch
        self.part = part
        self.weight = weight
        self.bias: torch.Tensor | None = None
        self.tiles = batch.tiles(part)
        self.rows = batch.rows(part)

    def linear(self, x: torch.Tensor, with_bias: bool) -> torch.Tensor:
        page, bias = self.batch.single[self.part], self.bias if with_bias else None
        if page is not None:
            return torch.nn.functional.linear(x, self.weight[page.id], None if bias is None else bias[page.id])
        return paged_linear(x, self.weight, self.tiles, bias, self.rows)

    def embedding(self, ids: torch.Tensor) -> torch.Tensor:
        page = self.batch.single[self.part]
        if page is not None:
            return torch.nn.functional.embedding(ids, self.weight[page.id])
        return paged_embedding(ids, self.weight, self.rows)

    def norm(self, stock: Norm, x: torch.Tensor, residual: torch.Tensor | None) -> Any:
        page = self.batch.single[self.part]
        if page is not None:
            self.module.weight.data = self.weight[page.id]
            return stock(x) if residual is None else stock(x, residual)
        plus_one = isinstance(self.module, GemmaRMSNorm)
        y, z = paged_rms_norm(x, self.weight, self.rows, self.module.variance_epsilon, residual, plus_one)
        return y if residual is None else (y, z)

    def norm_weight(self, x: torch.Tensor) -> torch.Tensor:
        pages = self.rows.pages[self.rows.slots[: x.shape[0]].clamp(min=0).long()].clamp(min=0)
        return self.weight[pages.long()].view(x.shape[0], *(1,) * (x.dim() - 2), -1)


class ArenaPages(Parts):
    """The bank's engine (layerloom.composer.bank.Engine): base and compositions in one arena.

    A batch has at most `slots` compositions and `rows` tokens. Raises ComposeError when the model's parameters are of
    more than one dtype.
    """

    bounded = True

    def __init__(self, model: nn.Module, depth: int, slots: int, rows: int) -> None:
        super().__init__(model, depth)
        parameters = [span.parameter for part in self.parts for span in part.spans]
        dtypes = {parameter.dtype for parameter in parameters}
        if len(dtypes) != 1:
            raise ComposeError(f"an arena holds numbers of one dtype, and the model has {sorted(map(str, dtypes))}")
        (self.dtype,) = dtypes
        self.device = parameters[0].device
        self._tokens = Batch(rows, depth + 1, slots, self.device)
        self._head = Batch(rows, 1, slots, self.device)

    def reserve(self, memory: int) -> None:
        """Makes the arena, with `memory` bytes for compositions, and moves the base into it."""
        # By way of the host, because a GPU may have no room for it twice.
        host = [[span.parameter.data.cpu() for span in part.spans] for part in self.parts]
        for part in self.parts:
            for span in part.spans:
                span.parameter.data = span.parameter.data.new_empty(0)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        parts = range(len(self.parts))
        self.arena = Arena(sum(self.bytes(part) for part in parts) + memory, self.device)
        self._base = [self.room(part, self.dtype) for part in parts]
        for part, page, tensors in zip(self.parts, self._base, host, strict=True):
            for span, tensor in zip(part.spans, tensors, strict=True):
                span.parameter.data = page.flat[span.start : span.end].view(span.shape)
                span.parameter.data.copy_(tensor)
        for index, part in enumerate(self.parts):
            for name, module in part.modules.items():
                self._add(index, name, module)

    def _add(self, part: int, name: str, module: nn.Module) -> None:
        def slot(batch: Batch, row: int) -> ArenaSlot:
            made = ArenaSlot(name, module, batch, row, self._view(part, module.weight))
            bias = module._parameters.get("bias")
            if bias is not None:
                made.bias = self._view(part, bias)
            return made

        if isinstance(module, NORMS):
            page_norm(module, slot(self._tokens, part))
            return
        module.layerloom_slot = slot(self._tokens, part)
        if isinstance(module, VocabParallelEmbedding):
            module.layerloom_head = slot(self._head, 0)

    def _view(self, part: int, parameter: nn.Parameter) -> torch.Tensor:
        span = self.parts[part].span(parameter)
        return self.arena.view(self.dtype, span.start * self.dtype.itemsize, span.shape)

    @property
    def generation(self) -> int:
        return self.arena.generation

    @property
    def free(self) -> int:
        return self.arena.free

    def bytes(self, part: int) -> int:
        return self.size(part) * self.dtype.itemsize

    def room(self, part: int, dtype: torch.dtype) -> ArenaPage:
        size = self.size(part)
        return ArenaPage(self.arena, self.arena.allocate(size * dtype.itemsize), dtype, size)

    def keeps_base(self, dtype: torch.dtype) -> bool:
        return dtype == self.dtype

    def base(self, part: int) -> torch.Tensor:
        return self._base[part].flat

    def seal(self, part: int, room: ArenaPage) -> ArenaPage:
        if room.dtype == self.dtype:
            return room
        page = self.room(part, self.dtype)
        page.flat.copy_(room.flat)
        return page

    def base_page(self, part: int) -> ArenaPage:
        return self._base[part]

    def route(self, compositions: Sequence[Sequence[ArenaPage]], position: np.ndarray, replayed: bool = False) -> None:
        self._tokens.route(compositions, position, replayed)

    def route_head(
        self, compositions: Sequence[Sequence[ArenaPage]], position: np.ndarray, replayed: bool = False
    ) -> None:
        self._head.route([pages[-1:] for pages in compositions], position, replayed)
