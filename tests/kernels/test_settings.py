"""The table of launch settings: a look-up that always finds something."""

import pytest
import torch

from layerloom.kernels.settings import ARCHITECTURES, TABLE, every, lookup, settings
from layerloom.kernels.tiles import BLOCKS


@pytest.mark.parametrize("op", TABLE)
@pytest.mark.parametrize("arch", [*ARCHITECTURES, "default", "sm_120"])
def test_every_batch_has_settings(op, arch):
    for tokens in (0, 1, 64, 65, 512, 513, 10**6):
        found = lookup(op, arch, tokens)
        assert found in every(op, arch) and found.block_m in BLOCKS
        for size in (found.block_n, found.block_k or 1, found.num_warps):
            assert size & (size - 1) == 0


def test_more_tokens_are_not_in_smaller_tiles():
    rows = [lookup("paged_linear", "sm_90", tokens).block_m for tokens in (1, 64, 65, 512, 513)]
    assert rows == sorted(rows)


def test_a_cpu_interprets_with_the_default():
    assert settings("compose", torch.device("cpu")) == lookup("compose", "default")
