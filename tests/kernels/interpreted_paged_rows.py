"""paged_rms_norm and paged_embedding in Triton's interpreter, against their torch twins and float64."""

from itertools import product

import pytest
import torch
from paged_cases import KINDS, TOKENS, Arena, close, numbers, routed

from layerloom.kernels import paged_embedding, paged_rms_norm
from layerloom.kernels.paged_embedding import BLOCK, paged_embedding_torch
from layerloom.kernels.paged_rms_norm import paged_rms_norm_torch

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# A program has one token, so that many of them are once enough.
BATCHES = [*product(TOKENS[:-1], KINDS), (TOKENS[-1], "holes")]


def norms(tokens, kind, dtype, heads, residual, unit_offset, width=24):
    weights = numbers(dtype, 9, width)
    arena = Arena(list(weights))
    rows, _, pages = routed(tokens, kind, arena.ids, padding=tokens // 8)
    # The queries of a fused projection: a view, with keys and values beside it.
    x = numbers(dtype, tokens, 2, heads or 1, width)[:, 0]
    x = x.view(tokens, width) if heads is None else x
    other = numbers(dtype, *x.shape) if residual else None
    found = paged_rms_norm(x, arena.view, rows, 1e-6, other, unit_offset)
    twin = paged_rms_norm_torch(x, arena.view, rows, 1e-6, other, unit_offset)
    live = torch.tensor(pages) >= 0
    total = (x.double() + other.double() if residual else x.double())[live]
    factor = weights[torch.tensor(pages)[live]].double() + unit_offset
    exact = (
        total / (total.square().mean(-1, keepdim=True) + 1e-6).sqrt() * factor.view(-1, *(1,) * (x.dim() - 2), width)
    )
    for y, z in (found, twin):
        close(y[live], exact, dtype)
        assert (y[~live] == 0).all() and y.is_contiguous() and y.shape == x.shape
        assert (z is None) == (not residual)
    close(found[0], twin[0], dtype)
    if residual:
        assert torch.equal(found[1], twin[1])
        assert torch.equal(found[1][live], (x.float() + other.float()).to(dtype)[live])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("unit_offset", [False, True])
@pytest.mark.parametrize("heads", [None, 1, 3])
def test_rms_norm(heads, unit_offset, residual, dtype):
    norms(17, "holes", dtype, heads, residual, unit_offset)


@pytest.mark.parametrize(("tokens", "kind"), BATCHES)
def test_rms_norm_of_tokens(tokens, kind):
    norms(tokens, kind, torch.bfloat16, None, True, False, width=1100)


@pytest.mark.parametrize(("tokens", "kind"), BATCHES)
def test_embedding(tokens, kind):
    embedding(tokens, kind, torch.int64, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
def test_embedding_of_dtypes(integer, dtype):
    embedding(17, "holes", integer, dtype)


def test_embedding_wider_than_a_tile():
    embedding(3, "shared", torch.int64, torch.bfloat16, width=BLOCK + 52)


def embedding(tokens, kind, integer, dtype, width=50):
    weights = numbers(dtype, 9, 11, width)
    arena = Arena(list(weights))
    rows, _, pages = routed(tokens, kind, arena.ids, padding=tokens // 8)
    ids = (torch.arange(tokens) % 11).to(integer)
    ids[0] = 11 if tokens > 1 else 0
    ids[-1] = -1 if tokens > 1 else 0
    expected = torch.zeros(tokens, width, dtype=dtype)
    for t, (page, i) in enumerate(zip(pages, ids.tolist(), strict=True)):
        if page >= 0 and 0 <= i < 11:
            expected[t] = weights[page, i]
    assert torch.equal(paged_embedding(ids, arena.view, rows), expected)
    assert torch.equal(paged_embedding_torch(ids, arena.view, rows), expected)
