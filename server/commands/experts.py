"""experts: the commands that write and look at experts."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .completing import names_of_family
from .console import PLOT, FamilyPath, err, show
from .progress import load_family, progress
from .tables import show_table

if TYPE_CHECKING:
    from layerloom.composer import Quality, Report, Suggestion

CODECS = ("exact", "int8", "int4", "sign", "lowrank")
"""Those of composer, which takes seconds to import."""

BAR = 12
"""Characters of the longest bar."""


def extract(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="the base's checkpoint directory")],
    expert: Annotated[Path, typer.Argument(metavar="EXPERT", help="the fine-tune's checkpoint directory")],
    output: Annotated[Path, typer.Option("--output", "-o", help="file to write, NAME.safetensors; must not exist")],
    codec: Annotated[str, typer.Option(help=f"{', '.join(CODECS)}, or auto, with --error-bound")] = "exact",
    error_bound: Annotated[
        float | None, typer.Option(help="for auto: the share of each tensor's change that may be lost, as in 0.1")
    ] = None,
    rank: Annotated[int, typer.Option(min=1, max=1 << 16, help="for lowrank: of its matrices")] = 16,
    everything: Annotated[
        bool, typer.Option("--everything", help="use the codec for norms, biases and the stem too")
    ] = False,
) -> None:
    """Write what an expert changes as a small file.

    A delta archive, which can stand for the expert in family.yaml. As in: layerloom extract base math -o
    math.safetensors
    """
    from layerloom import composer
    from layerloom.composer import ComposeError
    from layerloom.composer.sources import codecs

    if codec != "auto" and codec not in codecs.CODECS:
        raise ComposeError(f"there is no codec {codec!r}. Valid: {', '.join(CODECS)}, auto")
    if (codec == "auto") != (error_bound is not None):
        raise ComposeError("--codec auto and --error-bound go together, as in --codec auto --error-bound 0.1")
    chosen = codecs.Lowrank(rank=rank) if codec == "lowrank" else None if codec == "auto" else codecs.CODECS[codec]()
    total = sum(file.stat().st_size for file in expert.glob("*.safetensors"))
    with progress("extracting", total) as advance:
        composer.extract(base, expert, output, chosen, error_bound, everything, advance)
    report = composer.inspect(output)[0]
    share = f", {report.bytes / total:.1%} of the checkpoint" if total else ""
    show(f"wrote {output}: {len(report.rows)} tensors, {report.bytes / 1e6:.1f} MB{share}")


def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="a family, a delta archive, or with --base any expert")],
    base: Annotated[
        Path | None, typer.Option(help="the base's checkpoint directory, for a checkpoint or adapter outside a family")
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="one JSON array of experts, each with all its tensors; with --quality one object"),
    ] = False,
    plot: Annotated[Path | None, PLOT] = None,
    quality: Annotated[
        bool, typer.Option("--quality", help="of a family: what each codec would cost a composition")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(help="for --quality: a composition; by default the first pair", autocompletion=names_of_family),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="for --quality: a prompt, in place of random tokens; repeat it for more")
    ] = None,
) -> None:
    """Show what an expert, or each of a family, changes.

    By layer and module: its size, how far it is from the base, and what its codec lost. As in: layerloom inspect demo
    """
    from layerloom import composer
    from layerloom.composer import ComposeError

    if quality:
        if plot is not None:
            raise ComposeError("--quality draws no picture: leave --plot out")
        if base is not None:
            raise ComposeError("--quality is of a family, which says what its base is: leave --base out")
        measured = measure(path, name, prompt or [])
        if as_json:
            print(json.dumps(asdict(measured)))
        else:
            show_costs(measured)
        return
    if name is not None or prompt:
        raise ComposeError("--name and --prompt go with --quality")
    with err.status("reading") as status:
        reports = composer.inspect(path, lambda tensor: status.update(f"reading {tensor}"), base)
        if plot is not None:
            composer.draw(reports, plot)
    if as_json:
        print(json.dumps([asdict(report) for report in reports], default=str))
        return
    for report in reports:
        show_report(report)


def suggest(
    family: FamilyPath,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="a task and a language, as in math+swahili", autocompletion=names_of_family
        ),
    ],
    plot: Annotated[Path | None, PLOT] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="one JSON object: name (to try), bottom, top, transition, is_clear, reasoning; language and task: "
            "the share of change in each layer; kept and preset: the shares that this split and the paper's keep",
        ),
    ] = False,
) -> None:
    """Propose how to split layers between two experts.

    A heuristic, from where the two change the base, and a name to try. As in: layerloom suggest demo math+swahili
    """
    loaded = load_family(family, name)
    from layerloom import composer
    from layerloom.composer.tools.inspect import of_expert

    total = 2 * len(loaded.base.tensors)
    with progress("reading", total, in_bytes=False) as advance:
        found = composer.suggest(
            loaded, name, lambda family, expert: of_expert(family, expert, lambda tensor: advance(expert.name, 1))
        )
    if plot is not None:
        composer.draw(found.reports, plot, (found.bottom, found.top), found.name)
    if as_json:
        keys = ("name", "bottom", "top", "transition", "is_clear", "language", "task", "kept", "preset")
        print(json.dumps({key: getattr(found, key) for key in keys} | {"reasoning": found.reasoning()}))
    else:
        show_suggestion(found)


def measure(path: Path, name: str | None, prompts: list[str]) -> "Quality":
    loaded = load_family(path)
    from layerloom import composer
    from layerloom.composer.tools import quality

    name = name or next((pair for pair in loaded.names() if "+" in pair), loaded.names()[1])
    with progress("measuring", len(quality.CODECS) + 1, in_bytes=False) as advance:
        advance("the experts as they are", 0)
        return composer.quality(loaded, name, prompts, progress=lambda codec: advance(codec, 1))


def show_suggestion(found: "Suggestion") -> None:
    task, language = (report.expert for report in found.reports)
    depth, most = len(found.task), max(*found.language, *found.task) or 1.0
    rows = []
    for layer in range(depth):
        outer = layer < found.bottom or layer >= depth - found.top
        averaged = layer - found.bottom < found.transition or depth - found.top - 1 - layer < found.transition
        chosen = language if outer else f"{language}, {task}" if averaged else task
        parts = (found.language[layer], found.task[layer])
        rows.append((str(layer), chosen, *(f"{'█' * round(BAR * part / most):{BAR}} {part:5.1%}" for part in parts)))
    show_table(found.name, ("layer", "take from", f"change in {language}", f"change in {task}"), rows)
    show(f"{found.reasoning()}\n\ntry: {found.name}")


def show_costs(measured: "Quality") -> None:
    numbers = ("bytes", "of plain", "weight error", "KL, mean", "KL, worst", "agreement")
    rows = [
        (
            cost.codec,
            f"{cost.bytes:,}",
            f"{cost.bytes / cost.plain:.1%}" if cost.plain else "-",
            f"{cost.error:.2%}",
            f"{cost.divergence:.2g}",
            f"{cost.worst:.2g}",
            f"{cost.agreement:.1%}",
        )
        for cost in measured.costs
    ]
    caption = (
        f"prompts: {measured.prompts}; KL in nats over {measured.positions} positions, "
        f"agreement over {measured.tokens} greedy tokens"
    )
    show_table(measured.name, ("codec", *numbers), rows, right=numbers, caption=caption)


def show_report(report: "Report") -> None:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.2%}"

    def cells(row: Any, first: str) -> tuple[str, ...]:
        if report.kind != "archive":
            return first, row.module, f"{row.bytes:,}", share(row.change)
        ratio = f"{row.bytes / row.plain:.1%}" if row.plain else "-"
        return first, row.module, row.codec, f"{row.bytes:,}", ratio, share(row.change), share(row.error)

    rows, last = [], ""
    for row in report.rows:
        layer = "stem" if row.layer is None else str(row.layer)
        rows.append(cells(row, layer if layer != last else ""))
        last = layer
    archive = ("layer", "module", "codec", "bytes", "of plain", "change", "error")
    title = f"{report.expert}   {report.kind} on {report.base}   {report.bytes / 1e6:.2f} MB, {len(rows)} tensors"
    heads = archive if report.kind == "archive" else ("layer", "module", "bytes", "change")
    show_table(title, heads, rows, right=archive[3:] if report.kind == "archive" else ("bytes", "change"))
    show("")
