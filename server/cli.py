"""cli: the `layerloom` command. vLLM is imported only by the commands that run an engine."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Column, Table

from layerloom import composer
from layerloom.composer import ComposeError, Family, Quality, Report
from layerloom.composer.codecs import CODECS, Lowrank

app = typer.Typer(
    help="Serve many layer-swapped language models from one copy of the base.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out, err = Console(), Console(stderr=True)

FamilyPath = Annotated[Path, typer.Argument(metavar="FAMILY", help="family.yaml, or the directory that holds it")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="a composition, for example math+swahili")]
PLOT = typer.Option(help="draw a heat map of change over layers and modules into this file: .png, .svg or .pdf")


@contextmanager
def clear_errors() -> Iterator[None]:
    try:
        yield
    except ComposeError as error:
        err.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    family: FamilyPath,
    port: Annotated[int, typer.Option(help="port of the HTTP server")] = 8000,
    allow_recipes: Annotated[
        bool, typer.Option("--allow-recipes", help="accept options in names: math+swahili@bottom=6,top=2")
    ] = False,
    bank_memory: Annotated[
        str | None, typer.Option(help="memory for compositions, as in 8G or 512M; by default what the family's need")
    ] = None,
    pages: Annotated[
        str | None, typer.Option(help="packed (for a CPU's matrix products) or arena (what a GPU uses)")
    ] = None,
    residency: Annotated[
        str | None, typer.Option(help="assembled, or delta: keep lossy archives and LoRA adapters packed, in an arena")
    ] = None,
    wait_for_room: Annotated[
        float, typer.Option(min=0, help="seconds a request waits while others use all bank memory, before a 503")
    ] = 30.0,
    open_metrics: Annotated[
        bool, typer.Option("--open-metrics", help="leave /metrics open where --api-key is set")
    ] = False,
) -> None:
    """Serves a family over the OpenAI API. Any option of `vllm serve` may follow."""
    from .engine import prepare_environment

    prepare_environment()
    with clear_errors():
        loaded = Family.load(family)
        from .serve import arguments, run

        options = [*context.args, "--port", str(port)]
        front = {"patience": wait_for_room, "open_metrics": open_metrics}
        args = arguments(loaded, options, allow_recipes, bank_memory, pages, residency, **front)
    run(args)


@app.command()
def generate(
    family: FamilyPath,
    model: Annotated[str, typer.Option(help="a composition, for example math+swahili")],
    prompt: Annotated[list[str], typer.Option(help="a prompt; repeat the option for more")],
    max_tokens: Annotated[int, typer.Option(min=1)] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object per prompt: model, text, token_ids")] = False,
) -> None:
    """Continues prompts with one composition, greedily, in this process."""
    for name, value in {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }.items():
        os.environ.setdefault(name, value)
    with clear_errors():
        Family.load(family).parse(model)
        from .runtime import Runtime

        with Runtime(family, enforce_eager=True, disable_log_stats=True) as runtime:
            results = runtime.generate(model, prompt, max_tokens=max_tokens)
            canonical = runtime.family.parse(model).name
    for result in results:
        answer = result.outputs[0]
        if as_json:
            print(json.dumps({"model": canonical, "text": answer.text, "token_ids": list(answer.token_ids)}))
        else:
            out.print(answer.text, markup=False, highlight=False, soft_wrap=True)


@app.command()
def merge(
    family: FamilyPath,
    name: Name,
    output: Annotated[Path, typer.Option("--output", "-o", help="directory to write; must not exist or be empty")],
) -> None:
    """Writes a composition as an ordinary Hugging Face checkpoint."""
    with clear_errors():
        path = composer.merge(Family.load(family), name, output)
    out.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def verify(
    family: FamilyPath,
    name: Name,
    against: Annotated[Path, typer.Option(help="a checkpoint directory to compare with")],
) -> None:
    """Compares a composition with a checkpoint bit by bit; exit status 1 lists the tensors that differ."""
    with clear_errors():
        differences = composer.verify(Family.load(family), name, against)
    if not differences:
        out.print("equal, bit by bit", highlight=False)
        return
    table = Table(Column("tensor", overflow="fold"), "difference", title=f"{len(differences)} tensors differ")
    for difference in differences:
        table.add_row(escape(difference.tensor), escape(difference.reason))
    out.print(table)
    raise typer.Exit(1)


@app.command()
def plan(family: FamilyPath, name: Name) -> None:
    """Shows which expert, or blend of experts, each layer of a composition comes from."""
    with clear_errors():
        planned = Family.load(family).plan(name)
    table = Table("layer", "from", title=f"{planned.name}   digest {planned.digest[:12]}")
    rows = [(str(index), blend.describe()) for index, blend in enumerate(planned.layers)]
    rows.append(("stem", composer.describe_blend(planned.stem)))
    start = 0
    for index in range(1, len(rows) + 1):
        if index == len(rows) or rows[index][1] != rows[start][1] or rows[index][0] == "stem":
            first, last = rows[start][0], rows[index - 1][0]
            table.add_row(first if first == last else f"{first}-{last}", escape(rows[start][1]))
            start = index
    out.print(table)


@app.command()
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


@app.command()
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


@app.command()
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
