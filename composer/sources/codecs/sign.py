"""sign: one bit for each parameter and one scale for each row (BitDelta, arXiv 2402.10193)."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from layerloom.kernels import compose
from layerloom.kernels.coding import take_signs
from layerloom.kernels.delta import Signs
from layerloom.kernels.planar import word_count

from .codec import Codec, Parts, finite, row_count, rows_of


class Sign(Codec):
    """Δ̂ = α·sign(Δ), Ê = round(B + Δ̂), with α = mean|Δ| over the row, which is the least-squares scale.

    d/dα Σ(Δ - α·s)² = 0 gives α = Σ s·Δ / K = mean|Δ|. The paper has one α for a tensor; one for a row costs little.
    Part `words` [rows, words] int32: 1 where Δ is negative, packed as planar.py says. Part `scales` [rows] fp32.
    """

    codec: Literal["sign"] = "sign"
    packed: ClassVar[bool] = True
    bitwise: ClassVar[bool] = True

    def shapes(self, shape: Sequence[int], dtype: torch.dtype) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        rows, k = row_count(shape)
        return {"words": (torch.int32, (rows, word_count(k, 1))), "scales": (torch.float32, (rows,))}

    def encode(self, expert: torch.Tensor, base: torch.Tensor) -> tuple["Sign", Parts]:
        parts = {
            name: torch.empty(shape, dtype=dtype)
            for name, (dtype, shape) in self.shapes(expert.shape, expert.dtype).items()
        }
        with finite():
            take_signs(parts["words"], parts["scales"], rows_of(expert), rows_of(base))
        return self, parts

    def _decode(self, parts: Parts, base: torch.Tensor, out: torch.Tensor) -> None:
        compose(out, base, [[self.delta(parts, row_count(base.shape)[1])]], [1.0])

    def delta(self, parts: Parts, k: int) -> Signs:
        return Signs(parts["words"], parts["scales"], k)
