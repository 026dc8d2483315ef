"""memory: the host's memory that tensors are read into, used again when they are gone.

Fresh memory is mapped and cleared by the kernel page by page, which takes as long as reading from the page cache does.
"""

import mmap
import weakref

import numpy as np
import torch

HUGE = 1 << 21
"""Bytes of a huge page. What is smaller is had from torch, whose allocator uses memory again itself."""

KEPT = 1 << 28
"""Bytes that are kept for the next tensors, at most."""

_spare: list[mmap.mmap] = []


def memory(size: int) -> torch.Tensor:
    """uint8 [size], with whatever was there before."""
    if size < HUGE:
        return torch.empty(size, dtype=torch.uint8)
    block = _spare_of(size) or _fresh(size)
    content = np.frombuffer(block, np.uint8, size)
    # The tensor, and every view of it, holds `content`.
    weakref.finalize(content, _give_back, block).atexit = False
    return torch.from_numpy(content)


def _fresh(size: int) -> mmap.mmap:
    block = mmap.mmap(-1, -(-size // HUGE) * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _spare_of(size: int) -> mmap.mmap | None:
    """The smallest that fits, unless more than half of it would be idle for as long as the tensor lives."""
    for block in sorted((block for block in _spare if size <= len(block) <= 2 * size), key=len):
        try:
            _spare.remove(block)
        except ValueError:  # another thread has taken it
            continue
        return block
    return None


def _give_back(block: mmap.mmap) -> None:
    # No lock: this runs wherever a tensor dies, also where `_spare_of` is at work.
    if len(block) <= KEPT:
        _spare.append(block)
    while sum(map(len, _spare)) > KEPT:
        _spare.pop(0)
