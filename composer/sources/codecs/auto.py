"""auto: for each tensor the smallest codec under an error bound."""

import math

import torch

from layerloom.composer.errors import ComposeError

from .codec import Codec, Parts, error, finite_delta
from .exact import Exact
from .integer import Int4, Int8
from .lowrank import Lowrank, decompose
from .sign import Sign

MOST_RANK = 64


def smallest(expert: torch.Tensor, base: torch.Tensor, bound: float) -> tuple[Codec, Parts]:
    """The codec with the fewest bytes whose error (codec.error) is at most `bound`, encoded; exact if no other is."""
    best: tuple[Codec, Parts] = Exact().encode(expert, base)
    try:
        delta = finite_delta(expert, base)
    except ComposeError:
        return best
    candidates: list[Codec] = [Sign(), Int4(), Int8()]
    size = sum(part.nbytes for part in best[1].values())
    rank = _rank_for(delta, bound) if expert.dim() == 2 else None
    del delta
    if rank is not None:
        candidates.append(Lowrank(rank=rank))
    costs = {codec: codec.bytes_per_parameter(expert.shape, expert.dtype) * expert.numel() for codec in candidates}
    for codec in sorted(candidates, key=lambda codec: costs[codec]):
        if costs[codec] >= size:
            break
        encoded = codec.encode(expert, base)
        if error(codec.decode(encoded[1], base), expert, base) <= bound:
            return encoded
    return best


def _rank_for(delta: torch.Tensor, bound: float) -> int | None:
    """The lowest rank whose remainder sqrt(1 - Σ S_i² / ‖Δ‖²) is within the bound, if it is no more than MOST_RANK."""
    most = min(MOST_RANK, *delta.shape)
    total = float(delta.double().square().sum())
    if not total or not math.isfinite(total):
        return None
    _, s, _ = decompose(delta, most)
    left = (1.0 - s[:most].double().square().cumsum(0) / total).clamp(min=0.0).sqrt()
    # Rounding the factors takes a little of the bound.
    enough = (left <= 0.99 * bound).nonzero()
    return int(enough[0]) + 1 if len(enough) else None
