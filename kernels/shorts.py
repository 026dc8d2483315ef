"""shorts: vectors of 32 numbers of 16 bits for numba, in LLVM's IR, as `lanes` has them of 32 bits.

A mask is 32 bits, one a lane. Addresses are int64; `like` is a scalar whose type says what is there (lanes.LIKE).
numba's cache looks only at the file of the function that it keeps: after a change here touch step_loops.py.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .lanes import BF16, FP16, FP32, I16, I32, LANES, Lanes, ints, spread, vector

I8 = ir.IntType(8)
FLAGS = ir.VectorType(ir.IntType(1), LANES)
shorts = Lanes("shorts", vector(I16))


def every(number: int, element: ir.Type = I16) -> ir.Constant:
    return ir.Constant(vector(element), [number] * LANES)


def at(builder: ir.IRBuilder, address: ir.Value, element: ir.Type) -> ir.Value:
    return builder.inttoptr(address, vector(element).as_pointer())


@intrinsic
def short(_, number):
    """One number in every lane."""

    def generate(context, builder, signature, args):
        return spread(builder, builder.trunc(args[0], I16))

    return shorts(types.int64), generate


@intrinsic
def exponents(_, address, like):
    """The exponent fields of LANES floats."""

    def generate(context, builder, signature, args):
        element = context.get_value_type(like)
        pattern = builder.load(at(builder, args[0], element), align=like.bitwidth // 8)
        shift, field = (7, 255) if like == BF16 else (10, 31) if like == FP16 else (23, 255)
        exponent = builder.and_(builder.lshr(pattern, every(shift, element)), every(field, element))
        return exponent if element == I16 else builder.trunc(exponent, vector(I16))

    return shorts(types.int64, like), generate


@intrinsic
def widths(_, exponent, top, low, high, mask):
    """top - exponent, at least `low` and at most `high`; 0 where the mask is."""

    def generate(context, builder, signature, args):
        exponent, top, low, high, mask = args
        width = builder.sub(top, exponent)
        width = builder.select(builder.icmp_signed("<", width, low), low, width)
        width = builder.select(builder.icmp_signed(">", width, high), high, width)
        return builder.select(builder.bitcast(mask, FLAGS), width, every(0))

    return shorts(shorts, shorts, shorts, shorts, types.uint32), generate


@intrinsic
def negative(_, number):
    """The mask of the numbers less than 0."""

    def generate(context, builder, signature, args):
        return builder.bitcast(builder.icmp_signed("<", args[0], every(0)), I32)

    return types.uint32(shorts), generate


@intrinsic
def ones(_, mask):
    """How many."""

    def generate(context, builder, signature, args):
        return builder.zext(builder.ctpop(args[0]), ir.IntType(64))

    return types.int64(types.uint32), generate


@intrinsic
def dealt(_, address, mask):
    """The bytes from an address on, one to each lane of the mask in turn; 0 in the others."""

    def generate(context, builder, signature, args):
        kind = ir.FunctionType(vector(I8), [I8.as_pointer(), FLAGS, vector(I8)])
        name = f"llvm.masked.expandload.v{LANES}i8"
        expand = cgutils.get_or_insert_function(builder.module, kind, name)
        place = builder.inttoptr(args[0], I8.as_pointer())
        found = builder.call(expand, [place, builder.bitcast(args[1], FLAGS), every(0, I8)])
        return builder.zext(found, vector(I16))

    return shorts(types.int64, types.uint32), generate


@intrinsic
def above(_, low, more, shift):
    """low + more · 2^shift"""

    def generate(context, builder, signature, args):
        return builder.or_(args[0], builder.shl(args[1], args[2]))

    return shorts(shorts, shorts, shorts), generate


@intrinsic
def lowest(_, number, width):
    """The lowest bits, of which the first is the sign; 0 of none."""

    def generate(context, builder, signature, args):
        unused = builder.sub(every(16), args[1])
        # A shift by all 16 bits is none in LLVM's eyes, and 15 twice does the same.
        found = builder.ashr(builder.shl(args[0], unused), unused)
        return builder.select(builder.icmp_signed("==", args[1], every(0)), every(0), found)

    return shorts(shorts, shorts), generate


@intrinsic
def rest(_, number, width):
    """Without the lowest bits."""

    def generate(context, builder, signature, args):
        return builder.lshr(*args)

    return shorts(shorts, shorts), generate


@intrinsic
def less_by(_, number, other):
    return shorts(shorts, shorts), lambda context, builder, signature, args: builder.sub(*args)


@intrinsic
def more_at(_, number, mask, by):
    """`by` more where the mask is."""

    def generate(context, builder, signature, args):
        more = builder.select(builder.bitcast(args[1], FLAGS), args[2], every(0))
        return builder.add(args[0], more)

    return shorts(shorts, types.uint32, shorts), generate


@intrinsic
def signed(_, number, like):
    """As many bits as a float has."""

    def generate(context, builder, signature, args):
        element = context.get_value_type(like)
        return args[0] if element == I16 else builder.sext(args[0], vector(element))

    return (ints if like == FP32 else shorts)(shorts, like), generate


@intrinsic
def appended(_, number, low):
    """number · 256 + low"""

    def generate(context, builder, signature, args):
        element = args[0].type.element
        low = args[1] if element == I16 else builder.zext(args[1], vector(element))
        return builder.or_(builder.shl(args[0], every(8, element)), low)

    return number(number, shorts), generate


@intrinsic
def step(_, out, base, number, like):
    """LANES patterns: out = base + number."""

    def generate(context, builder, signature, args):
        element = context.get_value_type(like)
        under = builder.load(at(builder, args[1], element), align=like.bitwidth // 8)
        builder.store(builder.add(under, args[2]), at(builder, args[0], element), align=like.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, number, like), generate


@intrinsic
def poke_cut(_, address, number, like):
    """As many of a number's low bits as a float has, to an address."""

    def generate(context, builder, signature, args):
        element = context.get_value_type(like)
        cut = args[1] if element == args[1].type else builder.trunc(args[1], element)
        builder.store(cut, builder.inttoptr(args[0], element.as_pointer()), align=like.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, like), generate
