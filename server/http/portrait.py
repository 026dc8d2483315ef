"""portrait: a family and its compositions as the studio draws them, as data."""

import math
from collections.abc import Iterable
from typing import Any

from layerloom.composer import KINDS, Blend, ComposeError, Composition, Family, LayerBlend, Plan
from layerloom.composer.family.recipe import LayerSwap
from layerloom.composer.sources.layout import language_config
from layerloom.kernels.compose import left_by

from .living import Living, without_paths

Weights = dict[str, float]
"""Of the base, too."""


class Blends:
    """Distinct blends in the order in which they came: layers of many compositions are said by number."""

    def __init__(self) -> None:
        self._numbers: dict[LayerBlend, int] = {}

    def number(self, blend: LayerBlend) -> int:
        return self._numbers.setdefault(blend, len(self._numbers))

    def shown(self) -> list[dict[str, Weights]]:
        """{"all": weights}, or one for each kind of module."""
        return [
            {"all": weights_of(blend.uniform)}
            if blend.uniform is not None
            else {kind: weights_of(blend.of(kind)) for kind in KINDS}
            for blend in self._numbers
        ]


def weights_of(blend: Blend) -> Weights:
    rest = left_by([weight for _, weight in blend])
    return {**({"base": rest} if rest else {}), **dict(blend)}


def portrait(living: Living, family: Family) -> dict[str, Any]:
    """All of a family. It takes a while where there are many names, and reads no weights."""
    blends = Blends()
    shown = [one(family, family.parse(name), blends) for name in family.names()]
    return {
        "name": family.root.name,
        "digest": family.digest,
        "base": base_of(family),
        "recipe": recipe_of(family),
        "example": family.example,
        "context": living.voices.config.max_model_len,
        "takes_recipes": bool(living.settings["allow_recipes"]),
        "experts": [
            {
                "name": expert.name,
                "kind": expert.kind,
                "code": expert.code,
                "aliases": list(expert.aliases),
                "stored": type(expert.checkpoint).__name__.lower(),
            }
            for expert in family.experts.values()
        ],
        "compositions": shown,
        "auto": living.languages.names,
        "pinned": [plan.name for plan in family.pinned],
        "blends": blends.shown(),
    }


def plans(living: Living, names: Iterable[str]) -> dict[str, Any]:
    """Compositions by any of their names, recipes too; what a name cannot mean is said in its place."""
    blends = Blends()
    found = []
    for name in names:
        try:
            found.append(drawn(living.family, living.parse(name), living.plan(name), blends))
        except ComposeError as error:
            found.append({"name": name, "error": without_paths(error, living.family.root)})
    return {"compositions": found, "blends": blends.shown()}


def one(family: Family, composition: Composition, blends: Blends) -> dict[str, Any]:
    try:
        return drawn(family, composition, family.plan(composition), blends)
    except ComposeError as error:
        return {"name": composition.name, "error": without_paths(error, family.root)}


def drawn(family: Family, composition: Composition, plan: Plan, blends: Blends) -> dict[str, Any]:
    recipe = family.describe(composition)["recipe"]
    return {
        "name": plan.name,
        "sort": sort_of(composition),
        "task": composition.task,
        "language": composition.language,
        "method": recipe.get("method"),
        "zones": {key: recipe[key] for key in ("bottom", "after_bottom", "before_top", "top") if key in recipe},
        "residency": plan.residency,
        "digest": plan.digest,
        "layers": [blends.number(layer) for layer in plan.layers],
        "stem": blends.number(LayerBlend.all(plan.stem)),
    }


def sort_of(composition: Composition) -> str:
    if composition.label:
        return "named"
    return ("base", "expert", "pair")[len(composition.roles)]


def base_of(family: Family) -> dict[str, Any]:
    base = family.base
    config = language_config(base.config)
    names = base.config.get("architectures") or [config.get("model_type", "")]
    dtypes = {info.dtype for info in base.tensors.values()}
    return {
        "architecture": str(names[0]),
        "layers": base.depth,
        "parameters": sum(math.prod(info.shape) for info in base.tensors.values()),
        "dtypes": sorted(dtypes),
    }


def recipe_of(family: Family) -> dict[str, Any]:
    """The family's; and the zones that sliders begin with, which are the paper's where it is no layer swap."""
    recipe = family.recipe
    swap = recipe if isinstance(recipe, LayerSwap) else LayerSwap()
    try:
        zones = swap.zones(family.depth)
    except ComposeError:
        zones = (0, 0, 0, 0)
    return {"method": recipe.method, "bottom": zones[0], "transition": max(zones[1:3]), "top": zones[3]}
