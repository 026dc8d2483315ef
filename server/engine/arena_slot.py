"""arena_slot: what a module computes with pages that lie in an arena."""

from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.layernorm import GemmaRMSNorm

from layerloom.composer.sources.codecs import Codec
from layerloom.kernels import delta_linear, paged_embedding, paged_linear, paged_rms_norm
from layerloom.kernels.delta import Delta

from .batch import Batch
from .paged import Norm, Slot


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
        self.deltas: dict[Codec, Delta] = {}
        self.delta_tiles = batch.delta_tiles(part)

    def linear(self, x: torch.Tensor, with_bias: bool) -> torch.Tensor:
        page, bias = self.batch.single[self.part], self.bias if with_bias else None
        if page is not None:
            return torch.nn.functional.linear(x, self.weight[page.id], None if bias is None else bias[page.id])
        y = paged_linear(x, self.weight, self.tiles, bias, self.rows)
        for codec, delta in self.deltas.items():
            if self.batch.deltas[codec].live:
                delta_linear(y, x, delta, self.delta_tiles[codec])
        return y

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
