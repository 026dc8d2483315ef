"""Steps, compiled and in numpy: each reads what the other packed, and refuses what is broken where the other does."""

import ctypes
import mmap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerloom.kernels import step_blocks
from layerloom.kernels.delta import BITS, patterns
from layerloom.kernels.dispatch import WORTHWHILE
from layerloom.kernels.step_blocks import BLOCK, HEAD
from layerloom.kernels.steps import EXPONENTS, Malformed, pack, unpack

pytest.importorskip("numba")

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
KINDS = ["fine-tune", "30%", "1%", "0.1%", "a few rows", "noise", "any bits", "same"]
COUNT = WORTHWHILE + BLOCK + 77


def pair(kind, dtype, count=COUNT):
    generator = torch.Generator().manual_seed(0)
    base, other = (0.02 * torch.randn(2, count, generator=generator)).to(dtype)
    if kind == "noise":
        return other, base
    if kind == "any bits":
        wild = torch.randint(-(2**31), 2**31, (2, count), generator=generator).to(BITS[dtype.itemsize])
        return tuple(wild.view(dtype))
    moved = base + (1e-4 * torch.randn(count, generator=generator)).to(dtype)
    share = {"fine-tune": 1.0, "30%": 0.3, "1%": 0.01, "0.1%": 0.001, "same": 0.0, "a few rows": 0.5}[kind]
    if kind == "a few rows":
        picked = torch.arange(count) % 4096 < 300
    else:
        picked = torch.rand(count, generator=generator) < share
    return torch.where(picked, moved, base), base


def packed_of(expert, base):
    return np.concatenate([np.empty(0, np.uint8), *pack(expert, base)])


def equal(one, other):
    return torch.equal(one.view(BITS[one.element_size()]), other.view(BITS[other.element_size()]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_reads_both(kind, dtype):
    expert, base = pair(kind, dtype)
    by_hand = step_blocks.pack(patterns(expert), patterns(base), *EXPONENTS[dtype])
    for packed in (by_hand, packed_of(expert, base)):
        assert len(packed) <= expert.nbytes + HEAD * -(-COUNT // BLOCK)
        out, place = torch.zeros_like(base), base.clone()
        unpack(out, base, packed)
        unpack(place, place, packed)
        assert equal(out, expert) and equal(place, expert)
        out = torch.zeros_like(base)
        assert step_blocks.unpack(patterns(out), patterns(base), packed, *EXPONENTS[dtype]) == -1
        assert equal(out, expert)


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, BLOCK, BLOCK + 1])
def test_few(count):
    expert, base = pair("fine-tune", torch.bfloat16, count)
    out = torch.zeros_like(base)
    unpack(out, base, packed_of(expert, base))
    assert equal(out, expert)


def test_what_a_fine_tune_takes():
    sizes = {kind: len(packed_of(*pair(kind, torch.bfloat16))) / (2 * COUNT) for kind in KINDS}
    assert sizes["fine-tune"] < 0.24 and sizes["30%"] < 0.13 and sizes["1%"] < 0.015
    assert sizes["same"] < 0.001 and sizes["any bits"] < 1.001


class Fenced:
    """Bytes behind which, and before whose page, nothing may be read: the process would end."""

    def __init__(self):
        self.memory = mmap.mmap(-1, 1 << 20)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.end = (1 << 20) - mmap.PAGESIZE
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + self.end), mmap.PAGESIZE, 0) == 0

    def put(self, content):
        placed = np.frombuffer(self.memory, np.uint8, len(content), self.end - len(content))
        placed[:] = content
        return placed


@pytest.fixture(scope="module")
def fence():
    return Fenced()


def starts(packed, count, size):
    """Where the blocks start."""
    found = [0]
    for first in range(0, count, BLOCK):
        some = min(BLOCK, count - first)
        head = packed[found[-1] : found[-1] + HEAD].astype(int)
        coded, near, far = head[6::2] + 256 * head[7::2]
        mask = head[1] * 4 * -(-some // 32)
        found.append(int(found[-1] + HEAD + head[0] * some + mask + coded + 2 * near + (1 + size) * far))
    return found[:-1]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_broken_bytes(fence, data):
    dtype = data.draw(st.sampled_from(DTYPES[1:]))
    expert, base = pair(data.draw(st.sampled_from(KINDS)), dtype)
    packed = bytearray(packed_of(expert, base))
    heads = starts(np.frombuffer(packed, np.uint8), COUNT, dtype.itemsize)
    for _ in range(data.draw(st.integers(1, 3))):
        what = data.draw(st.sampled_from(["head", "head", "any", "last", "cut", "add"]))
        place = data.draw(st.integers(0, len(packed) - 1))
        if what == "cut":
            del packed[place : place + data.draw(st.integers(1, 9))]
        elif what == "add":
            packed[place:place] = data.draw(st.binary(min_size=1, max_size=9))
        elif what == "last":
            packed[-1 - place % min(16, len(packed))] = data.draw(st.integers(0, 255))
        else:
            if what == "head":
                place = min(len(packed) - 1, data.draw(st.sampled_from(heads)) + data.draw(st.integers(0, HEAD - 1)))
            packed[place] = data.draw(st.integers(0, 255))
    stored = fence.put(np.frombuffer(packed, np.uint8))
    wanted, out = torch.zeros_like(base), torch.zeros_like(base)
    wrong = step_blocks.unpack(patterns(wanted), patterns(base), stored, *EXPONENTS[dtype])
    try:
        unpack(out, base, stored)
    except Malformed as error:
        assert wrong >= 0, error
    else:
        assert wrong == -1 and equal(out, wanted)
