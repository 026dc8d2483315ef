"""room: what a family takes in memory, told from its files."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from layerloom.composer import Bank, Family
from layerloom.composer.pages.budget import needed
from layerloom.composer.sources.codecs import DTYPES

from .findings import FINE, NOTE, STOP, Finding, gigabytes

PROCESSES = 2_200_000_000
"""Bytes that a server's processes take on a CPU beside weights and KV cache."""
GPU_SHARE = 0.92
"""Of a GPU's memory that vLLM takes, unless told otherwise."""
LEAST_CACHE = 500_000_000
"""Bytes of KV cache below which nobody wants to serve."""


class OnPaper:
    """An engine that holds pages as they are in files, of which the bank asks sizes alone."""

    def __init__(self, family: Family) -> None:
        base = family.base
        parts = [*(base.layer(index) for index in range(family.depth)), base.stem]
        self._infos = [[base.tensors[name] for name in part] for part in parts]

    def learn(self, tensors: Mapping[str, torch.Tensor]) -> None: ...

    def bytes(self, part: int) -> int:
        return sum(math.prod(info.shape) * DTYPES[info.dtype].itemsize for info in self._infos[part])

    def pieces(self, part: int) -> Sequence[slice]:
        return [slice(0, sum(math.prod(info.shape) for info in self._infos[part]))]

    def keeps_base(self, dtype: torch.dtype) -> bool:
        return True

    def makes_in_place(self, dtype: torch.dtype) -> bool:
        return True

    def keeps_deltas(self, codec: Any) -> bool:
        return False

    def delta_bytes(self, part: int, codec: Any) -> None:
        return None


@dataclass(frozen=True)
class Room:
    """Bytes; `at_once` is how many compositions can be in memory at once, any of them, and `bank` what those take."""

    base: int
    smallest: int
    largest: int
    compositions: int
    at_once: int
    bank: int
    all: int


def room_of(family: Family, free: int) -> Room:
    """`free` is for weights alone."""
    engine = OnPaper(family)
    bank = Bank(family, engine)  # type: ignore[arg-type]
    plans = [plan for plan in map(family.plan, family.names()) if not plan.is_base]
    sizes = [sum(map(bank.bytes, bank.own(plan))) for plan in plans] or [0]
    base = sum(map(engine.bytes, range(family.depth + 1)))

    def taken(mixed: int) -> int:
        return needed(plans, mixed, bank, family.pinned) if mixed else 0

    fits = [mixed for mixed in range(1, len(plans) + 1) if base + taken(mixed) <= free]
    at_once = max(fits, default=0)
    return Room(base, min(sizes), max(sizes), len(plans), at_once, taken(at_once), taken(len(plans)))


def look_at_room(family: Family, memory: int, gpu: bool) -> tuple[list[Finding], Room]:
    """`memory` is the device's free bytes."""
    free = int(memory * GPU_SHARE) if gpu else memory - PROCESSES
    room = room_of(family, free - LEAST_CACHE)
    each = gigabytes(room.smallest)
    if room.largest > room.smallest:
        each += f" to {gigabytes(room.largest)}"
    parts = (
        f"{family.depth} layers, base {gigabytes(room.base)}; {room.compositions} compositions, each {each} beside it"
    )
    found = [Finding(FINE, "family", parts)]
    if not room.at_once and room.compositions:
        least = room.base + room.largest + LEAST_CACHE + (0 if gpu else PROCESSES)
        text = f"does not fit: base, a composition and a KV cache take {gigabytes(least)}, and there are "
        next = "more memory, a smaller model, or --tensor-parallel-size"
        return [*found, Finding(STOP, "room", f"{text}{gigabytes(memory)}", next)], room
    left = f"{gigabytes(free - room.base - room.bank)} are left for the KV cache"
    if room.at_once < room.compositions:
        limits = f"--max-loras {room.at_once} --bank-memory {math.ceil(room.bank / 1e6)}m"
        text = f"any {room.at_once} of {room.compositions} compositions at once, of all that take {gigabytes(room.all)}"
        return [*found, Finding(NOTE, "room", f"{text}; {left}", f"serve with {limits}")], room
    together = "with what they share counted once"
    text = f"all {room.compositions} compositions at once, {gigabytes(room.all)} {together}; {left}"
    return [*found, Finding(FINE, "room", text)], room
