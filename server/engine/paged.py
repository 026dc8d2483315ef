"""paged: vLLM modules that take their weights from the page of each token.

A module asks its slot. How pages are kept, and so what a slot runs, is packed.py's (CPU) or arena.py's (GPU).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm
from vllm.model_executor.layers.linear import (
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from layerloom.kernels import rms_norm

NORMS = (RMSNorm, GemmaRMSNorm)
Norm = Callable[..., Any]
"""A norm's own forward: (x) → y, or (x, residual) → (y, new residual)."""


class Slot(ABC):
    """A module's place in a part: what it computes with, in the current step."""

    def __init__(self, name: str, module: nn.Module) -> None:
        # In vLLM's table of what compiled graphs call by name (ops.py), beside its attention layers.
        self.name = f"layerloom.{name}"
        self.module = module

    @abstractmethod
    def linear(self, x: torch.Tensor, with_bias: bool) -> torch.Tensor:
        """x Wᵀ + b with the page of each row of x [tokens, K]."""

    @abstractmethod
    def embedding(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows [tokens, H] of each token's own table."""

    @abstractmethod
    def norm(self, stock: Norm, x: torch.Tensor, residual: torch.Tensor | None) -> Any:
        """The norm with each token's own weight; `stock` runs vLLM's code with the module's weight."""

    @abstractmethod
    def norm_weight(self, x: torch.Tensor) -> torch.Tensor:
        """The weight of each token, [tokens, 1, ..., H], to broadcast against x [tokens, ..., H]."""


@register_weight_loader_v2_supported_method
class PagedLinearMethod(UnquantizedLinearMethod):
    """y = x Wᵀ + b with the page of each token."""

    packs = False
    """Whether weights are, once they are loaded, as stock vLLM leaves them."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Nothing: the weights move into pages when the whole model is there."""

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        slot = layer.layerloom_slot
        if torch.compiler.is_compiling():
            return torch.ops.layerloom.linear(x, slot.name, layer.output_size_per_partition, bias is not None)
        return slot.linear(x, bias is not None)


class PagedEmbeddingMethod(UnquantizedEmbeddingMethod):
    """Token look-up and output head. A tied table does both, for different rows: tokens in, sampled tokens out."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Nothing yet: whether a table is also the head shows when the whole model is there."""

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return layer.layerloom_head.linear(x, bias is not None)

    def embedding(self, layer: nn.Module, input_: torch.Tensor) -> torch.Tensor:
        slot = layer.layerloom_slot
        if torch.compiler.is_compiling():
            return torch.ops.layerloom.embedding(input_, slot.name, layer.embedding_dim, layer.weight.dtype)
        return slot.embedding(input_)


class PagedNorm:
    """Mixed into the class of a norm that vLLM has built."""

    layerloom_slot: Slot

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        if not torch.compiler.is_compiling():
            return self.layerloom_slot.norm(super().forward, x, residual)
        weight = torch.ops.layerloom.norm_weight(x, self.layerloom_slot.name)
        if isinstance(self, GemmaRMSNorm):
            weight = weight.float() + 1.0
        y, z = rms_norm(x, weight, self.variance_epsilon, residual)
        return y if residual is None else (y, z)


_row_by_row: dict[tuple[type, int, torch.dtype], bool] = {}


def takes_rows(norm: nn.Module) -> bool:
    """Whether vLLM's norm computes the same with a weight for each row as row by row, to the last bit.

    It does where vLLM's code is PyTorch's multiplication, which on a CPU it is unless an operator has it otherwise; a
    kernel would take the first row's weight for all. So each kind of norm is tried once.
    """
    kind = type(norm), norm.weight.shape[-1], norm.weight.dtype
    if kind not in _row_by_row:
        # Not from what sampling draws from: an engine's seed shall give the tokens that it gives in stock vLLM.
        drawn = torch.randn(2, 2, kind[1], generator=torch.Generator().manual_seed(0))
        weight, z = drawn.to(norm.weight.device, kind[2])
        heads = torch.stack((z, z * 2, z * 3), dim=1)

        def alike(stock: Norm, x: torch.Tensor) -> bool:
            at_once = with_weight(norm, weight.view(2, *(1,) * (x.dim() - 2), -1), stock, x)
            each = [with_weight(norm, own, stock, row) for own, row in zip(weight, x.split(1), strict=True)]
            return torch.equal(at_once, torch.cat(each))

        try:
            # A norm may overwrite what it is given.
            _row_by_row[kind] = alike(lambda x: norm(x.clone()), heads)
            _row_by_row[kind] &= alike(lambda x: norm(x.clone(), x.clone())[0], z)
        except Exception:  # whatever it asks of a weight
            _row_by_row[kind] = False
    return _row_by_row[kind]


def with_weight(norm: nn.Module, weight: torch.Tensor, stock: Norm, *xs: torch.Tensor) -> Any:
    """`stock` of xs with this weight in the module, which does not keep it: a prompt may have rows for megabytes."""
    kept, norm.weight.data = norm.weight.data, weight
    try:
        return stock(*xs)
    finally:
        norm.weight.data = kept


def page_norm(norm: nn.Module, slot: Slot) -> None:
    """Turns a norm of vLLM's into a paged one, in place; no other engine in the process notices."""
    cls = type(norm)
    norm.__class__ = type(f"Paged{cls.__name__}", (PagedNorm, cls), {"name": cls.name})
    norm.layerloom_slot = slot
