"""rows: single rows out of a matrix that vLLM has packed for oneDNN, so that a tied table is in memory once.

Neither vLLM nor oneDNN gives them back, so they are read where vLLM's handler keeps them. Nothing is taken on trust:
the C++ objects are read through the kernel, which answers a wrong address with an error; what is known beforehand must
be found in them; and rows must be the matrix's, bit for bit, before that is let go of. Whatever is otherwise (another
processor, another release, another kind of product) gives no rows, and the caller keeps its matrix.
"""

import ctypes
import os
import platform
from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any, TypeVar

import torch
from vllm import _custom_ops as ops

from layerloom.composer.sources.codecs import same

SIZE = ctypes.c_int64
ENUM = ctypes.c_int32
POINTER = ctypes.c_uint64
DIMS = SIZE * 12

# Values of oneDNN's interface: DNNL_ARG_WEIGHTS, dnnl_blocked, and its data types.
WEIGHTS = 33
BLOCKED = 2
TYPES = {torch.float16: 1, torch.bfloat16: 2, torch.float32: 3}
UNITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

COMPARED = 64
"""Rows that are compared at the beginning, at the end and between, of each table."""


class Handler(ctypes.Structure):
    """vLLM's DNNLMatMulPrimitiveHandler, of a matrix [k, n]; its memories are in an unordered_map, a list of nodes."""

    _fields_ = (
        ("vtable", POINTER),
        ("n", SIZE),
        ("n_stride", SIZE),
        ("k", SIZE),
        ("k_stride", SIZE),
        ("types", ENUM * 2),
        ("buckets", POINTER),
        ("bucket_count", SIZE),
        ("first", POINTER),
        ("count", SIZE),
    )


class Node(ctypes.Structure):
    _fields_ = (("next", POINTER), ("key", ENUM), ("memory", POINTER))


class Memory(ctypes.Structure):
    """oneDNN's dnnl_memory with the dnnl_memory_desc in it; dimensions are k, n."""

    _fields_ = (
        ("vtable", POINTER),
        ("users", ENUM),
        ("engine", POINTER),
        ("desc_users", ENUM),
        ("dim_count", ENUM),
        ("dims", DIMS),
        ("type", ENUM),
        ("padded", DIMS),
        ("offsets", DIMS),
        ("offset", SIZE),
        ("format", ENUM),
        ("strides", DIMS),
        ("block_count", ENUM),
        ("blocks", DIMS),
        ("block_dims", DIMS),
        ("other_formats", SIZE * 3),
        ("extra_flags", SIZE),
        ("extra", SIZE * 15),
        ("storages", POINTER),
        ("storages_end", POINTER),
    )


class Storage(ctypes.Structure):
    """oneDNN's cpu_memory_storage_t."""

    _fields_ = (
        ("unused", POINTER * 2),
        ("engine", POINTER),
        ("more", POINTER * 2),
        ("free", POINTER),
        ("data", POINTER),
    )


Found = TypeVar("Found")


class Unfamiliar(Exception):
    """Something is not as in the releases this was written for (vLLM 0.32.0 with oneDNN 3.x)."""


