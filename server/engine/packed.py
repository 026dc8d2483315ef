"""packed: pages on a CPU, each matrix packed as stock vLLM packs it for its matrix products.

A module runs vLLM's own code on the weights of one page at a time. With one page in the batch those weights
are installed in the module itself, so that it is stock vLLM to the last instruction.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import nn
from vllm.model_executor.layers.linear import register_weight_loader_v2_supported_method
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from layerloom.composer.pages.arena import NoRoom, megabytes
from layerloom.composer.sources.codecs import Codec
from layerloom.composer.sources.memory import memory
from layerloom.kernels import Route, by_page, paged_rows

from .packer import Linear, Packer, try_shape
from .paged import NORMS, Norm, PagedLinearMethod, Slot, page_norm, takes_rows, with_weight
from .parts import Parts
from .rows import PackedRows

ONE_PAGE = Route((0,), ())
NOTHING = torch.empty(0)


@dataclass(frozen=True, slots=True)
class Handle:
    """One module's weights in one page, in the form the module computes with; `rows` are a packed table's."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    linear: Linear | None = None
    rows: PackedRows | None = None


class Page:
    """The handles of one part's modules, in the part's order; `bytes` are counted against the bank's memory.

    While it is made they come one by one.
    """

    def __init__(self, handles: list[Handle], bytes: int = 0) -> None:
        self.handles = handles
        self.bytes = bytes


@dataclass(slots=True)
class Selection:
    """The pages a part uses in the current step, and the route of its tokens to them."""

    pages: tuple[Page, ...] = ()
    route: Route = ONE_PAGE


class PackedSlot(Slot):
    """The module at `index` of the pages in `selection`."""

    def __init__(self, name: str, module: nn.Module, index: int, selection: Selection) -> None:
        super().__init__(name, module)
        self.index = index
        self.selection = selection
        self.norm_takes_rows = isinstance(module, NORMS) and takes_rows(module)

    def handle(self, page: int) -> Handle:
        return self.selection.pages[page].handles[self.index]

    def linear(self, x: torch.Tensor, with_bias: bool) -> torch.Tensor:
        def run(page: int, rows: torch.Tensor) -> torch.Tensor:
            handle = self.handle(page)
            return handle.linear(rows, handle.weight, handle.bias if with_bias else None)

        return by_page(self.selection.route, run, x)

    def embedding(self, ids: torch.Tensor) -> torch.Tensor:
        def run(page: int, rows: torch.Tensor) -> torch.Tensor:
            handle = self.handle(page)
            return torch.nn.functional.embedding(rows, handle.weight) if handle.rows is None else handle.rows.take(rows)

        return by_page(self.selection.route, run, ids)

    def norm(self, stock: Norm, x: torch.Tensor, residual: torch.Tensor | None) -> Any:
        xs = (x,) if residual is None else (x, residual)
        if self.selection.route is ONE_PAGE:
            return stock(*xs)
        if self.norm_takes_rows:
            return with_weight(self.module, self.norm_weight(x), stock, *xs)

        def run(page: int, *rows: torch.Tensor) -> Any:
            return with_weight(self.module, self.handle(page).weight, stock, *rows)

        return by_page(self.selection.route, run, *xs)

    def norm_weight(self, x: torch.Tensor) -> torch.Tensor:
        weights = [page.handles[self.index].weight for page in self.selection.pages]
        if self.selection.route is ONE_PAGE:
            return weights[0].repeat(x.shape[0], *(1,) * (x.dim() - 1))
        return paged_rows(weights, self.selection.route, x)


def seal(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> Handle:
    """One module's weights as it computes with them; keeps no reference to `weight` and `bias`.

    A matrix is packed as stock vLLM packs it after loading. A table is read row by row; one that is also the
    output head (tied embeddings) is packed, and its rows are read out of that, or else it is kept in both forms.
    """
    is_table = isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
    if isinstance(module, NORMS) or (is_table and not module.layerloom_tied):
        return Handle(weight.clone())
    stand_in = nn.Module()
    stand_in.weight = nn.Parameter(weight, requires_grad=False)
    stand_in.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)
    dispatch_cpu_unquantized_gemm(stand_in, remove_weight=True)
    # What could not be packed is multiplied as it is.
    unpacked = stand_in.weight.numel() > 0
    rows = PackedRows.of(stand_in.cpu_linear, weight) if is_table else None
    # An empty one in its place has the weight's dtype, which the next page is made in; older vLLMs leave float32.
    kept = weight.clone() if unpacked or (is_table and rows is None) else weight.new_empty(0)
    return Handle(kept, None if stand_in.bias is None else stand_in.bias.data, stand_in.cpu_linear, rows)


def install(module: nn.Module, handle: Handle) -> None:
    """Makes `handle` the module's own weights, as if it had been loaded with them."""
    module.weight.data = handle.weight
    if handle.bias is not None:
        module.bias.data = handle.bias
    if handle.linear is not None:
        module.cpu_linear = handle.linear


@register_weight_loader_v2_supported_method
class PackedLinearMethod(PagedLinearMethod):
    """Packs each matrix as soon as it is loaded, as stock vLLM does, so that a model is never twice in memory."""

    packs = True

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        layer.layerloom_shape = layer.weight.shape
        bias = getattr(layer, "bias", None)
        given = layer, layer.weight.data, None if bias is None else bias.data
        handle = seal(*given)
        try_shape(layer.weight.data, lambda: seal(*given).linear, handle.linear)
        install(layer, handle)


