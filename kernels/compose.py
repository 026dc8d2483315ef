"""compose: a blend of a base and its experts, one pass over contiguous numbers."""

from collections.abc import Sequence

import torch

# Large enough to amortise a torch call, small enough for the fp32 temporaries to stay in the L2 cache.
CHUNK = 1 << 17


def compose(
    out: torch.Tensor,
    base: torch.Tensor | None,
    experts: Sequence[torch.Tensor],
    weights: Sequence[float],
) -> torch.Tensor:
    """out = round((1 - Σw)·base + Σ wᵢ·expertᵢ), summed in fp32 in the order given, rounded once.

    This is the linear merge of layer swapping (arXiv 2410.01335) and model soups (2203.05482).
    `out`, `base` and every expert are contiguous, of one shape, of one dtype (bf16, fp16 or fp32) and on
    one device; `out` may be one of the inputs. `base` may be None when Σw is 1, because it then has no
    share and is not read. One expert at weight 1, or the base alone, is copied and never becomes a float,
    so NaN payloads and signed zeros survive. Rounding is to nearest even. Raises ValueError when the
    arguments do not fit each other.
    """
    if len(experts) != len(weights):
        raise ValueError(f"compose: {len(experts)} experts but {len(weights)} weights")
    terms = [(float(w), expert) for w, expert in zip(weights, experts, strict=True) if w != 0.0]
    rest = 1.0 - sum(w for w, _ in terms)
    if rest != 0.0:
        if base is None:
            raise ValueError(f"compose: the weights sum to {1.0 - rest}, so the base is needed")
        terms.insert(0, (rest, base))
    for _, source in terms:
        if source.shape != out.shape or source.dtype != out.dtype:
            raise ValueError(
                f"compose: source is {tuple(source.shape)} {source.dtype}, out is {tuple(out.shape)} {out.dtype}"
            )
    if len(terms) == 1 and terms[0][0] == 1.0:
        (_, source), *_ = terms
        return out if source.data_ptr() == out.data_ptr() else out.copy_(source)

    flat_out = out.view(-1)
    flat = [(w, source.reshape(-1)) for w, source in terms]
    for start in range(0, flat_out.numel(), CHUNK):
        end = start + CHUNK
        (first_weight, first), *others = flat
        total = first[start:end].float() * first_weight
        for w, source in others:
            total += source[start:end].float() * w
        flat_out[start:end] = total
    return out
