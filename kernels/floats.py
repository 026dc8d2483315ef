"""floats: bf16, fp16 and fp32 to fp32 and back, right on a GPU and in Triton's interpreter.

The interpreter holds bf16 as its bit pattern and truncates, or multiplies patterns, where a GPU rounds. So its
bf16 goes through integers here; on a GPU the native conversions are used, which are the same numbers.
"""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def widen(x):
    """Any float as fp32."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """fp32 rounded to `dtype`, to nearest even; a NaN stays one."""
    if INTERPRETED and dtype == tl.bfloat16:
        b = x.to(tl.uint32, bitcast=True)
        r = (b + 0x7FFF + ((b >> 16) & 1)) >> 16
        r = tl.where((b & 0x7FFFFFFF) > 0x7F800000, (b >> 16) | 0x40, r)
        return r.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)


@triton.jit
def product(a, b, total):
    """total + a @ b in fp32; a and b of one dtype."""
    if INTERPRETED and a.dtype == tl.bfloat16:
        return tl.dot(widen(a), widen(b), total, input_precision="ieee")
    return tl.dot(a, b, total, input_precision="ieee")