class PackedPages(Parts):
    """The bank's engine (layerloom.composer.pages.bank.Engine) on a CPU: pages are made in host memory and packed."""

    vectors_first = False
    device = torch.device("cpu")
    generation = 0

    def __init__(self, model: nn.Module, depth: int) -> None:
        super().__init__(model, depth)
        self._selections = [Selection() for _ in self.parts]
        self._head = Selection()
        self._slots: list[list[PackedSlot]] = [[] for _ in self.parts]
        self._base = [Page([]) for _ in self.parts]
        self._taken: WeakSet[Page] = WeakSet()
        self._packer = Packer()
        self._memory = math.inf
        for index, part in enumerate(self.parts):
            for name, module in part.modules.items():
                self._add(index, name, module)
            self._selections[index].pages = (self._base[index],)
        self._head.pages = (self._base[-1],)
        for table in self.tables:
            # Look-ups and the head take their weights from pages alone.
            table.weight.data = table.weight.data.new_empty(0)

    def _add(self, part: int, name: str, module: nn.Module) -> None:
        handles = self._base[part].handles
        slot = PackedSlot(name, module, len(handles), self._selections[part])
        bias = getattr(module, "bias", None)
        if isinstance(module, ParallelLMHead) and bias is None:
            for other in self._slots[part]:
                if other.module.weight is module.weight:
                    # A head that shares its table's weight computes with what the table was packed into.
                    module.layerloom_head = other.module.layerloom_head
                    return
        if isinstance(module, VocabParallelEmbedding):
            handles.append(seal(module, module.weight.data, None if bias is None else bias.data))
            module.layerloom_slot = slot
            module.layerloom_head = PackedSlot(name, module, slot.index, self._head)
        elif isinstance(module, NORMS):
            handles.append(Handle(module.weight.data))
            page_norm(module, slot)
        else:
            handles.append(Handle(module.weight.data, None if bias is None else bias.data, module.cpu_linear))
            module.layerloom_slot = slot
        self._slots[part].append(slot)

    def delta_bytes(self, part: int, codec: Codec) -> None:
        """None: a matrix product with packed deltas is slow on a CPU."""

    def bytes(self, part: int) -> int:
        return sum(span.shape.numel() * span.parameter.dtype.itemsize for span in self.parts[part].spans)

    def keeps_base(self, dtype: torch.dtype) -> bool:
        """No: the base is packed too, and its files are read again where a blend needs it."""
        return False

    def makes_in_place(self, dtype: torch.dtype) -> bool:
        """No: what a matrix is packed from is let go of."""
        return False

    def give(self, memory: int) -> None:
        self._memory = memory

    def hold_still(self, still: bool) -> None:
        """They never move."""

    @property
    def free(self) -> float:
        return self._memory - sum(page.bytes for page in self._taken)

    def reserve(self, part: int, codec: Codec | None) -> Page:
        size = self.bytes(part)
        if size > self.free:
            raise NoRoom(f"{megabytes(size)} more are needed, and {megabytes(self.free)} are free")
        page = Page([Handle(NOTHING)] * len(self._slots[part]), size)
        self._taken.add(page)
        return page

    def spare(self, sizes: Sequence[int]) -> Sequence[None]:
        """The host's memory, which is there when it is needed."""
        return [None] * len(sizes)

    def flat(self, spare: None, dtype: torch.dtype, count: int) -> torch.Tensor:
        return memory(count * dtype.itemsize).view(dtype)

    def making(self) -> AbstractContextManager[None]:
        return self._packer.working()

    def put(self, part: int, page: Page, piece: slice, made: torch.Tensor) -> None:
        """Packs the matrices of a piece."""
        views = {
            id(span.parameter): made[span.start - piece.start : span.end - piece.start].view(span.shape)
            for span in self.within(part, piece)
        }
        slots = [slot for slot in self._slots[part] if id(slot.module.weight) in views]

        def pack() -> None:
            for slot in slots:
                weight, bias = slot.module.weight, slot.module._parameters.get("bias")
                parameters = [None if of is None else views[id(of)].to(of.dtype) for of in (weight, bias)]
                page.handles[slot.index] = seal(slot.module, *parameters)

        matrices = [slot.module.weight for slot in slots if views[id(slot.module.weight)].dim() == 2]
        self._packer.do(pack, [(*views[id(weight)].shape, weight.dtype) for weight in matrices])

    def base_page(self, part: int) -> Page:
        return self._base[part]

    def route(self, compositions: Sequence[tuple[Page, ...]], position: np.ndarray, replayed: bool = False) -> None:
        """Uses composition position[t] for token t of the coming steps."""
        routes: dict[tuple[int, ...], Route] = {}
        for part, selection in enumerate(self._selections):
            pages, route = routed([pages[part] for pages in compositions], position, routes)
            if len(pages) == 1 and selection.pages != pages:
                for slot, handle in zip(self._slots[part], pages[0].handles, strict=True):
                    if not isinstance(slot.module, VocabParallelEmbedding):
                        install(slot.module, handle)
            selection.pages, selection.route = pages, route

    def route_head(
        self, compositions: Sequence[tuple[Page, ...]], position: np.ndarray, replayed: bool = False
    ) -> None:
        """The same for the output head, whose rows are the sampled tokens."""
        self._head.pages, self._head.route = routed([pages[-1] for pages in compositions], position, {})


def routed(
    pages: Sequence[Page], position: np.ndarray, routes: dict[tuple[int, ...], Route]
) -> tuple[tuple[Page, ...], Route]:
    """The distinct pages of a part and the route to them; `routes` are those of the step, which parts share."""
    numbers: dict[int, int] = {}
    pattern = tuple(numbers.setdefault(id(page), len(numbers)) for page in pages)
    if len(numbers) == 1:
        return (pages[0],), ONE_PAGE
    if pattern not in routes:
        routes[pattern] = Route.of(torch.from_numpy(np.asarray(pattern)[position]))
    return tuple({id(page): page for page in pages}.values()), routes[pattern]
