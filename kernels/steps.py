"""steps: floats as how far their bit patterns are from a base's, in few bits: the layout of `exact` deltas on disk.

d = bits(E) - bits(B), modulo 2^16 or 2^32, with a sign. A change of weights is about as large for small numbers as for
large ones, and so d is the larger the smaller B's exponent is: a number's width in bits hangs on it alone, and needs no
room. composer/ARCHIVE.md has the layout.
"""

import os
import sys

import numpy as np
import torch

from . import step_blocks
from .delta import patterns
from .dispatch import has_numba, use_numba
from .step_blocks import BLOCK, HEAD
from .threads import shared

EXPONENTS = {torch.bfloat16: (7, 255), torch.float16: (10, 31), torch.float32: (23, 255)}
"""How far the exponent is shifted, and its bits."""


SEGMENT = 1 << 19
"""Numbers that are packed apart, whatever the number of threads, so that the bytes are the same."""


class Malformed(ValueError):
    """Bytes that no `pack` made."""


def pack(ours: torch.Tensor, theirs: torch.Tensor) -> list[np.ndarray]:
    """Flat tensors E and B, contiguous, on the CPU, of one dtype (bf16, fp16 or fp32) → uint8 [n], in pieces.

    n is at most their bytes and HEAD for each block. The same numbers give the same bytes where numba is, and where it
    is not; those of the two may differ.
    """
    shift, field = EXPONENTS[ours.dtype]
    if not use_numba(ours):
        return [step_blocks.pack(patterns(ours), patterns(theirs), shift, field)]
    from .lanes import LIKE
    from .step_packing import SCRATCH, SLACK
    from .step_packing import pack as pack_compiled

    size, e, b, like = ours.element_size(), patterns(ours), patterns(theirs), LIKE[ours.dtype]
    found: list[np.ndarray] = [np.empty(0, np.uint8)] * -(-len(e) // SEGMENT)

    def some(share: slice) -> None:
        room = np.empty((size + 1) * min(SEGMENT, len(e)), np.uint8)
        one, scratch = np.empty(HEAD + BLOCK * (4 * size + 4) + SLACK, np.uint8), np.empty(SCRATCH, np.uint8)
        for number in range(share.start, share.stop):
            span = slice(number * SEGMENT, (number + 1) * SEGMENT)
            spans = e[span].ctypes.data, b[span].ctypes.data, e[span], b[span]
            kind = size, shift, field, step_blocks.LENGTHS, like, scratch.ctypes.data
            length = pack_compiled(room, one, one.ctypes.data, *spans, *kind)
            found[number] = room[:length].copy()

    shared(some, len(found))
    return found


def unpack(out: torch.Tensor, base: torch.Tensor, stored: np.ndarray) -> None:
    """out = E, of B and what `pack` made. All flat and contiguous, on the CPU; `out` may be `base`.

    Raises Malformed, with what was written so far left in `out`.
    """
    if out.dtype != base.dtype or out.shape != base.shape or not (out.is_contiguous() and base.is_contiguous()):
        raise ValueError(f"steps: base is {tuple(base.shape)} {base.dtype}, out is {tuple(out.shape)} {out.dtype}")
    count = blocks(out)
    if not count:
        if len(stored):
            raise Malformed("there is more than the blocks")
        return
    if not (use_numba(out) or (compiled_already(out) and has_numba())):
        wrong = step_blocks.unpack(patterns(out), patterns(base), stored, *EXPONENTS[out.dtype])
        if wrong >= 0:
            raise Malformed(f"block {wrong} is malformed")
        return
    from .lanes import LANES, LIKE
    from .step_loops import unpack as unpack_compiled
    from .step_loops import walk

    size, begin = out.element_size(), stored.ctypes.data
    starts = np.full(count, begin, np.int64)
    found = walk(starts, begin + len(stored), out.numel(), size)
    if found < count:
        raise Malformed(f"block {found} is malformed")
    wrongs: list[int] = []

    def some(share: slice) -> None:
        room = np.empty(LANES, np.uint32)
        place = out.data_ptr(), base.data_ptr(), starts, begin + len(stored), share.start, share.stop, out.numel()
        wrongs.append(unpack_compiled(*place, size, LIKE[out.dtype], room.ctypes.data))

    shared(some, count, out.numel() // (BLOCK * 16))
    refused = [number for number in wrongs if number >= 0]
    if refused:
        raise Malformed(f"block {min(refused)} is malformed")


def compiled_already(tensor: torch.Tensor) -> bool:
    """Whether numba need not be loaded for a small tensor alone; numpy takes a millisecond for a block."""
    chosen = os.environ.get("LAYERLOOM_KERNELS", "auto") == "auto"
    return chosen and (tensor.numel() >= BLOCK // 4 or f"{__package__}.step_loops" in sys.modules)


def blocks(tensor: torch.Tensor) -> int:
    return -(-tensor.numel() // BLOCK)
