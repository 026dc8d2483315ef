"""arena: pages as views of one tensor on the device, found by ids that kernels read from buffers (a GPU's way).

What changes from step to step is in those buffers, so a CUDA graph captured once serves every mix of compositions. On a
CPU the same code runs with torch's twins of the kernels; packed.py is faster there.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from layerloom.composer import ComposeError
from layerloom.composer.pages.arena import Arena, Region
from layerloom.composer.pages.engine import Read
from layerloom.composer.sources.codecs import Codec, Parts
from layerloom.kernels.delta import Delta, Dense

from .arena_slot import ArenaSlot
from .batch import AnyPage, ArenaPage, Batch, DeltaPage
from .paged import NORMS, page_norm
from .parts import ALIGNMENT, aligned
from .parts import Parts as ModelParts

Place = tuple[torch.dtype, int, tuple[int, ...]]
"""(dtype, first byte within the page, shape) of one part of a matrix's delta."""


class ArenaPages(ModelParts):
    """The bank's engine (layerloom.composer.pages.bank.Engine): base and compositions in one arena.

    A batch has at most `slots` compositions and `rows` tokens. `codecs` are those under which layers may be kept as
    deltas. Raises ComposeError when the model's parameters are of more than one dtype.
    """

    def __init__(self, model: nn.Module, depth: int, slots: int, rows: int, codecs: Iterable[Codec]) -> None:
        super().__init__(model, depth)
        parameters = [span.parameter for part in self.parts for span in part.spans]
        dtypes = {parameter.dtype for parameter in parameters}
        if len(dtypes) != 1:
            raise ComposeError(f"an arena holds numbers of one dtype, and the model has {sorted(map(str, dtypes))}")
        (self.dtype,) = dtypes
        self.device = parameters[0].device
        self.codecs = sorted(codecs, key=repr)
        if self.device.type == "cuda":
            self._copies = torch.cuda.Stream(self.device)
        self._tokens = Batch(rows, depth + 1, slots, self.codecs, self.device)
        self._head = Batch(rows, 1, slots, (), self.device)

    def give(self, memory: int) -> None:
        """Makes the arena, with `memory` bytes for compositions, and moves the base into it."""
        # By way of the host, because a GPU may have no room for it twice.
        host = [[span.parameter.data.cpu() for span in part.spans] for part in self.parts]
        for part in self.parts:
            for span in part.spans:
                span.parameter.data = span.parameter.data.new_empty(0)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        parts = range(len(self.parts))
        self.arena = Arena(sum(self.bytes(part) for part in parts) + memory, self.device)
        self._base = [self.reserve(part, None) for part in parts]
        for part, page, tensors in zip(self.parts, self._base, host, strict=True):
            for span, tensor in zip(part.spans, tensors, strict=True):
                span.parameter.data = page.flat[span.start : span.end].view(span.shape)
                span.parameter.data.copy_(tensor)
        for index, part in enumerate(self.parts):
            for name, module in part.modules.items():
                self._add(index, name, module)

    def _add(self, part: int, name: str, module: nn.Module) -> None:
        def slot(batch: Batch, row: int) -> ArenaSlot:
            made = ArenaSlot(name, module, batch, row, self._view(part, module.weight))
            bias = module._parameters.get("bias")
            if bias is not None:
                made.bias = self._view(part, bias)
            return made

        if isinstance(module, NORMS):
            page_norm(module, slot(self._tokens, part))
            return
        module.layerloom_slot = slot(self._tokens, part)
        for codec in self.codecs if part < self.depth else ():
            places = self._delta_places(part, codec)[self.parts[part].span(module.weight).name]
            views = {name: self.arena.view(dtype, offset, shape) for name, (dtype, offset, shape) in places.items()}
            module.layerloom_slot.deltas[codec] = codec.delta(views, module.weight.shape[-1])
        if isinstance(module, VocabParallelEmbedding):
            module.layerloom_head = slot(self._head, 0)

    def _view(self, part: int, parameter: nn.Parameter) -> torch.Tensor:
        span = self.parts[part].span(parameter)
        return self.arena.view(self.dtype, span.start * self.dtype.itemsize, span.shape)

    @property
    def generation(self) -> int:
        return self.arena.generation

    def hold_still(self, still: bool) -> None:
        self.arena.still = still

    @property
    def free(self) -> int:
        return self.arena.free

    @property
    def largest_free(self) -> int:
        """Of them, those that are in one piece."""
        return self.arena.largest_free

    def bytes(self, part: int) -> int:
        return self.size(part) * self.dtype.itemsize

    def pieces(self, part: int) -> Sequence[slice]:
        """All at once, which is one launch on a GPU."""
        return [slice(0, self.size(part))]

    def reserve(self, part: int, codec: Codec | None) -> AnyPage:
        if codec is not None:
            return DeltaPage(self._base[part], codec, self.arena.allocate(self.delta_bytes(part, codec) or 0))
        return ArenaPage(self.arena, self.arena.allocate(self.bytes(part)), self.dtype, self.size(part))

    def spare(self, sizes: Sequence[int]) -> Sequence[Region]:
        if self.device.type == "cuda":
            # Steps that are on their way may still read what was there.
            self._copies.wait_stream(torch.cuda.current_stream())
        return [self.arena.allocate(size) for size in sizes]

    def flat(self, spare: Region, dtype: torch.dtype, count: int) -> torch.Tensor:
        return self.arena.flat(spare, dtype, count)

    @contextmanager
    def making(self) -> Iterator[None]:
        """On a GPU on a stream of its own, past the steps that run; what fails writes nowhere any more, either."""
        if self.device.type != "cuda":
            yield
            return
        with torch.cuda.device(self.device), torch.cuda.stream(self._copies):
            try:
                yield
            finally:
                self._copies.synchronize()

    def makes_in_place(self, dtype: torch.dtype) -> bool:
        return dtype == self.dtype

    def in_place(self, page: ArenaPage) -> torch.Tensor:
        return page.flat

    def fill(self, part: int, piece: slice, into: torch.Tensor, names: Iterable[str], read: Read) -> None:
        host = into if into.device.type == "cpu" else self._host(len(into), into.dtype)
        super().fill(part, piece, host, names, read)
        if host is not into:
            into.copy_(host, non_blocking=True)

    def _host(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, pin_memory=self.device.type == "cuda")

    def put(self, part: int, page: ArenaPage, piece: slice, made: torch.Tensor) -> None:
        if made.dtype != self.dtype:
            page.flat[piece].copy_(made)

    def _delta_places(self, part: int, codec: Codec) -> dict[str, dict[str, Place]]:
        """Where in a page of deltas the parts of each matrix are; the vectors are where they are in every page."""
        spans = self.parts[part].spans
        end = max((aligned(span.end) for span in spans if len(span.shape) < 2), default=0) * self.dtype.itemsize
        places: dict[str, dict[str, Place]] = {}
        for span in spans:
            if len(span.shape) < 2:
                continue
            for name, (dtype, shape) in codec.stacked(span.shape, self.dtype, len(self.stacked_in(span))).items():
                places.setdefault(span.name, {})[name] = (dtype, end, shape)
                end += aligned(math.prod(shape)) * dtype.itemsize
        return places

    def delta_bytes(self, part: int, codec: Codec) -> int | None:
        # A rank's share of a row of words is no run of words where K is cut within a tile.
        if part == self.depth or get_tensor_model_parallel_world_size() > 1:
            return None
        places = [place for parts in self._delta_places(part, codec).values() for place in parts.values()]
        return max((end + aligned(math.prod(shape)) * dtype.itemsize for dtype, end, shape in places), default=0)

    def fill_deltas(
        self, part: int, codec: Codec, vectors: Iterable[tuple[str, torch.Tensor]], matrices: Mapping[str, Parts]
    ) -> torch.Tensor:
        host = self._host(self.delta_bytes(part, codec) or 0, torch.uint8)
        spans = [span for span in self.parts[part].spans if len(span.shape) < 2]
        flat = host[: max((span.end for span in spans), default=0) * self.dtype.itemsize].view(self.dtype)
        self.load(spans, [flat[span.start : span.end].view(span.shape) for span in spans], vectors)
        spans = [span for span in self.parts[part].spans if len(span.shape) > 1]
        into = {
            span.name: {
                name: host[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape[0], -1)
                for name, (dtype, start, shape) in self._delta_places(part, codec)[span.name].items()
            }
            for span in spans
        }
        for name in codec.common:
            for places in into.values():
                places[name].zero_()
        by_rows: dict[str, dict[str, torch.Tensor]] = {}
        for matrix, parts in matrices.items():
            span, index, count = self.place(part, matrix)
            for name, tensor in codec.stack(parts, index, count).items():
                if name in codec.common:
                    into[span.name][name] += tensor
                else:
                    by_rows.setdefault(name, {})[matrix] = tensor.view(len(tensor), -1)
        for name, tensors in by_rows.items():
            # vLLM's loaders take a matrix, of any width: a row of words stands where the row of numbers would.
            self.load(spans, [into[span.name][name] for span in spans], tensors.items())
        return host

    def keeps_deltas(self, codec: Codec) -> bool:
        return codec in self.codecs

    def put_deltas(self, page: DeltaPage, host: torch.Tensor) -> None:
        self.arena.flat(page.region, torch.uint8, len(host)).copy_(host, non_blocking=True)

    def deltas(self, part: int, codec: Codec, spare: Region, host: torch.Tensor) -> list[Delta]:
        page = DeltaPage(self._base[part], codec, spare)
        self.put_deltas(page, host)
        places = self._delta_places(part, page.codec)
        start = min(span.start for span in self.parts[part].spans if span.name in places)
        vectors = self.arena.flat(page.region, self.dtype, start)
        found: list[Delta] = [Dense(vectors)]
        for span in self.parts[part].spans:
            if span.name not in places:
                continue
            views = {
                name: self.arena.view(dtype, offset, shape)[page.id]
                for name, (dtype, offset, shape) in places[span.name].items()
            }
            found.append(page.codec.delta(views, span.shape[-1]))
            if span.end % ALIGNMENT:
                # Between parameters any numbers will do.
                found.append(Dense(self.base(part)[: aligned(span.end) - span.end]))
        return found

    def keeps_base(self, dtype: torch.dtype) -> bool:
        return dtype == self.dtype

    def base(self, part: int) -> torch.Tensor:
        return self._base[part].flat

    def base_page(self, part: int) -> ArenaPage:
        return self._base[part]

    def route(self, compositions: Sequence[Sequence[AnyPage]], position: np.ndarray, replayed: bool = False) -> None:
        self._tokens.route(compositions, position, replayed)

    def route_head(
        self, compositions: Sequence[Sequence[AnyPage]], position: np.ndarray, replayed: bool = False
    ) -> None:
        self._head.route([pages[-1:] for pages in compositions], position, replayed)
