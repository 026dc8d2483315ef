"""imports: the commands that take over what other tools have written."""

from pathlib import Path
from typing import Annotated

import typer

from layerloom import composer

from .console import clear_errors, err, out


def import_mergekit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a configuration of mergekit, linear or passthrough")],
    output: Annotated[Path, typer.Option("--output", "-o", help="family.yaml to write; must not exist")] = Path(
        "family.yaml"
    ),
    base: Annotated[
        str | None, typer.Option(help="what all models are fine-tunes of, where the file has no base_model")
    ] = None,
    name: Annotated[str | None, typer.Option(help="the composition's name; by default the file's")] = None,
    task: Annotated[list[str] | None, typer.Option(help="an expert that is a task; repeat it for more")] = None,
    language: Annotated[list[str] | None, typer.Option(help="an expert that is a language")] = None,
) -> None:
    """Writes the family.yaml in which a mergekit configuration is a composition."""
    with clear_errors():
        made = composer.import_mergekit(file, output, base, name, task or (), language or ())
    for note in made.notes:
        err.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    experts = ", ".join(f"{expert} ({kind})" for expert, kind in made.experts.items())
    shown = f"wrote {made.path}: {made.name}, of {experts or 'the base alone'}"
    out.print(shown, markup=False, highlight=False, soft_wrap=True)


def convert(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="a checkpoint or adapter with pickled weights")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="directory to write; by default DIR-safetensors")
    ] = None,
) -> None:
    """Writes a checkpoint or adapter of pickled weights (.bin) as safetensors."""
    with clear_errors(), err.status("converting"):
        made = composer.convert(directory, output)
    for note in made.notes:
        err.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    out.print(f"wrote {made.path}", markup=False, highlight=False, soft_wrap=True)
