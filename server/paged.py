"""paged: vLLM modules that take their weights from the page of each token.

A module runs vLLM's own code on the weights of one page at a time. With one page in the batch those weights
are installed in the module itself, so that it is stock vLLM to the last instruction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm
from vllm.model_executor.layers.linear import (
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)

from layerloom.kernels import Route, by_page, rms_norm

NORMS = (RMSNorm, GemmaRMSNorm)
Linear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Handle:
    """One module's weights in one page, in the form the module computes with."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    linear: Linear | None = None


class Page:
    """The handles of one part's modules, in the part's order."""

    def __init__(self, handles: list[Handle]) -> None:
        self.handles = handles


ONE_PAGE = Route((0,), ())


@dataclass(slots=True)
class Selection:
    """The pages a part uses in the current step, and the route of its tokens to them."""

    pages: tuple[Page, ...]
    route: Route = ONE_PAGE


class Slot:
    """A module's place: its part's current selection and its index within that part's pages."""

    def __init__(self, name: str, module: nn.Module, index: int, selection: Selection) -> None:
        # Two engines in one process may have modules of the same name.
        self.name = f"{name}#{next(_NUMBERS)}"
        self.module = module
        self.index = index
        self.selection = selection
        SLOTS[self.name] = self

    def handle(self, page: int) -> Handle:
        return self.selection.pages[page].handles[self.index]

    def handles(self) -> list[Handle]:
        return [page.handles[self.index] for page in self.selection.pages]


SLOTS: WeakValueDictionary[str, Slot] = WeakValueDictionary()
_NUMBERS = count()


def seal(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> Handle:
    """One module's weights as it computes with them; keeps no reference to `weight` and `bias`.

    A matrix is packed as stock vLLM packs it after loading. A table is read row by row; one that is also the
    output head (tied embeddings without a head of their own) is kept in both forms.
    """
    is_table = isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
    if isinstance(module, NORMS) or (is_table and not module.layerloom_tied):
        return Handle(weight.clone())
    stand_in = nn.Module()
    stand_in.weight = nn.Parameter(weight, requires_grad=False)
    stand_in.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)
    dispatch_cpu_unquantized_gemm(stand_in, remove_weight=True)
    # What could not be packed is multiplied as it is.
    unpacked = stand_in.weight.numel() > 0
    # An empty one in its place has the weight's dtype, which the next page is made in; older vLLMs leave float32.
    kept = weight.clone() if is_table or unpacked else weight.new_empty(0)
    return Handle(kept, None if stand_in.bias is None else stand_in.bias.data, stand_in.cpu_linear)


def install(module: nn.Module, handle: Handle) -> None:
    """Makes `handle` the module's own weights, as if it had been loaded with them."""
    module.weight.data = handle.weight
    if handle.bias is not None:
        module.bias.data = handle.bias
    if handle.linear is not None:
        module.cpu_linear = handle.linear


@register_weight_loader_v2_supported_method
class PagedLinearMethod(UnquantizedLinearMethod):
    """y = x Wᵀ + b with the page of each token; the stock method where the batch has one page."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        layer.layerloom_shape = layer.weight.shape
        bias = getattr(layer, "bias", None)
        install(layer, seal(layer, layer.weight.data, None if bias is None else bias.data))

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if torch.compiler.is_compiling():
            slot = layer.layerloom_slot
            return torch.ops.layerloom.linear(x, slot.name, layer.output_size_per_partition, bias is not None)
        slot = layer.layerloom_slot
        if slot.selection.route is ONE_PAGE:
            return layer.cpu_linear(x, layer.weight, bias)
        return paged_linear(slot, x, bias is not None)


class PagedEmbeddingMethod(UnquantizedEmbeddingMethod):
    """Token look-up and output head. A tied table does both, for different rows: tokens in, sampled tokens out."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Nothing yet: whether a table is also the head shows when the whole model is there (pages.py)."""

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return paged_linear(layer.layerloom_head, x, bias is not None)

    def embedding(self, layer: nn.Module, input_: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return torch.ops.layerloom.embedding(input_, layer.layerloom_slot.name, layer.embedding_dim)
        return paged_embedding(layer.layerloom_slot, input_)


def paged_linear(slot: Slot, x: torch.Tensor, with_bias: bool) -> torch.Tensor:
    def run(page: int, rows: torch.Tensor) -> torch.Tensor:
        handle = slot.handle(page)
        return handle.linear(rows, handle.weight, handle.bias if with_bias else None)

    return by_page(slot.selection.route, run, x)


def paged_embedding(slot: Slot, ids: torch.Tensor) -> torch.Tensor:
    def run(page: int, rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding(rows, slot.handle(page).weight)

    return by_page(slot.selection.route, run, ids)


class PagedNorm:
    """Mixed into the class of a norm that vLLM has built; with one page it is that class unchanged."""

    layerloom_slot: Slot

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        if torch.compiler.is_compiling():
            weight = torch.ops.layerloom.norm_weight(x, self.layerloom_slot.name)
            if isinstance(self, GemmaRMSNorm):
                weight = weight.float() + 1.0
            y, z = rms_norm(x, weight, self.variance_epsilon, residual)
            return y if residual is None else (y, z)
        route = self.layerloom_slot.selection.route
        if route is ONE_PAGE:
            return super().forward(x, residual)

        def run(page: int, *rows: torch.Tensor) -> Any:
            self.weight.data = self.layerloom_slot.handle(page).weight
            return super(PagedNorm, self).forward(*rows)

        return by_page(route, run, x) if residual is None else by_page(route, run, x, residual)


def page_norm(norm: nn.Module, slot: Slot) -> None:
    """Turns a norm of vLLM's into a paged one, in place; no other engine in the process notices."""
    cls = type(norm)
    norm.__class__ = type(f"Paged{cls.__name__}", (PagedNorm, cls), {"name": cls.name})
    norm.layerloom_slot = slot
