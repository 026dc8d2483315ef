"""codec: the interface of all codecs, and what is measured about them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from layerloom.composer.errors import ComposeError
from layerloom.kernels.coding import NotFinite
from layerloom.kernels.delta import Delta
from layerloom.kernels.distance import distance

Parts = dict[str, torch.Tensor]
"""What is stored for one tensor, by the name of the part: {"words": …, "scales": …}."""

DTYPES: Mapping[str, torch.dtype] = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

# Bytes; a cache line, and the widest vector there is.
ALIGNED = 64


class Codec(BaseModel, ABC):
    """One way to store an expert's tensor E, given the base's tensor B; an instance has the parameters.

    E and B have one shape and one dtype (bf16, fp16 or fp32) and are contiguous on the CPU. The last dimension is
    K; all others together are rows, so a 1-d tensor, or a flat page, is one row. Everything here raises
    ComposeError with the reason; the caller knows which file and tensor it is about.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    codec: str
    version: ClassVar[Literal[1, 2]] = 1
    """Of the format: the first that has it."""
    lossless: ClassVar[bool] = False
    packed: ClassVar[bool] = False
    """Whether a kernel can multiply with the parts as they are (kernels.delta_linear): Ê ≈ B + Δ̂, and `delta` is Δ̂."""
    bitwise: ClassVar[bool] = False
    """Whether, beyond that, kernels.compose makes the same bits of the parts on every device."""
    common: ClassVar[frozenset[str]] = frozenset()
    """The parts that have no rows of the matrix."""

    @abstractmethod
    def encode(self, expert: torch.Tensor, base: torch.Tensor) -> tuple["Codec", Parts]:
        """The parts that stand for E, and the codec with the parameters needed to decode them."""

    @abstractmethod
    def shapes(self, shape: Sequence[int], dtype: torch.dtype) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """The dtype and shape each part of a tensor of this shape and dtype must have."""

    @abstractmethod
    def _decode(self, parts: Parts, base: torch.Tensor, out: torch.Tensor) -> None:
        """Ê in `out`, which is contiguous and may be `base`, of parts that have the right shapes."""

    def delta(self, parts: Parts, k: int) -> Delta:
        """The parts as kernels read them, where the codec is `packed`; pages of parts give pages of deltas."""
        raise NotImplementedError

    def stacked(
        self, shape: Sequence[int], dtype: torch.dtype, count: int
    ) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """`shapes` where an engine keeps `count` matrices, one under the other, as one of this shape."""
        return self.shapes(shape, dtype)

    def stack(self, parts: Parts, index: int, count: int) -> Parts:
        """The parts of the matrix that is number `index` of them: rows of the `stacked` parts; the `common` add up."""
        return parts

    def suits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape can be stored so."""
        return math.prod(shape) > 0

    def bytes_per_parameter(self, shape: Sequence[int], dtype: torch.dtype) -> float:
        """Bytes of all parts divided by the number of elements."""
        parts = self.shapes(shape, dtype).values()
        return sum(part.itemsize * math.prod(size) for part, size in parts) / max(1, math.prod(shape))

    def decode(self, parts: Parts, base: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Ê, of the base's shape and dtype: in `out`, which is contiguous and may be `base`, or in a new tensor.

        Raises ComposeError when the parts cannot be of such a one.
        """
        wanted = self.shapes(base.shape, base.dtype)
        if parts.keys() != wanted.keys():
            raise ComposeError(f"{self.codec}: has the parts {sorted(parts)}, and needs {sorted(wanted)}")
        for name, (dtype, shape) in wanted.items():
            part = parts[name]
            if part.dtype != dtype or tuple(part.shape) != shape:
                found = f"{tuple(part.shape)} {part.dtype}"
                raise ComposeError(f"{self.codec}: {name} is {found}, and must be {shape} {dtype}")
            if part.is_floating_point() and not bool(part.isfinite().all()):
                raise ComposeError(f"{self.codec}: {name} has numbers that are not finite")
        out = fresh(base) if out is None else out
        self._decode(parts, base, out)
        return out


def fresh(base: torch.Tensor) -> torch.Tensor:
    """A new contiguous tensor like the base, whose content is anything."""
    # numpy asks for huge pages, torch does not: first writes to 4 KiB pages take longer than most codecs.
    room = np.empty(base.nbytes + ALIGNED, np.uint8)
    first = -room.ctypes.data % ALIGNED
    return torch.from_numpy(room[first : first + base.nbytes]).view(base.dtype).view(base.shape)


def rows_of(tensor: torch.Tensor) -> torch.Tensor:
    """[…, K] as [rows, K]."""
    return tensor.reshape(-1, tensor.shape[-1] if tensor.dim() else 1)


def row_count(shape: Sequence[int]) -> tuple[int, int]:
    """(rows, K) of a tensor."""
    return (math.prod(shape[:-1]), shape[-1]) if len(shape) else (1, 1)


@contextmanager
def finite() -> Iterator[None]:
    """Says of what is not finite that only `exact` can store it."""
    try:
        yield
    except NotFinite as error:
        reason = "the difference from the base is not finite everywhere; only the codec exact can store it"
        raise ComposeError(reason) from error


def finite_delta(expert: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """E - B in fp32. Raises ComposeError where that is infinite or NaN: only `exact` can store those."""
    delta = expert.float() - base.float()
    with finite():
        if not bool(delta.isfinite().all()):
            raise NotFinite
    return delta


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors of one dtype are equal bit by bit."""
    return torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))


def norms(first: torch.Tensor, second: torch.Tensor, third: torch.Tensor) -> tuple[float, float]:
    """(‖first - second‖, ‖second - third‖), summed in float64."""
    return distance(first, second), distance(second, third)


def change(expert: torch.Tensor, base: torch.Tensor) -> float:
    """‖E - B‖ / ‖B‖, or ‖E - B‖ where B is zero; NaN or infinite if a tensor has such values."""
    delta, size = distance(expert, base), distance(base)
    return delta / size if size else delta


def error(decoded: torch.Tensor, expert: torch.Tensor, base: torch.Tensor) -> float:
    """‖Ê - E‖ / ‖E - B‖: the share of the change that was lost. 0 when Ê is E bit by bit."""
    if same(decoded, expert):
        return 0.0
    lost, change = norms(decoded, expert, base)
    return lost / change if change else lost