class PackedRows:
    """The rows of a matrix [N, K] in the memory that `handler` has packed it into, and is kept for."""

    def __init__(self, handler: ops.CPUDNNLGEMMHandler, dtype: torch.dtype, memory: Memory, address: int) -> None:
        self._handler = handler
        self._dtype = dtype
        self._columns = handler.k
        of_column, of_row = digits(memory, 0), digits(memory, 1)
        last, step = of_column[-1]
        # Columns that lie beside each other are read as one number.
        joined = step == 1 and last * dtype.itemsize in UNITS
        joined = joined and all(stride % last == 0 for _, stride in (*of_row, *of_column[:-1]))
        unit = last if joined else 1
        if joined:
            of_column[-1] = (1, unit)
        size = memory.padded[0] * memory.padded[1] * dtype.itemsize
        flat = torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=UNITS[unit * dtype.itemsize])
        places = (*of_row, *of_column)
        self._view = flat.as_strided([size for size, _ in places], [stride // unit for _, stride in places])
        self._blocks = [size for size, _ in of_row[:0:-1]]

    @classmethod
    def of(cls, linear: Callable[..., Any], weight: torch.Tensor) -> "PackedRows | None":
        """The rows of `weight` [N, K] in what the product `linear` has packed of it; None where they cannot be had.

        `linear` is what vLLM's dispatch_cpu_unquantized_gemm leaves in a module.
        """
        for cell in getattr(linear, "__closure__", None) or ():
            if isinstance(cell.cell_contents, ops.CPUDNNLGEMMHandler) and understood(weight.dtype):
                count = weight.shape[0]
                ends = torch.cat((torch.arange(COMPARED), torch.arange(count - COMPARED, count)))
                between = torch.linspace(0, count - 1, COMPARED, dtype=torch.float64).long()
                return rows_of(cell.cell_contents, weight, torch.cat((ends, between)).clamp(0, count - 1))
        return None

    def take(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows [..., K] of ids, int64 [...], below N; a copy."""
        place, inner = ids.flatten(), []
        for size in self._blocks:
            inner.append(place % size)
            place = place // size
        rows = self._view[(place, *reversed(inner))].flatten(1).view(self._dtype)
        return rows[:, : self._columns].contiguous().view(*ids.shape, self._columns)


@cache
def understood(dtype: torch.dtype) -> bool:
    """Whether a matrix of every bit pattern comes back whole; the rows and columns of this one are padded."""
    # Elsewhere (ARM) vLLM may pack a matrix again while it computes, and free the memory it was in.
    if platform.machine() != "x86_64" or dtype not in TYPES:
        return False
    patterns = torch.arange(700 * 100) * 0x9E3779B1
    weight = patterns.to(UNITS[dtype.itemsize]).view(dtype).view(700, 100)
    try:
        handler = ops.create_onednn_mm(weight.t(), 32)
    except RuntimeError:
        return False
    return rows_of(handler, weight, torch.arange(700)) is not None


def rows_of(handler: ops.CPUDNNLGEMMHandler, weight: torch.Tensor, ids: torch.Tensor) -> PackedRows | None:
    """The rows that `handler` has of `weight`, if those of `ids` are found to be the same, bit for bit."""
    try:
        memory, address = locate(handler, weight)
        rows = PackedRows(handler, weight.dtype, memory, address)
    except (Unfamiliar, OSError):
        return None
    return rows if same(rows.take(ids), weight[ids]) else None


def locate(handler: ops.CPUDNNLGEMMHandler, weight: torch.Tensor) -> tuple[Memory, int]:
    """oneDNN's description of the packed `weight`, and its address. Raises Unfamiliar, or OSError."""
    n, k = weight.shape
    owner = read(Handler, handler.handler_tensor.item())
    expect((owner.n, owner.k, handler.n, handler.k) == (n, k, n, k) and 0 < owner.count < 16)
    memory = read(Memory, weights_of(owner))
    expect((memory.dim_count, *memory.dims[:2]) == (2, k, n) and memory.type == TYPES[weight.dtype])
    expect(memory.format == BLOCKED and memory.extra_flags == 0)
    expect(memory.offset == 0 and not any(memory.offsets) and 0 <= memory.block_count <= 12)
    expect(memory.storages_end - memory.storages == ctypes.sizeof(POINTER))
    storage = read(Storage, read(POINTER, memory.storages).value)
    expect(storage.engine == memory.engine)

    # Every number of the padded matrix has a place of its own in as much memory, and nothing else has.
    rest, dense = (*digits(memory, 0), *digits(memory, 1)), 1
    for size, stride in sorted(rest, key=lambda digit: digit[1]):
        expect(size == 1 or stride == dense)
        dense *= size
    expect(dense == memory.padded[0] * memory.padded[1] and memory.padded[0] >= k and memory.padded[1] >= n)
    start, end = storage.data, storage.data + dense * weight.dtype.itemsize
    expect(end <= weight.data_ptr() or weight.data_ptr() + weight.nbytes <= start)
    expect(is_mapped(start, end))
    return memory, start


def weights_of(owner: Handler) -> int:
    """The address of the memory of a handler's weights, which is one of several in a linked list."""
    address = owner.first
    for _ in range(owner.count):
        node = read(Node, address)
        if node.key == WEIGHTS:
            return int(node.memory)
        address = node.next
    raise Unfamiliar


def digits(memory: Memory, dim: int) -> list[tuple[int, int]]:
    """An index of dimension `dim` as a number of several digits: (how many values, their stride), the highest first."""
    found: list[tuple[int, int]] = []
    step = 1
    for block, of in reversed(list(zip(memory.blocks, memory.block_dims, strict=True))[: memory.block_count]):
        expect(block > 0)
        if of == dim:
            found.insert(0, (block, step))
        step *= block
    whole = prod(size for size, _ in found)
    expect(memory.padded[dim] % whole == 0)
    return [(memory.padded[dim] // whole, memory.strides[dim]), *found]


def read(kind: type[Found], address: int) -> Found:
    """What lies at an address of this process. Raises OSError where nothing does."""
    # Opened each time: a forked process would read its parent's.
    file = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        found = os.pread(file, ctypes.sizeof(kind), address)
    except OverflowError as error:
        raise Unfamiliar from error
    finally:
        os.close(file)
    expect(len(found) == ctypes.sizeof(kind))
    return kind.from_buffer_copy(found)


def is_mapped(start: int, end: int) -> bool:
    """Whether this process may read and write every byte from `start` to `end`."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, rights, _ = line.split(maxsplit=2)
            first, after = (int(address, 16) for address in span.split("-"))
            if first <= start < after and rights.startswith("rw"):
                start = after
    return start >= end


def expect(condition: bool) -> None:
    if not condition:
        raise Unfamiliar
