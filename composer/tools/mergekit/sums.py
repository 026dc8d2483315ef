"""sums: which weighted sum of which models each tensor of a mergekit configuration's output is."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from pydantic import TypeAdapter

from layerloom.composer.errors import ComposeError, listed, quoted
from layerloom.composer.family.entries import Location
from layerloom.composer.family.plan import KINDS, kind_of
from layerloom.composer.sources.checkpoint import Checkpoint

from .configuration import Configuration, Input, Module, Parameters, Reference, Slice, Source, resolve, varies

FLOAT, BOOL, SCALE = TypeAdapter(float), TypeAdapter(bool), TypeAdapter(float | None)
STAND_INS = ("self_attn.o_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight")
STEM = ("model.embed_tokens.weight", "model.norm.weight")
MOST_LAYERS = 9999
CLOSE = 1e-9
"""How far from 1 the sum of decimals may be that are meant to sum to 1; as in plan.make_blend."""


@dataclass(frozen=True)
class Sum:
    """Σ w·M. `terms` has (model, weight) in mergekit's order, no weight is 0, and together they are 1."""

    terms: tuple[tuple[Location, float], ...]
    divided: bool = field(default=False, compare=False)
    """Whether mergekit divides by the weights' sum afterwards, and rounds once more."""


@dataclass(frozen=True)
class Sums:
    """The sum of each kind of module in each layer, and of the stem."""

    layers: tuple[Mapping[str, Sum], ...]
    stem: Sum

    def all(self) -> list[Sum]:
        return list(dict.fromkeys([*(layer[kind] for layer in self.layers for kind in KINDS), self.stem]))


@dataclass
class Findings:
    """Why a configuration is no composition, and what must be known if it is one: each cause once."""

    problems: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


