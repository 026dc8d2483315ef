"""mergekits: configurations of mergekit."""

import torch
from safetensors.torch import load_file

from layerloom.composer import Family, tensors

LINEAR = {"merge_method": "linear", "dtype": "float32", "out_dtype": "bfloat16", "base_model": "base"}


def source(model, first, end, weight=None, **parameters):
    given = {**({} if weight is None else {"weight": weight}), **parameters}
    return {"model": model, "layer_range": [first, end], **({"parameters": given} if given else {})}


def slices(*sliced, **keys):
    return {**LINEAR, **keys, "slices": [{"sources": sources} for sources in sliced]}


def models(*weights, **keys):
    return {**LINEAR, **keys, "models": [{"model": m, "parameters": {"weight": weight}} for m, weight in weights]}


def check(root, made, expected):
    """Compares every tensor with `expected(layer, name)`, a list of (model, weight) that is summed and divided."""
    loaded = {path.parent.name: load_file(path) for path in root.glob("*/model.safetensors")}
    family = Family.load(made.path)
    for name, tensor in tensors(family, family.plan(made.name)):
        terms = expected(int(name.split(".")[2]) if ".layers." in name else None, name)
        total = sum(loaded[model][name].float() * weight for model, weight in terms)
        wanted = (total / sum(weight for _, weight in terms)).to(tensor.dtype)
        assert torch.equal(wanted.view(torch.int16), tensor.view(torch.int16)), name


SWAP = slices(
    [source("swahili", 0, 2, 1)],
    [source("swahili", 2, 3, 0.5), source("math", 2, 3, 0.5)],
    [source("math", 3, 6, 1.0)],
    [source("math", 6, 7, 3), source("swahili", 6, 7, 1)],
    [source("swahili", 7, 8, 1)],
)
