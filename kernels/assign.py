"""assign: the tokens of a step sorted by slot, and the tiles of every layer, written into buffers of fixed size."""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from .dispatch import use_triton
from .settings import Settings, Variant
from .tiles import BLOCKS

TOKENS = 4096
"""Tokens that a program looks at together."""
CHUNK = 64
"""Tiles that a program writes."""
MOST_SLOTS = 64


def assign(slots: torch.Tensor, pages: torch.Tensor, order: torch.Tensor, tables: dict[int, torch.Tensor]) -> None:
    """Fills `order` and `tables` as tiles.Tiles describes them, for every layer; nothing comes back to the host.

    slots [T] int32: the slot of each token, anything outside [0, V) for padding. pages [L, V] int32: the page of each
    slot at each layer, negative where it has none. order [≥ T] int32: the tokens sorted by slot, stable, padding left
    out; what follows them is unspecified. tables[block] [L, tiles, 3] int32, contiguous, with at least
    ceil(T / block) + V tiles. At each layer consecutive slots with one page are one group, across slots without
    tokens, and a group is cut into tiles of `block` rows. V is at most 64. Raises ValueError for buffers that do not
    fit.
    """
    tokens, (layers, count) = slots.shape[0], pages.shape
    if not 0 < count <= MOST_SLOTS:
        raise ValueError(f"assign: {count} slots, and there may be 1 to {MOST_SLOTS}")
    if order.shape[0] < tokens:
        raise ValueError(f"assign: order has room for {order.shape[0]} of {tokens} tokens")
    for block, table in tables.items():
        least = -(-tokens // block) + count
        if table.shape[0] != layers or table.shape[1] < least or table.shape[2:] != (3,) or not table.is_contiguous():
            raise ValueError(
                f"assign: the table of {block} rows is {tuple(table.shape)}, and must be contiguous and at least "
                f"{(layers, least, 3)}"
            )
    for tensor in (slots, pages, order, *tables.values()):
        if tensor.dtype != torch.int32:
            raise ValueError(f"assign: a buffer is {tensor.dtype}, and must be int32")
    (assign_triton if use_triton(slots) else assign_torch)(slots, pages, order, tables)


def buffers(
    tokens: int, layers: int, slots: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """`order` and `tables` for steps of up to so many tokens, of a step without any."""
    order = torch.zeros(tokens, dtype=torch.int32, device=device)
    empty = torch.tensor((-1, 0, 0), dtype=torch.int32, device=device)
    return order, {block: empty.repeat(layers, -(-tokens // block) + slots, 1) for block in BLOCKS}


def assign_torch(
    slots: torch.Tensor, pages: torch.Tensor, order: torch.Tensor, tables: dict[int, torch.Tensor]
) -> None:
    """`assign` on the CPU: it waits for values."""
    count = pages.shape[1]
    slots = torch.where((slots >= 0) & (slots < count), slots, count)
    order[: slots.shape[0]] = slots.argsort(stable=True)
    sizes = slots.bincount(minlength=count + 1)[:count]
    live = sizes.nonzero().view(-1)
    if live.numel() == 0:
        for table in tables.values():
            table.copy_(table.new_tensor((-1, 0, 0)))
        return
    ends = sizes[live].cumsum(0)
    starts, total = ends - sizes[live], int(ends[-1])
    pages = pages[:, live]
    new_group = torch.ones_like(pages, dtype=torch.bool)
    torch.ne(pages[:, 1:], pages[:, :-1], out=new_group[:, 1:])
    # A group ends where the next one starts, whether or not that one has a page.
    following = torch.full_like(pages, total)
    following[:, :-1] = torch.where(new_group[:, 1:], starts[1:], total)
    group_ends = following.flip(1).cummin(1).values.flip(1)
    rows = torch.where(new_group & (pages >= 0), group_ends - starts, 0)
    for block, table in tables.items():
        tiles = (rows + (block - 1)) // block
        last = tiles.cumsum(1)
        used = int(last[:, -1].max())
        index = torch.arange(used).expand(pages.shape[0], -1).contiguous()
        group = torch.searchsorted(last, index, right=True).clamp_(max=live.numel() - 1)
        first = starts[group] + (index - (last - tiles).gather(1, group)) * block
        found = torch.stack(
            (pages.gather(1, group), first, torch.minimum(first + block, group_ends.gather(1, group))), dim=2
        )
        inside = (index < last[:, -1:]).unsqueeze(2)
        empty = table.new_tensor((-1, 0, 0))
        table[:, :used] = torch.where(inside, found, empty)
        table[:, used:] = empty


def assign_triton(
    slots: torch.Tensor, pages: torch.Tensor, order: torch.Tensor, tables: dict[int, torch.Tensor]
) -> None:
    """`assign` on a GPU: one launch that sorts, one for each block size."""
    tokens, (layers, count) = slots.shape[0], pages.shape
    ends = torch.empty(count, dtype=torch.int32, device=slots.device)
    most = min(TOKENS, max(32, triton.next_power_of_2(tokens)))
    _sort[(count,)](slots, order, ends, tokens, most, num_warps=8 if most == TOKENS else 4)
    for block, table in tables.items():
        tiles = table.shape[1]
        _tables[(triton.cdiv(tiles, CHUNK), layers)](
            pages, ends, table, count, tiles, pages.stride(0), pages.stride(1), block, MOST_SLOTS, CHUNK, num_warps=4
        )


@triton.jit
def _sort(slots_ptr, order_ptr, ends_ptr, tokens, BLOCK: tl.constexpr):
    """A program for each slot: counts the tokens before its own, then ranks its own."""
    slot = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    before = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, tokens, BLOCK):
        slots = tl.load(slots_ptr + start + lane, mask=start + lane < tokens, other=-1)
        before += ((slots >= 0) & (slots < slot)).to(tl.int32)
    position = tl.sum(before)
    for start in range(0, tokens, BLOCK):
        slots = tl.load(slots_ptr + start + lane, mask=start + lane < tokens, other=-1)
        ours = (slots == slot).to(tl.int32)
        tl.store(order_ptr + position + tl.cumsum(ours) - 1, start + lane, mask=ours == 1)
        position += tl.sum(ours)
    tl.store(ends_ptr + slot, position)


@triton.jit
def _tables(
    pages_ptr,
    ends_ptr,
    table_ptr,
    count,
    tiles,
    layer_stride,
    slot_stride,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """A program for each layer and CHUNK tiles of its table; every one of them finds the layer's groups."""
    layer = tl.program_id(1)
    slot = tl.arange(0, SLOTS)
    real = slot < count
    end = tl.load(ends_ptr + slot, mask=real, other=0)
    start = tl.load(ends_ptr + slot - 1, mask=real & (slot > 0), other=0)
    page = tl.load(pages_ptr + layer * layer_stride + slot * slot_stride, mask=real, other=-1)
    live = real & (end > start)
    total = tl.max(end)

    # Pairs (slot, other): the one before it that has tokens, and where the next group starts.
    other = slot[None, :]
    earlier = live[None, :] & (other < slot[:, None])
    previous = tl.max(tl.where(earlier, other, -1), axis=1)
    previous_page = tl.sum(tl.where(other == previous[:, None], page[None, :], 0), axis=1)
    new_group = live & ((previous < 0) | (page != previous_page))
    later = new_group[None, :] & (other > slot[:, None])
    group_end = tl.min(tl.where(later, start[None, :], total), axis=1)
    here = tl.where(new_group & (page >= 0), (group_end - start + ROWS - 1) // ROWS, 0)
    last = tl.cumsum(here)

    index = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    skipped = index[:, None] - (last - here)[None, :]
    mine = (skipped >= 0) & (skipped < here[None, :])
    first = tl.sum(tl.where(mine, start[None, :] + skipped * ROWS, 0), axis=1)
    until = tl.sum(tl.where(mine, group_end[None, :], 0), axis=1)
    # One more, so that a tile that no group claims sums to -1.
    found = tl.sum(tl.where(mine, page[None, :] + 1, 0), axis=1) - 1
    into = table_ptr + (layer * tiles + index) * 3
    inside = index < tiles
    tl.store(into, found, mask=inside)
    tl.store(into + 1, first, mask=inside)
    tl.store(into + 2, tl.minimum(first + ROWS, until), mask=inside)


def variants(arch: str) -> Iterator[Variant]:
    for most, warps in ((64, 4), (TOKENS, 8)):
        types = {"slots_ptr": "*i32", "order_ptr": "*i32", "ends_ptr": "*i32", "tokens": "i32"}
        aligned = ("slots_ptr", "order_ptr", "ends_ptr")
        yield Variant(
            f"assign sort {most}", _sort, types, {"BLOCK": most}, aligned, Settings(num_warps=warps, num_stages=3)
        )
    for rows in (16, 128):
        types = {"pages_ptr": "*i32", "ends_ptr": "*i32", "table_ptr": "*i32"}
        types |= dict.fromkeys(("count", "tiles", "layer_stride"), "i32")
        constants = {"slot_stride": 1, "ROWS": rows, "SLOTS": MOST_SLOTS, "CHUNK": CHUNK}
        aligned = ("pages_ptr", "ends_ptr", "table_ptr")
        yield Variant(f"assign tables {rows}", _tables, types, constants, aligned, Settings(num_stages=3))
