"""delta_linear in Triton's interpreter, against its torch twin and float64."""

from itertools import product

import pytest
import torch
from paged_cases import KINDS, TOKENS, Arena, close, generator, numbers, routed

import layerloom.kernels.settings as launch
from layerloom.kernels.delta import Factors, Packed, Signs
from layerloom.kernels.delta_linear import delta_linear, delta_linear_torch
from layerloom.kernels.planar import pack
from layerloom.kernels.settings import EVER, Settings

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
CODECS = [(8, 128), (4, 128), (4, 32), (4, 64), (8, 48), (4, 1 << 16), (1, 0)]
WIDTHS = [(8, 128), (4, 128), (1, 0)]


@pytest.fixture(params=[(16, 64, 128), (64, 32, 128)], ids=str)
def block(request, monkeypatch):
    monkeypatch.setitem(launch.TABLE, "delta_linear", {"default": ((EVER, Settings(*request.param)),)})


def packed(bits, group, n, k):
    """(The delta with pages in an arena, its ids, Δ̂ of each page in float64)."""
    codes = torch.randint(0, 1 << bits, (9, n, k), generator=generator(bits, n, k), dtype=torch.int32)
    words = Arena([pack(page, bits) for page in codes])
    if bits == 1:
        scales = numbers(torch.float32, 9, n).abs() / k**0.5
        exact = (1 - 2 * codes.double()) * scales.double().unsqueeze(-1)
    else:
        scales = (numbers(torch.float32, 9, n, -(-k // group)).abs() / (1 << bits) / k**0.5 * 4).bfloat16()
        q = codes.double() - (1 << (bits - 1))
        exact = q * scales.double().repeat_interleave(min(group, k), -1)[..., :k]
    # Scales and words of a page have one id.
    ids, flat = words.ids, scales[0].numel()
    memory = torch.full((words.view.shape[0] * 16 + flat,), float("nan"), dtype=scales.dtype)
    view = memory.as_strided((words.view.shape[0], *scales.shape[1:]), (16, *scales[0].stride()), 0)
    assert (ids[0] - ids[1]) * 16 >= flat
    for i, page in zip(ids, scales, strict=True):
        view[i] = page
    delta = Signs(words.view, view, k) if bits == 1 else Packed(words.view, view, k, bits, group)
    return delta, ids, exact


def check(tokens, kind, dtype, codec, n, k, padding=0):
    delta, ids, exact = packed(*codec, n, k)
    _, tiles, pages = routed(tokens, kind, ids, padding)
    x, before = numbers(dtype, tokens, k), numbers(dtype, tokens, n)
    found, twin = before.clone(), before.clone()
    assert delta_linear(found, x, delta, tiles) is found
    delta_linear_torch(twin, x, delta, tiles)
    total = before.double()
    for t, page in enumerate(pages):
        if page >= 0:
            total[t] += exact[page] @ x[t].double()
        else:
            assert torch.equal(found[t], before[t])
    close(found, total, dtype)
    close(twin, total, dtype)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("tokens", "dtype"), [*product(TOKENS, DTYPES[:1]), *product(TOKENS[2:3], DTYPES[1:])])
def test_shapes_no_tile_divides(tokens, dtype, codec):
    check(tokens, "holes", dtype, codec, n=35, k=293, padding=tokens // 8)


# Of the codecs of one number of bits only the scales differ, which know no route.
@pytest.mark.parametrize(
    ("codec", "kind"), [*product(WIDTHS, KINDS), *product(sorted({*CODECS} - {*WIDTHS}), ["nine"])]
)
def test_routes(block, kind, codec):
    check(17, kind, torch.bfloat16, codec, n=64, k=256)


@pytest.mark.parametrize("k", [1, 31, 32, 1024, 1024 + 520])
@pytest.mark.parametrize("codec", WIDTHS)
def test_depths(codec, k):
    check(5, "shared", torch.bfloat16, codec, n=16, k=k)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_factors(tokens, dtype):
    a, b = numbers(dtype, 9, 6, 40), numbers(dtype, 9, 21, 6) / 4
    arena = Arena([torch.cat((p.reshape(-1), q.reshape(-1))) for p, q in zip(a, b, strict=True)])
    steps = arena.view.shape[0]
    delta = Factors(
        arena.memory.as_strided((steps, 6, 40), (16, 40, 1), 3),
        arena.memory.as_strided((steps, 21, 6), (16, 6, 1), 3 + 240),
    )
    _, tiles, pages = routed(tokens, "holes", arena.ids, tokens // 8)
    x, y = numbers(dtype, tokens, 40), numbers(dtype, tokens, 21)
    exact = y.double()
    for t, page in enumerate(pages):
        if page >= 0:
            low = (a[page].double() @ x[t].double()).to(dtype)
            exact[t] += b[page].double() @ low.double()
    close(delta_linear(y, x, delta, tiles), exact, dtype)
