"""experts: the commands that write and look at experts."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Column, Table

from layerloom import composer
from layerloom.composer import ComposeError, Family, Quality, Report
from layerloom.composer.sources.codecs import CODECS, Lowrank

from .console import PLOT, FamilyPath, clear_errors, err, out


def extract(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="the base's checkpoint directory")],
    expert: Annotated[Path, typer.Argument(metavar="EXPERT", help="the fine-tune's checkpoint directory")],
    output: Annotated[Path, typer.Option("--output", "-o", help="file to write, NAME.safetensors; must not exist")],
    codec: Annotated[str, typer.Option(help=f"{', '.join(CODECS)}, or auto, with --error-bound")] = "exact",
    error_bound: Annotated[
        float | None, typer.Option(help="for auto: the share of each tensor's change that may be lost, as in 0.1")
    ] = None,
    rank: Annotated[int, typer.Option(min=1, max=1 << 16, help="for lowrank")] = 16,
    everything: Annotated[
        bool, typer.Option("--everything", help="use the codec for norms, biases and the stem too")
    ] = False,
) -> None:
    """Writes an expert as its difference from the base: a delta archive."""
    with clear_errors():
        if codec != "auto" and codec not in CODECS:
            raise ComposeError(f"there is no codec {codec!r}. Valid: {', '.join(CODECS)}, auto")
        if (codec == "auto") != (error_bound is not None):
            raise ComposeError("--codec auto and --error-bound go together")
        chosen = None if codec == "auto" else Lowrank(rank=rank) if codec == "lowrank" else CODECS[codec]()
        total = sum(file.stat().st_size for file in expert.glob("*.safetensors"))
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal) as bar:
            task = bar.add_task("extract", total=total)
            composer.extract(
                base, expert, output, chosen, error_bound, everything, lambda _, size: bar.advance(task, size)
            )
        report = composer.inspect(output)[0]
    share = f", {report.bytes / total:.1%} of the checkpoint" if total else ""
    shown = f"wrote {output}: {len(report.rows)} tensors, {report.bytes / 1e6:.1f} MB{share}"
    out.print(shown, markup=False, highlight=False, soft_wrap=True)


def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="a family, a delta archive, or with --base any expert")],
    base: Annotated[
        Path | None, typer.Option(help="the base's checkpoint directory, for a checkpoint or adapter outside a family")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON array with every tensor")] = False,
    plot: Annotated[Path | None, PLOT] = None,
    quality: Annotated[
        bool, typer.Option("--quality", help="of a family: what each codec would cost a composition")
    ] = False,
    name: Annotated[str | None, typer.Option(help="for --quality: a composition; by default the first pair")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="for --quality: a prompt, in place of random tokens; repeat it for more")
    ] = None,
) -> None:
    """Shows what an expert, or each of a family, changes: size, change, codec and error by layer and module."""
    if quality:
        with clear_errors(), err.status("measuring") as status:
            if plot is not None:
                raise ComposeError("--quality draws no picture")
            if base is not None:
                raise ComposeError("--quality is of a family, which says what its base is")
            family = Family.load(path)
            name = name or next((pair for pair in family.names() if "+" in pair), family.names()[1])
            measured = composer.quality(
                family, name, prompt or (), progress=lambda codec: status.update(f"measuring {codec}")
            )
        print(json.dumps(asdict(measured))) if as_json else out.print(_costs(measured))
        return
    with clear_errors(), err.status("reading"):
        if name is not None or prompt:
            raise ComposeError("--name and --prompt go with --quality")
        reports = composer.inspect(path, base=base)
        if plot is not None:
            composer.draw(reports, plot)
    if as_json:
        print(json.dumps([asdict(report) for report in reports], default=str))
        return
    for report in reports:
        out.print(_table(report))


def suggest(
    family: FamilyPath,
    name: Annotated[str, typer.Argument(metavar="NAME", help="a task and a language, as in math+swahili")],
    plot: Annotated[Path | None, PLOT] = None,
) -> None:
    """Proposes a split for a layer swap from where the two experts change: a heuristic, and a name to try."""
    with clear_errors(), err.status("reading"):
        found = composer.suggest(Family.load(family), name)
        if plot is not None:
            composer.draw(found.reports, plot, (found.bottom, found.top), found.name)
    task, language = (report.expert for report in found.reports)
    table = Table("layer", "take from", f"change in {escape(language)}", f"change in {escape(task)}", title=found.name)
    depth, most = len(found.task), max(*found.language, *found.task) or 1.0
    for layer in range(depth):
        outer = layer < found.bottom or layer >= depth - found.top
        averaged = layer - found.bottom < found.transition or depth - found.top - 1 - layer < found.transition
        chosen = language if outer else f"{language}, {task}" if averaged else task
        parts = (found.language[layer], found.task[layer])
        bars = [f"{'█' * round(20 * part / most):20} {part:5.1%}" for part in parts]
        table.add_row(str(layer), escape(chosen), *bars)
    out.print(table)
    out.print(found.reasoning(), markup=False, highlight=False)
    out.print(f"\ntry: {found.name}", markup=False, highlight=False, soft_wrap=True)


def _costs(measured: Quality) -> Table:
    numbers = ("bytes", "of plain", "weight error", "KL, mean", "KL, worst", "agreement")
    table = Table(
        "codec",
        *(Column(title, justify="right") for title in numbers),
        title=escape(measured.name),
        caption=f"prompts: {measured.prompts}; KL in nats over {measured.positions} positions, "
        f"agreement over {measured.tokens} greedy tokens",
    )
    for cost in measured.costs:
        share = f"{cost.bytes / cost.plain:.1%}" if cost.plain else "-"
        table.add_row(
            cost.codec,
            f"{cost.bytes:,}",
            share,
            f"{cost.error:.2%}",
            f"{cost.divergence:.2g}",
            f"{cost.worst:.2g}",
            f"{cost.agreement:.1%}",
        )
    return table


def _table(report: Report) -> Table:
    title = (
        f"{report.expert}   {report.kind} on {report.base}   {report.bytes / 1e6:.2f} MB, {len(report.rows)} tensors"
    )
    table = Table(
        "layer", "module", "codec", Column("bytes", justify="right"), "of plain", "change", "error", title=escape(title)
    )
    last: int | None = -1
    for row in report.rows:
        layer = "stem" if row.layer is None else str(row.layer)
        ratio = f"{row.bytes / row.plain:.1%}" if row.plain else "-"
        change, lost = ("-" if value is None else f"{value:.2%}" for value in (row.change, row.error))
        first = layer if row.layer != last else ""
        table.add_row(first, escape(row.module), row.codec, f"{row.bytes:,}", ratio, change, lost)
        last = row.layer
    return table
