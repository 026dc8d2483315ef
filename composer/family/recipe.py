"""recipe: how a composition is put together, layer by layer."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from layerloom.composer.errors import ComposeError, quoted
from layerloom.composer.strict import Strict

from .plan import KINDS, Blend, LayerBlend, make_blend

Weight = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Roles = Mapping[str, str]
"""{"task": expert, "language": expert}: the roles the composition fills."""

Source = Annotated[
    Annotated[str, Tag("<name>")] | Annotated[dict[str, Weight], Tag("<weights>")],
    Discriminator(lambda value: "<weights>" if isinstance(value, dict) else "<name>"),
]
"""task, language, base or an expert; or {any of these: weight}. A tag in <> is no key of the file."""

LAYERS = re.compile(r"([0-9]{1,4})(?:\s*-\s*([0-9]{1,4}))?")
"""A layer, or the first and the last of a range."""

PRESETS: dict[str, tuple[int, int, int, int]] = {
    # (depth, bottom, top, averaged layers on each side) as published
    "paper": (32, 5, 2, 1),  # Layer Swapping, arXiv 2410.01335
    "unreasonable": (32, 6, 2, 0),  # arXiv 2505.18356
    "lighton": (36, 13, 13, 0),  # arXiv 2605.26735: Qwen3-8B, the task expert supplies layers 13-22
}


TENTHS = "0123456789x"
"""How a name writes a share in one character; x is all of it."""


def scaled(layers: int, published: int, depth: int) -> int:
    """A zone of `layers` out of `published`, on a model of `depth`: rounded half up, and 1 at least unless it is 0.

    floor(layers · depth / published + 1/2). From 8 layers up every preset keeps a middle.
    """
    return max(1, (2 * layers * depth + published) // (2 * published)) if layers else 0


class LayerSwap(Strict):
    """Bottom and top layers from the language expert, the middle from the task expert.

    Right after the bottom and right before the top there may be averaged layers: weight·language +
    (1-weight)·task. `transition` is the number of both; `after_bottom` and `before_top` set them apart. What
    is not given comes from the preset, scaled to the model's depth.
    """

    method: Literal["layer_swap"] = "layer_swap"
    preset: Literal["paper", "unreasonable", "lighton"] = "paper"
    """Published zones: paper (arXiv 2410.01335), unreasonable (2505.18356) or lighton (2605.26735)."""
    bottom: Annotated[int, Field(ge=0)] | None = None
    """How many layers at the bottom are the language expert's."""
    top: Annotated[int, Field(ge=0)] | None = None
    """How many layers at the top are the language expert's."""
    transition: Annotated[int, Field(ge=0)] | None = None
    """How many layers are averaged, after the bottom and again before the top."""
    after_bottom: Annotated[int, Field(ge=0)] | None = None
    """How many layers are averaged after the bottom."""
    before_top: Annotated[int, Field(ge=0)] | None = None
    """How many layers are averaged before the top."""
    weight: Weight = 0.5
    """The language expert's share of an averaged layer."""
    stem: Source = "language"
    """Who supplies embeddings, final norm and output head; average means the averaged layers' weights."""

    @model_validator(mode="after")
    def _one_way(self) -> "LayerSwap":
        if self.transition is not None and (self.after_bottom is not None or self.before_top is not None):
            raise ValueError("give either transition, or after_bottom and before_top")
        return self

    def zones(self, depth: int) -> tuple[int, int, int, int]:
        """(bottom, after_bottom, before_top, top) on a model of `depth`. Raises ComposeError if they overlap."""
        published, *zones = PRESETS[self.preset]
        bottom, top, transition = (scaled(zone, published, depth) for zone in zones)
        transition = transition if self.transition is None else self.transition
        chosen = {
            "bottom": bottom if self.bottom is None else self.bottom,
            "after_bottom": transition if self.after_bottom is None else self.after_bottom,
            "before_top": transition if self.before_top is None else self.before_top,
            "top": top if self.top is None else self.top,
        }
        total = sum(chosen.values())
        if total > depth:
            shown = " + ".join(f"{name} {count}" for name, count in chosen.items())
            raise ComposeError(f"zones overlap: {shown} = {total} layers, and the model has {depth}")
        return (chosen["bottom"], chosen["after_bottom"], chosen["before_top"], chosen["top"])

    def blends(self, depth: int, roles: Roles) -> tuple[list[LayerBlend], Blend]:
        """The blend of every layer, and the stem's. Raises ComposeError."""
        bottom, after, before, top = self.zones(depth)
        average = {"language": self.weight, "task": 1.0 - self.weight}
        language, task, averaged = (blend_of(source, roles) for source in ("language", "task", average))
        middle = depth - bottom - after - before - top
        blends = [language] * bottom + [averaged] * after + [task] * middle + [averaged] * before + [language] * top
        return [LayerBlend.all(blend) for blend in blends], stem_of(self.stem, average, roles)


