"""compose on a GPU: one launch for a whole page, whatever the deltas of its matrices are.

A program makes a tile of one run of the page: BLOCK_M rows of BLOCK_K columns. Which run, and where each expert's
payload lies, it reads from a table of int64 that is written on the host and copied ahead of the launch:

    first tile of each run (SEGMENTS numbers, ∞ past the last) | 1 - Σw, w₁ … as fp32 bits |
    of each run: start in the page, count, K, then of each expert: kind, payload, scales, words in a row (or rank),
    group (or the fp32 bits of a scale)

Everything moves as integers, and becomes a float only where it is added.
"""

import struct
from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl

from .delta import BITS, Delta, Dense, Factors, Packed, Signs, Xor
from .floats import product, rounded, widen
from .planar import LANES
from .settings import Settings, Variant, every, settings

DENSE, XOR, INT4, INT8, SIGN, FACTORS = (tl.constexpr(1 << i) for i in range(6))
ALIKE = 16
"""In an aligned page every start, count and K is a multiple of this many numbers, every address of as many bytes."""
TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
BLOCK_R = 32
HEAD, FIELDS = tl.constexpr(6), tl.constexpr(5)


def compose_triton(
    out: torch.Tensor, base: torch.Tensor | None, terms: Sequence[tuple[float, list[Delta]]], rest: float
) -> None:
    """`compose_torch` as one launch. The deltas must lie on out's device, and live until the launch, no longer."""
    if not terms:
        terms, rest = [(1.0, [Dense(base)])] if base is not None else [], 0.0
    copy = len(terms) == 1 and terms[0][0] == 1.0
    if copy and len(terms[0][1]) == 1 and isinstance(terms[0][1][0], Dense):
        out.copy_(terms[0][1][0].values.reshape(-1))
        return
    if not out.numel():
        return
    chosen = settings("compose", out.device)
    factor_type = common_type([delta for _, page in terms for delta in page if isinstance(delta, Factors)])
    runs = list(page_runs([page for _, page in terms], factor_type, chosen))
    width = 1 << max(4, (len(runs) - 1).bit_length())
    firsts, tiles = [1 << 62] * width, 0
    for i, run in enumerate(runs):
        firsts[i] = tiles
        tiles += run.tiles
    numbers = [*firsts, fp32_bits(rest), *(fp32_bits(w) for w, _ in terms)]
    for run in runs:
        numbers += run.numbers
    table = torch.tensor(numbers, dtype=torch.int64, pin_memory=out.is_cuda).to(out.device, non_blocking=True)
    kinds = 0
    for run in runs:
        for kind in run.experts[:: FIELDS.value]:
            kinds |= kind
    integers = BITS[out.element_size()]
    flat = out.view(integers)
    with torch.cuda.device_of(out):
        _compose[(tiles,)](
            flat,
            flat if base is None else base.view(integers),
            table,
            TYPES[out.dtype],
            kinds,
            len(terms),
            width,
            rest != 0.0,
            copy,
            all(run.aligned for run in runs),
            TYPES[factor_type],
            chosen.block_m,
            chosen.block_k,
            BLOCK_R,
            num_warps=chosen.num_warps,
            num_stages=chosen.num_stages,
            enable_fp_fusion=False,
        )


