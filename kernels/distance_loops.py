"""distance_loops: the compiled loop of `distance`, through numba."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .compose_loops import compiled
from .lanes import LANES, Lanes, copy, floats, load, vector, widen

DOUBLE = ir.DoubleType()
doubles = Lanes("doubles", vector(DOUBLE))


@intrinsic
def nothing(_):
    return doubles(), lambda context, builder, signature, args: ir.Constant(vector(DOUBLE), [0.0] * LANES)


@intrinsic
def with_square(_, total, one, other):
    """total + (one - other)²"""

    def generate(context, builder, signature, args):
        one, other = (builder.fpext(arg, vector(DOUBLE)) for arg in args[1:])
        left = builder.fsub(one, other)
        return builder.fadd(args[0], builder.fmul(left, left))

    return doubles(doubles, floats, floats), generate


@intrinsic
def summed(_, total):
    def generate(context, builder, signature, args):
        found = ir.Constant(DOUBLE, 0.0)
        for lane in range(LANES):
            found = builder.fadd(found, builder.extract_element(args[0], ir.IntType(32)(lane)))
        return found

    return types.float64(doubles), generate


@compiled(kept=True)
def squared(one, other, count, size, like):
    """Σ (one - other)², of two addresses; 0 stands for zeros."""
    total = nothing()
    zeros = np.zeros((3, LANES), np.uint32)
    none, room, second = zeros[0].ctypes.data, zeros[1].ctypes.data, zeros[2].ctypes.data
    for first in range(0, count, LANES):
        a, b = one + first * size, other + first * size
        if count - first < LANES:
            copy(room, a, (count - first) * size)
            a = np.int64(room)
            if other:
                copy(second, b, (count - first) * size)
                b = np.int64(second)
        if not other:
            b = np.int64(none)
        total = with_square(total, widen(load(a, like), like), widen(load(b, like), like))
    # numba drops an array after its last use, and does not see the uses of an address.
    return summed(total) + zeros[0, 0]
