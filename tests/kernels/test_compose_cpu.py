"""The compiled compose against the torch twin: the same bits, but for a NaN's payload."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerloom.kernels import compose
from layerloom.kernels.byte_planes import xor_planes, xor_planes_torch
from layerloom.kernels.compose_torch import compose_torch
from layerloom.kernels.delta import BITS, Dense, Factors, Packed, Signs, Xor
from layerloom.kernels.dispatch import WORTHWHILE, use_numba
from layerloom.kernels.planar import word_count
from layerloom.kernels.threads import shared

pytest.importorskip("numba")
from layerloom.kernels.compose_cpu import compose_compiled

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
WIDTHS = [1, 3, 31, 32, 33, 128, 129, 257, 896, 1023, 1024, 1025, 2348, 4097]
KINDS = ["dense", "xor", "int4", "int8", "signs", "factors"]


WEIGHTS = [1.0, 0.5, 0.3, -0.25, 1e-3]


def bits(tensor):
    return tensor.view(BITS[tensor.element_size()])


def random_words(rows, count, generator):
    return torch.randint(-(2**31), 2**31, (rows, count), generator=generator).to(torch.int32)


def numbers(count, dtype, generator):
    """Mostly ordinary ones, some with any bits there are: NaN, infinities, denormals; and negative zeros."""
    found = torch.randn(count, generator=generator).to(dtype)
    wild = random_words(1, count, generator)[0].to(BITS[dtype.itemsize]).view(dtype)
    pick = torch.rand(count, generator=generator)
    found = torch.where(pick < 0.2, wild, found)
    return torch.where(pick > 0.95, torch.tensor(-0.0, dtype=dtype), found)


def delta(kind, rows, k, dtype, group, generator):
    if kind == "dense":
        return Dense(numbers(rows * k, dtype, generator).view(rows, k))
    if kind == "xor":
        return Xor(bits(numbers(rows * k, dtype, generator)).view(rows, k))
    if kind == "signs":
        return Signs(random_words(rows, word_count(k, 1), generator), torch.rand(rows, generator=generator), k)
    if kind == "factors":
        a, b = torch.randn(3, k, generator=generator), torch.randn(rows, 3, generator=generator)
        return Factors(a.to(dtype), b.to(dtype), 0.7)
    width = int(kind[3])
    scales = torch.randn(rows, -(-k // group), generator=generator).bfloat16()
    return Packed(random_words(rows, word_count(k, width), generator), scales, k, width, group)


def check(dtype, rows, k, kinds, weights, group=128, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = numbers(rows * k, dtype, generator)
    terms = [(w, [delta(kind, rows, k, dtype, group, generator)]) for w, kind in zip(weights, kinds, strict=True)]
    rest = 1.0 - sum(weights)
    wanted, out = torch.full_like(base, 7), torch.full_like(base, 7)
    compose_torch(wanted, base, terms, rest)
    compose_compiled(out, base, terms, rest)
    same = bits(wanted) == bits(out)
    if weights != [1.0] or kinds[0] not in ("dense", "xor"):
        same |= wanted.isnan() & out.isnan()
    assert bool(same.all()), (~same).nonzero()[:5]
    compose_compiled(base, base, terms, rest)
    assert torch.equal(bits(base), bits(out))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", WIDTHS)
def test_alone_and_in_a_blend(dtype, kind, k):
    check(dtype, 3, k, [kind], [1.0])
    check(dtype, 2, k, [kind], [0.3])
    check(dtype, 2, k, [kind, "dense"], [0.5, 0.5])


@settings(max_examples=150, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    rows=st.sampled_from([1, 2, 5, 33]),
    k=st.sampled_from(WIDTHS),
    terms=st.lists(
        st.tuples(st.sampled_from(KINDS), st.sampled_from([1.0, 0.5, 0.3, -0.25, 1e-3])), min_size=1, max_size=5
    ),
    group=st.sampled_from([32, 33, 64, 100, 128, 4096]),
    seed=st.integers(0, 1000),
)
def test_any_mix(dtype, rows, k, terms, group, seed):
    check(dtype, rows, k, [kind for kind, _ in terms], [w for _, w in terms], group, seed)


@pytest.mark.parametrize("kinds", [["dense", "xor"], ["int4"], ["factors", "signs"]])
def test_threads(kinds):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        check(torch.bfloat16, 260, 1025, kinds, [1.0 / len(kinds)] * len(kinds))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rows, k, rank", [(7, 8960, 16), (7, 1536, 300), (4864, 896, 8)])
@pytest.mark.parametrize("kernel", [compose_torch, compose_compiled])
def test_factors_are_one_sum_whatever_the_threads(kernel, rows, k, rank):
    """A BLAS' order of summing hangs on them."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(rank, k, generator=generator), torch.randn(rows, rank, generator=generator)
    before, base, found = torch.get_num_threads(), torch.zeros(rows * k), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(torch.empty_like(base))
            kernel(found[-1], base, [(1.0, [Factors(a, b)])], 0.0)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    torch.testing.assert_close(found[0].view(rows, k), b @ a, rtol=1e-5, atol=1e-4)


