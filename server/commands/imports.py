"""imports: the commands that take over what other tools have written."""

from pathlib import Path
from typing import Annotated

import typer

from .console import err, say, show


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
    """Make a family.yaml of a mergekit configuration.

    In which that is a composition. As in: layerloom import-mergekit merge.yml
    """
    from layerloom import composer

    made = composer.import_mergekit(file, output, base, name, task or (), language or ())
    for note in made.notes:
        say(note, "note")
    experts = ", ".join(f"{expert} ({kind})" for expert, kind in made.experts.items())
    show(f"wrote {made.path}: {made.name}, of {experts or 'the base alone'}")


def convert(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="a checkpoint or adapter with pickled weights")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="directory to write; by default DIR-safetensors")
    ] = None,
) -> None:
    """Write pickled weights (.bin) as safetensors.

    None of the code that a pickle may hold is run. As in: layerloom convert my-model
    """
    with err.status("converting"):
        from layerloom import composer

        made = composer.convert(directory, output)
    for note in made.notes:
        say(note, "note")
    show(f"wrote {made.path}")
