"""compose's Triton kernel against its torch twin, bit by bit, and float64; test_interpreted.py runs this file."""

import os
from itertools import product

import pytest
import torch

from layerloom.kernels import compose_triton, planar
from layerloom.kernels.compose import compose
from layerloom.kernels.delta import BITS, Dense, Factors, Packed, Signs, Xor
from layerloom.kernels.dispatch import use_triton
from layerloom.kernels.settings import Settings

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = [BF16, FP16, FP32]
KINDS = ["dense", "xor", "int4", "int8", "sign"]
WIDTHS = [(k, BF16) for k in (1, 3, 31, 100, 257, 1023, 1025, 1300)]
WIDTHS += [(31, FP16), (1300, FP16), (1, FP32), (257, FP32), (1025, FP32)]
GUARD = 64


@pytest.fixture(autouse=True)
def launches(monkeypatch):
    """Every launch, so that a test knows that the kernel ran, and in which of its forms."""
    seen = []

    class Spy:
        def __getitem__(self, grid):
            def launch(*arguments, **options):
                seen.append((grid, dict(zip(KERNEL.arg_names, arguments, strict=True))))
                return KERNEL[grid](*arguments, **options)

            return launch

    monkeypatch.setattr(compose_triton, "_compose", Spy())
    return seen


KERNEL = compose_triton._compose


def delta(kind, rows, k, dtype, seed, group=128, rank=5):
    g = torch.Generator().manual_seed(seed)
    if kind == "dense":
        return Dense(torch.randn(rows, k, generator=g).to(dtype))
    if kind == "xor":
        high = 1 << (8 * dtype.itemsize - 1)
        return Xor(torch.randint(-high, high, (rows, k), generator=g).to(BITS[dtype.itemsize]))
    if kind == "factors":
        a, b = torch.randn(rank, k, generator=g), torch.randn(rows, rank, generator=g)
        return Factors(a.to(dtype), b.to(dtype), 0.37)
    if kind == "sign":
        words = planar.pack(torch.randint(0, 2, (rows, k), generator=g, dtype=torch.int32), 1)
        return Signs(words, torch.rand(rows, generator=g), k)
    bits = int(kind[3:])
    words = planar.pack(torch.randint(0, 1 << bits, (rows, k), generator=g, dtype=torch.int32), bits)
    scales = torch.rand(rows, -(-k // group), generator=g).to(BF16) / (1 << bits)
    return Packed(words, scales, k, bits, group)


def bits(tensor):
    return tensor.view(BITS[tensor.element_size()])


def poisoned(size, dtype):
    """`size` numbers of NaN between guards of the same, and the whole of it."""
    whole = bits(torch.empty(size + 2 * GUARD, dtype=dtype)).fill_(-1).view(dtype)
    return whole[GUARD : GUARD + size], whole


def run(monkeypatch, choice, base, experts, weights, into=None):
    monkeypatch.setenv("LAYERLOOM_KERNELS", choice)
    out, whole = poisoned(base.numel(), base.dtype)
    if into is not None:
        out.copy_(into)
    assert use_triton(out) == (choice == "triton")
    compose(out, base, experts, weights)
    assert bool((bits(whole[:GUARD]) == -1).all() and (bits(whole[GUARD + base.numel() :]) == -1).all())
    return out


def agree(monkeypatch, base, experts, weights):
    """Both twins on these arguments: the same bits, unless what a NaN holds; returns them."""
    found = run(monkeypatch, "triton", base, experts, weights)
    twin = run(monkeypatch, "torch", base, experts, weights)
    both_nan = found.isnan() & twin.isnan()
    assert torch.equal(bits(found).masked_fill(both_nan, 0), bits(twin).masked_fill(both_nan, 0))
    return found


def judge(found, base, experts, weights):
    """The formula in float64: each E is one rounding from it, the sum one more."""
    dtype, eps = found.dtype, torch.finfo(found.dtype).eps
    total, size = (1.0 - sum(weights)) * base.double(), base.double().abs()
    for weight, page in zip(weights, experts, strict=True):
        start = 0
        for part in page:
            rows, k = part.shape
            span = slice(start, start + rows * k)
            under = base[span].view(rows, k)
            plain = isinstance(part, Dense | Xor)
            if isinstance(part, Factors):
                change = part.b.double() @ part.a.double() * part.scale
                # The product is summed in fp32, in an order of its own.
                sums = (part.b.double().abs() @ part.a.double().abs()).reshape(-1)
                size[span] += abs(weight) * sums * torch.finfo(FP32).eps / eps
            elif not plain:
                change = part.delta(slice(0, rows)).double()
            e = part.decode(under, slice(0, rows)).double() if plain else (under.double() + change).to(dtype).double()
            total[span] += weight * e.reshape(-1)
            size[span] += abs(weight) * e.abs().reshape(-1)
            start += rows * k
    fine = total.isfinite() & found.isfinite()
    assert bool(((found.double() - total).abs() <= 2 * eps * size + 1e-6)[fine].all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("k", "dtype"), WIDTHS)
def test_each_codec(monkeypatch, launches, kind, k, dtype):
    rows = 3 if k > 200 else 19
    base = torch.randn(rows * k, generator=torch.Generator().manual_seed(k)).to(dtype)
    if kind == "xor":
        # Patterns that leave numbers finite; all of them are tried below.
        first = [Xor(bits(base) ^ bits(base.roll(1)))]
        second = [Xor(bits(base) ^ bits(base.flip(0)))]
    else:
        first, second = [delta(kind, rows, k, dtype, 1)], [delta(kind, rows, k, dtype, 2)]
    for experts, weights in (([first], [1.0]), ([first, second], [0.6, 0.3])):
        judge(agree(monkeypatch, base, experts, weights), base, experts, weights)
    assert len(launches) == (1 if kind == "dense" else 2)


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1024, 1280, 1536, 1792, 1152])
def test_what_aligned_pages_read_in_vectors(monkeypatch, launches, kind, k, dtype):
    rows = 2
    base = torch.randn(rows * k + 16, generator=torch.Generator().manual_seed(k)).to(dtype)
    page = [delta(kind, rows, k, dtype, 1), delta("dense", 1, 16, dtype, 2)]
    if kind != "xor":
        judge(agree(monkeypatch, base, [page], [0.7]), base, [page], [0.7])
    else:
        agree(monkeypatch, base, [page], [0.7])
    (_, arguments), *more = launches
    assert not more and arguments["ALIGNED"] == (not (kind == "sign" and k == 1152))


