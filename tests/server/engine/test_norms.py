"""Norms of several pages at once: in one go where vLLM's code multiplies row by row, else page by page."""

from typing import Any

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm

from layerloom.server.engine.paged import takes_rows

pytestmark = pytest.mark.usefixtures("engine_environment")


class OfAKernel(RMSNorm):
    """As a kernel does that is given the address of a weight, and knows nothing of its rows."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        self.weight.data = self.weight.data.reshape(-1, x.shape[-1])[0]
        return super().forward(x, residual)


class OnlyVectors(RMSNorm):
    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        if self.weight.dim() > 1:
            raise ValueError("the weight is not a vector")
        return super().forward(x, residual)


@pytest.mark.parametrize(
    ("kind", "rows"), [(RMSNorm, True), (GemmaRMSNorm, True), (OfAKernel, False), (OnlyVectors, False)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_which_norms_take_a_weight_for_each_row(kind, rows, dtype):
    with set_current_vllm_config(VllmConfig()):
        norm = kind(48).to(dtype)
        before, drawn = norm.weight.data, torch.random.get_rng_state()
        assert takes_rows(norm) is rows
        assert norm.weight.data is before or torch.equal(norm.weight.data, before)
        assert torch.equal(torch.random.get_rng_state(), drawn)
