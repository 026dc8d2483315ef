"""Packing beside reading: in order, with its errors, and none of them another's."""

import pytest

from layerloom.server.engine.packer import Packer


def failing() -> None:
    raise ValueError("it cannot be packed")


def test_all_is_packed_in_order_when_the_block_ends():
    packer, found = Packer(), []
    with packer.working():
        for number in range(5):
            packer.do(lambda number=number: found.append(number), [])
    assert found == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("more", [0, 1])
def test_an_error_comes_with_the_next_or_at_the_end(more):
    packer = Packer()
    with pytest.raises(ValueError, match="cannot be packed"), packer.working():
        packer.do(failing, [])
        for _ in range(more):
            packer.do(lambda: None, [])


def test_an_error_is_not_the_next_ones():
    packer, found = Packer(), []
    with pytest.raises(KeyError), packer.working():
        packer.do(failing, [])
        raise KeyError
    with packer.working():
        packer.do(lambda: found.append(True), [])
    assert found == [True]
