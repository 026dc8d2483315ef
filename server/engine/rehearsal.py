"""rehearsal: which numbers of a checkpoint's tensors vLLM's `load_weights` puts where, learned without any numbers.

A model loads tensors that have a shape and no memory (torch's device "meta"), and what it copies is noted. Afterwards
files are read straight into pages, by any thread, in the layout and with the slices of vLLM's own code.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class View(NamedTuple):
    """A tensor within flat memory, counted in numbers."""

    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        return flat.as_strided(self.shape, self.stride, flat.storage_offset() + self.offset)

    @classmethod
    def at(cls, tensor: torch.Tensor) -> "View":
        return cls(int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()))


@dataclass(frozen=True, slots=True)
class Copy:
    """Numbers of the tensor `name`, and where they go; from nowhere they are zeros."""

    name: str | None
    source: View
    place: View
    whole: bool = False
    """Whether it is all of the tensor, as it is."""

    def moved(self, by: int) -> "Copy":
        return replace(self, place=self.place._replace(offset=self.place.offset + by))


class Rehearsal(TorchDispatchMode):
    """Notes what is copied from `sources` into `places`, which all are without memory.

    A place is plain when nothing was computed on the way to it, and each of its numbers was written once.
    """

    def __init__(self, sources: Mapping[str, torch.Tensor], places: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._sources = {memory_of(tensor): (name, View.at(tensor)) for name, tensor in sources.items()}
        self._places = {memory_of(tensor): name for name, tensor in places.items()}
        self._left = {name: tensor.numel() for name, tensor in places.items()}
        self.copies: dict[str, list[Copy]] = {name: [] for name in places}
        """By the name of the place."""

    def is_plain(self, place: str) -> bool:
        return self._left[place] == 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        into = args[0] if args and isinstance(args[0], torch.Tensor) else None
        place = None if into is None or not func._schema.is_mutable else self._places.get(memory_of(into))
        if place is None:
            return func(*args, **(kwargs or {}))
        name, source, all_of_it, plain = None, View(0, (), ()), None, False
        if func is aten.copy_.default:
            name, all_of_it = self._sources.get(memory_of(args[1]), (None, None))
            source = View.at(args[1])
            plain = name is not None and source.shape == tuple(into.shape)
        elif func is aten.zero_.default or func is aten.fill_.Scalar:
            # Rows past the vocabulary's end.
            plain = func is aten.zero_.default or args[1] == 0
        self.copies[place].append(Copy(name, source, View.at(into), source == all_of_it))
        self._left[place] = self._left[place] - into.numel() if plain else -1
        return into


def memory_of(tensor: torch.Tensor) -> int:
    """Tells memory from other memory, also where there is none."""
    return int(tensor.untyped_storage()._cdata)


def twin(model: nn.Module, parameters: Mapping[nn.Parameter, torch.Tensor]) -> nn.Module:
    """A model like this one, whose parameters have these tensors instead.

    It can be loaded into while the first one computes. All else the two share.
    """
    others: dict[int, nn.Parameter] = {}
    for parameter, data in parameters.items():
        other = torch.Tensor._make_subclass(type(parameter), data, False)
        other.__dict__.update(parameter.__dict__)
        others[id(parameter)] = other
    made: dict[int, nn.Module] = {}

    def like(module: nn.Module) -> nn.Module:
        if id(module) not in made:
            other = made[id(module)] = copy.copy(module)
            other._parameters = {name: others.get(id(own), own) for name, own in module._parameters.items()}
            other._modules = {name: child and like(child) for name, child in module._modules.items()}
        return made[id(module)]

    return like(model)


def rehearse(
    model: nn.Module, places: Mapping[str, tuple[nn.Parameter, torch.Size]], sources: Mapping[str, torch.Tensor]
) -> dict[str, list[Copy] | None]:
    """What `model.load_weights` copies from tensors on the device "meta" into each of its parameters `places`.

    None where that is not all it does. Raises what it raises.
    """
    into = {name: torch.empty(shape, dtype=of.dtype, device="meta") for name, (of, shape) in places.items()}
    other = twin(model, {of: into[name] for name, (of, _) in places.items()})
    noted = Rehearsal(sources, into)
    with noted:
        other.load_weights(iter(sources.items()))
    return {name: noted.copies[name] if noted.is_plain(name) else None for name in places}


def fill(into: torch.Tensor, copies: Iterable[Copy], read: Callable[..., torch.Tensor]) -> None:
    """Does the copies: `read` (name, out) gives a tensor, in `out` if that is its whole place."""
    by_name: dict[str | None, list[Copy]] = {}
    for each in copies:
        by_name.setdefault(each.name, []).append(each)
    for each in by_name.pop(None, []):
        each.place.of(into).zero_()
    for name, group in by_name.items():
        place = group[0].place.of(into)
        stored = read(name, place if group[0].whole and place.is_contiguous() else None)
        if stored is place:
            continue
        for each in group:
            each.place.of(into).copy_(each.source.of(stored.view(-1)))
