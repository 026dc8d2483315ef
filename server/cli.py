"""cli: the `layerloom` command. vLLM is imported only by the commands that run an engine."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from layerloom import composer
from layerloom.composer import ComposeError, Family

app = typer.Typer(
    help="Serve many layer-swapped language models from one copy of the base.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out, err = Console(), Console(stderr=True)

FamilyPath = Annotated[Path, typer.Argument(metavar="FAMILY", help="family.yaml, or the directory that holds it")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="a composition, for example math+swahili")]


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
) -> None:
    """Serves a family over the OpenAI API. Any option of `vllm serve` may follow."""
    from .engine import prepare_environment

    prepare_environment()
    with clear_errors():
        loaded = Family.load(family)
        from vllm.entrypoints.cli.serve import ServeSubcommand
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        from .engine import engine_options

        parser = make_arg_parser(FlexibleArgumentParser(prog="layerloom serve FAMILY"))
        args = parser.parse_args([*context.args, "--port", str(port)])
        given = {name: value for name, value in vars(args).items() if value != parser.get_default(name)}
        for name, value in engine_options(loaded, allow_recipes, given).items():
            setattr(args, name, value)
        args.model_tag = None
    ServeSubcommand().validate(args)
    ServeSubcommand.cmd(args)


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
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }.items():
        os.environ.setdefault(name, value)
    with clear_errors():
        Family.load(family).parse(model)
        from .runtime import Runtime

        runtime = Runtime(family, enforce_eager=True, disable_log_stats=True)
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
