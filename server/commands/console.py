"""console: what all commands share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from layerloom.composer import ComposeError, Family

out, err = Console(), Console(stderr=True)

FamilyPath = Annotated[Path, typer.Argument(metavar="FAMILY", help="family.yaml, or the directory that holds it")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="a composition, for example math+swahili")]
PLOT = typer.Option(help="draw a heat map of change over layers and modules into this file: .png, .svg or .pdf")


def load(path: Path) -> Family:
    """The family, after saying how its files are read where that is not as they are."""
    family = Family.load(path)
    for note in family.notes:
        err.print(f"[yellow]note:[/] {escape(note)}", highlight=False, soft_wrap=True)
    return family


@contextmanager
def clear_errors() -> Iterator[None]:
    """Ends the command with status 2 and one message when what it was given cannot be composed."""
    try:
        yield
    except ComposeError as error:
        err.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
