"""pictures: what systems side by side were found to do, over the number of languages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .report import written

PREFIX = "Side by side: "
SHOWN = (
    ("closed", "tok/s", "closed loop\ntok/s"),
    ("closed", "TTFT p99, ms", "closed loop\nTTFT p99, ms"),
    ("poisson", "TTFT p99, ms", "open loop\nTTFT p99, ms"),
    ("poisson", "between tokens p99, ms", "open loop, between\ntokens p99, ms"),
    ("closed", "memory, GB", "memory, GB"),
    ("closed", "disk, GB", "disk, GB"),
    ("closed", "same tokens, %", "tokens as the exact\ncomposition's, %"),
)
"""Arrival, column and label of each row of panels."""
LOGARITHMIC = {"TTFT p99, ms", "between tokens p99, ms", "disk, GB"}
STYLES = {
    "merged": ("#555555", ":"),
    "base": ("#999999", ":"),
    "layerloom": ("#17998f", "-"),
    "layerloom-int4": ("#0b5f59", "--"),
    "layerloom-sign": ("#5cc9c0", "--"),
    "engines": ("#c2571a", "-"),
    "restarted": ("#d9a441", "-."),
}


@dataclass(frozen=True)
class Point:
    """One number of a table of a load."""

    arrival: str
    choice: str
    languages: int
    system: str
    column: str
    value: float


def read(path: Path) -> tuple[dict[str, str], list[Point]]:
    """The facts of a file that the comparison wrote, and its points."""
    facts, rows = written(path)
    points = []
    for row in rows:
        if row["table"].startswith(PREFIX):
            arrival, choice, count = row["table"].removeprefix(PREFIX).split(", ")
            languages = int(count.partition(" ")[0])
            points.append(Point(arrival, choice, languages, row["row"], row["column"], float(row["value"])))
    return facts, points


def draw(paths: Sequence[Path], out: Path) -> None:
    """Small multiples, uniform beside zipf. Raises ValueError where the files have nothing to draw."""
    from matplotlib.figure import Figure

    read_ones = [read(path) for path in paths]
    points = [point for _, found in read_ones for point in found]
    if not points:
        raise ValueError(f"nothing was measured in {', '.join(map(str, paths))}")
    choices = sorted({point.choice for point in points})
    systems = list(dict.fromkeys(point.system for point in points))
    facts = read_ones[0][0]
    figure = Figure(figsize=(5.2 * len(choices) + 1, 2.1 * len(SHOWN) + 1), dpi=110, layout="constrained")
    axes = figure.subplots(len(SHOWN), len(choices), sharex=True, sharey="row", squeeze=False)
    for row, (arrival, column, label) in enumerate(SHOWN):
        for place, choice in zip(axes[row], choices, strict=True):
            mine = [p for p in points if (p.arrival, p.column) == (arrival, column)]
            # One language is asked for in one way only.
            panel(place, [p for p in mine if p.choice == choice or p.languages == 1], systems)
            if row == 0:
                place.set_title(f"languages asked for: {choice}")
            if column in LOGARITHMIC:
                place.set_yscale("log")
            else:
                place.set_ylim(bottom=0)
        axes[row][0].set_ylabel(label)
    for place in axes[-1]:
        place.set_xlabel("languages")
    handles = {line.get_label(): line for place in axes.flat for line in place.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=5)
    machine = f"{facts['CPU'].partition(';')[0]}; {facts['versions']}; commit {facts['commit'][:7]}"
    figure.supxlabel(f"{facts.get('family', '')}\n{machine}", fontsize=8)
    figure.savefig(out)


def panel(place: Any, points: Sequence[Point], systems: Sequence[str]) -> None:
    for number, system in enumerate(systems):
        found = sorted({point.languages: point.value for point in points if point.system == system}.items())
        if found:
            colour, line = STYLES.get(system, (f"C{number}", "-"))
            marker = "o" if len(found) > 1 else "D"
            place.plot(*zip(*found, strict=True), line, color=colour, marker=marker, markersize=4, label=system)
    counts = sorted({point.languages for point in points})
    place.set_xscale("log", base=2)
    place.set_xticks(counts, list(map(str, counts)))
    place.grid(alpha=0.3)