class Summing:
    """Goes through a configuration of method linear or passthrough, layer by layer.

    `where` says where a model is (and raises ComposeError), `base` is the base's checkpoint where it is on this
    machine. What is wrong goes to `findings`.
    """

    def __init__(
        self, config: Configuration, where: Callable[[Reference], Location], base: Checkpoint | None, findings: Findings
    ) -> None:
        self.config = config
        self.where = where
        self.base = base
        self.findings = findings
        self.module = config if config.modules is None else config.modules["default"]
        self.key = "slices" if self.module.slices else "models"

    def sums(self) -> Sums | None:
        """None when there are problems."""
        slices = self._slices()
        if slices is None:
            return None
        layers: list[Mapping[str, Sum]] = []
        for number, item in enumerate(slices):
            for index in range(item.length):
                t = index / (item.length - 1) if item.length > 1 else 1.0
                layers.append(self._layer(number, item, len(layers), t))
        stem = self._stem(slices)
        return None if self.findings.problems or stem is None else Sums(tuple(layers), stem)

    def _slices(self) -> list[Slice] | None:
        """The slices, each layer of which is in its place; None when they are not."""
        depth = self.base.depth if self.base else None
        settings = [setting for scope in self._scopes() for setting in (scope or {}).values()]
        if self.base is None and any(varies(setting, "filter") for setting in settings):
            self._problem("filters", "filters need the names of the base's tensors; download the base first")
        if self.module.models is None:
            slices = self.module.slices or []
            self._check_places(slices, depth)
        else:
            if depth is None and any(varies(setting, "gradient") for setting in settings):
                self._problem("gradients", "gradients need the base's number of layers; download the base first")
            inputs = self.module.models + self._added()
            # One layer stands for all where the depth is not known: they are all the same.
            whole = (0, depth or 1)
            sources = [Source(model=i.model, layer_range=whole, parameters=i.parameters) for i in inputs]
            slices = [Slice(sources=sources)]
        for number, item in enumerate(slices):
            self._check_sources(number, item)
        return None if self.findings.problems else slices

    def _added(self) -> list[Input]:
        """The base_model, which mergekit adds to the models where it is not among them."""
        stated = self.config.base_model
        if stated is None or self.where(stated) in [self.where(item.model) for item in self.module.models or ()]:
            return []
        return [Input(model=stated)]

    def _check_places(self, slices: list[Slice], depth: int | None) -> None:
        place = 0
        for number, item in enumerate(slices):
            for source in item.sources:
                first, end = source.layer_range
                if end - first != item.length:
                    self._problem(f"slices[{number}]", f"layer_range {[first, end]} is not as long as the first")
                elif first != place:
                    self._problem(
                        f"slices[{number}]",
                        f"layers {first}-{end - 1} of {quoted(source.model)} would be layers {place}-"
                        f"{place + item.length - 1}; a composition leaves layers in their place, and repeats none",
                    )
            place += item.length
        if place > MOST_LAYERS:
            self._problem("slices", f"give {place} layers, more than any model has")
        elif depth is None:
            self.findings.notes["depth"] = f"the base is not on this machine: that it has {place} layers is not checked"
        elif place != depth and not self.findings.problems:
            self._problem("slices", f"give {place} layers, and the base has {depth}")

    def _check_sources(self, number: int, item: Slice) -> None:
        where = [self.where(source.model) for source in item.sources]
        twice = [str(source.model) for index, source in enumerate(item.sources) if where[index] in where[:index]]
        if twice:
            self._problem(self._place(number), f"{quoted(twice[0])} is listed twice; give it one weight")
        if self.config.merge_method == "passthrough" and len(where) > 1:
            self._problem(self._place(number), f"passthrough takes one model, not {len(where)}; linear takes more")

    def _layer(self, number: int, item: Slice, layer: int, t: float) -> Mapping[str, Sum]:
        tensors = self.base.layer(layer) if self.base else [f"model.layers.{layer}.{name}" for name in STAND_INS]
        found: dict[str, dict[Sum, str]] = {kind: {} for kind in KINDS}
        for tensor in tensors:
            total = self._sum(number, item, item.sources, tensor, t)
            if total is not None:
                found[kind_of(tensor)].setdefault(total, tensor)
        for kind, sums in found.items():
            if len(sums) > 1:
                first, second, *_ = sums.values()
                self._problem(
                    f"{self._place(number)} {kind}",
                    f"a filter gives {first} and {second} other weights, and to a recipe both are of the kind {kind}; "
                    f"it can tell {', '.join(KINDS)}",
                )
        some = next((total for sums in found.values() for total in sums), Sum(()))
        return {kind: next(iter(sums), some) for kind, sums in found.items()}

    def _stem(self, slices: list[Slice]) -> Sum | None:
        """Embeddings come from the first slice's models; the final norm and the head from the last one's."""
        first, last = slices[0], slices[-1]
        # mergekit 0.1.5 takes no more of these than the first slice has.
        kept = last.sources[: len(first.sources)]
        sums: dict[str, Sum] = {}
        for tensor in self.base.stem if self.base else STEM:
            embeds = "embed" in tensor
            number, item, sources = (0, first, first.sources) if embeds else (len(slices) - 1, last, kept)
            total = self._sum(number, item, sources, tensor, 0.0)
            if total is not None:
                sums[tensor] = total
        if self.findings.problems or not sums:
            return None
        (tensor, total), *others = sums.items()
        for other, its in others:
            if set(its.terms) != set(total.terms):
                self._problem(
                    "stem",
                    f"{tensor} comes from {self._shown(total)}, {other} from {self._shown(its)}: embeddings, final "
                    "norm and head are one blend in a composition; mergekit takes them from the first and the last "
                    "slice, so let these have the same models and weights",
                )
                return None
        if len(kept) < len(last.sources):
            self.findings.notes["kept"] = (
                f"final norm and head: of the last slice's models mergekit takes {listed([str(s.model) for s in kept])}"
                " alone, as the first slice has no more"
            )
        return total

    def _sum(self, number: int, item: Slice, sources: list[Source], tensor: str, t: float) -> Sum | None:
        try:
            return self._checked(item, sources, tensor, t)
        except ComposeError as error:
            self._problem(self._place(number), str(error))
            return None

    def _checked(self, item: Slice, sources: list[Source], tensor: str, t: float) -> Sum:
        shared = (item.parameters, *self._module_scopes())
        if self.config.merge_method == "passthrough":
            (source,) = sources
            scale = resolve("scale", (source.parameters, *shared), tensor, t, SCALE)
            if scale not in (None, 1.0):
                raise ComposeError(f"scale {scale} for {tensor}: a composition does not scale a model")
            return Sum(((self.where(source.model), 1.0),))
        weights: list[float] = []
        for source in sources:
            weight = resolve("weight", (source.parameters, *shared), tensor, t, FLOAT)
            if weight is None and self.key == "models" and source.model == self.config.base_model:
                self.findings.notes["weightless base"] = (
                    "base_model has no weight, and 0 here; mergekit 0.1.5 adds it to the models and asks for one"
                )
                weight = 0.0
            if weight is None:
                raise ComposeError(f"{quoted(source.model)} has no weight for {tensor}; give one, as mergekit asks too")
            weights.append(weight)
        normalize = resolve("normalize", shared, tensor, t, BOOL, True)
        shares, divided = normalized(weights) if normalize else (unchanged(weights, tensor), False)
        terms = zip((self.where(source.model) for source in sources), shares, strict=True)
        return Sum(tuple((where, share) for where, share in terms if share), divided)

    def _module_scopes(self) -> tuple[Parameters, ...]:
        own = (self.module.parameters,) if isinstance(self.module, Module) else ()
        return (*own, self.config.parameters)

    def _scopes(self) -> Iterator[Parameters]:
        yield from self._module_scopes()
        yield from (item.parameters for item in self.module.models or ())
        for item in self.module.slices or ():
            yield item.parameters
            yield from (source.parameters for source in item.sources)

    def _shown(self, total: Sum) -> str:
        return " + ".join(f"{weight:g} {where.path or where.hub}" for where, weight in total.terms)

    def _place(self, number: int) -> str:
        return f"slices[{number}]" if self.key == "slices" else "models"

    def _problem(self, place: str, reason: str) -> None:
        self.findings.problems.setdefault(place, f"{place}: {reason}")


def normalized(weights: list[float]) -> tuple[list[float], bool]:
    """The weights divided by their sum, and whether mergekit, which divides what they weigh, rounds once more."""
    check(weights)
    total = math.fsum(weights)
    if total <= 0.0:
        raise ComposeError(f"{shown(weights)}: nothing can be divided by a sum of 0")
    power = float(torch.tensor(weights, dtype=torch.float32).sum())
    exact = math.frexp(power)[0] == 0.5 and abs(total / power - 1.0) < CLOSE
    return [weight / (power if exact else total) for weight in weights], not exact


def unchanged(weights: list[float], tensor: str) -> list[float]:
    """The weights, which must be a composition's as they are."""
    check(weights)
    if abs(math.fsum(weights) - 1.0) > CLOSE:
        raise ComposeError(
            f"{shown(weights)} for {tensor} sum to {math.fsum(weights):g}, and normalize is false; a composition's sum "
            "to 1: list the base among the models, with the weight that the others leave"
        )
    return weights


def check(weights: list[float]) -> None:
    if not all(math.isfinite(weight) and weight >= 0.0 for weight in weights):
        raise ComposeError(f"{shown(weights)}: a composition's are finite and not negative")


def shown(weights: list[float]) -> str:
    return f"weights {listed([f'{weight:g}' for weight in weights])}"
