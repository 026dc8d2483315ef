"""console: what all commands share."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from layerloom.composer import ComposeError, ComposeWarning

out, err = Console(), Console(stderr=True)

FamilyPath = Annotated[Path, typer.Argument(metavar="FAMILY", help="family.yaml, or the directory that holds it")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="a composition, for example math+swahili")]
PLOT = typer.Option(help="draw a heat map of change over layers and modules into this file: .png, .svg or .pdf")


@contextmanager
def clear_errors() -> Iterator[None]:
    """Ends the command with status 2 and one message when what it was given cannot be composed."""
    try:
        with warnings.catch_warnings():
            shown = warnings.showwarning

            def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
                if issubclass(category, ComposeWarning):
                    err.print(f"[yellow]warning:[/] {escape(str(message))}", highlight=False, soft_wrap=True)
                else:
                    shown(message, category, *rest)

            warnings.showwarning = show
            yield
    except ComposeError as error:
        err.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
