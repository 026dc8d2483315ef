"""The paged operators against each token on its own, for odd token counts and every kind of route."""

from itertools import groupby

import pytest
import torch
from paged_cases import KINDS, Arena, close, generator, numbers, routed, slots_of

from layerloom.kernels import Route, by_page, paged_embedding, paged_linear, paged_rms_norm, rms_norm
from layerloom.kernels.assign import assign, buffers
from layerloom.kernels.delta import Factors, Signs
from layerloom.kernels.delta_linear import delta_linear
from layerloom.kernels.planar import pack
from layerloom.kernels.tiles import Rows

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


# Over Tiles and Rows: what the arena engine runs on a CPU.


@pytest.mark.parametrize("kind", KINDS)
@each_size
def test_assign(tokens, kind):
    padding = tokens // 8
    pages = torch.tensor([KINDS[kind][0], KINDS[kind][0][::-1]], dtype=torch.int32)
    slots = slots_of(tokens, kind, padding)
    order, tables = buffers(tokens, *pages.shape)
    assign(slots, pages, order, tables)
    expected = sorted((slot, t) for t, slot in enumerate(slots.tolist()) if slot >= 0)
    assert order[: len(expected)].tolist() == [t for _, t in expected]
    for block, table in tables.items():
        for layer, of_slot in zip(table.tolist(), pages.tolist(), strict=True):
            runs = [(page, len(list(run))) for page, run in groupby(of_slot[slot] for slot, _ in expected)]
            cut, first = [], 0
            for page, length in runs:
                starts = range(first, first + length, block) if page >= 0 else ()
                cut += [[page, start, min(start + block, first + length)] for start in starts]
                first += length
            assert layer == cut + [[-1, 0, 0]] * (len(layer) - len(cut))


def test_buffers_that_do_not_fit():
    slots, pages = torch.zeros(20, dtype=torch.int32), torch.zeros(2, 3, dtype=torch.int32)
    order, tables = buffers(20, 2, 3)
    for bad in (
        (slots, pages[:1], order, tables),
        (slots, pages, order[:19], tables),
        (slots.long(), pages, order, tables),
        (slots, pages, order, {16: tables[16][:, :4]}),
        (slots, pages.repeat(1, 22), order, tables),
    ):
        with pytest.raises(ValueError, match="assign: "):
            assign(*bad)


@pytest.mark.parametrize("kind", KINDS)
@each_size
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_over_tiles(tokens, kind, dtype, with_bias):
    weights, biases = numbers(dtype, 9, 19, 37), numbers(dtype, 9, 19)
    arena, shifts = Arena(list(weights)), Arena([row.clone() for row in biases])
    rows, tiles, pages = routed(tokens, kind, arena.ids, padding=tokens // 8)
    x = numbers(dtype, tokens, 37)
    own = torch.tensor([shifts.ids[max(p, 0)] for p in KINDS[kind][0]], dtype=torch.int32)
    bias = (shifts.view, Rows(rows.slots, own)) if with_bias else ()
    found = paged_linear(x, arena.view, tiles, *bias)
    for t, page in enumerate(pages):
        if page >= 0:
            exact = weights[page].double() @ x[t].double() + (biases[page].double() if with_bias else 0)
            close(found[t], exact, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_page_for_all_is_the_library_product(dtype):
    arena = Arena(list(numbers(dtype, 3, 24, 64)))
    _, tiles, _ = routed(17, "one page", arena.ids)
    x = numbers(dtype, 17, 64)
    assert torch.equal(paged_linear(x, arena.view, tiles), torch.nn.functional.linear(x, arena.view[arena.ids[0]]))


@pytest.mark.parametrize("kind", KINDS)
@each_size
def test_signs_over_tiles(tokens, kind):
    codes = torch.randint(0, 2, (9, 19, 37), generator=generator(37), dtype=torch.int32)
    words, scales = Arena([pack(page, 1) for page in codes]), numbers(torch.float32, 9, 19)
    of_id = torch.full((words.view.shape[0], 19), float("nan"))
    of_id[torch.tensor(words.ids)] = scales
    _, tiles, pages = routed(tokens, kind, words.ids, padding=tokens // 8)
    x, y = numbers(torch.float32, tokens, 37), numbers(torch.float32, tokens, 19)
    exact = y.double()
    for t, page in enumerate(pages):
        if page >= 0:
            exact[t] += ((1 - 2 * codes[page]) * scales[page].unsqueeze(1)).double() @ x[t].double()
    close(delta_linear(y, x, Signs(words.view, of_id, 37), tiles), exact, torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_norm_and_embedding_over_rows(kind):
    weights, tables = numbers(torch.float32, 9, 24), numbers(torch.float32, 9, 11, 24)
    norms, embeddings = Arena([row.clone() for row in weights]), Arena(list(tables))
    x, ids = numbers(torch.float32, 17, 24), torch.arange(17) % 11
    rows, _, pages = routed(17, kind, norms.ids, padding=2)
    y, z = paged_rms_norm(x, norms.view, rows, 1e-6, x)
    table_rows, _, _ = routed(17, kind, embeddings.ids, padding=2)
    found = paged_embedding(ids, embeddings.view, table_rows)
    for t, page in enumerate(pages):
        if page < 0:
            assert not y[t].any() and not z[t].any() and not found[t].any()
            continue
        assert torch.equal(found[t], tables[page, ids[t]])
        torch.testing.assert_close(y[t], rms_norm(x[t], weights[page], 1e-6, x[t])[0])


def test_arguments_that_do_not_fit():
    arena = Arena(list(numbers(torch.float32, 3, 19, 37)))
    rows, tiles, _ = routed(5, "one page", arena.ids)
    x, y = numbers(torch.float32, 5, 37), numbers(torch.float32, 5, 19)
    for call in (
        lambda: paged_linear(x[:, :36], arena.view, tiles),
        lambda: paged_linear(x.bfloat16(), arena.view, tiles),
        lambda: paged_linear(x, arena.view, tiles, accumulate=True),
        lambda: paged_linear(x, arena.view, tiles, out=y[:, :18]),
        lambda: paged_linear(x, [arena.view[1]], tiles),
        lambda: paged_linear(x, arena.view, Route.of([1] * 5), out=y),
        lambda: delta_linear(y, x, Factors(arena.view, arena.view, 0.5), tiles),
        lambda: delta_linear(y, x, Signs(torch.zeros(3, 19, 1, dtype=torch.int32), torch.zeros(3, 19), 37), tiles),
        lambda: paged_rms_norm(x, arena.view[:, 0, :36], rows, 1e-6),
        lambda: paged_embedding(torch.zeros(5, 1), arena.view, rows),
    ):
        with pytest.raises(ValueError, match=r"_linear: |_norm: |_embedding: "):
            call()
