"""recipes: the compositions of a grid, or of a space that is searched."""

import re
from collections.abc import Mapping, Sequence
from itertools import product

from layerloom.composer import ComposeError, Family
from layerloom.composer.family.recipe import TENTHS

NUMBERS = re.compile(r"\d+(?:\.\.\d+)?(?:,\d+(?:\.\.\d+)?)*")
MOST = 1000


def numbers(option: str, text: str) -> list[int]:
    """Those that "0..8", "0,1" or "2,4..6" names, both ends included. Raises ComposeError."""
    if not NUMBERS.fullmatch(text):
        raise ComposeError(f"--{option} {text}: is no range; write 3, 0..8 or 0,1,4..6")
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("..")
        if int(last or first) >= MOST or int(last or first) < int(first):
            raise ComposeError(f"--{option} {text}: goes up from a number to one below {MOST}, as in 0..8")
        found += range(int(first), int(last or first) + 1)
    return sorted(set(found))


def pair_of(family: Family, task: str, language: str) -> str:
    """The canonical name of a pair. Raises ComposeError where the two are none."""
    composition = family.parse(f"{task}+{language}")
    if composition.is_auto or not (composition.task and composition.language):
        raise ComposeError(f"{composition.name}: a sweep is of a task and a language, as in math+swahili")
    return composition.name


def tenths(step: int) -> str:
    """What a layer may have of the language, in steps of so many tenths."""
    return TENTHS[::step]


def shares(family: Family, name: str) -> list[float]:
    """What each layer has of the language."""
    language = str(family.parse(name).language)
    return [dict(layer.attention).get(language, 0.0) for layer in family.plan(name).layers]


def within(values: Sequence[str | int], depth: int) -> Sequence[str | int]:
    """Without zones of more layers than there are, unless all are."""
    return [value for value in values if isinstance(value, str) or value <= depth] or values


def grid(family: Family, pair: str, ranges: Mapping[str, Sequence[object]]) -> list[str]:
    """The canonical names of `pair` under every recipe of the grid that fits the model, none twice.

    Two recipes that come to the same weights are one. Raises ComposeError where none fits.
    """
    found: dict[str, str] = {}
    for values in product(*(within(values, family.depth) for values in ranges.values())):
        options = ",".join(f"{option}={value}" for option, value in zip(ranges, values, strict=True))
        try:
            plan = family.plan(f"{pair}@{options}")
        except ComposeError as error:
            reason = error
            continue
        found.setdefault(plan.digest, plan.name)
    if not found:
        raise ComposeError(f"no recipe of the grid fits the model: {reason}")
    return list(found.values())
