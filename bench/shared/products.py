"""products: stock vLLM with as many matrix products, of as many weights, as several models in a batch need.

Several compositions in a batch cannot be faster than that: where they have weights of their own all of these are read,
and a small product uses a core less well than a large one. Everything else is as in stock vLLM on one model, so what it
says is nonsense, and how long it takes is the bound.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm


class Several:
    """In place of a module's quant_method: equal parts of the rows, each with another module's weights."""

    def __init__(self, method: Any, modules: Sequence[nn.Module]) -> None:
        self.method = method
        self.modules = modules

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        parts = x.chunk(len(self.modules))
        return torch.cat(
            [self.method.apply(module, part, bias) for module, part in zip(self.modules, parts, strict=False)]
        )


@contextmanager
def as_several(model: nn.Module, groups: int, own: Sequence[int]) -> Iterator[None]:
    """Has `groups` models' matrix products in a stock model on a CPU, without torch.compile.

    `own` are the layers of which each group has its own; the head is each group's own, too, and the other layers are
    everybody's. The weights are the model's, as stock vLLM has packed them: layers stand for each other, those that are
    far apart, so that none is read again while a cache may still hold it.
    """
    stack = next(found for found in model.modules() if isinstance(found, nn.ModuleList))
    layers = [[each for each in layer.modules() if isinstance(each, LinearBase)] for layer in stack]
    step = max(1, len(layers) // groups)
    several = {model.lm_head: [head_like(model.lm_head) for _ in range(groups)]}
    for at in own:
        chosen = [layers[(at + group * step) % len(layers)] for group in range(groups)]
        several |= dict(zip(layers[at], map(list, zip(*chosen, strict=True)), strict=True))
    stock = {module: module.quant_method for module in several}
    for module, modules in several.items():
        module.quant_method = Several(stock[module], modules)
    try:
        yield
    finally:
        for module, method in stock.items():
            module.quant_method = method


def head_like(head: nn.Module) -> nn.Module:
    """A head of the same shape with numbers of its own, packed as stock vLLM packs one."""
    made = nn.Module()
    size = head.num_embeddings_per_partition, head.embedding_dim
    made.weight = nn.Parameter(0.02 * torch.randn(size, dtype=head.weight.dtype), requires_grad=False)
    dispatch_cpu_unquantized_gemm(made, remove_weight=True)
    return made