class Soup(Strict):
    """Every layer the same weighted sum; the base has what the weights leave."""

    method: Literal["soup"]
    weights: dict[str, Weight] = Field(default={"language": 0.5, "task": 0.5})
    """Shares of task, language or experts by name."""
    stem: Source = "language"
    """Who supplies embeddings, final norm and output head; average means these weights."""

    def blends(self, depth: int, roles: Roles) -> tuple[list[LayerBlend], Blend]:
        """The blend of every layer, and the stem's. Raises ComposeError."""
        blend = blend_of(self.weights, roles)
        return [LayerBlend.all(blend)] * depth, stem_of(self.stem, self.weights, roles)


class Kinds(Strict):
    """A source for each kind of module."""

    attention: Source
    """What is in a layer's attention, its norms aside."""
    mlp: Source
    """What is in neither attention nor norms."""
    norm: Source
    """The layer's norms, those inside the attention too."""


def _layer_source_tag(value: Any) -> str:
    if isinstance(value, Kinds) or (isinstance(value, dict) and not value.keys().isdisjoint(KINDS)):
        return "<kinds>"
    return "<weights>" if isinstance(value, dict) else "<name>"


LayerSource = Annotated[
    Annotated[str, Tag("<name>")] | Annotated[dict[str, Weight], Tag("<weights>")] | Annotated[Kinds, Tag("<kinds>")],
    Discriminator(_layer_source_tag),
]


def _keys_as_text(value: Any) -> Any:
    return {str(key): source for key, source in value.items()} if isinstance(value, dict) else value


class Table(Strict):
    """A source for each layer, or for each kind of module in it: {"0-4": language, "5": {math: 0.3}, …}."""

    method: Literal["table"]
    layers: Annotated[dict[str, LayerSource], BeforeValidator(_keys_as_text)]
    """A layer or a range of layers, from 0, and its source; each layer of the model once."""
    stem: Source = "language"
    """Who supplies embeddings, final norm and output head."""

    def blends(self, depth: int, roles: Roles) -> tuple[list[LayerBlend], Blend]:
        """The blend of every layer, and the stem's. Raises ComposeError with all layers that are wrong."""
        found: dict[int, list[str]] = {}
        blends: dict[int, LayerBlend] = {}
        problems: list[str] = []
        for key, source in self.layers.items():
            indices = _indices(key, depth)
            if indices is None:
                problems.append(f"{quoted(key)} is not a layer or a range of layers within 0-{depth - 1}")
                continue
            if isinstance(source, Kinds):
                layer = LayerBlend(*(blend_of(getattr(source, kind), roles) for kind in KINDS))
            else:
                layer = LayerBlend.all(blend_of(source, roles))
            for index in indices:
                found.setdefault(index, []).append(key)
                blends[index] = layer
        problems += [f"layer {i} is listed in {' and '.join(keys)}" for i, keys in found.items() if len(keys) > 1]
        problems += [f"layer {i} has no source" for i in range(depth) if i not in found]
        if problems:
            raise ComposeError("table: " + "; ".join(problems))
        return [blends[index] for index in range(depth)], stem_of(self.stem, None, roles)