@pytest.mark.parametrize("group", [32, 48, 100, 128, 1024, 5000])
@pytest.mark.parametrize("k", [1280 + 192, 300])
def test_groups(monkeypatch, group, k):
    base = torch.randn(3 * k).to(BF16)
    experts = [[delta("int4", 3, k, BF16, 1, group)], [delta("int8", 3, k, BF16, 2, group)]]
    judge(agree(monkeypatch, base, experts, [0.5, 0.5]), base, experts, [0.5, 0.5])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "weights", [(1.0,), (0.1,), (0.5, 0.5), (0.3, 0.9), (0.2, 0.3, 0.5), (1.0, -0.5, 0.25, 0.3), (0.25, 0.25, 0.0, 0.5)]
)
def test_a_page_of_mixed_parts_is_one_launch(monkeypatch, launches, weights, dtype):
    shapes = [(17, 300), (1, 7), (1, 256), (5, 1025), (33, 64), (2, 3), (1, 1)]
    base = torch.randn(sum(rows * k for rows, k in shapes)).to(dtype)
    experts = []
    for i, _ in enumerate(weights):
        kinds = [KINDS[(i + j) % len(KINDS)] for j in range(len(shapes))]
        page = [
            delta(kind, *shape, dtype, 10 * i + j) for j, (kind, shape) in enumerate(zip(kinds, shapes, strict=True))
        ]
        spans = torch.cumsum(torch.tensor([0] + [rows * k for rows, k in shapes]), 0).tolist()
        for j, part in enumerate(page):
            if isinstance(part, Xor):
                own = base[spans[j] : spans[j + 1]]
                page[j] = Xor((bits(own) ^ bits(own.flip(0))).view(shapes[j]))
        experts.append(page)
    judge(agree(monkeypatch, base, experts, weights), base, experts, weights)
    assert len(launches) == 1


@pytest.mark.parametrize("parts", [17, 40])
def test_many_parts(monkeypatch, launches, parts):
    shapes = [(1 + j % 3, 5 + 7 * j) for j in range(parts)]
    base = torch.randn(sum(rows * k for rows, k in shapes)).to(BF16)
    page = [delta(["int4", "sign", "dense"][j % 3], *shape, BF16, j) for j, shape in enumerate(shapes)]
    agree(monkeypatch, base, [page], [1.0])
    assert len(launches) == 1


