"""coding: differences of float tensors as small whole numbers with scales, in the layout of delta.Packed and Signs."""

from collections.abc import Iterator

import torch

from .delta import patterns
from .dispatch import use_numba
from .planar import pack
from .threads import shared

CHUNK = 1 << 20
"""Numbers that are worked on at a time where there is no compiler."""


class NotFinite(ValueError):
    """A difference is infinite or no number."""


def quantize(
    words: torch.Tensor, scales: torch.Tensor, expert: torch.Tensor, base: torch.Tensor, bits: int, group: int
) -> None:
    """Sets words [rows, words] int32 and scales [rows, groups] bf16 of E and B [rows, K]. Raises NotFinite.

    s = round_bf16(max|E - B| / m) over `group` columns, and 0 below bf16's smallest normal number; the code is
    round((E - B) / s) + m + 1, with m = 2^(bits-1) - 1.
    """
    if compiles(expert):
        from .coding_loops import quantize as quantize_compiled

        def some(share: slice) -> None:
            numbers = words[share].numpy(), scales[share].view(torch.int16).numpy().view("u2")
            check(quantize_compiled(*numbers, patterns(expert[share]), patterns(base[share]), bits, group), share)

        shared(some, len(words), expert.numel() // CHUNK)
        return
    most = (1 << (bits - 1)) - 1
    for chunk, delta in deltas(expert, base):
        k = delta.shape[1]
        grouped = torch.nn.functional.pad(delta, (0, -k % group)).view(len(delta), -1, group)
        found = (grouped.abs().amax(-1) / most).bfloat16()
        found = torch.where(found < torch.finfo(torch.bfloat16).tiny, torch.zeros_like(found), found)
        divisor = torch.where(found == 0, torch.inf, found.float()).unsqueeze(-1)
        codes = (grouped / divisor).round().clamp(-most, most).to(torch.int32) + (most + 1)
        words[chunk], scales[chunk] = pack(codes.view(len(delta), -1)[:, :k], bits), found


def take_signs(words: torch.Tensor, scales: torch.Tensor, expert: torch.Tensor, base: torch.Tensor) -> None:
    """Sets words [rows, words] int32, 1 where E < B, and scales [rows] fp32, mean|E - B|. Raises NotFinite."""
    if compiles(expert):
        from .coding_loops import take_signs as take_compiled

        def some(share: slice) -> None:
            numbers = words[share].numpy(), scales[share].numpy()
            check(take_compiled(*numbers, patterns(expert[share]), patterns(base[share])), share)

        shared(some, len(words), expert.numel() // CHUNK)
        return
    for chunk, delta in deltas(expert, base):
        words[chunk] = pack((delta < 0).to(torch.int32), 1)
        scales[chunk] = delta.double().abs().mean(-1).float()


def compiles(expert: torch.Tensor) -> bool:
    return use_numba(expert) and expert.dtype in (torch.bfloat16, torch.float32)


def check(row: int, share: slice) -> None:
    if row < share.stop - share.start:
        raise NotFinite(f"row {share.start + row}")


def deltas(expert: torch.Tensor, base: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """(rows, E - B in fp32) of about CHUNK numbers."""
    rows, k = expert.shape
    step = max(1, CHUNK // max(1, k))
    for start in range(0, rows, step):
        chunk = slice(start, min(start + step, rows))
        delta = expert[chunk].float() - base[chunk].float()
        if not bool(delta.isfinite().all()):
            raise NotFinite(f"rows {chunk.start} to {chunk.stop}")
        yield chunk, delta
