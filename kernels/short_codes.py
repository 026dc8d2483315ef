"""short_codes: what `step_packing` does with vectors of 32 numbers, for numba, in LLVM's IR.

numba's cache looks only at the file of the function that it keeps: after a change here touch step_packing.py.
"""

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .lanes import FP32, I16, I32, LANES, ints, spread, vector
from .shorts import FLAGS, I8, at, every, shorts


@intrinsic
def moves(_, ours, theirs, like):
    """How far patterns are from others, both at addresses."""

    def generate(context, builder, signature, args):
        element = context.get_value_type(like)
        e, b = (builder.load(at(builder, arg, element), align=like.bitwidth // 8) for arg in args[:2])
        return builder.sub(e, b)

    return (ints if like == FP32 else shorts)(types.int64, types.int64, like), generate


@intrinsic
def without_bytes(_, number, count):
    """Without the lowest bytes, but with the sign; not all of them."""

    def generate(context, builder, signature, args):
        element = args[0].type.element
        bits = builder.trunc(builder.mul(args[1], args[1].type(8)), element)
        return builder.ashr(args[0], spread(builder, bits))

    return number(number, types.int64), generate


@intrinsic
def moved(_, number):
    """The mask of those that are not 0."""

    def generate(context, builder, signature, args):
        return builder.bitcast(builder.icmp_signed("!=", args[0], every(0, args[0].type.element)), I32)

    return types.uint32(number), generate


@intrinsic
def without_zero(_, number):
    """1, 2, … as 0, 1, …"""

    def generate(context, builder, signature, args):
        element = args[0].type.element
        more = builder.icmp_signed(">", args[0], every(0, element))
        return builder.sub(args[0], builder.zext(more, vector(element)))

    return number(number), generate


@intrinsic
def too_wide(_, number, width):
    """The mask of those that take more bits, the sign among them."""

    def generate(context, builder, signature, args):
        number, width = args
        element = number.type.element
        if element != I16:
            width = builder.zext(width, vector(element))
        sign = builder.ashr(number, every(element.width - 1, element))
        code = builder.xor(builder.shl(number, every(1, element)), sign)
        return builder.bitcast(builder.icmp_signed("!=", builder.lshr(code, width), every(0, element)), I32)

    return types.uint32(number, shorts), generate


@intrinsic
def only(_, number, mask):
    """0 where the mask is not."""

    def generate(context, builder, signature, args):
        return builder.select(builder.bitcast(args[1], FLAGS), args[0], every(0))

    return shorts(shorts, types.uint32), generate


@intrinsic
def chosen(_, mask, one, other):
    """`one` where the mask is, and `other`."""

    def generate(context, builder, signature, args):
        return builder.select(builder.bitcast(args[0], FLAGS), *args[1:])

    return shorts(types.uint32, shorts, shorts), generate


@intrinsic
def short_of(_, number):
    """The lowest 16 bits."""

    def generate(context, builder, signature, args):
        return args[0] if args[0].type.element == I16 else builder.trunc(args[0], vector(I16))

    return shorts(number), generate


@intrinsic
def bits_of(_, number, width):
    """The lowest bits, fewer than 16."""

    def generate(context, builder, signature, args):
        return builder.and_(args[0], builder.sub(builder.shl(every(1), args[1]), every(1)))

    return shorts(shorts, shorts), generate


@intrinsic
def get_bytes(_, address):
    def generate(context, builder, signature, args):
        return builder.zext(builder.load(at(builder, args[0], I8), align=1), vector(I16))

    return shorts(types.int64), generate


@intrinsic
def put_bytes(_, address, number):
    """The lowest byte of each."""

    def generate(context, builder, signature, args):
        builder.store(builder.trunc(args[1], vector(I8)), at(builder, args[0], I8), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, number), generate


@intrinsic
def squeeze(_, address, source, mask):
    """To an address, one after another, those of LANES bytes where the mask is; LANES bytes there may change."""

    def generate(context, builder, signature, args):
        place, flags = at(builder, args[0], I8), builder.bitcast(args[2], FLAGS)
        found = builder.load(at(builder, args[1], I8), align=1)
        # In memory it is a hundred cycles on some processors; in registers it goes by a name that LLVM may yet change.
        if (19,) <= binding.llvm_version_info < (21,):
            name = f"llvm.experimental.vector.compress.v{LANES}i8"
            kind = ir.FunctionType(vector(I8), [vector(I8), FLAGS, vector(I8)])
            compress = cgutils.get_or_insert_function(builder.module, kind, name)
            builder.store(builder.call(compress, [found, flags, every(0, I8)]), place, align=1)
        else:
            name = f"llvm.masked.compressstore.v{LANES}i8"
            kind = ir.FunctionType(ir.VoidType(), [vector(I8), I8.as_pointer(), FLAGS])
            compress = cgutils.get_or_insert_function(builder.module, kind, name)
            builder.call(compress, [found, builder.bitcast(place, I8.as_pointer()), flags])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.uint32), generate
