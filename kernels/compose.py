"""compose: a blend of a base and its experts, one pass over a page."""

import math
from collections.abc import Callable, Sequence

import torch

from .compose_torch import compose_torch
from .delta import Delta, Dense, Xor, size
from .dispatch import WORTHWHILE, use_numba, use_triton


def compose(
    out: torch.Tensor,
    base: torch.Tensor | None,
    experts: Sequence[torch.Tensor | Sequence[Delta]],
    weights: Sequence[float],
) -> torch.Tensor:
    """out = round((1 - Σw)·base + Σ wᵢ·Eᵢ), summed in fp32 in the order given, rounded once.

    This is the linear merge of layer swapping (arXiv 2410.01335) and model soups (2203.05482).
    `out` and `base` are contiguous, of one shape, of one dtype (bf16, fp16 or fp32) and on one device. An expert is
    a tensor like them, or deltas that follow each other and together cover `out`, the same runs for every expert;
    each Eᵢ is rounded to the dtype before it is weighted, as it is in a checkpoint. `out` may be one of the inputs.
    `base` may be None when Σw is 1 and no delta needs it, and then is not read. One expert at weight 1, or the base
    alone, never becomes a float where it is dense or XORed, so NaN payloads and signed zeros survive. Rounding is to
    nearest even. Raises ValueError when the arguments do not fit each other.
    """
    if len(experts) != len(weights):
        raise ValueError(f"compose: {len(experts)} experts but {len(weights)} weights")
    pages: list[list[Delta]] = [[Dense(e)] if isinstance(e, torch.Tensor) else list(e) for e in experts]
    terms = [(float(w), page) for w, page in zip(weights, pages, strict=True) if w != 0.0]
    rest = left_by([w for w, _ in terms])
    needs_base = any(not isinstance(delta, Dense) for _, page in terms for delta in page)
    if base is None and (rest != 0.0 or needs_base):
        why = "a delta is relative to it" if needs_base else f"the weights sum to {1.0 - rest}"
        raise ValueError(f"compose: {why}, so the base is needed")
    for source in [base if rest != 0.0 or needs_base else None, *experts]:
        if isinstance(source, torch.Tensor) and (source.shape != out.shape or source.dtype != out.dtype):
            raise ValueError(
                f"compose: source is {tuple(source.shape)} {source.dtype}, out is {tuple(out.shape)} {out.dtype}"
            )
    runs = {tuple(map(size, page)) for _, page in terms}
    if len(runs) > 1 or any(sum(run) != out.numel() for run in runs):
        raise ValueError(f"compose: out has {out.numel()} numbers, the deltas cover {sorted(runs)}")
    for deltas in zip(*(page for _, page in terms), strict=True):
        shapes = {delta.shape for delta in deltas if not isinstance(delta, Dense | Xor)}
        if len(shapes) > 1:
            raise ValueError(f"compose: deltas of the shapes {sorted(shapes)} cover the same numbers")
    implementation(out)(out.view(-1), None if base is None else base.reshape(-1), terms, rest)
    return out


def left_by(weights: Sequence[float]) -> float:
    """What is left for the base: 1 - Σw, and nothing where decimals such as 0.7 + 0.2 + 0.1 miss 1 by a last bit."""
    rest = 1.0 - math.fsum(weights)
    return rest if abs(rest) > 1e-9 else 0.0


def prepare(dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
    """Compiles what `compose` runs, or loads it from a cache, so that the first who needs it need not wait."""
    page = torch.zeros(WORTHWHILE, dtype=dtype, device=device)
    compose(page, None, [page, page], [0.5, 0.5])


def implementation(out: torch.Tensor) -> Callable[..., None]:
    """What composes into `out`. numba and the kernels are loaded when they are first needed."""
    if use_triton(out):
        from .compose_triton import compose_triton

        return compose_triton
    if use_numba(out):
        from .compose_cpu import compose_compiled

        return compose_compiled
    return compose_torch
