"""pages: the parts of a loaded vLLM model, and how a page of each is filled and sealed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)

from layerloom.composer.checkpoint import layer_of
from layerloom.composer.errors import ComposeError
from layerloom.composer.plan import kind_of

from .paged import (
    NORMS,
    Handle,
    Page,
    PagedEmbeddingMethod,
    PagedLinearMethod,
    Selection,
    Slot,
    install,
    page_norm,
    seal,
)


@dataclass
class Span:
    """One parameter's place in its part's flat page."""

    name: str
    parameter: nn.Parameter
    shape: torch.Size
    start: int
    end: int


@dataclass
class Part:
    """A decoder layer or the stem: its paged modules and their parameters."""

    spans: list[Span] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    base: Page = field(default_factory=lambda: Page([]))
    selection: Selection = field(default_factory=lambda: Selection(()))
    head: Selection = field(default_factory=lambda: Selection(()))

    @property
    def size(self) -> int:
        return self.spans[-1].end if self.spans else 0


class EnginePages:
    """The bank's engine (layerloom.composer.bank.Engine) over a loaded vLLM model.

    The parts are the decoder layers in order, then the stem. Raises ComposeError naming every module that
    has weights of a kind that cannot be paged.
    """

    def __init__(self, model: nn.Module, depth: int) -> None:
        self.model = model
        self.depth = depth
        self.parts = [Part() for _ in range(depth + 1)]
        tables = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
        for module in tables:
            # Some models (Gemma 2) build their table without the quantization config; its weight is still there.
            if type(module.quant_method) is UnquantizedEmbeddingMethod:
                module.quant_method = PagedEmbeddingMethod()
            module.layerloom_shape = module.weight.shape
            module.layerloom_tied = not any(isinstance(other, ParallelLMHead) for other in tables)
        self._refuse(model)
        seen: dict[int, Span] = {}
        for name, module in list(model.named_modules()):
            parameters = dict(module.named_parameters(recurse=False))
            if not parameters:
                continue
            layer = layer_of(f"{name}.")
            part = self.parts[depth if layer is None else layer]
            for leaf, parameter in parameters.items():
                if id(parameter) not in seen:
                    # A packed weight has left an empty parameter behind; its shape is kept beside it.
                    shape = getattr(module, "layerloom_shape", None) if leaf == "weight" else None
                    shape = shape or parameter.shape
                    span = Span(f"{name}.{leaf}", parameter, shape, part.size, part.size + shape.numel())
                    seen[id(parameter)] = span
                    part.spans.append(span)
            self._add(part, name, module)
        for module in tables:
            # Look-ups and the head take their weights from pages alone.
            module.weight.data = module.weight.data.new_empty(0)
        for part in self.parts:
            part.selection.pages = part.head.pages = (part.base,)

    @staticmethod
    def _add(part: Part, name: str, module: nn.Module) -> None:
        index = len(part.slots)
        slot = Slot(name, module, index, part.selection)
        bias = getattr(module, "bias", None)
        if isinstance(module, VocabParallelEmbedding):
            part.base.handles.append(seal(module, module.weight.data, None if bias is None else bias.data))
            module.layerloom_slot = slot
            module.layerloom_head = Slot(name, module, index, part.head)
        elif isinstance(module, NORMS):
            part.base.handles.append(Handle(module.weight.data))
            page_norm(module, slot)
        else:
            part.base.handles.append(Handle(module.weight.data, None if bias is None else bias.data, module.cpu_linear))
            module.layerloom_slot = slot
        part.slots.append(slot)

    @staticmethod
    def _refuse(model: nn.Module) -> None:
        def can_be_paged(module: nn.Module) -> bool:
            if isinstance(module, NORMS):
                return getattr(module, "variance_size_override", None) is None
            method = getattr(module, "quant_method", None)
            return isinstance(method, (PagedLinearMethod, PagedEmbeddingMethod))

        problems = [
            f"{name} ({type(module).__name__})"
            for name, module in model.named_modules()
            if dict(module.named_parameters(recurse=False)) and not can_be_paged(module)
        ]
        if problems:
            raise ComposeError(
                f"{type(model).__name__} has weights that cannot be paged: {', '.join(problems)}. layerloom pages "
                "linear layers, token embeddings, output heads and RMSNorm of unquantised dense decoders."
            )

    def size(self, part: int) -> int:
        return self.parts[part].size

    def fill(self, part: int, flat: torch.Tensor, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        spans = self.parts[part].spans
        before = [span.parameter.data for span in spans]
        try:
            for span in spans:
                span.parameter.data = flat[span.start : span.end].view(span.shape)
            loaded = self.model.load_weights(iter(tensors))
        finally:
            for span, data in zip(spans, before, strict=True):
                span.parameter.data = data
        missing = {span.name for span in spans} - set(loaded)
        if missing:
            raise ComposeError(f"vLLM loaded nothing into {', '.join(sorted(missing))} from the expert's checkpoint")

    def spans(self, part: int, kind: str) -> Sequence[tuple[int, int]]:
        return [(span.start, span.end) for span in self.parts[part].spans if kind_of(span.name) == kind]

    def seal(self, part: int, flat: torch.Tensor) -> Page:
        views = {
            id(s.parameter): flat[s.start : s.end].view(s.shape).to(s.parameter.dtype) for s in self.parts[part].spans
        }

        def sealed(module: nn.Module) -> Handle:
            bias = module._parameters.get("bias")
            return seal(module, views[id(module.weight)], None if bias is None else views[id(bias)])

        return Page([sealed(slot.module) for slot in self.parts[part].slots])

    def base_page(self, part: int) -> Page:
        return self.parts[part].base

    def select(self, part: int, pages: tuple[Page, ...], route: Any) -> None:
        """Uses `pages` for the coming steps; a single page becomes the modules' own weights."""
        chosen = self.parts[part]
        if len(pages) == 1 and chosen.selection.pages != pages:
            for slot, handle in zip(chosen.slots, pages[0].handles, strict=True):
                if not isinstance(slot.module, VocabParallelEmbedding):
                    install(slot.module, handle)
        chosen.selection.pages, chosen.selection.route = pages, route

    def select_head(self, pages: tuple[Page, ...], route: Any) -> None:
        """Uses the stem's `pages` for the output head, whose rows are the sampled tokens."""
        stem = self.parts[self.depth]
        stem.head.pages, stem.head.route = pages, route
