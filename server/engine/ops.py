"""ops: paged modules as opaque torch operators, so that torch.compile leaves their pages to the step.

A compiled graph is traced once and knows a module only by its slot's name; the pages change every step. vLLM may load
the graph from its cache, made by another engine: so a name says which module, and the step says whose.
"""

from typing import Any

import torch
from torch import nn
from vllm.forward_context import get_forward_context
from vllm.utils.torch_utils import direct_register_custom_op

from .paged import Slot

LIBRARY = torch.library.Library("layerloom", "FRAGMENT")


def know_slots(model: nn.Module, context: dict[str, Any]) -> None:
    """Puts the model's slots where vLLM keeps what a compiled graph calls by name, its attention layers."""
    for module in model.modules():
        slot = getattr(module, "layerloom_slot", None)
        if slot is not None:
            context[slot.name] = slot


def slot_of(name: str) -> Slot:
    slot: Slot = get_forward_context().no_compile_layers[name]
    return slot


def linear(x: torch.Tensor, slot: str, features: int, with_bias: bool) -> torch.Tensor:
    return slot_of(slot).linear(x, with_bias)


def linear_fake(x: torch.Tensor, slot: str, features: int, with_bias: bool) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], features)


def embedding(ids: torch.Tensor, slot: str, features: int, dtype: torch.dtype) -> torch.Tensor:
    return slot_of(slot).embedding(ids)


def embedding_fake(ids: torch.Tensor, slot: str, features: int, dtype: torch.dtype) -> torch.Tensor:
    return ids.new_empty(*ids.shape, features, dtype=dtype)


def norm_weight(x: torch.Tensor, slot: str) -> torch.Tensor:
    """A norm's weight for each row of x, so that the norm itself stays in the graph and is fused as in stock vLLM."""
    return slot_of(slot).norm_weight(x)


def norm_weight_fake(x: torch.Tensor, slot: str) -> torch.Tensor:
    return x.new_empty(x.shape[0], *(1,) * (x.dim() - 2), x.shape[-1])


for op, fake in ((linear, linear_fake), (embedding, embedding_fake), (norm_weight, norm_weight_fake)):
    direct_register_custom_op(op.__name__, op, fake_impl=fake, target_lib=LIBRARY)
