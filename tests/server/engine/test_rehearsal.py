"""What a model's load_weights copies is learned without numbers, and done again: straight, in slices, or not at all."""

import pytest
import torch
from torch import nn

from layerloom.server.engine.rehearsal import fill, rehearse, twin


class Stacked(nn.Module):
    """As vLLM loads: q and k under each other, of the first only the rows of one rank, a table with rows to spare."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.qk = nn.Parameter(torch.zeros(6, 8))
        self.inner.down = nn.Parameter(torch.zeros(4, 3))
        self.inner.norm = nn.Parameter(torch.zeros(8))
        self.table = nn.Parameter(torch.zeros(7, 8))
        if tied:
            self.head = self.table

    def load_weights(self, tensors):
        for name, tensor in tensors:
            if name == "q":
                self.inner.qk.data[:4].copy_(tensor[4:8])
            elif name == "k":
                self.inner.qk.data.narrow(0, 4, 2).copy_(tensor)
            elif name == "down":
                self.inner.down.data.copy_(tensor.chunk(2, dim=1)[1])
            elif name == "norm":
                self.inner.norm.data.copy_(tensor)
            else:
                self.table.data[:5].copy_(tensor)
                self.table.data[5:].fill_(0)
        return {"inner.qk", "inner.down", "inner.norm", "table"}


SHAPES = {"q": (8, 8), "k": (2, 8), "down": (4, 6), "norm": (8,), "table": (5, 8)}


def rehearsed(model, dtype=torch.float32):
    places = {name: (parameter, parameter.shape) for name, parameter in model.named_parameters()}
    return rehearse(model, places, {n: torch.empty(s, dtype=dtype, device="meta") for n, s in SHAPES.items()})


@pytest.mark.parametrize("offset", [0, 5])
def test_what_was_learned_is_what_is_loaded(offset):
    model = Stacked(tied=True)
    tensors = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    found = rehearsed(model, torch.bfloat16)
    assert not any(parameter.any() for parameter in model.parameters()), "the model itself is as it was"
    direct = []

    def read(name, out):
        if out is None:
            return tensors[name]
        direct.append(name)
        return out.copy_(tensors[name])

    model.load_weights(tensors.items())
    for name, parameter in model.named_parameters():
        # Within larger memory, as pages are.
        into = torch.full((parameter.numel() + offset,), torch.nan)[offset:]
        fill(into, found[name], read)
        assert torch.equal(into.view(parameter.shape), parameter), name
    assert sorted(direct) == ["k", "norm", "table"]


class Computes(Stacked):
    def load_weights(self, tensors):
        return super().load_weights((n, t + 1 if n == "norm" else t) for n, t in tensors)


class Twice(Stacked):
    def load_weights(self, tensors):
        loaded = super().load_weights(tensors)
        self.inner.norm.data[:4].copy_(self.inner.norm.data[4:])
        return loaded


class Forgets(Stacked):
    def load_weights(self, tensors):
        return super().load_weights((n, t) for n, t in tensors if n != "norm")


@pytest.mark.parametrize("model", [Computes, Twice, Forgets])
def test_what_is_more_than_copying_is_not_learned(model):
    found = rehearsed(model())
    assert {name for name, copies in found.items() if copies is None} == {"inner.norm"}


def test_a_twin_is_loaded_while_the_model_stays_as_it_is():
    model = Stacked(tied=True)
    into = {parameter: torch.zeros_like(parameter) for parameter in model.parameters()}
    other = twin(model, into)
    assert other.head is other.table
    other.load_weights((name, torch.ones(shape)) for name, shape in SHAPES.items())
    assert all(tensor.any() for tensor in into.values())
    assert not any(parameter.any() for parameter in model.parameters())
