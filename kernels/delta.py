"""delta: how an expert differs from the base in one matrix of a page, in the form kernels read it."""

from dataclasses import dataclass

import numpy as np
import torch

from .planar import unpack

BITS = {2: torch.int16, 4: torch.int32}
"""The integers that hold the bit patterns of a dtype, by its size in bytes."""


def patterns(tensor: torch.Tensor) -> np.ndarray:
    """The bit patterns of floats on the CPU as numbers without a sign, in the same memory."""
    found: np.ndarray = tensor.view(BITS[tensor.element_size()]).numpy()
    return found.view(f"u{tensor.element_size()}")


@dataclass(frozen=True, slots=True)
class Dense:
    """E = values. values [rows, K] in the base's dtype."""

    values: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return matrix(self.values)

    def decode(self, base: torch.Tensor, rows: slice) -> torch.Tensor:
        return self.values.view(-1, base.shape[-1])[rows]


@dataclass(frozen=True, slots=True)
class Xor:
    """bits(E) = bits(B) XOR pattern. pattern [rows, K] int16, or int32 where the base is fp32."""

    pattern: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return matrix(self.pattern)

    def decode(self, base: torch.Tensor, rows: slice) -> torch.Tensor:
        return (base.view(self.pattern.dtype) ^ self.pattern.view(-1, base.shape[-1])[rows]).view(base.dtype)


@dataclass(frozen=True, slots=True)
class Packed:
    """E = round(B + s·q): `bits` is 4 or 8, s of each `group` columns.

    words [rows, words] int32 hold q + 2^(bits-1) as planar.py says; scales [rows, ceil(K / group)] bf16.
    """

    words: torch.Tensor
    scales: torch.Tensor
    k: int
    bits: int
    group: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.words.shape[0], self.k

    def delta(self, rows: slice) -> torch.Tensor:
        """Δ̂ [rows, K] fp32; exact, because s has 8 bits and q at most 8."""
        q = unpack(self.words[rows], self.k, self.bits) - (1 << (self.bits - 1))
        return q * self.scales[rows].float().repeat_interleave(self.group, dim=1)[:, : self.k]

    def decode(self, base: torch.Tensor, rows: slice) -> torch.Tensor:
        return (base.float() + self.delta(rows)).to(base.dtype)


@dataclass(frozen=True, slots=True)
class Signs:
    """E = round(B ± α), one α for each row (BitDelta, arXiv 2402.10193).

    words [rows, words] int32 have a 1 for each minus, packed as planar.py says; scales [rows] fp32.
    """

    words: torch.Tensor
    scales: torch.Tensor
    k: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.words.shape[0], self.k

    def delta(self, rows: slice) -> torch.Tensor:
        """Δ̂ [rows, K] fp32."""
        return (1 - 2 * unpack(self.words[rows], self.k, 1)) * self.scales[rows].unsqueeze(-1)

    def decode(self, base: torch.Tensor, rows: slice) -> torch.Tensor:
        return (base.float() + self.delta(rows)).to(base.dtype)


@dataclass(frozen=True, slots=True)
class Factors:
    """E = round(B + scale·(b @ a)), a [r, K], b [rows, r]; product and sum are fp32 (LoRA, arXiv 2106.09685)."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]

    def delta(self, rows: slice) -> torch.Tensor:
        """Δ̂ [rows, K] fp32. On a CPU it is summed over r in order, because a BLAS' order hangs on its threads."""
        a, b = self.a.float(), self.b[rows].float()
        if b.device.type != "cpu":
            return b @ a * self.scale
        total = b.new_zeros(len(b), a.shape[1])
        for column, row in zip(b.T, a, strict=True):
            total += column[:, None] * row
        return total * self.scale

    def decode(self, base: torch.Tensor, rows: slice) -> torch.Tensor:
        return (base.float() + self.delta(rows)).to(base.dtype)


# Each has a shape (rows, K) and decode(base [n, K], rows) → E [n, K] for a slice of n rows.
Delta = Dense | Xor | Packed | Signs | Factors


def matrix(tensor: torch.Tensor) -> tuple[int, int]:
    """A tensor's shape as rows and K: a vector, or a flat page, is one row."""
    k = tensor.shape[-1]
    return (tensor.numel() // k if k else 0), k


def size(delta: Delta) -> int:
    rows, k = delta.shape
    return rows * k
