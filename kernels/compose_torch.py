"""compose with torch alone: what the compiled ways must equal to the last bit."""

from collections.abc import Iterator, Sequence

import torch

from .delta import Delta, Dense, Xor, size

# Large enough to amortise a torch call, small enough for the fp32 temporaries to stay in the L2 cache.
CHUNK = 1 << 17


def compose_torch(
    out: torch.Tensor, base: torch.Tensor | None, terms: Sequence[tuple[float, list[Delta]]], rest: float
) -> None:
    """`compose` on flat pages, of arguments that fit, with torch alone."""
    if not terms:
        terms, rest = [(1.0, [Dense(base)])] if base is not None else [], 0.0
    start = 0
    for deltas in zip(*(page for _, page in terms), strict=True):
        weighted = [(w, delta) for (w, _), delta in zip(terms, deltas, strict=True)]
        end = start + size(deltas[0])
        for rows, k in chunks(deltas):
            span = slice(start + rows.start * k, start + rows.stop * k)
            into = out[span].view(-1, k)
            under = into if base is None else base[span].view(-1, k)
            blend_rows(into, under, weighted, rest, rows)
        start = end


def blend_rows(
    out: torch.Tensor, base: torch.Tensor, terms: Sequence[tuple[float, Delta]], rest: float, rows: slice
) -> None:
    if len(terms) == 1 and terms[0][0] == 1.0:
        out.copy_(terms[0][1].decode(base, rows))
        return
    decoded = ((w, delta.decode(base, rows)) for w, delta in terms)
    (first_weight, first), *others = [(rest, base), *decoded] if rest != 0.0 else decoded
    total = first.float() * first_weight
    for w, source in others:
        total += source.float() * w
    out.copy_(total)


def chunks(deltas: Sequence[Delta]) -> Iterator[tuple[slice, int]]:
    """Slices of rows with about CHUNK numbers each, and K. Where no delta has rows of its own, K is 1."""
    shapes = {delta.shape for delta in deltas if not isinstance(delta, Dense | Xor)} or {(size(deltas[0]), 1)}
    ((rows, k),) = shapes
    step = max(1, CHUNK // max(1, k))
    return ((slice(first, min(first + step, rows)), k) for first in range(0, rows, step))