class Run:
    """Numbers of the page that one delta of each expert covers, as rows of K: a line of the table."""

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
        planes = triton.cdiv(self.k - self.full, self.narrow)
        across = triton.cdiv(self.full, chosen.block_k) + triton.cdiv(planes * LANES, chosen.block_k)
        self.tiles = triton.cdiv(triton.cdiv(self.count, self.k), chosen.block_m) * across
        self.numbers = [start, self.count, self.k, self.full, self.narrow, across, *self.experts]

    def fit_tail(self, deltas: Sequence[Delta]) -> bool:
        """Sets where the narrower tile of packed words starts; False where not all experts can be read plane by plane."""
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
            return DENSE.value, self.address(delta.values), 0, 0, 0
        if isinstance(delta, Xor):
            return XOR.value, self.address(delta.pattern), 0, 0, 0
        if isinstance(delta, Factors):
            a, b = self.address(delta.a.to(factor_type)), self.address(delta.b.to(factor_type))
            return FACTORS.value, b, a, delta.b.shape[1], fp32_bits(delta.scale)
        words, in_row = self.address(delta.words), delta.words.shape[1]
        self.aligned &= in_row % 4 == 0
        if isinstance(delta, Signs):
            return SIGN.value, words, self.address(delta.scales.float()), in_row, 0
        kind = INT4.value if delta.bits == 4 else INT8.value
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
    return only if only in TYPES else torch.float32


def fp32_bits(x: float) -> int:
    (bits,) = struct.unpack("<I", struct.pack("<f", x))
    return int(bits)


