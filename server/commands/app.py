"""app: the `layerloom` command. What its commands need is imported when one is called: help comes at once."""

from typing import Annotated

import typer

from layerloom.server import importing
from layerloom.server.http import quiet
from layerloom.server.versions import installed, vllm_version

from . import chat, compositions, doctor, engines, experts, imports, sweep
from .group import DEBUG, Commands

# vLLM's processes begin with what their parent's main module is: this.
quiet.join(started=True)
importing.begin()
importing.spare_the_end()

app = typer.Typer(cls=Commands, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


def show_versions(wanted: bool) -> None:
    if wanted:
        found = {"layerloom": installed("layerloom"), "vLLM": vllm_version(), "torch": installed("torch")}
        typer.echo(", ".join(f"{name} {version or '-'}" for name, version in found.items()))
        raise typer.Exit


@app.callback()
def layerloom(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=show_versions, help="Show versions and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option(DEBUG, help="Show where errors come from; as LAYERLOOM_DEBUG=1.")] = False,
) -> None:
    """Serve many layer-swapped language models from one copy of the base."""


extra = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command(cls=engines.Serve, context_settings=extra)(engines.serve)
for command in (
    chat.chat,
    engines.generate,
    doctor.doctor,
    compositions.plan,
    compositions.merge,
    compositions.verify,
    experts.extract,
    experts.inspect,
    experts.suggest,
    sweep.sweep,
    imports.import_mergekit,
    imports.convert,
):
    app.command()(command)
