"""lowrank: a truncated singular value decomposition, in the two factors a PEFT adapter has."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field

from layerloom.composer.errors import ComposeError
from layerloom.kernels import compose
from layerloom.kernels.delta import Factors

from .codec import Codec, Parts, finite_delta, fresh

# Up to this size of the smaller dimension a full decomposition is fast enough.
SMALL = 512
OVERSAMPLING, ITERATIONS, SEED = 16, 4, 0


class Lowrank(Codec):
    """Δ̂ = U_r·S_r·V_rᵀ = lora_B @ lora_A, Ê = round(B + Δ̂): the closest matrix of rank r in least squares.

    Parts `lora_A` [r, K] and `lora_B` [N, r] in the tensor's dtype, with √S in each: an adapter whose alpha is its
    rank. Large matrices are decomposed at random (Halko et al., arXiv 0909.4061), always with the same seed.
    """

    codec: Literal["lowrank"] = "lowrank"
    packed: ClassVar[bool] = True
    common: ClassVar[frozenset[str]] = frozenset({"lora_A"})
    rank: int = Field(default=16, ge=1, le=1 << 16)

    def suits(self, shape: Sequence[int]) -> bool:
        return len(shape) == 2 and min(shape) > 0

    def shapes(self, shape: Sequence[int], dtype: torch.dtype) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        if not self.suits(shape):
            raise ComposeError(f"lowrank: needs a matrix, not the shape {tuple(shape)}")
        rank = min(self.rank, *shape)
        return {"lora_A": (dtype, (rank, shape[1])), "lora_B": (dtype, (shape[0], rank))}

    def stacked(
        self, shape: Sequence[int], dtype: torch.dtype, count: int
    ) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """The factors of each matrix in a block of its own: lora_A under each other, lora_B beside each other."""
        rows, k = shape
        return {"lora_A": (dtype, (count * self.rank, k)), "lora_B": (dtype, (rows, count * self.rank))}

    def stack(self, parts: Parts, index: int, count: int) -> Parts:
        a, b = parts["lora_A"], parts["lora_B"]
        block = slice(index * self.rank, index * self.rank + len(a))
        found = {"lora_A": a.new_zeros(count * self.rank, a.shape[1]), "lora_B": b.new_zeros(len(b), count * self.rank)}
        found["lora_A"][block], found["lora_B"][:, block] = a, b
        return found

    def delta(self, parts: Parts, k: int) -> Factors:
        return Factors(parts["lora_A"], parts["lora_B"])

    def encode(self, expert: torch.Tensor, base: torch.Tensor) -> tuple["Lowrank", Parts]:
        (dtype, (rank, _)) = self.shapes(expert.shape, expert.dtype)["lora_A"]
        u, s, vt = decompose(finite_delta(expert, base), rank)
        root = s[:rank].sqrt()
        parts = {"lora_A": root[:, None] * vt[:rank], "lora_B": u[:, :rank] * root}
        return self, {name: part.to(dtype).contiguous() for name, part in parts.items()}

    def _decode(self, parts: Parts, base: torch.Tensor, out: torch.Tensor) -> None:
        plus_product(base, parts["lora_B"], parts["lora_A"], out=out)


def decompose(delta: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U [N, ≥r], S [≥r], Vᵀ [≥r, K] of Δ [N, K] fp32; at least `rank` triplets, of falling S."""
    most = min(delta.shape)
    if most <= SMALL or rank + OVERSAMPLING > most // 2:
        u, s, vt = torch.linalg.svd(delta, full_matrices=False)
        return u, s, vt
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        u, s, v = torch.svd_lowrank(delta, q=rank + OVERSAMPLING, niter=ITERATIONS)
    return u, s, v.T


def plus_product(
    base: torch.Tensor, b: torch.Tensor, a: torch.Tensor, scale: float = 1.0, out: torch.Tensor | None = None
) -> torch.Tensor:
    """round(base + scale·(b @ a)): base [N, K], b [N, r], a [r, K]; the product and the sum are fp32."""
    return compose(fresh(base) if out is None else out, base, [[Factors(a.float(), b, scale)]], [1.0])
