"""distance: how far tensors are from each other, summed in float64."""

import math

import torch

from .dispatch import use_numba
from .threads import shared

SEGMENT = 1 << 20
"""Numbers that are summed apart, whatever the number of threads, so that the sum is the same."""


def distance(one: torch.Tensor, other: torch.Tensor | None = None) -> float:
    """‖one - other‖, or ‖one‖. Both are contiguous, on the CPU, of one shape and one dtype (bf16, fp16 or fp32)."""
    a, b = one.reshape(-1), None if other is None else other.reshape(-1)
    if b is not None and (a.shape != b.shape or a.dtype != b.dtype):
        raise ValueError(f"distance: {tuple(one.shape)} {one.dtype} from {tuple(b.shape)} {b.dtype}")
    sums = [0.0] * -(-a.numel() // SEGMENT)

    def some(share: slice) -> None:
        for number in range(share.start, share.stop):
            span = slice(number * SEGMENT, (number + 1) * SEGMENT)
            sums[number] = squares(a[span], None if b is None else b[span])

    shared(some, len(sums))
    return math.sqrt(math.fsum(sums)) if all(map(math.isfinite, sums)) else sum(sums)


def squares(a: torch.Tensor, b: torch.Tensor | None) -> float:
    """Σ (a - b)²"""
    if use_numba(a):
        from .lanes import HAS_HALF, LIKE

        if a.dtype in LIKE and (HAS_HALF or a.dtype != torch.float16):
            from .distance_loops import squared

            other = 0 if b is None else b.data_ptr()
            return float(squared(a.data_ptr(), other, a.numel(), a.element_size(), LIKE[a.dtype]))
    left = a.double() if b is None else a.double() - b.double()
    return float(left.square().sum())
