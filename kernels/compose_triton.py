"""compose on a GPU: one launch for a whole page, whatever the deltas of its matrices are.

A program makes one tile; compose_table.py says of which numbers, and from what. Everything moves as integers, and
becomes a float only where it is added.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl

from . import compose_table
from .compose_table import Table
from .delta import BITS, Delta, Dense
from .floats import product, rounded, widen
from .settings import Variant, every, settings

DENSE, XOR, INT4, INT8, SIGN, FACTORS = (tl.constexpr(1 << i) for i in range(6))
HEAD, FIELDS = tl.constexpr(compose_table.HEAD), tl.constexpr(compose_table.FIELDS)
TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
BLOCK_R = {torch.bfloat16: 32, torch.float16: 32, torch.float32: 16}
"""Depth of a step of b @ a. There are no tensor cores for fp32, and 32 spill."""


def compose_triton(
    out: torch.Tensor, base: torch.Tensor | None, terms: Sequence[tuple[float, list[Delta]]], rest: float
) -> None:
    """`compose_torch` as one launch. The deltas lie on out's device; they need to live until the launch, no longer."""
    if not terms:
        terms, rest = [(1.0, [Dense(base)])] if base is not None else [], 0.0
    if not out.numel():
        return
    ((weight, page), *others) = terms
    copy = weight == 1.0 and not others
    if copy and len(page) == 1 and isinstance(page[0], Dense):
        out.copy_(page[0].values.reshape(-1))
        return
    chosen = settings("compose", out.device)
    table = Table(terms, rest, chosen)
    flat = out.view(BITS[out.element_size()])
    with torch.cuda.device_of(out):
        _compose[(table.tiles,)](
            flat,
            flat if base is None else base.view(flat.dtype),
            table.on(out.device),
            TYPES[out.dtype],
            table.kinds,
            len(terms),
            table.width,
            rest != 0.0,
            copy,
            table.aligned,
            TYPES[table.factor_type],
            chosen.block_m,
            chosen.block_k,
            BLOCK_R[table.factor_type],
            num_warps=chosen.num_warps,
            num_stages=chosen.num_stages,
            enable_fp_fusion=False,
        )


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
def _packed(
    words, scales, in_row, group, row0, row, rows, k, column, origin, plane, lane, from_column, mask,
    BITS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """s·q, [rows, planes, 32] fp32."""
    codes = _codes(words, in_row, row, k, column, plane, lane, from_column, mask, BITS, ALIGNED)
    # 2^23 + code, by its bits; cheaper than a conversion.
    code = codes & ((1 << BITS) - 1) | 0x4B000000
    q = code.to(tl.float32, bitcast=True) - (8388608.0 + (1 << (BITS - 1)))
    if ALIGNED:
        # Groups are made of whole planes.
        column = origin
    groups = (k + group - 1) // group
    at = row * groups + column // group
    scale = tl.load(scales + row0 * groups + at, mask=(row < rows) & (column < k), other=0)
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
        if (PATTERNS & KINDS) == KINDS or (PATTERNS & KINDS and kind <= XOR):
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
            scale = _pointer(scales, tl.int16, ALIGNED)
            delta = tl.zeros([BLOCK_M, PLANES, 32], tl.float32)
            if INT4 & KINDS and kind == INT4:
                delta = _packed(
                    words, scale, in_row, group, row0, row, rows, k, column, origin, plane, lane, from_column, mask,
                    4, ALIGNED,
                )  # fmt: skip
            if INT8 & KINDS and kind == INT8:
                delta = _packed(
                    words, scale, in_row, group, row0, row, rows, k, column, origin, plane, lane, from_column, mask,
                    8, ALIGNED,
                )  # fmt: skip
            if SIGN & KINDS and kind == SIGN:
                codes = _codes(words, in_row, row, k, column, plane, lane, from_column, mask, 1, ALIGNED)
                alpha = tl.load(_pointer(scales, tl.float32, ALIGNED) + row0 + row, mask=row < rows, other=0.0)
                delta = (alpha.to(tl.int32, bitcast=True) ^ (codes << 31)).to(tl.float32, bitcast=True)
            if FACTORS & KINDS and kind == FACTORS:
                b_ptr = _pointer(payload, FACTOR_TYPE, ALIGNED) + row0 * in_row
                a_ptr = _pointer(scales, FACTOR_TYPE, ALIGNED)
                flat = from_column + plane0 * wide + tl.arange(0, BLOCK_K)
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
    """The kernel for each codec beside dense or XORed vectors, for one expert as it is and for a blend of two.

    Left out is what has fewer registers than its neighbour: a lone expert in other dtypes, and fp16 unaligned.
    """
    forms = {"exact": XOR, "int4": INT4, "int8": INT8, "sign": SIGN, "factors": FACTORS}
    for chosen in every("compose", arch):
        for dtype, torch_type in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
            bits = "*i32" if dtype == "fp32" else "*i16"
            for (name, kind), experts, aligned in itertools.product(forms.items(), (1, 2), (True, False)):
                if (experts == 1 and dtype != "bf16") or (not aligned and (experts == 1 or dtype == "fp16")):
                    continue
                constants = {
                    "DTYPE": TYPES[torch_type],
                    "KINDS": (DENSE | XOR | kind).value,
                    "EXPERTS": experts,
                    "SEGMENTS": 16,
                    "REST": experts > 1,
                    "COPY": experts == 1,
                    "ALIGNED": aligned,
                    "FACTOR_TYPE": TYPES[torch_type],
                    "BLOCK_M": chosen.block_m,
                    "BLOCK_K": chosen.block_k,
                    "BLOCK_R": BLOCK_R[torch_type],
                }
                types = {"out_ptr": bits, "base_ptr": bits, "table_ptr": "*i64"}
                label = f"compose {name} x{experts} {dtype}{'' if aligned else ' unaligned'}"
                yield Variant(label, _compose, types, constants, tuple(types) if aligned else ("table_ptr",), chosen)