def _recipe_tag(value: Any) -> str:
    return f"<{value.get('method', 'layer_swap') if isinstance(value, dict) else getattr(value, 'method', '')}>"


AnyRecipe = LayerSwap | Soup | Table
Recipe = Annotated[
    Annotated[LayerSwap, Tag("<layer_swap>")] | Annotated[Soup, Tag("<soup>")] | Annotated[Table, Tag("<table>")],
    Discriminator(
        _recipe_tag,
        custom_error_type="recipe",
        custom_error_message="a recipe is a mapping whose method is layer_swap, soup or table",
    ),
]


def with_options(recipe: AnyRecipe, options: Mapping[str, str], depth: int) -> AnyRecipe:
    """The recipe with a name's options in place of its own, on a model of `depth` layers.

    Raises ComposeError if one does not apply to it.
    """
    if not options:
        return recipe
    if "layers" in options:
        return layer_by_layer(options, depth, recipe.stem)
    changes: dict[str, Any] = {
        key: int(value) if value.isdigit() and key != "weight" else float(value) if key == "weight" else value
        for key, value in options.items()
    }
    if isinstance(recipe, LayerSwap) or "preset" in options:
        own = recipe.model_dump(exclude_unset=True) if isinstance(recipe, LayerSwap) else {}
        if "preset" in options:
            own = {key: value for key, value in own.items() if key in ("weight", "stem")}
        if "transition" in options:
            own = {key: value for key, value in own.items() if key not in ("after_bottom", "before_top")}
        return LayerSwap.model_validate({**own, **changes})
    own = recipe.model_dump(exclude_unset=True)
    if isinstance(recipe, Soup) and "weight" in changes:
        weight = changes.pop("weight")
        own["weights"] = {"language": weight, "task": 1.0 - weight}
    unused = changes.keys() - {"stem"}
    if unused:
        raise ComposeError(
            f"{', '.join(sorted(unused))}: does not apply to the family's recipe, which is a {recipe.method}"
        )
    return type(recipe).model_validate({**own, **changes})


def layer_by_layer(options: Mapping[str, str], depth: int, stem: Source) -> Table:
    """The table that `layers` among a name's options writes in TENTHS; `stem` where they give none.

    Raises ComposeError where it is of another depth, or beside options that say something of layers too.
    """
    beside = options.keys() - {"layers", "stem"}
    if beside:
        raise ComposeError(f"{', '.join(sorted(beside))}: cannot go with layers, which says it of every layer")
    written = options["layers"]
    if len(written) != depth:
        raise ComposeError(f"layers={written}: is of {len(written)} layers, and the model has {depth}")
    shares = [TENTHS.index(tenth) / 10 for tenth in written]
    # As a layer swap's averaged layers are written, so that equal ones are one page.
    layers: dict[str, Any] = {str(i): {"language": share, "task": 1.0 - share} for i, share in enumerate(shares)}
    return Table(method="table", layers=layers, stem=options.get("stem", stem))


def stem_of(source: str | Mapping[str, float], average: Mapping[str, float] | None, roles: Roles) -> Blend:
    """The stem's blend; `average` is what the word means in this recipe."""
    if source == "average":
        if average is None:
            raise ComposeError("stem: average has no meaning in a table; give the weights")
        source = average
    return blend_of(source, roles)


def blend_of(source: str | Mapping[str, float], roles: Roles) -> Blend:
    """The blend that a source means for a composition with these roles. Raises ComposeError."""
    weights: dict[str, float] = {}
    for name, weight in ({source: 1.0} if isinstance(source, str) else source).items():
        if name in ("task", "language") and name not in roles:
            raise ComposeError(f"the recipe takes layers from the {name} expert, and the composition names none")
        expert = roles.get(name, name)
        weights[expert] = weights.get(expert, 0.0) + weight
    return make_blend(weights)


def _indices(key: str, depth: int) -> range | None:
    match = LAYERS.fullmatch(key)
    if not match:
        return None
    first, last = int(match.group(1)), int(match.group(2) or match.group(1))
    return range(first, last + 1) if first <= last < depth else None
