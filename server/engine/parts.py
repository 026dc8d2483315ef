"""parts: the decoder layers and the stem of a loaded vLLM model, and the flat pages their parameters make."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import nn
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.models.interfaces import supports_multimodal

from layerloom.composer.errors import ComposeError
from layerloom.composer.family.plan import kind_of
from layerloom.composer.pages.engine import Read
from layerloom.composer.sources.layout import Layout

from . import rehearsal
from .paged import NORMS, PagedEmbeddingMethod, PagedLinearMethod

ALIGNMENT = 128
"""Every parameter starts at a multiple of this many numbers, so that kernels read it in whole lines."""


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
    """A decoder layer or the stem: its paged modules by name and their parameters, vectors before matrices."""

    modules: dict[str, nn.Module] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    copies: dict[str, list[rehearsal.Copy]] | None = None
    """By span, what vLLM copies there on loading; None where it does more than that."""

    @property
    def size(self) -> int:
        return aligned(self.spans[-1].end) if self.spans else 0

    def span(self, parameter: nn.Parameter) -> Span:
        return next(span for span in self.spans if span.parameter is parameter)


class Parts:
    """The decoder layers in order, then the stem. What is around the language model of a larger one is vLLM's own.

    Raises ComposeError naming every module that has weights of a kind that cannot be paged.
    """

    vectors_first = True
    """In a flat page; else module by module."""

    def __init__(self, model: nn.Module, depth: int) -> None:
        self.model = model
        self.depth = depth
        self.parts = [Part() for _ in range(depth + 1)]
        language = dict(language_modules(model))
        leave(module for name, module in model.named_modules() if name not in language)
        self.tables = [module for module in language.values() if isinstance(module, VocabParallelEmbedding)]
        for table in self.tables:
            # Some models (Gemma 2) build their table without the quantization config; its weight is still there.
            if type(table.quant_method) is UnquantizedEmbeddingMethod:
                table.quant_method = PagedEmbeddingMethod()
            heads = [other for other in self.tables if isinstance(other, ParallelLMHead)]
            table.layerloom_tied = not heads or any(head.weight is table.weight for head in heads)
        refuse(model, language)
        layout = Layout(f"{name}." for name in language)
        found: list[dict[int, tuple[str, nn.Parameter, torch.Size]]] = [{} for _ in self.parts]
        seen: set[int] = set()
        for name, module in language.items():
            parameters = dict(module.named_parameters(recurse=False))
            if not parameters:
                continue
            layer = layout.layer_of(f"{name}.")
            index = depth if layer is None else layer
            self.parts[index].modules[name] = module
            for leaf, parameter in parameters.items():
                if id(parameter) not in seen:
                    # A packed weight has left an empty parameter behind; its shape is kept beside it.
                    shape = getattr(module, "layerloom_shape", None) if leaf == "weight" else None
                    found[index][id(parameter)] = (f"{name}.{leaf}", parameter, shape or parameter.shape)
                    seen.add(id(parameter))
        for part, parameters in zip(self.parts, found, strict=True):
            for name, parameter, shape in sorted(
                parameters.values(), key=lambda of: self.vectors_first and len(of[2]) > 1
            ):
                start = part.size
                part.spans.append(Span(name, parameter, shape, start, start + shape.numel()))

    def learn(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Finds out how vLLM loads tensors of these names, which are of the base's shapes and on the device "meta"."""
        spans = [span for part in self.parts for span in part.spans]
        places = {span.name: (span.parameter, span.shape) for span in spans}
        found = rehearsal.rehearse(self.model, places, tensors)
        for part in self.parts:
            if all(found[span.name] is not None for span in part.spans):
                part.copies = {span.name: [each.moved(span.start) for each in found[span.name]] for span in part.spans}

    def size(self, part: int) -> int:
        return self.parts[part].size

    def pieces(self, part: int) -> Sequence[slice]:
        """The ranges of a flat page that are made one after the other: each module's parameters, where they can be."""
        spans = self.parts[part].spans
        if self.parts[part].copies is None:
            return [slice(0, self.parts[part].size)]
        groups = [list(group) for _, group in groupby(spans, key=lambda span: span.name.rpartition(".")[0])]
        return [slice(group[0].start, group[-1].end) for group in groups]

    def spans(self, part: int, kind: str) -> Sequence[tuple[int, int]]:
        return [(span.start, span.end) for span in self.parts[part].spans if kind_of(span.name) == kind]

    def stacked_in(self, span: Span) -> Sequence[str]:
        """The modules of a checkpoint whose matrices vLLM keeps in this one, one under the other."""
        _, module, _ = f".{span.name}".rsplit(".", 2)
        return getattr(self.model, "packed_modules_mapping", {}).get(module, [module])

    def place(self, part: int, name: str) -> tuple[Span, int, int]:
        """Where vLLM keeps a matrix of a layer, by its Hugging Face name; which of how many it is there."""

        def within_layer(path: str) -> str:
            return path.rpartition(f".{part}.")[2]

        path, module, _ = name.rsplit(".", 2)
        for span in self.parts[part].spans:
            own, _, _ = span.name.rsplit(".", 2)
            if len(span.shape) > 1 and module in self.stacked_in(span) and within_layer(own) == within_layer(path):
                return span, self.stacked_in(span).index(module), len(self.stacked_in(span))
        raise ComposeError(f"{type(self.model).__name__} has no place for {name}")

    def within(self, part: int, piece: slice) -> Sequence[Span]:
        """The parameters in one of a part's `pieces`."""
        return [span for span in self.parts[part].spans if piece.start <= span.start and span.end <= piece.stop]

    def fill(self, part: int, piece: slice, into: torch.Tensor, names: Iterable[str], read: Read) -> None:
        """Puts what `read` gives of the part's tensors where vLLM would load it, within one of its `pieces`."""
        copies, spans = self.parts[part].copies, self.parts[part].spans
        if copies is None:
            views = [into[span.start : span.end].view(span.shape) for span in spans]
            self.load(spans, views, ((name, read(name, None)) for name in names))
            return
        moved = [each.moved(-piece.start) for span in self.within(part, piece) for each in copies[span.name]]
        rehearsal.fill(into, moved, read)

    def load(
        self, spans: Sequence[Span], into: Sequence[torch.Tensor], tensors: Iterable[tuple[str, torch.Tensor]]
    ) -> None:
        """Lets vLLM load `tensors`, by their Hugging Face names, into `into`, while the model computes."""
        other = rehearsal.twin(self.model, {s.parameter: data for s, data in zip(spans, into, strict=True)})
        loaded = other.load_weights(iter(tensors))
        missing = {span.name for span in spans} - set(loaded)
        if missing:
            raise ComposeError(f"vLLM loaded nothing into {', '.join(sorted(missing))} from the expert's checkpoint")


