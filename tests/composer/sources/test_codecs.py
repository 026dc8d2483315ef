import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from layerloom.composer import ComposeError
from layerloom.composer.sources.codecs import CODECS, DTYPES, Exact, Int4, Int8, Lowrank, Sign, change, error, smallest
from layerloom.kernels.delta import Packed
from layerloom.kernels.planar import pack, unpack, word_count

BITS = {2: torch.int16, 4: torch.int32}
SHAPES = [(1,), (5,), (128,), (300,), (3, 1), (7, 33), (4, 256), (2, 1100), (3, 5, 130), (0, 4), (4, 0)]


def pair(shape, dtype=torch.bfloat16, seed=0, size=0.01):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator).to(dtype)
    return (base.float() + size * torch.randn(shape, generator=generator)).to(dtype), base


def equal(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_parts(shape, dtype):
    expert, base = pair(shape, dtype)
    for kind in CODECS.values():
        codec = kind()
        if not codec.suits(shape):
            continue
        before = expert.clone(), base.clone()
        codec, parts = codec.encode(expert, base)
        found = {name: (part.dtype, tuple(part.shape)) for name, part in parts.items()}
        assert found == codec.shapes(shape, dtype)
        assert all(part.is_contiguous() for part in parts.values())
        decoded = codec.decode(parts, base)
        assert (decoded.shape, decoded.dtype) == (base.shape, dtype)
        assert equal(before[0], expert) and equal(before[1], base)
        stored = sum(part.nbytes for part in parts.values())
        assert codec.bytes_per_parameter(shape, dtype) * base.numel() == pytest.approx(stored if base.numel() else 0)


def test_exact_keeps_every_pattern_of_16_bits():
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        base = every[torch.randperm(65536, generator=torch.Generator().manual_seed(1))].view(dtype)
        codec, parts = Exact().encode(every.view(dtype), base)
        assert equal(codec.decode(parts, base), every.view(dtype))


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=64))
@settings(max_examples=50, deadline=None)
def test_exact_keeps_patterns_of_32_bits(values):
    odd = [0x7FC00001, 0x7F800001, -(2**31), 0x7F800000, 1, -1]  # NaN payloads, -0.0, infinity, denormal
    expert = torch.tensor(values + odd, dtype=torch.int32).view(torch.float32)
    base = torch.tensor((values + odd)[::-1], dtype=torch.int32).view(torch.float32)
    codec, parts = Exact().encode(expert, base)
    assert equal(codec.decode(parts, base), expert)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_exact_of_several_blocks_is_small_for_a_fine_tune(two_threads):
    expert, base = pair((300, 1000), size=0.002)
    codec, parts = Exact().encode(expert, base)
    assert equal(codec.decode(parts, base), expert)
    assert parts["bytes"].numel() < 0.4 * expert.nbytes
    assert error(codec.decode(parts, base), expert, base) == 0.0


