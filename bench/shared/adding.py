"""adding: what a new language takes, step by step, on each system."""

import statistics
from collections.abc import Sequence

from .report import Cell
from .systems import Seconds

STEPS = ("make", "start", "load", "first")
COLUMNS = ("system", "", "make files", "start", "load", "first token", "all")


class Adding:
    """Seconds of each language that was added, by system, in the order in which they were."""

    def __init__(self) -> None:
        self._found: dict[str, list[Seconds]] = {}

    def note(self, system: str, seconds: Seconds) -> None:
        """Nothing where the system did not need to do anything."""
        if seconds:
            self._found.setdefault(system, []).append(seconds)

    @property
    def table(self) -> tuple[Sequence[str], Sequence[Sequence[Cell]]]:
        """Of the first language, and the medians of the others."""
        rows: list[list[Cell]] = []
        for system, (first, *others) in self._found.items():
            rows.append([system, "the first", *cells([first])])
            if others:
                rows.append([system, "another", *cells(others)])
        return COLUMNS, rows


def cells(languages: Sequence[Seconds]) -> list[Cell]:
    steps = [[seconds[step] for seconds in languages if step in seconds] for step in STEPS]
    return [
        *(statistics.median(each) if each else None for each in steps),
        statistics.median(sum(seconds.values()) for seconds in languages),
    ]
