"""poison: inputs and outputs for checking kernels, with NaN wherever nothing may be read or must be written."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch

from layerloom.kernels import Rows, Tiles, assign, buffers
from layerloom.kernels.delta import Delta, Packed, Signs
from layerloom.kernels.planar import pack

GUARD = 64
Failure = str | None
"""What is wrong."""


def poisoned(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, offset: int = 0
) -> tuple[torch.Tensor, Callable[[], bool]]:
    """(A contiguous tensor of 0xFF in the middle of more of them, whether the others still are)."""
    count = torch.Size(shape).numel()
    memory = torch.full(((count + 2 * GUARD + offset) * dtype.itemsize,), 0xFF, dtype=torch.uint8, device=device)
    start = (GUARD + offset) * dtype.itemsize
    end = start + count * dtype.itemsize
    return memory[start:end].view(dtype).view(*shape), lambda: bool(
        (memory[:start] == 0xFF).all() and (memory[end:] == 0xFF).all()
    )


def arena(pages: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The same pages on the device, with poison between them."""
    each = pages[0].numel()
    stride = -(-each // 16) * 16 + 16
    flat, _ = poisoned((len(pages) * stride,), pages.dtype, device)
    view = flat.as_strided(pages.shape, (stride, *pages[0].stride()), flat.storage_offset())
    view.copy_(pages)
    return view


def poison_free_memory(*shapes: tuple[tuple[int, ...], torch.dtype], device: torch.device) -> None:
    """What an op is then given by torch.empty is NaN, where the allocator hands the same blocks out again."""
    kept = [poisoned(shape, dtype, device)[0] for shape, dtype in shapes]
    kept += [torch.full(shape, float("nan"), dtype=dtype, device=device) for shape, dtype in shapes]


def ulp(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def judged(found: torch.Tensor, exact: torch.Tensor, bound: torch.Tensor) -> Failure:
    """Both without NaN, and within the bound everywhere."""
    wrong = ~((found.double().cpu() - exact).abs() <= bound + 2.0**-24)
    if not wrong.any():
        return None
    at = wrong.nonzero()[0].tolist()
    value, wanted = found.cpu()[tuple(at)].item(), exact[tuple(at)].item()
    return f"{int(wrong.sum())} of {wrong.numel()} numbers are wrong; at {at}: {value}, float64 says {wanted}"


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().contiguous().view(torch.int16)


def random_bits(*shape: int) -> torch.Tensor:
    return torch.randint(-(1 << 15), 1 << 15, shape, dtype=torch.int16)


def packed(n: int, k: int, width: int, group: int, pages: int | None = None) -> tuple[Packed | Signs, torch.Tensor]:
    """(A delta as kernels read it, the same in float64), of many pages where `pages` is given."""
    count = 1 if pages is None else pages
    codes = torch.randint(0, 1 << width, (count, n, k), dtype=torch.int32)
    words = torch.stack([pack(page, width) for page in codes])
    if width == 1:
        scales = torch.rand(count, n) * 0.1
        exact = (1 - 2 * codes.double()) * scales.double().unsqueeze(-1)
        delta: Packed | Signs = Signs(words, scales, k)
    else:
        scales = (torch.rand(count, n, -(-k // group)) * 0.2 / (1 << (width - 1))).bfloat16()
        exact = (codes.double() - (1 << (width - 1))) * scales.double().repeat_interleave(group, -1)[..., :k]
        delta = Packed(words, scales, k, width, group)
    if pages is None:
        return replace(delta, words=words[0], scales=scales[0]), exact[0]
    return delta, exact


def on(delta: Delta, place: Callable[[torch.Tensor], torch.Tensor]) -> Delta:
    """The delta with each of its tensors placed elsewhere."""
    tensors = {f.name: getattr(delta, f.name) for f in fields(delta)}
    return replace(delta, **{name: place(t) for name, t in tensors.items() if isinstance(t, torch.Tensor)})


class Batch:
    """Tokens over slots: some pages shared by neighbours, one slot without a page, padding at the end."""

    def __init__(self, tokens: int, pages: int, device: torch.device) -> None:
        of_slot = [*range(pages), pages - 1, -1] if pages > 1 else [0, 0]
        self.host = torch.randint(0, len(of_slot), (tokens,), dtype=torch.int32)
        self.host[tokens - tokens // 8 :] = -1
        page = torch.tensor(of_slot, dtype=torch.int32)
        self.page = page[self.host.clamp(min=0).long()].where(self.host >= 0, -1).long()
        self.slots, self.pages = self.host.to(device), page.unsqueeze(0).to(device)
        order, tables = buffers(tokens, 1, len(of_slot), device)
        assign(self.slots, self.pages, order, tables)
        self.tiles = Tiles(order, {block: table[0] for block, table in tables.items()}, len(of_slot))
        self.rows = Rows(self.slots, self.pages[0])
        self.live = self.page >= 0
