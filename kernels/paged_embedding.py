"""paged_embedding: a table look-up whose table depends on the token."""

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl

from .dispatch import use_triton
from .paged_rms_norm import page_of
from .route import Route, by_page
from .settings import Settings, Variant
from .tiles import Rows

BLOCK = 2048


def paged_embedding(
    ids: torch.Tensor, weight: torch.Tensor | Sequence[torch.Tensor], route: Route | Rows
) -> torch.Tensor:
    """y[t] = weight[page(t)][ids[t]].

    ids [tokens] int32 or int64, weight [pages, vocabulary, H] (with a Route also a sequence of [vocabulary, H]);
    y [tokens, H] in the weight's dtype. With Rows the weight is a view of an arena, with any stride between pages and
    rows; padding, tokens whose page is negative and ids outside the vocabulary have zeros. Raises ValueError for
    arguments that do not fit.
    """
    if isinstance(route, Route):

        def run(page: int, rows: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.embedding(rows, weight[page])

        y: torch.Tensor = by_page(route, run, ids)
        return y
    if not isinstance(weight, torch.Tensor) or weight.dim() != 3 or ids.dim() != 1:
        raise ValueError("paged_embedding: with Rows, ids is [tokens] and weight [pages, vocabulary, H]")
    if weight.stride(2) != 1 and weight.shape[2] > 1:
        raise ValueError("paged_embedding: the rows of weight are contiguous")
    return (paged_embedding_triton if use_triton(weight) else paged_embedding_torch)(ids, weight, route)


def paged_embedding_torch(ids: torch.Tensor, weight: torch.Tensor, rows: Rows) -> torch.Tensor:
    page = page_of(rows)[: ids.shape[0]]
    known = (page >= 0) & (ids >= 0) & (ids < weight.shape[1])
    return weight[page.where(known, 0), ids.where(known, 0)].where(known.unsqueeze(-1), 0)


def paged_embedding_triton(ids: torch.Tensor, weight: torch.Tensor, rows: Rows) -> torch.Tensor:
    _, vocabulary, width = weight.shape
    y = torch.empty(ids.shape[0], width, dtype=weight.dtype, device=weight.device)
    if y.numel() == 0:
        return y
    block = min(BLOCK, triton.next_power_of_2(width))
    _paged_embedding[(ids.shape[0], triton.cdiv(width, block))](
        ids,
        weight,
        y,
        rows.slots,
        rows.pages,
        vocabulary,
        width,
        ids.stride(0),
        weight.stride(0),
        weight.stride(1),
        BLOCK=block,
        num_warps=4,
    )
    return y


@triton.jit
def _paged_embedding(
    ids_ptr, w_ptr, y_ptr, slots_ptr, pages_ptr, vocabulary, width, id_stride, w_page, w_row, BLOCK: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(slots_ptr + token)
    page = tl.where(slot >= 0, tl.load(pages_ptr + tl.maximum(slot, 0)), -1).to(tl.int64)
    row = tl.load(ids_ptr + token * id_stride).to(tl.int64)
    known = (page >= 0) & (row >= 0) & (row < vocabulary)
    read = column < tl.where(known, width, 0)
    numbers = tl.load(w_ptr + page * w_page + row * w_row + column, mask=read, other=0.0)
    tl.store(y_ptr + token * width + column, numbers, mask=column < width)


def variants(arch: str) -> Iterator[Variant]:
    pointers = ("ids_ptr", "w_ptr", "y_ptr", "slots_ptr", "pages_ptr")
    sizes = ("vocabulary", "width", "w_page", "w_row")
    for dtype, ids in (("bf16", "i32"), ("bf16", "i64"), ("fp16", "i64"), ("fp32", "i64")):
        types = dict.fromkeys(pointers, "*i32") | {"ids_ptr": f"*{ids}", "w_ptr": f"*{dtype}", "y_ptr": f"*{dtype}"}
        types |= dict.fromkeys(sizes, "i32")
        yield Variant(
            f"paged_embedding {dtype} {ids}",
            _paged_embedding,
            types,
            {"id_stride": 1, "BLOCK": BLOCK},
            (*pointers, *sizes),
            Settings(1, BLOCK, 0, 4, 3),
        )
