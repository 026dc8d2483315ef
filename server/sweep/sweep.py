"""sweep: asks every recipe, keeps what they say as it comes, and goes on where it was stopped."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from layerloom.composer import ComposeError
from layerloom.composer.files import naming

if TYPE_CHECKING:
    from .search import Search

AT_ONCE = 16
"""Recipes whose answers are kept together: what is lost when a sweep is stopped."""

Scores = dict[str, dict[int, dict[str, float]]]
"""By recipe and question."""

Answered = dict[tuple[str, int], dict[str, float]]
"""The same, of some."""

Ask = Callable[[Sequence[str], Sequence[int]], Answered]
"""What has these recipes answer these questions."""


class Head(BaseModel):
    """The first line of a sweep's scores: the digest of what was asked."""

    of: str


class Line(BaseModel):
    """A later one."""

    recipe: str
    weights: str
    question: int
    scores: dict[str, float]


Said = TypeVar("Said", bound=BaseModel)


class Kept:
    """The scores of a sweep, in a file of JSON lines that begins with what they are of."""

    def __init__(self, file: Path, digest: str, weights: Callable[[str], str]) -> None:
        self.file = file
        self.digest = digest
        self.weights = weights
        """The digest of what a recipe's weights are now."""
        self.scores: Scores = {}
        if file.exists():
            self._read()
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            with naming(file):
                file.write_text(json.dumps({"sweep": 1, "of": digest}) + "\n", encoding="utf-8")

    def _read(self) -> None:
        with naming(self.file):
            # The last line may have been cut short.
            *lines, last = self.file.read_text(encoding="utf-8").split("\n")
        if not lines or self._line(Head, 1, lines[0]).of != self.digest:
            raise ComposeError(
                f"{self.file}: is of other questions, or asked otherwise: give another --output, or remove it"
            )
        for number, line in enumerate(lines[1:], 2):
            said = self._line(Line, number, line)
            # Of a recipe that the family has no more, nothing is asked.
            with suppress(ComposeError):
                if said.weights == self.weights(said.recipe):
                    self.scores.setdefault(said.recipe, {})[said.question] = said.scores
        if last:
            with naming(self.file):
                self.file.write_text("\n".join([*lines, ""]), encoding="utf-8")

    def _line(self, kind: type[Said], number: int, line: str) -> Said:
        try:
            return kind.model_validate_json(line)
        except ValidationError as error:
            raise ComposeError(
                f"{self.file}: line {number} is none that a sweep writes: give another --output, or remove it"
            ) from error

    def add(self, found: Answered) -> None:
        with naming(self.file), self.file.open("a", encoding="utf-8") as file:
            for (recipe, row), scores in found.items():
                self.scores.setdefault(recipe, {})[row] = scores
                said: dict[str, Any] = {"recipe": recipe, "weights": self.weights(recipe), "question": row}
                file.write(json.dumps({**said, "scores": scores}) + "\n")


def ask_all(ask: Ask, kept: Kept, names: Sequence[str], rows: Sequence[int], progress: Callable[[int], None]) -> None:
    """Has all of these recipes answer all of these questions, those that have not. `progress` gets how many more."""
    missing: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        left = tuple(row for row in rows if row not in kept.scores.get(name, {}))
        progress(len(rows) - len(left))
        if left:
            missing.setdefault(left, []).append(name)
    for left, asked in missing.items():
        for first in range(0, len(asked), AT_ONCE):
            some = asked[first : first + AT_ONCE]
            kept.add(ask(some, left))
            progress(len(some) * len(left))


def ask_in_rounds(
    search: "Search",
    ask: Ask,
    kept: Kept,
    trials: int,
    rows: Sequence[int],
    progress: Callable[[int], None],
) -> list[str]:
    """Has what a search proposes answer all of these questions, until it has proposed `trials` recipes: those, once.

    What is kept is told instead of asked, so that a search that was stopped comes to where it was.
    """
    found: dict[str, None] = {}
    left = trials
    while left:
        proposed = search.propose(left)
        names = list(dict.fromkeys(proposed))
        ask_all(ask, kept, names, rows, progress)
        progress((len(proposed) - len(names)) * len(rows))
        search.tell({name: means(kept.scores, name, rows) for name in names})
        found.update(dict.fromkeys(names))
        left -= len(proposed)
    return list(found)


def ranked(scores: Scores, names: Sequence[str], rows: Sequence[int], kinds: Sequence[str]) -> list[str]:
    """The recipes from the best to the worst, by the first kind of score, or the next where they are equal in that."""
    of = {name: means(scores, name, rows) for name in names}
    return sorted(names, key=lambda name: [-of[name][kind] for kind in kinds])


def means(scores: Scores, name: str, rows: Sequence[int]) -> dict[str, float]:
    """Of each kind over these questions."""
    return {kind: mean for kind, (mean, _) in summary([scores[name][row] for row in rows]).items()}


def summary(scores: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Of each kind the mean over questions and its standard error."""
    kinds = scores[0] if scores else {}
    columns = {kind: [score[kind] for score in scores] for kind in kinds}
    error = {kind: stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0 for kind, values in columns.items()}
    return {kind: (fmean(values), error[kind]) for kind, values in columns.items()}
