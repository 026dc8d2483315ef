"""products: how long stock vLLM's own matrix products take for rows of one model, and for rows of several in a batch.

Several compositions in a batch cannot be faster than that: where they have weights of their own all of these are read,
and a small product uses a core less well than a large one.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn
from vllm.model_executor.layers.linear import LinearBase

LEAST, MOST, SECONDS = 3, 9, 2.0
"""Rounds, of which there are no more after so many seconds: a prompt's rows take long, and differ little."""


def seconds_of(model: nn.Module, rows: int, groups: int, own: Sequence[int]) -> tuple[float, float]:
    """CPU seconds of the products of a pass over `rows` rows: all of one model, and of `groups` models in equal parts.

    `own` are the layers of which each group has its own; the head is each group's own, too, and the other layers are
    everybody's. Other layers' weights stand for those of other groups, as no cache holds a model. The weights are the
    stock model's, as it has packed them.
    """
    stack = next(found for found in model.modules() if isinstance(found, nn.ModuleList))
    layers = [[each for each in layer.modules() if isinstance(each, LinearBase)] for layer in stack]
    dtype = next(model.parameters()).dtype
    widths = {module.input_size for module in layers[0]} | {model.lm_head.embedding_dim}
    xs = {(n, k): torch.randn(n, k, dtype=dtype) for n in (rows, rows // groups) for k in widths}

    def run(modules: Sequence[nn.Module], count: int) -> None:
        for module in modules:
            width = module.input_size if isinstance(module, LinearBase) else module.embedding_dim
            module.quant_method.apply(module, xs[count, width])

    def one() -> None:
        for layer in layers:
            run(layer, rows)
        run([model.lm_head], rows)

    def several() -> None:
        for at, layer in enumerate(layers):
            if at in own:
                for group in range(groups):
                    run(layers[(at + group) % len(layers)], rows // groups)
            else:
                run(layer, rows)
        for _ in range(groups):
            run([model.lm_head], rows // groups)

    found: dict[Callable[[], None], list[float]] = {one: [], several: []}
    start = time.process_time()
    with torch.inference_mode():
        while len(found[one]) <= LEAST or (len(found[one]) <= MOST and time.process_time() - start < SECONDS):
            for way, spent in found.items():
                began = time.process_time()
                way()
                spent.append(time.process_time() - began)
    first, second = (statistics.median(spent[1:]) for spent in found.values())
    return first, second
