"""arena: one tensor that holds all pages of an engine, so that a kernel reaches any of them from one address."""

import math
from collections.abc import Iterator, Sequence
from weakref import WeakSet

import torch

from layerloom.composer.errors import ComposeError
from layerloom.composer.sources.memory import memory

UNIT = 256
"""Bytes. A page's id is its start in units, so pages of different sizes have ids of one kind."""

# What is moved at a time when pages are pushed together.
CHUNK = 1 << 26


class NoRoom(ComposeError):
    """The arena cannot hold another page."""


class Region:
    """Memory in an arena, from `id` units on. It is free again when nobody holds it."""

    __slots__ = ("__weakref__", "id", "units")

    def __init__(self, id: int, units: int) -> None:
        self.id = id
        self.units = units

    @property
    def end(self) -> int:
        return self.id + self.units


class Arena:
    """`size` bytes on a device. Regions are handed out first fit, and pushed together when they stand in the way."""

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        size = units(size) * UNIT
        on_host = torch.device(device).type == "cpu"
        self.memory = memory(size) if on_host else torch.empty(size, dtype=torch.uint8, device=device)
        self.generation = 0
        """Grows when regions have moved: ids that were read before are of no use."""
        self.still = False
        """Regions may not be moved now: a thread writes to some."""
        self._regions: WeakSet[Region] = WeakSet()

    @property
    def size(self) -> int:
        """Bytes there are."""
        return self.memory.numel()

    @property
    def free(self) -> int:
        """Bytes that no region holds."""
        return self.size - UNIT * sum(region.units for region in self._regions)

    @property
    def largest_free(self) -> int:
        """Bytes of the largest piece that no region holds."""
        return UNIT * max(start - end for end, start in self._gaps(self._in_order()))

    def _in_order(self) -> list[Region]:
        return sorted(self._regions, key=lambda region: region.id)

    def _gaps(self, regions: Sequence[Region]) -> Iterator[tuple[int, int]]:
        """[start, end) in units of what lies before, between and behind them, and may be nothing."""
        ends = [0, *(region.end for region in regions)]
        starts = [*(region.id for region in regions), self.size // UNIT]
        return zip(ends, starts, strict=True)

    def allocate(self, size: int) -> Region:
        """A region of at least `size` bytes, with whatever was there before. Raises NoRoom."""
        wanted = units(size)
        if wanted * UNIT > self.free:
            raise NoRoom(
                f"{megabytes(size)} more are needed, and {megabytes(self.free)} of {megabytes(self.size)} are free"
            )
        regions = self._in_order()
        found = next((end for end, start in self._gaps(regions) if start - end >= wanted), None)
        if found is None and self.still:
            raise NoRoom(f"{megabytes(size)} more are needed, and what is free is in pieces")
        region = Region(self._push_together(regions) if found is None else found, wanted)
        self._regions.add(region)
        return region

    def _push_together(self, regions: Sequence[Region]) -> int:
        """Moves regions down over the gaps, and returns where the free rest starts."""
        end = 0
        for region in regions:
            if region.id != end:
                for offset in range(0, region.units * UNIT, CHUNK):
                    count = min(CHUNK, region.units * UNIT - offset)
                    source = self.memory.narrow(0, region.id * UNIT + offset, count)
                    self.memory.narrow(0, end * UNIT + offset, count).copy_(source.clone())
                region.id = end
            end = region.end
        self.generation += 1
        return end

    def flat(self, region: Region, dtype: torch.dtype, count: int) -> torch.Tensor:
        """The first `count` numbers of a region. Good until regions move."""
        return self.memory.narrow(0, region.id * UNIT, count * dtype.itemsize).view(dtype)

    def view(self, dtype: torch.dtype, offset: int, shape: Sequence[int]) -> torch.Tensor:
        """[ids, *shape]: for every page id, the tensor that starts `offset` bytes into that page.

        Neighbours overlap; only those of ids that are in use mean anything.
        """
        memory = self.memory.view(dtype)
        step, start, count = UNIT // dtype.itemsize, offset // dtype.itemsize, math.prod(shape)
        ids = (memory.numel() - start - count) // step + 1
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return memory.as_strided((max(0, ids), *shape), (step, *strides), start)


def units(size: int) -> int:
    return -(-size // UNIT)


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"