def test_deltas_that_follow_each_other():
    generator = torch.Generator().manual_seed(0)
    base = numbers(3 * 130 + 77, torch.bfloat16, generator)
    page = [delta("int4", 3, 130, torch.bfloat16, 64, generator), delta("xor", 1, 77, torch.bfloat16, 64, generator)]
    other = [Dense(numbers(3 * 130, torch.bfloat16, generator)), Dense(numbers(77, torch.bfloat16, generator))]
    for terms, rest in (([(1.0, page)], 0.0), ([(0.25, page), (0.25, other)], 0.5), ([], 1.0)):
        wanted, out = torch.empty_like(base), torch.empty_like(base)
        compose_torch(wanted, base, terms, rest)
        compose_compiled(out, base, terms, rest)
        nan = wanted.isnan() & out.isnan()
        assert bool(((bits(wanted) == bits(out)) | nan).all())


def test_without_a_base():
    generator = torch.Generator().manual_seed(0)
    terms = [(0.5, [Dense(torch.randn(1000, generator=generator))]) for _ in range(3)]
    wanted, out = torch.empty(1000), torch.full((1000,), float("nan"))
    compose_torch(wanted, None, terms[:2], 0.0)
    compose_compiled(out, None, terms[:2], 0.0)
    assert torch.equal(wanted, out)


def test_what_the_kernel_cannot_read_goes_to_torch():
    base, scales = torch.randn(64 * 2), torch.rand(2)
    words = torch.zeros(2, 2, dtype=torch.int32)
    # Scales of another dtype, and words with gaps between them.
    for odd in (Signs(words, scales.double(), 64), Signs(torch.zeros(2, 4, dtype=torch.int32)[:, ::2], scales, 64)):
        out = torch.empty_like(base)
        compose_compiled(out, base, [(1.0, [odd])], 0.0)
        assert torch.equal(out.view(2, 64), base.view(2, 64) + scales[:, None])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [WORTHWHILE, WORTHWHILE + 31])
def test_planes(dtype, count):
    generator = torch.Generator().manual_seed(0)
    base = numbers(count, dtype, generator)
    planes = random_words(1, count, generator).numpy().tobytes()[: count * dtype.itemsize]
    wanted, out = torch.empty_like(base), torch.empty_like(base)
    xor_planes(out, base, planes)
    xor_planes_torch(wanted, base, np.frombuffer(planes, np.uint8))
    assert torch.equal(bits(wanted), bits(out))
    with pytest.raises(ValueError, match="xor_planes"):
        xor_planes(out, base, planes[:-1])


def test_dispatch(monkeypatch):
    large = torch.zeros(WORTHWHILE, dtype=torch.bfloat16)
    assert use_numba(large) and not use_numba(large[1:])
    monkeypatch.setenv("LAYERLOOM_KERNELS", "torch")
    assert not use_numba(large)


def test_without_numba():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import torch; from layerloom.kernels import compose; from layerloom.kernels.byte_planes import xor_planes\n"
        "a = torch.ones(1 << 17); assert torch.equal(compose(torch.empty_like(a), None, [a, a], [0.5, 0.5]), a)\n"
        "xor_planes(torch.empty_like(a), a, bytes(1 << 19))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_shared_covers_the_range_and_raises_the_first_exception():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    done = []
    try:
        shared(lambda part: done.extend(range(part.start, part.stop)), 7)
        with pytest.raises(ZeroDivisionError):
            shared(lambda part: 1 // part.start if part.start == 0 else done.append("no"), 4)
    finally:
        torch.set_num_threads(before)
    assert sorted(done[:7]) == list(range(7))


def test_compose_takes_the_compiled_path():
    a, b = (torch.randn(300, 300).bfloat16() for _ in range(2))
    wanted = torch.empty(90000, dtype=torch.bfloat16)
    compose_torch(wanted, None, [(0.5, [Dense(a)]), (0.5, [Dense(b)])], 0.0)
    assert torch.equal(compose(torch.empty_like(a), None, [a, b], [0.5, 0.5]).view(-1), wanted)
