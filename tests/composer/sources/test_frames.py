"""`exact` as version 1 of the format has it, which is read and not written."""

from itertools import accumulate

import numpy as np
import pytest
import torch
import zstandard
from pydantic import ValidationError

from layerloom.composer import ComposeError
from layerloom.composer.sources.codecs import Frames
from layerloom.composer.sources.codecs.frames import BLOCK


def frames(expert, base):
    """(codec, parts) as ARCHIVE.md says."""
    bits = torch.int16 if expert.element_size() == 2 else torch.int32
    xor = (expert.view(-1).view(bits) ^ base.view(-1).view(bits)).numpy()
    planes = [xor[at : at + BLOCK].view(np.uint8).reshape(-1, xor.itemsize).T for at in range(0, len(xor), BLOCK)]
    packed = [zstandard.compress(np.ascontiguousarray(plane).data) for plane in planes]
    codec = Frames(ends=tuple(accumulate(map(len, packed))))
    content = b"".join(packed)
    return codec, {"bytes": torch.frombuffer(bytearray(content + bytes(-len(content) % 4)), dtype=torch.uint8)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(300, 1000), (3, 5), (1,)])
def test_they_are_read(dtype, shape):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator).to(dtype)
    expert = (base + torch.randn(shape, generator=generator) / 100).to(dtype)
    codec, parts = frames(expert, base)
    assert torch.equal(codec.decode(parts, base), expert)
    assert torch.equal(codec.decode(parts, base, base), expert)
    with pytest.raises(ComposeError, match="not written"):
        codec.encode(expert, base)


def test_a_frame_cannot_claim_more_than_there_is():
    base = torch.randn(4, 64).bfloat16()
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 24))
    for stored in (bomb, b"no frame", b""):
        stored += bytes(-len(stored) % 4)
        if stored:
            codec = Frames(ends=(len(stored),))
            with pytest.raises(ComposeError, match="block 0"):
                codec.decode({"bytes": torch.frombuffer(bytearray(stored), dtype=torch.uint8)}, base)
    codec, parts = frames(base + 1, base)
    for ends in ((), (*codec.ends, codec.ends[-1] + 4)):
        with pytest.raises(ComposeError, match="exact"):
            Frames(ends=ends).decode(parts, base)
    for ends in ((0,), (5, 4), (-1,)):
        with pytest.raises(ValidationError):
            Frames(ends=ends)
