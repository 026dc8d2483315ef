"""The arena: room is found, given back, and made by pushing pages together without losing a number."""

import pytest
import torch

from layerloom.composer import ComposeError
from layerloom.composer.pages.arena import UNIT, Arena


def filled(arena, size, value):
    region = arena.allocate(size)
    arena.flat(region, torch.uint8, region.units * UNIT).fill_(value)
    return region


def values(arena, region):
    return set(arena.flat(region, torch.uint8, region.units * UNIT).tolist())


def test_what_nobody_holds_is_free_again():
    arena = Arena(10 * UNIT)
    a, b = arena.allocate(4 * UNIT), arena.allocate(6 * UNIT - 1)
    assert (a.id, b.id, arena.free) == (0, 4, 0)
    with pytest.raises(ComposeError, match=r"0\.0 MB more are needed, and 0\.0 MB of 0\.0 MB are free"):
        arena.allocate(1)
    del a
    assert arena.free == 4 * UNIT
    assert arena.allocate(3 * UNIT).id == 0


def test_pages_are_pushed_together_when_no_gap_is_large_enough():
    arena = Arena(10 * UNIT)
    regions = [filled(arena, 2 * UNIT, value) for value in range(5)]
    before = arena.generation
    del regions[3], regions[1]
    large = filled(arena, 4 * UNIT, 9)
    assert arena.generation == before + 1
    assert large.id == 6
    assert [values(arena, region) for region in regions] == [{0}, {2}, {4}]
    assert values(arena, large) == {9}


def test_a_large_page_moves_over_itself(monkeypatch):
    monkeypatch.setattr("layerloom.composer.pages.arena.CHUNK", 3 * UNIT)
    arena = Arena(20 * UNIT)
    first, second = arena.allocate(UNIT), arena.allocate(16 * UNIT)
    content = torch.randint(256, (16 * UNIT,), dtype=torch.uint8)
    arena.flat(second, torch.uint8, 16 * UNIT).copy_(content)
    del first
    third = arena.allocate(4 * UNIT)
    assert (second.id, third.id) == (0, 16)
    assert torch.equal(arena.flat(second, torch.uint8, 16 * UNIT), content)


def test_a_view_finds_every_page_by_its_id():
    arena = Arena(100 * UNIT)
    pages = [arena.allocate(7 * UNIT) for _ in range(3)]
    weight = arena.view(torch.bfloat16, 2 * UNIT, (5, 12))
    for number, page in enumerate(pages):
        weight[page.id].fill_(number)
    for number, page in enumerate(pages):
        inside = arena.flat(page, torch.bfloat16, 2 * UNIT)[UNIT : UNIT + 60]
        assert torch.equal(inside, torch.full((60,), float(number), dtype=torch.bfloat16))
    assert weight.data_ptr() == arena.memory.data_ptr() + 2 * UNIT
