"""byte_planes: a base XOR numbers that come as their lowest bytes, then the next bytes, and so on."""

import numpy as np
import torch

from .delta import BITS
from .dispatch import use_numba


def xor_planes(out: torch.Tensor, base: torch.Tensor, planes: bytes) -> None:
    """bits(out) = bits(base) XOR Dᵢ, byte b of Dᵢ is planes[b·n + i]: the layout of `exact` deltas on disk.

    `out` and `base` are flat, contiguous, on the CPU, of one dtype of 2 or 4 bytes and of n numbers. Raises ValueError
    when there are not as many bytes as the numbers have.
    """
    if base.dtype != out.dtype or base.shape != out.shape or len(planes) != out.nbytes:
        raise ValueError(f"xor_planes: {len(planes)} bytes, base {base.numel()} {base.dtype}, out is {out.dtype}")
    values = np.frombuffer(planes, np.uint8)
    if use_numba(out) and base.is_contiguous():
        from .compose_loops import join_planes
        from .lanes import LIKE

        count, width = out.numel(), out.element_size()
        join_planes(out.data_ptr(), base.data_ptr(), values.ctypes.data, count, width, LIKE[out.dtype])
    else:
        xor_planes_torch(out, base, values)


def xor_planes_torch(out: torch.Tensor, base: torch.Tensor, planes: np.ndarray) -> None:
    """`xor_planes` without a compiler."""
    bits, width = BITS[out.element_size()], out.element_size()
    joined = np.empty((out.numel(), width), np.uint8)
    for plane, part in enumerate(planes.reshape(width, -1)):
        joined[:, plane] = part
    torch.bitwise_xor(base.view(bits), torch.from_numpy(joined).view(-1).view(bits), out=out.view(bits))
