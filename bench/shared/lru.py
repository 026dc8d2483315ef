"""lru: a bank on paper, which drops what was longest unused and does nothing else."""

import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from layerloom.composer import Bank, Family
from layerloom.composer.pages.bank import Key
from layerloom.composer.sources.codecs import DTYPES


class Sizes:
    """A bank's engine without memory: it says how large pages are, those of a CPU, which have no padding."""

    def __init__(self, family: Family) -> None:
        base = family.base
        parts = [*map(base.layer, range(family.depth)), base.stem]
        self._sizes = [
            sum(math.prod(info.shape) * DTYPES[info.dtype].itemsize for info in (base.tensors[name] for name in part))
            for part in parts
        ]
        self._numbers = [sum(math.prod(base.tensors[name].shape) for name in part) for part in parts]

    def learn(self, tensors: Mapping[str, torch.Tensor]) -> None:
        pass

    def bytes(self, part: int) -> int:
        return self._sizes[part]

    def pieces(self, part: int) -> Sequence[slice]:
        return [slice(0, self._numbers[part])]

    def delta_bytes(self, part: int, codec: Any) -> None:
        return None

    def keeps_base(self, dtype: torch.dtype) -> bool:
        return False

    def makes_in_place(self, dtype: torch.dtype) -> bool:
        return False


@dataclass(frozen=True)
class Ideal:
    """What came of a list of requests: compositions that had to be assembled and that were dropped, bytes made."""

    assemblies: int
    evictions: int
    bytes: int


def ideal(bank: Bank, names: Iterable[str], memory: int) -> Ideal:
    """Serves requests for `names` one after another, each at once.

    Compositions are dropped as wholes, the longest unused first, until the pages that the next one lacks fit into
    `memory` bytes; pages are shared, and counted once. What is dropped was not in use, as nothing ever is.
    """
    owns: dict[str, frozenset[Key]] = {}
    there: OrderedDict[str, None] = OrderedDict()
    users: Counter[Key] = Counter()
    sizes: dict[Key, int] = {}
    assemblies = evictions = made = taken = 0

    def missing(own: Iterable[Key]) -> int:
        return sum(sizes[key] for key in own if not users[key])

    for name in names:
        if name in there:
            there.move_to_end(name)
            continue
        if name not in owns:
            owns[name] = frozenset(bank.own(bank.family.plan(name)))
            sizes |= {key: bank.bytes(key) for key in owns[name]}
        own = owns[name]
        while there and missing(own) > memory - taken:
            oldest, _ = there.popitem(last=False)
            users.subtract(owns[oldest])
            taken -= missing(owns[oldest])
            evictions += 1
        made += missing(own)
        taken += missing(own)
        users.update(own)
        there[name] = None
        assemblies += 1
    return Ideal(assemblies, evictions, made)