@pytest.mark.parametrize("kind", CODECS.values())
@pytest.mark.parametrize("shape", [(300, 1000), (7, 33)])
def test_decoding_in_the_base_s_place(kind, shape):
    expert, base = pair(shape)
    codec, parts = kind().encode(expert, base)
    wanted, place = codec.decode(parts, base), base.clone()
    assert codec.decode(parts, place, place) is place
    assert equal(place, wanted)


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("k", [1, 31, 32, 33, 127, 128, 257, 1024, 1100])
def test_planar(bits, k):
    codes = torch.randint(0, 1 << bits, (3, k), generator=torch.Generator().manual_seed(k), dtype=torch.int32)
    words = pack(codes, bits)
    assert words.shape == (3, word_count(k, bits)) == (3, -(-k * bits // 32))
    assert torch.equal(unpack(words, k, bits), codes)


def test_planar_fields_are_runs_of_32_columns():
    codes = torch.arange(256, dtype=torch.int32).view(1, -1) % 16
    words = pack(codes, 4)
    for word in (0, 1, 31):
        for field in range(8):
            assert (int(words[0, word]) >> (4 * field)) & 15 == int(codes[0, 32 * field + word])


@pytest.mark.parametrize("codec", [Int4(), Int8(), Int4(group=32)])
@pytest.mark.parametrize("shape", [(6, 300), (2, 3, 128), (97,)])
def test_integers_encode_what_they_decoded_to_the_same(codec, shape):
    for seed, size in enumerate((1e-30, 1e-6, 0.01, 3.0, 1e30)):
        expert, base = torch.zeros(shape), torch.zeros(shape)
        expert = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        _, parts = codec.encode(expert, base)
        _, again = codec.encode(codec.decode(parts, base), base)
        assert all(torch.equal(parts[name], again[name]) for name in parts)


@pytest.mark.parametrize("codec, limit", [(Int8(), 0.01), (Int4(), 0.13), (Sign(), 0.61)])
def test_the_error_is_what_the_codec_allows(codec, limit):
    expert, base = pair((64, 512), torch.float32)
    codec, parts = codec.encode(expert, base)
    assert 0.3 * limit < error(codec.decode(parts, base), expert, base) < limit


def test_integer_errors_are_at_most_half_a_step():
    expert, base = pair((8, 512), torch.float32)
    for codec in (Int4(), Int8()):
        _, parts = codec.encode(expert, base)
        step = parts["scales"].float().repeat_interleave(128, 1)
        # A little more for the largest of a group, whose scale was rounded.
        most = 1 << (codec.bits - 1)
        delta = Packed(parts["words"], parts["scales"], 512, codec.bits, codec.group).delta(slice(None))
        assert bool(((delta - (expert - base)).abs() <= step * (0.5 + most / 256)).all())


def test_sign_is_the_least_squares_scale():
    expert, base = pair((5, 200), torch.float32)
    delta = (expert - base).double()
    codec, parts = Sign().encode(expert, base)
    for row in range(5):
        signs = torch.where(delta[row] < 0, -1.0, 1.0).double().unsqueeze(1)
        solved = torch.linalg.lstsq(signs, delta[row].unsqueeze(1)).solution
        assert float(parts["scales"][row]) == pytest.approx(float(solved), rel=1e-6)
    _, again = codec.encode(codec.decode(parts, torch.zeros(5, 200)), torch.zeros(5, 200))
    assert torch.equal(parts["words"], again["words"]) and torch.equal(parts["scales"], again["scales"])


@pytest.mark.parametrize("shape", [(40, 60), (600, 700)])
def test_lowrank_is_the_best_of_its_rank(shape):
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(shape[0], 8, generator=generator), torch.randn(8, shape[1], generator=generator)
    base = torch.randn(shape, generator=generator)
    expert = base + 0.01 * factors[0] @ factors[1]
    codec, parts = Lowrank(rank=8).encode(expert, base)
    assert error(codec.decode(parts, base), expert, base) < 1e-4
    _, cut = Lowrank(rank=5).encode(expert, base)
    left = torch.linalg.svdvals(expert - base)[5:8].square().sum().sqrt() / (expert - base).norm()
    assert error(Lowrank(rank=5).decode(cut, base), expert, base) == pytest.approx(float(left), rel=1e-3)
    state = torch.random.get_rng_state()
    _, again = Lowrank(rank=8).encode(expert, base)
    assert all(torch.equal(parts[name], again[name]) for name in parts)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_lossy_codecs_refuse_what_is_not_finite(value):
    expert, base = pair((4, 64))
    expert[1, 2] = value
    for codec in (Int4(), Int8(), Sign(), Lowrank()):
        with pytest.raises(ComposeError, match="only the codec exact"):
            codec.encode(expert, base)
    assert smallest(expert, base, 1.0)[0].codec == "exact"


@pytest.mark.parametrize("codec", [Int4(), Sign(), Lowrank(rank=2), Exact()])
def test_wrong_parts_are_refused(codec):
    expert, base = pair((4, 64))
    codec, parts = codec.encode(expert, base)
    name = sorted(parts)[0]
    for wrong in (
        {},
        {**parts, "more": parts[name]},
        {**parts, name: parts[name].double()},
        {**parts, name: parts[name][:-1]},
    ):
        with pytest.raises(ComposeError, match=codec.codec):
            codec.decode(wrong, base)
    for value in (torch.nan, torch.inf):
        if "scales" in parts:
            scales = parts["scales"].clone().fill_(value)
            with pytest.raises(ComposeError, match="scales has numbers that are not finite"):
                codec.decode({**parts, "scales": scales}, base)


def test_steps_that_no_one_packed():
    expert, base = pair((4, 64))
    codec, parts = Exact().encode(expert, base)
    for size in (0, 4, codec.size - 1, codec.size + 4):
        stored = torch.nn.functional.pad(parts["bytes"][:size], (0, max(0, size + -size % 4 - len(parts["bytes"]))))
        stored = torch.nn.functional.pad(stored, (0, -len(stored) % 4))
        with pytest.raises(ComposeError, match="exact: block 0 is malformed"):
            Exact(size=size).decode({"bytes": stored}, base)
    with pytest.raises(ValidationError):
        Exact(size=-1)


def test_auto_takes_the_smallest_within_the_bound():
    expert, base = pair((64, 512), size=0.3)
    found = {bound: smallest(expert, base, bound) for bound in (0.0, 0.05, 0.2, 0.7)}
    assert {bound: codec.codec for bound, (codec, _) in found.items()} == {
        0.0: "exact", 0.05: "int8", 0.2: "int4", 0.7: "sign",
    }  # fmt: skip
    for bound, (codec, parts) in found.items():
        assert error(codec.decode(parts, base), expert, base) <= bound
    thin = base.float() + torch.ones(64, 1) @ torch.linspace(-1, 1, 512).view(1, -1)
    codec, _ = smallest(thin, base.float(), 0.01)
    assert codec == Lowrank(rank=1)


def test_change():
    base = torch.full((4, 4), 2.0)
    assert change(base + 1.0, base) == pytest.approx(0.5)
    assert change(base, torch.zeros(4, 4)) == pytest.approx(8.0)
    assert error(base, base, base) == 0.0