@triton.jit
def _float(number):
    """fp32 from its bits in the table."""
    return number.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def _pointer(address, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = address.to(tl.pointer_type(TYPE))
    if ALIGNED:
        # Without this nothing is loaded in vectors.
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _codes(
    words, in_row, row, k, column, plane, lane, from_column, mask, BITS: tl.constexpr, ALIGNED: tl.constexpr
):  # fmt: skip
    """Packed numbers [rows, planes, 32] of the columns; planar.py has the layout."""
    FIELDS: tl.constexpr = 32 // BITS
    if ALIGNED:
        word = tl.multiple_of(from_column // FIELDS, 4) + plane // FIELDS * 32 + lane
        field = plane % FIELDS
    else:
        full = k // (32 * FIELDS) * (32 * FIELDS)
        past = column - full
        narrow = tl.maximum((k - full + FIELDS - 1) // FIELDS, 1)
        word = tl.where(past < 0, column // (32 * FIELDS) * 32 + lane, full // FIELDS + past % narrow)
        field = tl.where(past < 0, column // 32 % FIELDS, past // narrow)
    return tl.load(words + row * in_row + word, mask=mask, other=0) >> (field * BITS)


@triton.jit
def _packed(codes, scales, group, row, rows, k, column, origin, BITS: tl.constexpr, ALIGNED: tl.constexpr):
    """s·q, [rows, planes, 32] fp32."""
    # 2^23 + code, by its bits; cheaper than a conversion.
    code = codes & ((1 << BITS) - 1) | 0x4B000000
    q = code.to(tl.float32, bitcast=True) - (8388608.0 + (1 << (BITS - 1)))
    if ALIGNED:
        # Groups are made of whole planes.
        column = origin
    at = row * ((k + group - 1) // group) + column // group
    scale = tl.load(scales + at, mask=(row < rows) & (column < k), other=0)
    return q * (scale.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _factors(
    a_ptr, b_ptr, rank, rows, k, column, columns,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """b @ a, [rows, columns] fp32."""
    m = tl.arange(0, BLOCK_M)
    r = tl.arange(0, BLOCK_R)
    total = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for r0 in range(0, rank, BLOCK_R):
        b_mask = (m[:, None] < rows) & (r0 + r[None, :] < rank)
        b = tl.load(b_ptr + m[:, None] * rank + r0 + r[None, :], mask=b_mask, other=0.0)
        a_mask = (r0 + r[:, None] < rank) & columns[None, :]
        a = tl.load(a_ptr + (r0 + r[:, None]) * k + column[None, :], mask=a_mask, other=0.0)
        total = product(b, a, total)
    return total


@triton.jit
def _compose(
    out_ptr,
    base_ptr,
    table_ptr,
    DTYPE: tl.constexpr,
    KINDS: tl.constexpr,
    EXPERTS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    REST: tl.constexpr,
    COPY: tl.constexpr,
    ALIGNED: tl.constexpr,
    FACTOR_TYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    # constexpr first: in the interpreter KINDS is an int, which has no & with one.
    PATTERNS: tl.constexpr = DENSE | XOR
    BITS_TYPE: tl.constexpr = out_ptr.dtype.element_ty
    PLANES: tl.constexpr = BLOCK_K // 32
    tile = tl.program_id(0)
    firsts = tl.load(table_ptr + tl.arange(0, SEGMENTS))
    run = tl.sum((firsts <= tile).to(tl.int32), axis=0) - 1
    weights = table_ptr + SEGMENTS
    line = weights + 1 + EXPERTS + run * (HEAD + FIELDS * EXPERTS)
    tile -= tl.load(table_ptr + run).to(tl.int32)
    start = tl.load(line)
    count = tl.load(line + 1)
    k = tl.load(line + 2).to(tl.int32)
    if ALIGNED:
        start = tl.multiple_of(start, 16)
        count = tl.multiple_of(count, 16)
        k = tl.multiple_of(k, 16)
    # Rows are cut into blocks of BLOCK_K columns; those of the narrower tile of packed words are not 32 apart.
    full = tl.load(line + 3).to(tl.int32)
    narrow = tl.load(line + 4).to(tl.int32)
    across = tl.load(line + 5).to(tl.int32)
    if ALIGNED:
        full = tl.multiple_of(full, 16)
        narrow = tl.multiple_of(narrow, 8)
    block = tile % across
    row0 = (tile // across * BLOCK_M).to(tl.int64)
    whole = (full + BLOCK_K - 1) // BLOCK_K
    in_tail = block >= whole
    plane0 = tl.where(in_tail, block - whole, block) * PLANES
    wide = tl.where(in_tail, narrow, 32)
    from_column = tl.where(in_tail, full, 0)
    end = tl.where(in_tail, k, full)
    row = tl.arange(0, BLOCK_M)[:, None, None]
    plane = plane0 + tl.arange(0, PLANES)[None, :, None]
    lane = tl.arange(0, 32)[None, None, :]
    origin = from_column + plane * wide
    column = origin + lane
    skipped = row0 * k
    left = tl.minimum(count - skipped, 1 << 30).to(tl.int32)
    if ALIGNED:
        left = tl.multiple_of(left, 16)
    inside = row * k + column
    mask = (column < end) & (lane < wide) & (inside < left)
    rows = tl.cdiv(left, k)
    page = start + skipped
    if REST or KINDS != DENSE:
        base = tl.load(base_ptr + page + inside, mask=mask, other=0)
    else:
        base = tl.zeros([BLOCK_M, PLANES, 32], BITS_TYPE)
    # x + -0.0 is x for every x, so this is the sum that starts with its first product.
    total = tl.full([BLOCK_M, PLANES, 32], -0.0, tl.float32)
    if REST:
        total = widen(base.to(DTYPE, bitcast=True)) * _float(tl.load(weights))
    for i in tl.static_range(EXPERTS):
        expert = line + HEAD + FIELDS * i
        kind = tl.load(expert)
        payload = tl.load(expert + 1)
        if (PATTERNS & KINDS) == KINDS or ((PATTERNS & KINDS) != 0 and kind <= XOR):
            source = _pointer(payload, BITS_TYPE, ALIGNED) + skipped
            bits = tl.load(source + inside, mask=mask, other=0)
            if XOR & KINDS:
                bits = bits ^ tl.where(kind == XOR, base, 0)
        else:
            scales = tl.load(expert + 2)
            in_row = tl.load(expert + 3)
            extra = tl.load(expert + 4)
            if ALIGNED:
                in_row = tl.multiple_of(in_row, 4)
            words = _pointer(payload, tl.int32, ALIGNED) + row0 * in_row
            in_row = in_row.to(tl.int32)
            group = extra.to(tl.int32)
            delta = tl.zeros([BLOCK_M, PLANES, 32], tl.float32)
            if INT4 & KINDS:
                if kind == INT4:
                    codes = _codes(words, in_row, row, k, column, plane, lane, from_column, mask, 4, ALIGNED)
                    some = _pointer(scales, tl.int16, ALIGNED) + row0 * ((k + group - 1) // group)
                    delta = _packed(codes, some, group, row, rows, k, column, origin, 4, ALIGNED)
            if INT8 & KINDS:
                if kind == INT8:
                    codes = _codes(words, in_row, row, k, column, plane, lane, from_column, mask, 8, ALIGNED)
                    some = _pointer(scales, tl.int16, ALIGNED) + row0 * ((k + group - 1) // group)
                    delta = _packed(codes, some, group, row, rows, k, column, origin, 8, ALIGNED)
            if SIGN & KINDS:
                if kind == SIGN:
                    codes = _codes(words, in_row, row, k, column, plane, lane, from_column, mask, 1, ALIGNED)
                    alpha = tl.load(_pointer(scales, tl.float32, ALIGNED) + row0 + row, mask=row < rows, other=0.0)
                    delta = (alpha.to(tl.int32, bitcast=True) ^ (codes << 31)).to(tl.float32, bitcast=True)
            if FACTORS & KINDS:
                if kind == FACTORS:
                    b_ptr = _pointer(payload, FACTOR_TYPE, ALIGNED) + row0 * in_row
                    flat = from_column + plane0 * wide + tl.arange(0, BLOCK_K)
                    a_ptr = _pointer(scales, FACTOR_TYPE, ALIGNED)
                    delta = _factors(a_ptr, b_ptr, in_row, rows, k, flat, flat < end, BLOCK_M, BLOCK_K, BLOCK_R)
                    delta = tl.reshape(delta, [BLOCK_M, PLANES, 32]) * _float(extra)
            exact = rounded(widen(base.to(DTYPE, bitcast=True)) + delta, DTYPE)
            bits = exact.to(BITS_TYPE, bitcast=True)
        if COPY:
            tl.store(out_ptr + page + inside, bits, mask=mask)
        else:
            total += widen(bits.to(DTYPE, bitcast=True)) * _float(tl.load(weights + 1 + i))
    if not COPY:
        bits = rounded(total, DTYPE).to(BITS_TYPE, bitcast=True)
        tl.store(out_ptr + page + inside, bits, mask=mask)


def variants(arch: str) -> Iterator[Variant]:
    """The kernel for each codec alone and beside dense or XORed vectors, for one expert as it is and for a blend."""
    vectors = DENSE.value | XOR.value
    names = {"exact": XOR, "int4": INT4, "int8": INT8, "sign": SIGN, "factors": FACTORS}
    forms = [(f"{name} {experts}", vectors | kind.value, experts) for name, kind in names.items() for experts in (1, 2)]
    forms += [("dense 2", DENSE.value, 2)]
    for chosen in every("compose", arch):
        for dtype, bits in (("bf16", "i16"), ("fp16", "i16"), ("fp32", "i32")):
            for name, kinds, experts in forms:
                for aligned in (True, False):
                    float_type = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32}[dtype]
                    constants = {
                        "DTYPE": float_type,
                        "KINDS": kinds,
                        "EXPERTS": experts,
                        "SEGMENTS": 16,
                        "REST": experts > 1,
                        "COPY": experts == 1,
                        "ALIGNED": aligned,
                        "FACTOR_TYPE": float_type,
                        "BLOCK_M": chosen.block_m,
                        "BLOCK_K": chosen.block_k,
                        "BLOCK_R": BLOCK_R,
                    }
                    types = {"out_ptr": f"*{bits}", "base_ptr": f"*{bits}", "table_ptr": "*i64"}
                    label = f"compose {name} {dtype}{'' if aligned else ' unaligned'}"
                    yield Variant(
                        label, _compose, types, constants, tuple(types) if aligned else ("table_ptr",), chosen
                    )
