"""dispatch: which implementation of an op runs, torch or Triton.

LAYERLOOM_KERNELS is `auto` (Triton on a GPU; elsewhere torch, and numba where it is installed), `torch` or `triton`;
Triton on a CPU needs its interpreter, TRITON_INTERPRET=1, which is for tests.
"""

import os
from functools import cache

import torch

CHOICES = ("auto", "torch", "triton")
# Below this many numbers torch takes less than a millisecond, and numba need not be loaded.
WORTHWHILE = 1 << 16


def use_triton(tensor: torch.Tensor) -> bool:
    """Whether ops on this tensor run as Triton kernels. Raises ValueError for a setting that cannot be."""
    choice = os.environ.get("LAYERLOOM_KERNELS", "auto")
    if choice not in CHOICES:
        raise ValueError(f"LAYERLOOM_KERNELS is {choice!r}, and must be one of {', '.join(CHOICES)}")
    if choice == "triton" and not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("LAYERLOOM_KERNELS=triton: tensors are on the CPU, where Triton needs TRITON_INTERPRET=1")
    return choice == "triton" or (choice == "auto" and tensor.is_cuda)


def use_numba(tensor: torch.Tensor) -> bool:
    """Whether ops on this tensor, which is not for Triton, run compiled by numba: on a CPU, where it is installed."""
    choice = os.environ.get("LAYERLOOM_KERNELS", "auto")
    return choice == "auto" and tensor.device.type == "cpu" and tensor.numel() >= WORTHWHILE and has_numba()


@cache
def has_numba() -> bool:
    try:
        import numba
    except ImportError:  # not installed, or not for this numpy
        return False
    return not numba.config.DISABLE_JIT
