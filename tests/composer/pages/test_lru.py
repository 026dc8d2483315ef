"""The bank on paper that bench/soak.py puts beside the server's."""

from pathlib import Path

import pytest

from layerloom.composer import Bank, Family

A, B, C, D = "math+swahili", "code+swahili", "math+bengali", "code+bengali"


@pytest.fixture
def lru(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "bench"))
    from shared import lru

    return lru


@pytest.fixture
def bank(lru, family: Family) -> Bank:
    return Bank(family, lru.Sizes(family))


def size(bank: Bank, *names: str) -> int:
    return sum(map(bank.bytes, set().union(*(bank.own(bank.family.plan(name)) for name in names))))


def test_with_room_for_all_each_is_made_once(lru, bank):
    assert lru.ideal(bank, [A, B, A, C, B, D], size(bank, A, B, C, D)) == lru.Ideal(4, 0, size(bank, A, B, C, D))


def test_with_room_for_one_every_change_is_made(lru, bank):
    assert size(bank, A) == size(bank, D)
    found = lru.ideal(bank, [A, A, D, D, A], size(bank, A))
    assert found == lru.Ideal(3, 2, 3 * size(bank, A))


def test_the_longest_unused_goes_and_what_is_shared_stays(lru, bank):
    # A and B share swahili's layers, A and C those of math: when C comes B goes, and A was used since.
    room = max(size(bank, A, B), size(bank, A, C))
    assert room < size(bank, A, B, C)
    found = lru.ideal(bank, [A, B, A, C, A], room)
    assert found == lru.Ideal(3, 1, size(bank, A, B) + size(bank, A, C) - size(bank, A))
