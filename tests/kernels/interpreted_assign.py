"""assign in Triton's interpreter, against its torch twin, number by number."""

import pytest
import torch
from paged_cases import KINDS, TOKENS, slots_of

from layerloom.kernels.assign import TOKENS as TOGETHER
from layerloom.kernels.assign import assign, assign_torch, buffers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_like_torch(tokens, kind):
    pages = torch.tensor(KINDS[kind][0], dtype=torch.int32)
    check(slots_of(tokens, kind, padding=tokens // 8), torch.stack([pages, pages.flip(0), torch.full_like(pages, -1)]))


@pytest.mark.parametrize("slots", [[-1, -1, 5], [-1], [2, 1, 0, 1, 2], [7, 0, 1]])
def test_padding_and_slots_that_are_none(slots):
    check(torch.tensor(slots, dtype=torch.int32), torch.tensor([[4, 4, 9]], dtype=torch.int32))


def test_more_tokens_than_a_program_takes_together():
    generator = torch.Generator().manual_seed(0)
    slots = torch.randint(-1, 64, (TOGETHER + 77,), generator=generator, dtype=torch.int32)
    check(slots, torch.randint(-1, 4, (1, 64), generator=generator, dtype=torch.int32))


def check(slots, pages):
    count = int(((slots >= 0) & (slots < pages.shape[1])).sum())
    results = []
    for run in (assign, assign_torch):
        order, tables = buffers(slots.shape[0] + 5, *pages.shape)
        for buffer in (order, *tables.values()):
            buffer.fill_(1 << 30)
        run(slots, pages, order, tables)
        results.append((order[:count], *tables.values()))
        assert (order[slots.shape[0] :] == 1 << 30).all()
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)
