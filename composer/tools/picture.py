"""picture: where experts change, drawn over layers and modules. matplotlib is imported when a picture is asked for."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from layerloom.composer.errors import ComposeError
from layerloom.composer.family.plan import KINDS, kind_of

from .inspect import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEVER = "#f4f4f4"
"""The colour of what is the base's, bit by bit."""
NOT_FINITE = "#d62728"


def draw(reports: Sequence[Report], out: Path, split: tuple[int, int] | None = None, title: str = "") -> Path:
    """Writes a heat map of ‖E - B‖ / ‖B‖, one panel for each expert, and returns its path. Raises ComposeError.

    All panels have the same modules and colours. `split` (bottom, top) draws two lines, between the layers a
    composition takes from one expert and from another. The ending of `out` says which format (png, svg, pdf).
    """
    # A figure of its own, without pyplot: no display is looked for and no global state is touched.
    try:
        from matplotlib.colors import Normalize
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ComposeError("a picture needs matplotlib: pip install matplotlib") from error
    out = Path(out).expanduser().absolute()
    modules = modules_of(reports)
    if not modules:
        raise ComposeError("there is nothing to draw: no tensor of a decoder layer differs from the base's")
    depth = max(report.depth for report in reports)
    grids = [grid(report, modules, depth) for report in reports]
    most = max((value for panel in grids for row in panel for value in row if math.isfinite(value)), default=0.0)
    colours = Normalize(0.0, 100.0 * most or 1.0)

    # Room for the words at the left and the colour bar at the right; a cell is about a quarter of an inch.
    width, height = max(7.0, 3.6 + 0.28 * depth), 1.0 + len(reports) * (0.8 + 0.24 * len(modules))
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    panels = figure.subplots(len(reports), 1, squeeze=False, sharex=True)[:, 0]
    for axes, report, values in zip(panels, reports, grids, strict=True):
        draw_panel(axes, report, values, modules, colours, split)
    panels[-1].set_xlabel("decoder layer")
    image = panels[0].images[0]
    bar = figure.colorbar(image, ax=list(panels), shrink=max(0.4, 1 / len(reports)), extend="neither")
    bar.set_label("change ‖E − B‖ / ‖B‖ in %   (grey: not changed)")
    figure.suptitle(
        title or f"Change from {Path(reports[0].base.partition(' (')[0]).name}, by layer and module", parse_math=False
    )
    save(figure, out)
    return out


def draw_panel(
    axes: "Axes",
    report: Report,
    values: list[list[float]],
    modules: list[str],
    colours: object,
    split: tuple[int, int] | None,
) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.ticker import MaxNLocator

    # A NaN takes the colour of what did not change.
    shown = [[100.0 * value if value else math.nan for value in row] for row in values]
    # The light end of the scale is near white: leave it to what did not change.
    palette = ListedColormap(colormaps["YlGnBu"]([0.12 + 0.88 * i / 255 for i in range(256)])).with_extremes(bad=NEVER)
    axes.imshow(shown, aspect="auto", cmap=palette, norm=colours, interpolation="nearest")  # type: ignore[arg-type]
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if not math.isfinite(value):
                axes.text(x, y, "×", color=NOT_FINITE, ha="center", va="center")
    axes.set_yticks(range(len(modules)), modules, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16, min_n_ticks=1))
    axes.set_xticks([x - 0.5 for x in range(1, len(values[0]))], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, len(modules))], minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    axes.set_title(f"{report.expert}   ({stem_of(report)})", fontsize=10, loc="left", parse_math=False)
    if split is not None:
        for edge in (split[0], report.depth - split[1]):
            axes.axvline(edge - 0.5, color="#e6550d", linewidth=2, linestyle="--")


def save(figure: "Figure", out: Path) -> None:
    try:
        figure.savefig(out)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ComposeError(f"{out}: cannot be written: {reason}") from error


def grid(report: Report, modules: Sequence[str], depth: int) -> list[list[float]]:
    """[module][layer] change: 0 where nothing is, NaN where not finite; of several the root of the mean square."""
    squares: dict[tuple[str, int], list[float]] = {}
    for row in report.rows:
        if row.layer is not None:
            value = math.nan if row.change is None else row.change * row.change
            squares.setdefault((pooled(row.module), row.layer), []).append(value)
    return [
        [math.sqrt(sum(found) / len(found)) if (found := squares.get((module, x))) else 0.0 for x in range(depth)]
        for module in modules
    ]


def modules_of(reports: Sequence[Report]) -> list[str]:
    """The modules that any expert changes: attention, then mlp, then norms, each in order of name."""
    names = {pooled(row.module) for report in reports for row in report.rows if row.layer is not None}
    return sorted(names, key=lambda name: (KINDS.index(kind_of(f"{name}.weight")), name))


def pooled(module: str) -> str:
    """One line for all experts of a mixture: mlp.experts.7.up_proj is mlp.experts.*.up_proj."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", module)


def stem_of(report: Report) -> str:
    stem = [row for row in report.rows if row.layer is None]
    changed = [f"{row.module.rpartition('.')[2]} {row.change:.1%}" for row in stem if row.change is not None]
    odd = [f"{row.module.rpartition('.')[2]} not finite" for row in stem if row.change is None]
    return f"stem: {', '.join(changed + odd) or 'not changed'}"
