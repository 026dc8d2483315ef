"""frames: what `exact` was in version 1 of the format. It is read, and not written any more."""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import torch
import zstandard
from pydantic import Field, field_validator

from layerloom.composer.errors import ComposeError
from layerloom.kernels.byte_planes import xor_planes
from layerloom.kernels.threads import shared

from .codec import Codec, Parts

BLOCK = 1 << 18


class Frames(Codec):
    """bits(E) = D XOR bits(B).

    Part `bytes` [n] uint8: for each 2^18 elements of D one zstd frame, of the lowest byte of each, then the next byte
    of each, and so on. `ends` are the ends of the frames in `bytes`, which is filled up with zeros to a multiple of 4.
    """

    codec: Literal["exact"] = "exact"
    lossless: ClassVar[bool] = True
    version: ClassVar[Literal[1, 2]] = 1
    ends: tuple[int, ...] = Field(default=(), strict=False)

    @field_validator("ends")
    @classmethod
    def _rising(cls, ends: tuple[int, ...]) -> tuple[int, ...]:
        if not all(a < b for a, b in pairwise((0, *ends))):
            raise ValueError("ends must rise")
        return ends

    def suits(self, shape: Sequence[int]) -> bool:
        return True

    def shapes(self, shape: Sequence[int], dtype: torch.dtype) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        size = self.ends[-1] if self.ends else 0
        return {"bytes": (torch.uint8, (size + -size % 4,))}

    def encode(self, expert: torch.Tensor, base: torch.Tensor) -> tuple["Frames", Parts]:
        raise ComposeError("exact: zstd frames are not written any more")

    def _decode(self, parts: Parts, base: torch.Tensor, out: torch.Tensor) -> None:
        ours, theirs = out.view(-1), base.reshape(-1)
        blocks = -(-base.numel() // BLOCK)
        if len(self.ends) != blocks:
            raise ComposeError(f"exact: has {len(self.ends)} blocks, and {blocks} are needed")
        stored = parts["bytes"].numpy()
        frames = list(enumerate(pairwise((0, *self.ends))))

        def some(share: slice) -> None:
            decompressor = zstandard.ZstdDecompressor()
            for number, (start, end) in frames[share]:
                span = slice(number * BLOCK, (number + 1) * BLOCK)
                planes = _frame(decompressor, stored[start:end], ours[span].nbytes, number)
                xor_planes(ours[span], theirs[span], planes)

        shared(some, blocks)


def _frame(decompressor: zstandard.ZstdDecompressor, stored: np.ndarray, wanted: int, number: int) -> bytes:
    """A frame's content; the size it claims is looked at first, because that much memory is taken for it."""
    try:
        if zstandard.frame_content_size(stored.data) == wanted:
            content = decompressor.decompress(stored.data, max_output_size=wanted, allow_extra_data=False)
            if len(content) == wanted:
                return content
    except zstandard.ZstdError as error:
        raise ComposeError(f"exact: block {number} cannot be decompressed: {error}") from error
    raise ComposeError(f"exact: block {number} does not hold {wanted} bytes")
