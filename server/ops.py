"""ops: paged modules as opaque torch operators, so that torch.compile leaves their pages to the step.

A compiled graph is traced once and knows a module only by its slot's name; the pages change every step.
"""

import torch
from vllm.utils.torch_utils import direct_register_custom_op

from .paged import SLOTS

LIBRARY = torch.library.Library("layerloom", "FRAGMENT")


def linear(x: torch.Tensor, slot: str, features: int, with_bias: bool) -> torch.Tensor:
    return SLOTS[slot].linear(x, with_bias)


def linear_fake(x: torch.Tensor, slot: str, features: int, with_bias: bool) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], features)


def embedding(ids: torch.Tensor, slot: str, features: int) -> torch.Tensor:
    return SLOTS[slot].embedding(ids)


def embedding_fake(ids: torch.Tensor, slot: str, features: int) -> torch.Tensor:
    return ids.new_empty(*ids.shape, features, dtype=SLOTS[slot].module.weight.dtype)


def norm_weight(x: torch.Tensor, slot: str) -> torch.Tensor:
    """A norm's weight for each row of x, so that the norm itself stays in the graph and is fused as in stock vLLM."""
    return SLOTS[slot].norm_weight(x)


def norm_weight_fake(x: torch.Tensor, slot: str) -> torch.Tensor:
    return x.new_empty(x.shape[0], *(1,) * (x.dim() - 2), x.shape[-1])


for op, fake in ((linear, linear_fake), (embedding, embedding_fake), (norm_weight, norm_weight_fake)):
    direct_register_custom_op(op.__name__, op, fake_impl=fake, target_lib=LIBRARY)