@pytest.mark.parametrize(
    ("k", "rank", "dtype"),
    [*product([31, 257, 512], [1, 8, 33, 64], [BF16]), *product([257], [1, 33], [FP16, FP32])],
)
def test_factors(monkeypatch, rank, k, dtype):
    rows = 18
    base = torch.randn(rows * k + 48).to(dtype)
    experts = [
        [delta("factors", rows, k, dtype, seed, rank=rank), delta("dense", 1, 48, dtype, seed)] for seed in (1, 2)
    ]
    for some, weights in ((experts[:1], [1.0]), (experts, [0.5, 0.25])):
        found = run(monkeypatch, "triton", base, some, weights)
        judge(found, base, some, weights)
        judge(run(monkeypatch, "torch", base, some, weights), base, some, weights)


def test_factors_of_another_dtype_beside_packed_ones(monkeypatch):
    base = torch.randn(18 * 1536).to(BF16)
    experts = [[delta("factors", 18, 1536, FP32, 1)], [delta("sign", 18, 1536, BF16, 2)]]
    judge(run(monkeypatch, "triton", base, experts, [0.5, 0.5]), base, experts, [0.5, 0.5])


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("kind", [Dense, Xor])
def test_patterns_stay_patterns(monkeypatch, launches, kind, dtype):
    """All of them: signalling NaNs, infinities, subnormals, both zeros; the base's bits turned in every way."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    base, expert = every.view(dtype), every.roll(12345)
    page = [
        kind(part.view(dtype)) if kind is Dense else Xor(part ^ own)
        for part, own in zip(expert.split(40000), every.split(40000), strict=True)
    ]
    found = run(monkeypatch, "triton", base, [page], [1.0])
    assert torch.equal(bits(found), expert) and len(launches) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_are_not_ordinary(monkeypatch, dtype):
    tiny = torch.finfo(dtype).smallest_normal / 2
    odd = torch.tensor(
        [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, tiny, -tiny, torch.finfo(dtype).max], dtype=dtype
    )
    base, expert = odd.repeat_interleave(8), odd.repeat(8)
    agree(monkeypatch, base, [expert], [0.5])
    agree(monkeypatch, base, [base, expert], [0.5, 0.5])
    agree(monkeypatch, base, [[delta("int4", 4, 16, dtype, 3)]], [1.0])
    agree(monkeypatch, base, [[delta("sign", 4, 16, dtype, 3)], expert], [0.5, 0.75])
    zeros = torch.full((8,), -0.0, dtype=dtype)
    assert torch.equal(bits(run(monkeypatch, "triton", zeros, [zeros, zeros], [0.5, 0.5])), bits(zeros))


@pytest.mark.parametrize("kind", [*KINDS, "factors"])
def test_in_place(monkeypatch, kind):
    base = torch.randn(18 * 300).to(BF16)
    page = [delta(kind, 18, 300, BF16, 1)]
    if kind == "xor":
        page = [Xor(bits(base) ^ bits(base.flip(0)))]
    other = torch.randn(18 * 300).to(BF16)
    for weights in ([0.5, 0.25], [1.0, 0.0]):
        expected = run(monkeypatch, "triton", base, [page, other], weights)
        for source in ("base", "expert"):
            monkeypatch.setenv("LAYERLOOM_KERNELS", "triton")
            into = (base if source == "base" else other).clone()
            under, beside = (into, other) if source == "base" else (base, into)
            compose(into, under, [page, beside], weights)
            assert torch.equal(bits(into), bits(expected))


def test_any_tile_gives_the_same(monkeypatch):
    base = torch.randn(40 * 1536).to(BF16)
    experts = [[delta("sign", 40, 1536, BF16, 1)], [delta("dense", 40, 1536, BF16, 2)]]
    for tile in (Settings(16, 64, 128, 4, 1), Settings(64, 64, 256, 8, 1), Settings(16, 64, 1024, 8, 1)):
        monkeypatch.setattr(compose_triton, "settings", lambda *_, tile=tile: tile)
        agree(monkeypatch, base, experts, [0.5, 0.25])


def test_nothing_to_do(monkeypatch, launches):
    empty = torch.empty(0, dtype=BF16)
    compose(empty, empty, [empty], [0.5])
    base = torch.randn(300).to(BF16)
    assert torch.equal(run(monkeypatch, "triton", base, [base + 1], [0.0]), base)
    assert not launches and os.environ["TRITON_INTERPRET"] == "1"
