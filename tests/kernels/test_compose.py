"""compose against the formula worked out in float64 and rounded once, and bit by bit where no float is allowed."""

import pytest
import torch

from layerloom.kernels import compose
from layerloom.kernels.compose_torch import CHUNK

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SIZES = [1, 17, CHUNK - 1, CHUNK + 3]


def bits(tensor):
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.25, 0.5), (0.3, 0.3, 0.4), (0.1,)])
def test_blend(dtype, size, weights):
    generator = torch.Generator().manual_seed(size)
    base, *experts = (torch.randn(size, generator=generator).to(dtype) for _ in range(1 + len(weights)))
    out = compose(torch.empty_like(base), base, experts, weights)
    rest = 1.0 - sum(weights)
    exact = rest * base.double() + sum(w * e.double() for w, e in zip(weights, experts, strict=True))
    # One fp32 sum and one rounding: at most one unit in the last place from the exact sum's rounding.
    torch.testing.assert_close(out.double(), exact.to(dtype).double(), rtol=torch.finfo(dtype).eps, atol=1e-6)
    fp32 = None
    for weight, source in [(rest, base)] * (rest != 0.0) + list(zip(weights, experts, strict=True)):
        term = source.float() * weight
        fp32 = term if fp32 is None else fp32 + term
    assert torch.equal(bits(out), bits(fp32.to(dtype)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_expert_never_becomes_a_float(dtype):
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    out = compose(torch.zeros_like(patterns), None, [patterns], [1.0])
    assert torch.equal(bits(out), bits(patterns))
    alone = compose(torch.zeros_like(patterns), patterns, [patterns + 1], [0.0])
    assert torch.equal(bits(alone), bits(patterns))


def test_no_base_is_read_when_it_has_no_share():
    poison = torch.full((8,), float("nan"), dtype=torch.bfloat16)
    a, b = torch.ones(8, dtype=torch.bfloat16), torch.zeros(8, dtype=torch.bfloat16)
    assert torch.equal(compose(torch.empty_like(a), poison, [a, b], [0.5, 0.5]), a / 2)


def test_negative_zero_survives_a_sum():
    zeros = torch.full((4,), -0.0, dtype=torch.bfloat16)
    assert torch.equal(bits(compose(torch.empty_like(zeros), None, [zeros, zeros], [0.5, 0.5])), bits(zeros))


def test_out_may_be_an_input():
    a, b = torch.randn(1000), torch.randn(1000)
    expected = compose(torch.empty_like(a), None, [a, b], [0.5, 0.5])
    assert torch.equal(compose(a, None, [a, b], [0.5, 0.5]), expected)


def test_arguments_that_do_not_fit():
    a = torch.zeros(4)
    with pytest.raises(ValueError, match="2 experts but 1 weights"):
        compose(a, None, [a, a], [1.0])
    with pytest.raises(ValueError, match="the base is needed"):
        compose(a, None, [a], [0.5])
    with pytest.raises(ValueError, match="source is"):
        compose(a, None, [torch.zeros(5)], [1.0])
    with pytest.raises(ValueError, match="source is"):
        compose(a, None, [a.to(torch.bfloat16)], [1.0])


@pytest.mark.parametrize("weights", [(0.7, 0.2, 0.1), (0.1, 0.2, 0.7), (1 / 3, 1 / 3, 1 / 3)])
def test_decimals_that_miss_one_by_a_bit_leave_nothing_for_the_base(weights):
    """Which then is not needed; its infinities would be everywhere."""
    experts = [torch.randn(1000, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in range(3)]
    wanted = compose(torch.empty(1000, dtype=torch.bfloat16), None, experts, weights)
    base = torch.full((1000,), torch.inf).bfloat16()
    assert torch.equal(compose(torch.empty_like(base), base, experts, weights), wanted)
    assert bool(wanted.isfinite().all())
