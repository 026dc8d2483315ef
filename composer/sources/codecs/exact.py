"""exact: how far each bit pattern is from the base's, in as few bits as that takes. Lossless for every pattern."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from layerloom.composer.errors import ComposeError
from layerloom.kernels.steps import Malformed, pack, unpack

from .codec import Codec, Parts


class Exact(Codec):
    """bits(E) = bits(B) + d, modulo 2^16 or 2^32.

    Part `bytes` [n] uint8 is what kernels.steps makes of d, `size` bytes, filled up with zeros to a multiple of 4.
    """

    codec: Literal["exact"] = "exact"
    lossless: ClassVar[bool] = True
    version: ClassVar[Literal[1, 2]] = 2
    size: int = Field(default=0, ge=0, lt=1 << 62)

    def suits(self, shape: Sequence[int]) -> bool:
        return True

    def shapes(self, shape: Sequence[int], dtype: torch.dtype) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {"bytes": (torch.uint8, (self.size + -self.size % 4,))}

    def encode(self, expert: torch.Tensor, base: torch.Tensor) -> tuple["Exact", Parts]:
        packed = pack(expert.reshape(-1), base.reshape(-1))
        size = sum(map(len, packed))
        stored = np.concatenate([*packed, np.zeros(-size % 4, np.uint8)])
        return Exact(size=size), {"bytes": torch.from_numpy(stored)}

    def _decode(self, parts: Parts, base: torch.Tensor, out: torch.Tensor) -> None:
        try:
            unpack(out.view(-1), base.reshape(-1), parts["bytes"].numpy()[: self.size])
        except Malformed as error:
            raise ComposeError(f"exact: {error}") from error
