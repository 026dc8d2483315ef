"""integer: int8 and int4, symmetric, with one scale for each 128 columns."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field

from layerloom.kernels import compose
from layerloom.kernels.coding import quantize
from layerloom.kernels.delta import Packed
from layerloom.kernels.planar import word_count

from .codec import Codec, Parts, finite, row_count, rows_of


class Integer(Codec):
    """Δ̂ = s·q with q = round(Δ / s) and s = round_bf16(max|Δ| / m) over a group of 128 columns; Ê = round(B + Δ̂).

    m is 7 for int4 and 127 for int8, and -m ≤ q ≤ m. Part `words` [rows, words] int32: the codes q + m + 1, packed
    as planar.py says. Part `scales` [rows, groups] bf16. A scale below bf16's smallest normal number is 0, and
    then q is 0. Because s has 8 bits, s·q is exact in fp32 and encoding what was decoded gives the same parts.
    """

    packed: ClassVar[bool] = True
    bitwise: ClassVar[bool] = True
    bits: ClassVar[int]
    group: int = Field(default=128, ge=32, le=1 << 16)

    def shapes(self, shape: Sequence[int], dtype: torch.dtype) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        rows, k = row_count(shape)
        return {
            "words": (torch.int32, (rows, word_count(k, self.bits))),
            "scales": (torch.bfloat16, (rows, -(-k // self.group))),
        }

    def encode(self, expert: torch.Tensor, base: torch.Tensor) -> tuple["Integer", Parts]:
        parts = {
            name: torch.empty(shape, dtype=dtype)
            for name, (dtype, shape) in self.shapes(expert.shape, expert.dtype).items()
        }
        with finite():
            quantize(parts["words"], parts["scales"], rows_of(expert), rows_of(base), self.bits, self.group)
        return self, parts

    def _decode(self, parts: Parts, base: torch.Tensor, out: torch.Tensor) -> None:
        compose(out, base, [[self.delta(parts, row_count(base.shape)[1])]], [1.0])

    def delta(self, parts: Parts, k: int) -> Packed:
        return Packed(parts["words"], parts["scales"], k, self.bits, self.group)


class Int8(Integer):
    """`Integer` with 8 bits: 1.016 bytes a parameter."""

    codec: Literal["int8"] = "int8"
    bits: ClassVar[int] = 8


class Int4(Integer):
    """`Integer` with 4 bits: 0.516 bytes a parameter."""

    codec: Literal["int4"] = "int4"
    bits: ClassVar[int] = 4
