"""suggest: a split for a layer swap, proposed from where the two experts change. A heuristic: measure before use."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from layerloom.composer.errors import ComposeError
from layerloom.composer.family.family import Expert, Family
from layerloom.composer.family.plan import kind_of
from layerloom.composer.family.recipe import LayerSwap

from .inspect import Report, of_expert

CONTESTED = 2 / 3
"""A middle layer is averaged where the language expert's share of change is at least this part of the task expert's."""
LITTLE = 0.05
"""Below this gain over the preset the norms say too little to choose by."""


@dataclass(frozen=True)
class Suggestion:
    """A composition to try, and why.

    `language` and `task` are the shares of each expert's change that lie in each layer; each sums to 1 (or is all
    zero). `kept` are the parts of the two that the split keeps, language first; `preset` the same for the paper's
    split, scaled to this depth. `reports` are of the task expert and of the language expert.
    """

    name: str
    bottom: int
    top: int
    transition: int
    language: tuple[float, ...]
    task: tuple[float, ...]
    kept: tuple[float, float]
    preset: tuple[float, float]
    reports: tuple[Report, Report]

    @property
    def is_clear(self) -> bool:
        """Whether the split keeps visibly more than the paper's preset would with no knowledge of the experts."""
        return sum(self.kept) - sum(self.preset) >= LITTLE or min(self.kept) >= 1 - LITTLE

    def reasoning(self) -> str:
        """For people, in a few lines."""
        task, language = (report.expert for report in self.reports)
        depth = len(self.task)
        ends, middle = self.bottom + self.top, depth - self.bottom - self.top
        lines = [
            f"Layers 0-{self.bottom - 1} and {depth - self.top}-{depth - 1} from {language}, the rest from {task}. "
            f"The {ends} outer layers hold {self.kept[0]:.0%} of what {language} changes (an even spread would give "
            f"{ends / depth:.0%}), the {middle} middle ones {self.kept[1]:.0%} of what {task} changes "
            f"({middle / depth:.0%}).",
            f"The paper's split, scaled to {depth} layers, would keep {self.preset[0]:.0%} and {self.preset[1]:.0%}.",
        ]
        if self.transition:
            lines.append("Where the zones meet both experts change much the same: one layer on each side is averaged.")
        if not self.is_clear:
            lines.append("The difference is small: these norms are hardly a reason to leave the preset.")
        lines.append(
            "This is a heuristic. It looks at how much a layer changes, not at what the change does: compare the "
            "proposal with its neighbours on a task of yours."
        )
        return "\n".join(lines)


def suggest(family: Family, name: str, report_of: Callable[[Family, Expert], Report] = of_expert) -> Suggestion:
    """A split for a task+language pair; `report_of` says what an expert changes. Raises ComposeError.

    The rule: r_i is the root of the mean square of ‖E - B‖ / ‖B‖ over the matrices of layer i, weighted by size,
    and an expert's share of layer i is r_i / Σ r. Of all splits with at least one layer in each of the three zones,
    the one that keeps the largest sum of the language expert's shares in the outer layers and the task expert's in the
    middle; among equals the nearest to the paper's preset. One layer on each side of the middle is averaged when both
    are contested (CONTESTED) and the middle keeps a layer of its own.
    """
    composition = family.parse(name)
    if composition.task is None or composition.language is None:
        raise ComposeError(f"{composition.name}: a split is between a task and a language expert, as in math+swahili")
    if family.depth < 3:
        raise ComposeError(f"{family.base.path}: has {family.depth} layers; a split needs three")
    task, language = (report_of(family, family.experts[expert]) for expert in (composition.task, composition.language))
    ours, theirs = shares(family, task), shares(family, language)
    published = LayerSwap(transition=0).zones(family.depth)
    bottom, top = best_split(theirs, ours, (published[0], published[3]))
    inner = (bottom, family.depth - top - 1)
    contested = all(0.0 < CONTESTED * ours[i] <= theirs[i] for i in inner)
    transition = 1 if contested and inner[1] - inner[0] >= 2 else 0
    # A soup or a table takes no split; naming a preset makes the name a layer swap.
    preset = "" if isinstance(family.recipe, LayerSwap) else "preset=paper,"
    split = f"{preset}bottom={bottom},top={top},transition={transition}"
    proposed = family.parse(f"{composition.task}+{composition.language}@{split}")
    return Suggestion(
        name=proposed.name,
        bottom=bottom,
        top=top,
        transition=transition,
        language=theirs,
        task=ours,
        kept=kept(theirs, ours, bottom, top),
        preset=kept(theirs, ours, published[0], published[3]),
        reports=(task, language),
    )


def best_split(language: tuple[float, ...], task: tuple[float, ...], preset: tuple[int, int]) -> tuple[int, int]:
    """(bottom, top), from the shares of each layer."""
    depth = len(language)
    splits = [(bottom, top) for bottom in range(1, depth - 1) for top in range(1, depth - bottom)]

    def rank(split: tuple[int, int]) -> tuple[float, int]:
        # Rounded, so that sums which differ in their last bits are equal.
        distance = abs(split[0] - preset[0]) + abs(split[1] - preset[1])
        return round(sum(kept(language, task, *split)), 9), -distance

    return max(splits, key=rank)


def kept(language: tuple[float, ...], task: tuple[float, ...], bottom: int, top: int) -> tuple[float, float]:
    """The language expert's share in the outer layers, the task expert's in the middle."""
    end = len(task) - top
    return math.fsum(language[:bottom] + language[end:]), math.fsum(task[bottom:end])


def shares(family: Family, report: Report) -> tuple[float, ...]:
    """Each layer's part of an expert's change. Raises ComposeError where a change is not finite."""
    changes = {row.tensor: row.change for row in report.rows}
    found = []
    for layer in range(family.depth):
        squares, size = 0.0, 0
        for name in family.base.layer(layer):
            shape = family.base.tensors[name].shape
            if len(shape) < 2 or kind_of(name) == "norm":
                continue
            change = changes.get(name, 0.0)
            if change is None:
                raise ComposeError(f"{report.path}: {name}: its change is not finite; no split can be proposed from it")
            squares += math.prod(shape) * change * change
            size += math.prod(shape)
        found.append(math.sqrt(squares / size) if size else 0.0)
    total = math.fsum(found)
    return tuple(value / total if total else 0.0 for value in found)
