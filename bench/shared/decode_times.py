"""decode_times: one decode step of all linear layers of a model, captured in a CUDA graph.

A language has `own` layers for itself and shares the others with all. Held against one merged model with as many
tokens, and against one merged model after the other with their shares of the tokens: those pass over the same weights,
which is no help, because a pass reads far more than a cache holds. Attention, norms and the output head are left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from layerloom.kernels import delta_linear, paged_linear

from .kernel_times import Machine, Row, linear, packed, routed
from .roofline import Limits, Model, decode, delta_bytes

LANGUAGES = (1, 2, 4, 8, 16)
SHARE = 0.8
"""Of the free memory; and no more than MOST bytes."""
MOST = 90 << 30


@dataclass(frozen=True, slots=True)
class Weights:
    """An arena of layer pages, and each matrix of all of them."""

    views: dict[str, torch.Tensor]
    pages: int

    @classmethod
    def make(cls, machine: Machine, model: Model, wanted: int) -> "Weights":
        each = -(-model.numbers // 16) * 16
        fit = min(wanted, int(min(SHARE * machine.free(), MOST)) // (2 * each))
        if fit < max(LANGUAGES):
            raise SystemExit(f"the pages of {max(LANGUAGES)} languages do not fit into memory: try --small")
        arena = torch.empty(fit, each, dtype=torch.bfloat16, device=machine.device)
        for page in arena:
            page.normal_(0, 0.02)
        views, start = {}, 0
        for name, (n, k) in model.matrices.items():
            views[name] = arena[:, start : start + n * k].unflatten(1, (n, k))
            start += n * k
        return cls(views, fit)


def page_ids(model: Model, languages: int, pages: int) -> list[list[int]]:
    """The page of each language at each layer; where there are not enough, layers use those of others again."""
    ids, following = [], 0
    for layer in range(model.layers):
        own = languages if layer < model.own else 1
        ids.append([(following + slot % own) % pages for slot in range(languages)])
        following += own
    return ids


def merged(model: Model, weights: Weights, xs: dict[int, torch.Tensor]) -> None:
    for layer in range(model.layers):
        for name, (_, k) in model.matrices.items():
            linear(xs[k], weights.views[name][layer % weights.pages])


def inputs(machine: Machine, model: Model, tokens: int) -> dict[int, torch.Tensor]:
    return {k: machine.normal(tokens, k) for k in sorted({k for _, k in model.matrices.values()})}


def assembled(machine: Machine, model: Model, weights: Weights, tokens: int, languages: int) -> float:
    xs = inputs(machine, model, tokens)
    tiles, fill = routed(machine, tokens, page_ids(model, languages, weights.pages))

    def step() -> None:
        fill()
        for of_layer in tiles:
            for name, (_, k) in model.matrices.items():
                paged_linear(xs[k], weights.views[name], of_layer)

    return machine.seconds([machine.captured(step)])


def delta(
    machine: Machine, model: Model, weights: Weights, tokens: int, languages: int, codec: str
) -> tuple[float, int]:
    """(Seconds, how many delta pages there were)."""
    xs, size = inputs(machine, model, tokens), sum(delta_bytes(codec, n, k) for n, k in model.matrices.values())
    pages = max(languages, min(model.own * languages, int(SHARE * machine.free() / size)))
    deltas = {name: packed(machine, codec, n, k, pages) for name, (n, k) in model.matrices.items()}
    ids = [[(layer * languages + slot) % pages for slot in range(languages)] for layer in range(model.own)]
    tiles, fill = routed(machine, tokens, ids)

    def step() -> None:
        fill()
        for layer in range(model.layers):
            for name, (_, k) in model.matrices.items():
                y = linear(xs[k], weights.views[name][layer % weights.pages])
                if layer < model.own:
                    delta_linear(y, xs[k], deltas[name], tiles[layer])

    return machine.seconds([machine.captured(step)]), pages


def decode_rows(machine: Machine, model: Model, limit: Limits, tokens: int) -> Iterator[Row]:
    wanted = model.layers - model.own + model.own * max(LANGUAGES)
    weights = Weights.make(machine, model, wanted)
    if weights.pages < wanted:
        print(f"# memory for {weights.pages} of {wanted} pages: layers use pages of other layers again")

    def row(case: str, languages: int, seconds: float, codec: str = "dense") -> Row:
        cost = decode(model, tokens, languages, codec)
        return Row("decode", case, tokens, languages, seconds, cost, limit.seconds(cost), "one merged", one)

    def steps(tokens: int) -> float:
        xs = inputs(machine, model, tokens)
        return machine.seconds([machine.captured(partial(merged, model, weights, xs))])

    one = steps(tokens)
    yield row("merged", 1, one)
    for languages in LANGUAGES:
        yield row("assembled", languages, assembled(machine, model, weights, tokens, languages))
        for codec in ("int4", "sign"):
            seconds, pages = delta(machine, model, weights, tokens, languages, codec)
            if pages < model.own * languages:
                print(f"# memory for {pages} of {model.own * languages} {codec} pages: layers use them again")
            yield row(codec, languages, seconds, codec)
        if languages > 1:
            share = max(1, tokens // languages)
            cost = decode(model, share, 1, "dense") * languages
            yield replace(row("separate", languages, steps(share) * languages), cost=cost, expected=limit.seconds(cost))
