"""results: a sweep as a table, a heat map, and an entry for family.yaml."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from layerloom.composer import Family
from layerloom.composer.files import naming

from .questions import KINDS
from .recipes import shares
from .sweep import Scores, summary

MOST_DRAWN = 20


def rows_of(scores: Scores, names: Sequence[str], asked: Sequence[int]) -> list[dict[str, Any]]:
    """Each recipe with the mean of every score over these questions, and its standard error."""
    return [
        {
            "recipe": name,
            **{
                key: value
                for kind, (mean, error) in summary([scores[name][row] for row in asked]).items()
                for key, value in ((kind, mean), (f"{kind}_error", error))
            },
        }
        for name in names
    ]


def write_best(family: Family, name: str, row: dict[str, Any], file: Path) -> None:
    """The best recipe as a composition to paste into family.yaml, with its scores as a comment."""
    said = ", ".join(f"{kind} {row[kind]:.4g} ± {row[f'{kind}_error']:.2g}" for kind in KINDS if kind in row)
    composition = family.parse(name)
    text = yaml.safe_dump({"compositions": {f"{composition.task}-{composition.language}": name}}, sort_keys=False)
    with naming(file):
        file.write_text(f"# {said}\n{text}", encoding="utf-8")


def draw_layers(family: Family, rows: Sequence[dict[str, Any]], kind: str, file: Path) -> None:
    """What each layer of the first of these recipes has of the language, a line for each recipe."""
    shown = rows[:MOST_DRAWN]
    values = [shares(family, row["recipe"]) for row in shown]
    figure = Figure(figsize=(3 + 0.22 * family.depth, 1.6 + 0.22 * len(shown)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    axes.set_yticks(range(len(shown)), [f"{row[kind]:.4g}" for row in shown])
    axes.set(xlabel="layer", ylabel=kind, title=KINDS[kind])
    axes.title.set_fontsize(9)
    figure.colorbar(image, label=f"share of {family.parse(shown[0]['recipe']).language}")
    with naming(file):
        figure.savefig(file, dpi=120)


def draw_grid(family: Family, rows: Sequence[dict[str, Any]], kind: str, file: Path) -> None:
    """Of every bottom and top the best that any of its recipes comes to."""
    best: dict[tuple[int, int], float] = {}
    for row in rows:
        options = dict(family.parse(row["recipe"]).options)
        at = int(options.get("bottom", 0)), int(options.get("top", 0))
        best[at] = max(row[kind], best.get(at, -float("inf")))
    bottoms, tops = sorted({bottom for bottom, _ in best}), sorted({top for _, top in best})
    values = [[best.get((bottom, top), float("nan")) for top in tops] for bottom in bottoms]
    figure = Figure(figsize=(2.2 + 0.75 * len(tops), 1.6 + 0.5 * len(bottoms)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", cmap="viridis", origin="lower")
    axes.set_xticks(range(len(tops)), [str(top) for top in tops])
    axes.set_yticks(range(len(bottoms)), [str(bottom) for bottom in bottoms])
    axes.set(xlabel="layers of the language at the top", ylabel="at the bottom", title=KINDS[kind])
    axes.title.set_fontsize(9)
    low, high = min(best.values()), max(best.values())
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if (bottoms[y], tops[x]) not in best:
                continue
            dark = value < low + 0.6 * (high - low)
            axes.text(x, y, f"{value:.3g}", ha="center", va="center", fontsize=8, color="white" if dark else "black")
    figure.colorbar(image)
    with naming(file):
        figure.savefig(file, dpi=120)
