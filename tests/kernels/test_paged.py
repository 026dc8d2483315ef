"""The paged operators against each token on its own, for odd token counts and every kind of route."""

import pytest
import torch

from layerloom.kernels import Route, by_page, paged_embedding, paged_linear, paged_rms_norm

TOKENS = [1, 3, 17, 129]
PAGES = 5


def route_of(tokens: int, kind: str) -> tuple[list[int], Route]:
    generator = torch.Generator().manual_seed(tokens)
    pages = {
        "one": [3] * tokens,
        "sorted": sorted(torch.randint(0, PAGES, (tokens,), generator=generator).tolist()),
        "mixed": torch.randint(0, PAGES, (tokens,), generator=generator).tolist(),
        "descending": [PAGES - 1 - i * PAGES // tokens for i in range(tokens)],
    }[kind]
    return pages, Route.of(pages)


each_route = pytest.mark.parametrize("kind", ["one", "sorted", "mixed", "descending"])
each_size = pytest.mark.parametrize("tokens", TOKENS)


@each_route
@each_size
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear(tokens, kind, dtype, with_bias):
    pages, route = route_of(tokens, kind)
    x, weight, bias = (torch.randn(*s).to(dtype) for s in ((tokens, 37), (PAGES, 19, 37), (PAGES, 19)))
    found = paged_linear(x, weight, route, bias if with_bias else None)
    exact = torch.stack([weight[p].double() @ row.double() for p, row in zip(pages, x, strict=True)])
    if with_bias:
        exact += bias[pages].double()
    tolerance = 1e-5 if dtype is torch.float32 else 4e-2
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)


@each_route
@each_size
def test_embedding(tokens, kind):
    pages, route = route_of(tokens, kind)
    weight = torch.randn(PAGES, 11, 6)
    ids = torch.arange(tokens) % 11
    expected = torch.stack([weight[p][i] for p, i in zip(pages, ids, strict=True)])
    assert torch.equal(paged_embedding(ids, weight, route), expected)


@each_route
@each_size
@pytest.mark.parametrize("heads", [None, 3])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("unit_offset", [True, False])
def test_rms_norm(tokens, kind, heads, residual, unit_offset):
    pages, route = route_of(tokens, kind)
    shape = (tokens, 24) if heads is None else (tokens, heads, 24)
    x, other = torch.randn(shape), torch.randn(shape)
    weight = torch.randn(PAGES, 24)
    y, z = paged_rms_norm(x, weight, route, 1e-6, other if residual else None, unit_offset)
    total = (x + other if residual else x).double()
    factor = weight[pages].double() + unit_offset
    if heads is not None:
        factor = factor.unsqueeze(1)
    exact = total / (total.square().mean(-1, keepdim=True) + 1e-6).sqrt() * factor
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
    assert (z is None) == (not residual)
    if residual:
        torch.testing.assert_close(z, x + other)


@pytest.mark.parametrize("pages", [[0, 1, 0, 2], [0, 0, 1, 2], [1, 1, 1, 1]])
def test_padding_rows_go_with_the_last_group(pages):
    x = torch.randn(7, 4)
    weight = torch.randn(3, 5, 4)
    found = paged_linear(x, weight, Route.of(pages))
    assert found.shape == (7, 5)
    torch.testing.assert_close(found[:4], paged_linear(x[:4], weight, Route.of(pages)))
    y, _ = paged_rms_norm(x, torch.randn(3, 4), Route.of(pages), 1e-6)
    assert y.shape == x.shape


def test_several_inputs_and_outputs():
    route = Route.of([1, 0, 1])
    a, b = torch.arange(3.0), torch.arange(3.0) * 10
    total, page = by_page(route, lambda page, x, y: (x + y, torch.full_like(x, page)), a, b)
    assert torch.equal(total, a + b)
    assert page.tolist() == [1, 0, 1]


def test_sorted_tokens_are_not_moved():
    assert Route.of([0, 0, 2, 2]).order is None
    assert Route.of([2, 0]).order is not None
    assert Route.of([]).pages == ()
