"""lanes: vectors of 32 numbers for numba, written out in LLVM's IR.

LLVM makes of them what the processor has. Addresses are int64; `like` is a scalar whose type says what is there.
numba's cache looks only at the file of the function that it keeps: after a change here touch compose_loops.py.
"""

import platform
from typing import Any

import numpy as np
import torch
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

# vars() of this object is one of its functions, over which vLLM stumbles when it looks through all modules.
binding.ffi.lib._fntab["__dict__"] = {}

LANES = 32

I16, I32, I64, HALF, FLOAT = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.HalfType(), ir.FloatType()


class Lanes(types.Type):  # type: ignore[misc]
    """LANES numbers in registers."""

    def __init__(self, name: str, vector: ir.VectorType) -> None:
        self.vector = vector
        super().__init__(name)


def vector(element: ir.Type) -> ir.VectorType:
    return ir.VectorType(element, LANES)


ints, floats = Lanes("ints", vector(I32)), Lanes("floats", vector(FLOAT))


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Lanes) -> None:
        super().__init__(manager, kind, kind.vector)


def each(number: int) -> ir.Constant:
    return ir.Constant(vector(I32), [number] * LANES)


def spread(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    nothing = ir.Constant(vector(value.type), ir.Undefined)
    one = builder.insert_element(nothing, value, I32(0))
    return builder.shuffle_vector(one, nothing, each(0))


# A page's numbers travel as bit patterns; `like` is a scalar whose type says what they are.
BF16, FP16, FP32 = types.uint16, types.int16, types.uint32
LIKE = {torch.bfloat16: np.uint16(0), torch.float16: np.int16(0), torch.float32: np.uint32(0)}
# Where the processor has no conversion from and to fp16, LLVM calls functions that are not there.
HAS_HALF = platform.machine() in ("arm64", "aarch64") or bool(binding.get_host_cpu_features().get("f16c"))


@intrinsic
def load(_, address, like):
    """LANES patterns from an address."""

    def generate(context, builder, signature, args):
        element = context.get_value_type(like)
        pointer = builder.inttoptr(args[0], vector(element).as_pointer())
        loaded = builder.load(pointer, align=like.bitwidth // 8)
        return loaded if element == I32 else builder.zext(loaded, vector(I32))

    return ints(types.int64, like), generate


@intrinsic
def store(_, address, pattern, like):
    def generate(context, builder, signature, args):
        element = context.get_value_type(like)
        cut = args[1] if element == I32 else builder.trunc(args[1], vector(element))
        builder.store(cut, builder.inttoptr(args[0], cut.type.as_pointer()), align=like.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(types.int64, ints, like), generate


@intrinsic
def widen(_, pattern, like):
    """Patterns as fp32."""

    def generate(context, builder, signature, args):
        if like == BF16:
            return builder.bitcast(builder.shl(args[0], each(16)), vector(FLOAT))
        if like == FP16:
            half = builder.bitcast(builder.trunc(args[0], vector(I16)), vector(HALF))
            return builder.fpext(half, vector(FLOAT))
        return builder.bitcast(args[0], vector(FLOAT))

    return floats(ints, like), generate


@intrinsic
def rounded(_, number, like):
    """fp32 as patterns, rounded to nearest even; a NaN stays one."""

    def generate(context, builder, signature, args):
        bits = builder.bitcast(args[0], vector(I32))
        if like == BF16:
            high = builder.lshr(bits, each(16))
            half = builder.add(builder.and_(high, each(1)), each(0x7FFF))
            near = builder.lshr(builder.add(bits, half), each(16))
            nan = builder.fcmp_unordered("uno", args[0], args[0])
            return builder.select(nan, builder.or_(high, each(0x40)), near)
        if like == FP16:
            half = builder.fptrunc(args[0], vector(HALF))
            return builder.zext(builder.bitcast(half, vector(I16)), vector(I32))
        return bits

    return ints(floats, like), generate


@intrinsic
def load_floats(_, address):
    def generate(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], vector(FLOAT).as_pointer()), align=4)

    return floats(types.int64), generate


@intrinsic
def store_floats(_, address, numbers):
    def generate(context, builder, signature, args):
        builder.store(args[1], builder.inttoptr(args[0], args[1].type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, floats), generate


@intrinsic
def splat(_, number):
    return floats(types.float32), lambda context, builder, signature, args: spread(builder, args[0])


@intrinsic
def add(_, one, other):
    return floats(floats, floats), lambda context, builder, signature, args: builder.fadd(*args)


@intrinsic
def mul(_, one, other):
    return floats(floats, floats), lambda context, builder, signature, args: builder.fmul(*args)


@intrinsic
def xor(_, one, other):
    return ints(ints, ints), lambda context, builder, signature, args: builder.xor(*args)


@intrinsic
def codes(_, words, field, bits):
    """q of one field of 32 words, as fp32: the code less 2^(bits-1)."""

    def generate(context, builder, signature, args):
        field, bits = (builder.trunc(arg, I32) for arg in args[1:])
        zero = builder.shl(I32(1), builder.sub(bits, I32(1)))
        mask = builder.sub(builder.shl(zero, I32(1)), I32(1))
        shift = spread(builder, builder.mul(field, bits))
        code = builder.and_(builder.lshr(args[0], shift), spread(builder, mask))
        return builder.sitofp(builder.sub(code, spread(builder, zero)), vector(FLOAT))

    return floats(ints, types.int64, types.int64), generate


@intrinsic
def signs(_, words, field, scale):
    """±scale by one field of 32 words of signs: the bit becomes the sign."""

    def generate(context, builder, signature, args):
        up = spread(builder, builder.sub(I32(31), builder.trunc(args[1], I32)))
        minus = builder.and_(builder.shl(args[0], up), each(1 << 31))
        return builder.bitcast(builder.xor(minus, builder.bitcast(args[2], vector(I32))), vector(FLOAT))

    return floats(ints, types.int64, floats), generate


@intrinsic
def peek(_, address, like):
    """One number of the type of `like` from an address."""

    def generate(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], context.get_value_type(like).as_pointer()))

    return like(types.int64, like), generate


@intrinsic
def poke(_, address, value):
    def generate(context, builder, signature, args):
        builder.store(args[1], builder.inttoptr(args[0], args[1].type.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, value), generate


@intrinsic
def copy(_, to, source, count):
    """`count` bytes that do not overlap."""

    def generate(context, builder, signature, args):
        to, source = (builder.inttoptr(arg, ir.IntType(8).as_pointer()) for arg in args[:2])
        cgutils.raw_memcpy(builder, to, source, args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def joined(_, address, stride, width):
    """LANES patterns whose bytes are `stride` apart: 2 where `width` is int16, 4 where it is uint32."""

    def generate(context, builder, signature, args):
        total = None
        for plane in range(width.bitwidth // 8):
            place = builder.add(args[0], builder.mul(args[1], I64(plane)))
            part = builder.load(builder.inttoptr(place, vector(ir.IntType(8)).as_pointer()), align=1)
            part = builder.shl(builder.zext(part, vector(I32)), each(8 * plane))
            total = part if total is None else builder.or_(total, part)
        return total

    return ints(types.int64, types.int64, width), generate


@intrinsic
def bf16(_, pattern):
    """One bf16 as fp32."""

    def generate(context, builder, signature, args):
        return builder.bitcast(builder.shl(builder.zext(args[0], I32), I32(16)), FLOAT)

    return types.float32(types.uint16), generate
