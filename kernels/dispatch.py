"""dispatch: which implementation of an op runs, torch or Triton.

LAYERLOOM_KERNELS is `auto` (Triton on a GPU, torch elsewhere), `torch` or `triton`; Triton on a CPU needs its
interpreter, TRITON_INTERPRET=1, which is for tests.
"""

import os

import torch

CHOICES = ("auto", "torch", "triton")


def use_triton(tensor: torch.Tensor) -> bool:
    """Whether ops on this tensor run as Triton kernels. Raises ValueError for a setting that cannot be."""
    choice = os.environ.get("LAYERLOOM_KERNELS", "auto")
    if choice not in CHOICES:
        raise ValueError(f"LAYERLOOM_KERNELS is {choice!r}, and must be one of {', '.join(CHOICES)}")
    if choice == "triton" and not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("LAYERLOOM_KERNELS=triton: tensors are on the CPU, where Triton needs TRITON_INTERPRET=1")
    return choice == "triton" or (choice == "auto" and tensor.is_cuda)
