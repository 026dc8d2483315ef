"""What lossy codecs store, compiled and with torch: the same bits."""

import pytest
import torch

from layerloom.kernels.coding import NotFinite, quantize, take_signs
from layerloom.kernels.dispatch import WORTHWHILE
from layerloom.kernels.distance import distance
from layerloom.kernels.planar import word_count

pytest.importorskip("numba")


def coded(expert, base, bits, group):
    rows, k = expert.shape
    words = torch.empty(rows, word_count(k, bits), dtype=torch.int32)
    if bits == 1:
        scales = torch.empty(rows)
        take_signs(words, scales, expert, base)
    else:
        scales = torch.empty(rows, -(-k // group), dtype=torch.bfloat16)
        quantize(words, scales, expert, base, bits, group)
    return words, scales


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1e-39, 1e-36, 1e-4, 1.0, 1e30])
@pytest.mark.parametrize("shape", [(70, 1000), (64, 1024), (17, 4097), (1, WORTHWHILE)])
def test_compiled_as_with_torch(dtype, size, shape, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator).to(dtype) if size > 1e-30 else torch.zeros(shape, dtype=dtype)
    expert = (base + size * torch.randn(shape, generator=generator)).to(dtype)
    expert[0, :300] = base[0, :300]
    for bits, group in ((8, 128), (4, 128), (8, 32), (4, 100), (1, 1)):
        monkeypatch.delenv("LAYERLOOM_KERNELS", raising=False)
        words, scales = coded(expert, base, bits, group)
        monkeypatch.setenv("LAYERLOOM_KERNELS", "torch")
        wanted, wanted_scales = coded(expert, base, bits, group)
        assert torch.equal(words, wanted) and torch.equal(scales, wanted_scales)


@pytest.mark.parametrize("bits", [8, 4, 1])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite(bits, value):
    expert, base = torch.zeros(300, 1000).bfloat16(), torch.zeros(300, 1000).bfloat16()
    expert[299, 999] = value
    with pytest.raises(NotFinite):
        coded(expert, base, bits, 128)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("count", [0, 5, WORTHWHILE + 1, 3 << 20])
def test_distance(dtype, count):
    one, other = torch.randn(2, count, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert distance(one, other) == pytest.approx(float((one.double() - other.double()).norm()), rel=1e-12)
    assert distance(one) == pytest.approx(float(one.double().norm()), rel=1e-12)
    if count:
        one[count // 2] = torch.inf
        assert distance(one, other) == float("inf")
        one[0] = torch.nan
        assert distance(one) != distance(one)
