"""compose_table: where everything is that a launch of compose_triton.py reads, as int64 for the device.

    first tile of each run (a power of two of them, ∞ past the last) | 1 - Σw, w₁ … as fp32 bits |
    of each run: start in the page, count, K, where the narrower tile of packed words starts, its words, blocks in
    a row, then of each expert: kind, payload, scales, words in a row (or rank), group (or the fp32 bits of a scale)

A run is what one delta of each expert covers, as rows of K. A tile is BLOCK_M of its rows by one block, of BLOCK_K
columns, or of as many planes of the narrower tile.
"""

import struct
from collections.abc import Iterator, Sequence

import torch

from .delta import Delta, Dense, Factors, Packed, Signs, Xor
from .planar import LANES
from .settings import Settings

DENSE, XOR, INT4, INT8, SIGN, FACTORS = (1 << i for i in range(6))
HEAD, FIELDS = 6, 5
"""Numbers of a run, and of each expert in it."""
ALIKE = 16
"""In an aligned page every start, count and K is a multiple of this many numbers, every address of as many bytes."""


class Table:
    """The numbers, and what a launch is specialised on."""

    def __init__(self, terms: Sequence[tuple[float, list[Delta]]], rest: float, chosen: Settings) -> None:
        pages = [page for _, page in terms]
        self.factor_type = common_type([delta for page in pages for delta in page if isinstance(delta, Factors)])
        self.runs = list(page_runs(pages, self.factor_type, chosen))
        self.width = 1 << max(4, (len(self.runs) - 1).bit_length())
        firsts, self.tiles, self.kinds = [1 << 62] * self.width, 0, 0
        for i, run in enumerate(self.runs):
            firsts[i] = self.tiles
            self.tiles += run.tiles
            for kind in run.experts[::FIELDS]:
                self.kinds |= kind
        self.aligned = all(run.aligned for run in self.runs)
        self.numbers = [*firsts, fp32_bits(rest), *(fp32_bits(w) for w, _ in terms)]
        for run in self.runs:
            self.numbers += run.numbers

    def on(self, device: torch.device) -> torch.Tensor:
        pinned = device.type == "cuda"
        return torch.tensor(self.numbers, dtype=torch.int64, pin_memory=pinned).to(device, non_blocking=True)


class Run:
    """A line of the table."""

    def __init__(self, start: int, deltas: Sequence[Delta], factor_type: torch.dtype, chosen: Settings) -> None:
        self.count = deltas[0].shape[0] * deltas[0].shape[1]
        # Numbers that no delta gives rows of their own are laid in rows as wide as a tile.
        self.k = next((delta.shape[1] for delta in deltas if not isinstance(delta, Dense | Xor)), chosen.block_k)
        self.kept: list[torch.Tensor] = []
        self.full, self.narrow, self.aligned = self.k, LANES, True
        self.experts = [number for delta in deltas for number in self.line(delta, factor_type)]
        self.aligned &= not (start % ALIKE or self.count % ALIKE or self.k % ALIKE) and self.fit_tail(deltas)
        if not self.aligned:
            self.full, self.narrow = self.k, LANES
        planes = cdiv(self.k - self.full, self.narrow)
        across = cdiv(self.full, chosen.block_k) + cdiv(planes * LANES, chosen.block_k)
        self.tiles = cdiv(cdiv(self.count, self.k), chosen.block_m) * across
        self.numbers = [start, self.count, self.k, self.full, self.narrow, across, *self.experts]

    def fit_tail(self, deltas: Sequence[Delta]) -> bool:
        """Finds where the narrower tile of packed words starts; False where some expert is not read plane by plane."""
        packed = [delta for delta in deltas if isinstance(delta, Packed | Signs)]
        tails = {tail(self.k, delta.bits if isinstance(delta, Packed) else 1) for delta in packed}
        if packed:
            self.full, self.narrow = min(tails)
        groups = [delta.group for delta in packed if isinstance(delta, Packed)]
        if self.full == self.k:
            return len(tails) <= 1 and all(group % LANES == 0 for group in groups)
        alone = len(tails) == 1 and not any(isinstance(delta, Factors) for delta in deltas)
        planes = all(group % LANES == self.full % group == group % self.narrow == 0 for group in groups)
        return alone and planes and self.narrow % 8 == 0

    def line(self, delta: Delta, factor_type: torch.dtype) -> tuple[int, int, int, int, int]:
        if isinstance(delta, Dense):
            return DENSE, self.address(delta.values), 0, 0, 0
        if isinstance(delta, Xor):
            return XOR, self.address(delta.pattern), 0, 0, 0
        if isinstance(delta, Factors):
            a, b = self.address(delta.a.to(factor_type)), self.address(delta.b.to(factor_type))
            return FACTORS, b, a, delta.b.shape[1], fp32_bits(delta.scale)
        words, in_row = self.address(delta.words), delta.words.shape[1]
        self.aligned &= in_row % 4 == 0
        if isinstance(delta, Signs):
            return SIGN, words, self.address(delta.scales.float()), in_row, 0
        kind = INT4 if delta.bits == 4 else INT8
        return kind, words, self.address(delta.scales.to(torch.bfloat16)), in_row, delta.group

    def address(self, tensor: torch.Tensor) -> int:
        tensor = tensor.contiguous()
        # A copy made here lives until the launch is queued; afterwards the allocator reuses it in stream order.
        self.kept.append(tensor)
        self.aligned &= tensor.data_ptr() % ALIKE == 0
        return tensor.data_ptr()


def tail(k: int, bits: int) -> tuple[int, int]:
    """Where the narrower tile of a packed row starts, and how many words it has; (K, 32) without one."""
    fields = 32 // bits
    full = k - k % (LANES * fields)
    return full, -(-(k - full) // fields) or LANES


def page_runs(pages: Sequence[list[Delta]], factor_type: torch.dtype, chosen: Settings) -> Iterator[Run]:
    start = 0
    for deltas in zip(*pages, strict=True):
        rows, k = deltas[0].shape
        if rows * k:
            yield Run(start, deltas, factor_type, chosen)
        start += rows * k


def common_type(factors: Sequence[Factors]) -> torch.dtype:
    """The dtype that a and b have in all of them, or fp32, which holds any."""
    found = {tensor.dtype for factor in factors for tensor in (factor.a, factor.b)} or {torch.bfloat16}
    (only,) = found if len(found) == 1 else {torch.float32}
    return only if only in (torch.bfloat16, torch.float16) else torch.float32


def fp32_bits(x: float) -> int:
    (bits,) = struct.unpack("<I", struct.pack("<f", x))
    return int(bits)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)