def language_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model's language model, which may be all of it, by their names in the model."""
    language = model.get_language_model() if supports_multimodal(model) else model
    prefix = next(name for name, module in model.named_modules() if module is language)
    return language.named_modules(prefix=prefix)


def leave(modules: Iterable[nn.Module]) -> None:
    """Makes modules stock vLLM's again, as they compute with the base's weights alone."""
    for module in modules:
        method = getattr(module, "quant_method", None)
        if isinstance(method, PagedLinearMethod):
            module.quant_method = UnquantizedLinearMethod()
            if not method.packs:
                module.quant_method.process_weights_after_loading(module)
        elif isinstance(method, PagedEmbeddingMethod):
            module.quant_method = UnquantizedEmbeddingMethod()
            module.quant_method.process_weights_after_loading(module)


def refuse(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Raises ComposeError naming the modules whose weights cannot be paged."""

    def can_be_paged(module: nn.Module) -> bool:
        if isinstance(module, NORMS):
            return getattr(module, "variance_size_override", None) is None
        return isinstance(getattr(module, "quant_method", None), (PagedLinearMethod, PagedEmbeddingMethod))

    problems = [
        f"{name} ({type(module).__name__})"
        for name, module in modules.items()
        if dict(module.named_parameters(recurse=False)) and not can_be_paged(module)
    ]
    if problems:
        raise ComposeError(
            f"{type(model).__name__} has weights that cannot be paged: {', '.join(problems)}. layerloom pages "
            "linear layers, token embeddings, output heads and RMSNorm of unquantised dense decoders."
        )


def aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
