"""paged_linear in Triton's interpreter, against its torch twin and float64; outputs are poisoned before."""

import pytest
import torch
from paged_cases import KINDS, TOKENS, Arena, close, numbers, routed

import layerloom.kernels.settings as launch
from layerloom.kernels import paged_linear
from layerloom.kernels.paged_linear import paged_linear_torch
from layerloom.kernels.settings import EVER, Settings
from layerloom.kernels.tiles import Rows

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.fixture(params=[(16, 64, 64), (64, 32, 32), (128, 64, 32)], ids=str)
def block(request, monkeypatch):
    monkeypatch.setitem(launch.TABLE, "paged_linear", {"default": ((EVER, Settings(*request.param)),)})


def check(tokens, kind, dtype, n, k, bias=None, accumulate=False, padding=0):
    weights, biases = numbers(dtype, 9, n, k), numbers(dtype, 9, n)
    arena, shifts = Arena(list(weights)), Arena([row.clone() for row in biases])
    rows, tiles, pages = routed(tokens, kind, arena.ids, padding)
    x = numbers(dtype, tokens, k)
    before = numbers(dtype, tokens, n) if accumulate else torch.full((tokens, n), float("nan"), dtype=dtype)
    bias_rows, own = None, pages
    if bias == "slot":
        of_slot = torch.tensor([(3 * s + 2) % 9 for s in range(len(rows.pages))])
        of_slot[1] = -1
        ids = [-1 if p < 0 else shifts.ids[p] for p in of_slot.tolist()]
        bias_rows = Rows(rows.slots, torch.tensor(ids, dtype=torch.int32))
        own = [-1 if s < 0 else int(of_slot[s]) for s in rows.slots.tolist()]
    if bias == "page":
        # Weight and bias of a page have one id.
        steps = arena.view.shape[0]
        memory = torch.full((16 * steps + n,), float("nan"), dtype=dtype)
        shifts.view = memory.as_strided((steps, n), (16, 1), 0)
        for i, row in zip(arena.ids, biases, strict=True):
            shifts.view[i] = row
    shift = None if bias is None else shifts.view
    found, twin = before.clone(), before.clone()
    assert paged_linear(x, arena.view, tiles, shift, bias_rows, found, accumulate) is found
    paged_linear_torch(x, arena.view, tiles, shift, bias_rows, twin, accumulate)
    exact = before.double()
    for t, page in enumerate(pages):
        if page < 0:
            assert torch.equal(found[t : t + 1].isnan(), before[t : t + 1].isnan())
            continue
        total = weights[page].double() @ x[t].double()
        if bias is not None and own[t] >= 0:
            total += biases[own[t]].double()
        exact[t] = total + before[t].double() if accumulate else total
    live = torch.tensor(pages) >= 0
    assert torch.equal(found[~live].nan_to_num(), before[~live].nan_to_num())
    close(found[live], exact[live], dtype)
    close(found[live], twin[live], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_shapes_no_tile_divides(tokens, kind, dtype):
    check(tokens, kind, dtype, n=70, k=37, padding=tokens // 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [None, "page", "slot"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_options(block, bias, accumulate, dtype):
    check(33, "holes", dtype, n=40, k=80, bias=bias, accumulate=accumulate, padding=4)


def test_many_tiles(block):
    check(300, "nine", torch.bfloat16, n=64, k=64)


def test_a_new_result():
    arena = Arena(list(numbers(torch.float32, 3, 8, 16)))
    _, tiles, pages = routed(5, "one page", arena.ids)
    x = numbers(torch.float32, 5, 16)
    torch.testing.assert_close(paged_linear(x, arena.view, tiles), x @ arena.view[arena.ids[0]].T)
    assert pages == [0] * 5
